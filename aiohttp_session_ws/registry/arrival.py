"""
Arrival: every request is judged before any handler sees its session.

Requests of sessions that no record concerns take a fast path: a few dict look-ups after the
session is loaded, and no await. Over 300 lines long: the fast path stands beside what it skips.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

from aiohttp import web
from aiohttp_session import Session

from .._lineage import LAST_GENERATION, Lineage, Subject, new_lineage
from .._refused import Unavailable
from .._tasks import maybe_await
from ..exceptions import IdentifyFailed, InvalidIdentity, InvalidSessionWSId, NotSetUp
from ..sessions.context import ARRIVING, HANDLING, RequestContext, set_current
from ..sessions.records import LineageRenewed
from ..sessions.session import (
    begin_session,
    content_of,
    created_at,
    digest_of_cookie,
    id_in,
    is_server_side,
    keep_session,
    load_session,
    loaded_session,
    storage_in,
)
from ..sessions.status import SETTLED, State, Status, effective_began
from .core import Core
from .identify import ANONYMOUS, Owner, subjects_of
from .order import Order

__all__: list[str] = []

OWN_KEYS: Final = 2  # the id and the lineage


def begin_request(core: Core, request: web.Request) -> RequestContext:
    """
    Return the context of a request that arrives now.
    """
    # The loop is given, since asyncio would need a system call to find it on Python 3.11.
    return RequestContext(request, asyncio.current_task(core.loop), core.clock.begin_time())


def fast_path_load(core: Core, request: web.Request) -> Awaitable[Session] | None:
    """
    Return an awaitable that loads the session of a request, if that may take the fast path.
    """
    if len(request) > 1 and loaded_session(request) is not None:  # most hold only a storage
        core.warn.loaded_early()
        return None
    storage = storage_in(request)
    if storage not in core.storages:  # the first session of each takes the full path
        return None
    return storage.load_session(request)


def try_fast_path(
    core: Core, request: web.Request, context: RequestContext, session: Session
) -> bool:
    """
    Judge a request by the fast path: its session, just loaded, has an id and a lineage, and no
    record concerns it. Return whether that was so; else nothing is judged.
    """
    if not keep_session(request, session):
        return False
    try:  # quicker than get()
        session_ws_id, lineage = session[core.keys.id], Lineage.parse(session[core.keys.lineage])
    except KeyError:
        return False
    if lineage is None or type(session_ws_id) is not str or core.overrides.ids:
        return False
    records = core.records
    if core.cluster.remote and core.cluster.check_due(lineage.token):
        return False
    if (lineage.generation or records.may_concern(lineage.token)) and not _no_record_applies(
        core, lineage, session_ws_id
    ):
        return False
    context.lineage, context.session_ws_id = lineage, session_ws_id
    context.newest, context.carried = lineage.generation, True
    context.epoch = records.epoch
    context.held_data = len(session) > OWN_KEYS
    context.session, context.stage = session, HANDLING
    if core.identifier.configured:
        context.content = content_of(session, core.keys)
    set_current(context)
    return True


def _no_record_applies(core: Core, lineage: Lineage, session_ws_id: str) -> bool:
    """
    Return whether no record can concern a session, except that of its own, newest generation.
    """
    records = core.records
    if records.may_have_lineage(lineage.token):
        record = records.lineage(lineage.token)
        if (
            not isinstance(record, LineageRenewed)
            or record.generation != lineage.generation
            or not record.seen
        ):
            return False
    elif lineage.generation:
        return False
    if not records.has_subjects:
        return True
    if records.ended_before(Subject("id", session_ws_id)) > -math.inf:
        return False
    if not core.identifier.configured:
        return True
    return records.latest_owner_end < effective_began(lineage, core.clock.now())


class Arrival:
    """
    The judging of one request.

    Args:
        core: The registry's parts.
        request: The request.
        context: The context to fill; by default a new one, of a request that arrives now.
    """

    def __init__(
        self, core: Core, request: web.Request, context: RequestContext | None = None
    ) -> None:
        self._core = core
        self._request = request
        self._context = context or begin_request(core, request)
        self._make_id: Callable[[web.Request], object] = core.ids.ensure_id
        set_current(self._context)

    async def judge(self) -> RequestContext:
        """
        Load the session, give it an id and a lineage if it has none, and judge it.

        Raises:
            NotSetUp: If aiohttp_session's middleware is missing or comes later.
            aiohttp.web.HTTPServiceUnavailable: If ``identify`` is needed and fails.
        """
        try:
            return await self._judge()
        except BaseException:
            self._context.finish()  # so that the request is judged if it is handled again
            raise

    async def give_id(self) -> None:
        """
        Give the session an id, for a socket, where the application's ``ensure_id`` gave it none.
        """
        context = self._context
        self._make_id = self._core.ids.new_id
        context.stage = ARRIVING  # giving a missing id is no renewal
        try:
            if context.session is None:
                await self._ensure_external_id()
            else:
                await self._ensure_lineage(context.session)
        finally:
            context.stage = HANDLING

    async def _judge(self) -> RequestContext:
        core, context = self._core, self._context
        session = context.session = await self._load()
        if session is None:
            await self._ensure_external_id()
        else:
            await self._ensure_lineage(session)
        if context.lineage is not None:
            context.status = await self._status(context.lineage)
            context.newest = core.records.newest(context.lineage.token)
        if session is not None:
            await self._act_on(session)
        if context.status.alive and context.lineage is not None:
            self._mark_seen(context.lineage)
        session = context.session
        if session is not None:
            context.carried = core.keys.lineage in session
            context.held_data = core.keys.holds_data(session)
            if core.identifier.configured or context.given:
                context.content = content_of(session, core.keys)
        context.stage = HANDLING
        return context

    async def _load(self) -> Session | None:
        storage = storage_in(self._request)
        if storage is not None:
            self._core.saw_storage(storage)
            return await load_session(self._request)
        if self._core.overrides.ids:
            return None  # the application keeps ids outside of any session
        raise NotSetUp(
            "no session: put session_ws_middleware inside aiohttp_session's, as in"
            " web.Application(middlewares=[aiohttp_session.session_middleware(storage),"
            " session_ws_middleware])"
        )

    async def _ensure_external_id(self) -> None:
        """
        Read an id that is kept outside of any session, or give one; it is its own lineage.
        """
        context = self._context
        context.session_ws_id = await self._current_id()
        if context.session_ws_id is None:
            await maybe_await(self._make_id(self._request))
            context.session_ws_id = await self._current_id()
        if context.session_ws_id is not None:
            context.lineage = Lineage(f"id {context.session_ws_id!r}", 0, 0.0)

    async def _ensure_lineage(self, session: Session) -> None:
        """
        Give a session an id and a lineage if it has none.
        """
        context, keys = self._context, self._core.keys
        lineage = keys.read_lineage(session)
        context.session_ws_id = await self._current_id()
        if lineage is None:
            # Before the id is written, which would change what the lineage is derived from.
            lineage = self._first_lineage(session, context.session_ws_id)
        written = keys.lineage in session
        if context.session_ws_id is None:
            context.loaded = content_of(session, keys)
            await maybe_await(self._make_id(self._request))
            context.session_ws_id = await self._current_id()
            context.given = context.id_given = context.session_ws_id is not None
        if not written and context.session_ws_id is None and session.empty:
            return  # an anonymous visitor to whom the application gives no id
        if not written and context.session_ws_id is not None:
            keys.write_lineage(session, lineage)
            context.given = True
        context.lineage = lineage

    async def _current_id(self) -> Hashable | None:
        """
        Return the current id of the request; an unusable one in a cookie counts as none.
        """
        core = self._core
        if not core.overrides.ids and self._context.session is not None:
            session_ws_id = id_in(self._context.session, core.keys.id)
        else:
            session_ws_id = await core.current_id(self._request)
        if session_ws_id is None:
            return None
        try:
            return core.usable_id(session_ws_id)
        except InvalidSessionWSId:
            if core.overrides.ids:
                raise
            return None  # a cookie that is forged or broken

    def _first_lineage(self, session: Session, session_ws_id: Hashable | None) -> Lineage:
        """
        Return a lineage for a session that carries none.
        """
        core = self._core
        if not session.empty:
            created = created_at(session)
            if session_ws_id is not None and core.overrides.random_ids:
                return Lineage(str(session_ws_id), 0, created)
            # A digest is the same for parallel requests and every replay, without being stored.
            token = digest_of_cookie(self._request, session, "lineage")
            if token is not None:
                return Lineage(token, 0, created)
        return new_lineage(self._context.arrived)

    async def _status(self, lineage: Lineage) -> Status:
        """
        Judge the session by the records here; query the cluster and ``identify`` only if needed.
        """
        core, context = self._core, self._context
        owner = ANONYMOUS
        due = core.cluster.check_due(lineage.token)
        if due:
            owner = await self._owner(lineage)
            subjects = subjects_of(context.session_ws_id, owner)
            context.checked = await core.cluster.check_request(lineage.token, subjects)
        found = core.judge(lineage, context.session_ws_id, owner)
        if found.state is State.ENDED or due or not core.identifier.configured:
            return found
        if core.records.latest_owner_end < effective_began(lineage, core.clock.now()):
            return found
        return core.judge(lineage, context.session_ws_id, await self._owner(lineage))

    async def _owner(self, lineage: Lineage) -> Owner:
        try:
            return await self._core.identifier.of_lineage(self._request, lineage.token)
        except (IdentifyFailed, InvalidIdentity) as exc:
            raise Unavailable("identify", "the session can't be identified now") from exc

    async def _act_on(self, session: Session) -> None:
        """
        Replace a session that is over by an empty one, or repair one that lost a race.

        A session kept on the server can have an older generation only because a parallel request
        saved it over the renewal; it is given the newest one.
        """
        core, context, lineage = self._core, self._context, self._context.lineage
        state, age, _ = context.status
        if state is State.ALIVE or lineage is None:
            return
        record = core.records.lineage(lineage.token)
        if (
            state is State.REPLACED
            and is_server_side(session)
            and isinstance(record, LineageRenewed)
            and not record.login
        ):
            context.lineage = lineage.renewed(record.generation)
            core.keys.write_lineage(session, context.lineage)
            context.status = core.judge(context.lineage, context.session_ws_id)
            context.newest, context.given = record.generation, True
        elif state is State.ENDED or age >= core.expiry.renewal_grace:
            await self._begin_anew(with_id=state is State.REPLACED or age > SETTLED)

    async def _begin_anew(self, *, with_id: bool) -> None:
        """
        Give the request a new, empty session.

        Args:
            with_id: Whether to give it an id: not while another response, with the right cookie,
                may be on its way.
        """
        core, context = self._core, self._context
        context.session = await begin_session(self._request)
        context.fresh = True
        if with_id:
            await maybe_await(core.ids.ensure_id(self._request))
            if not context.session.empty:
                core.keys.write_lineage(context.session, new_lineage(context.arrived))
                context.given = True

    def _mark_seen(self, lineage: Lineage) -> None:
        """
        Record that a request has come with the newest generation.
        """
        core, generation = self._core, lineage.generation
        if not 0 < generation < LAST_GENERATION:
            return
        known = core.records.lineage(lineage.token)
        if isinstance(known, LineageRenewed) and known.generation == generation:
            change = known._replace(seen=True)
        else:
            newest = known.generation if isinstance(known, LineageRenewed) else 0
            if generation < newest:
                return
            now = core.clock.now()
            change = LineageRenewed(lineage.token, generation, 0, now, False, True, core.ttl)
        if change != known:
            core.issue_soon(Order((change,)))
            self._context.newest = generation
