"""
Settling: determines once per request what its handler did to the session, and acts on it.

It runs when the handler is done, however it ended, and before the response is sent. Two questions
are answered independently: what has *ended* or was renewed, which makes records whatever becomes
of the response, and what is *saved*. The session as it is now is judged for saving, not as it
arrived: it isn't saved if it would revive an ended session or overwrite a newer cookie.

Over 300 lines long: both questions depend on what the handler did, which is classified first.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aiohttp import web
from aiohttp_session import Session

from .._lineage import Lineage, Subject, new_lineage
from .._tasks import maybe_await
from ..sessions.clock import TICK
from ..sessions.context import NO_ORDERS, RequestContext, Stage
from ..sessions.records import LOGIN_TTL, Change, LineageEnded, LineageRenewed
from ..sessions.session import (
    cookie_of,
    copy_of,
    empty_in_storage,
    id_in,
    is_server_side,
    loaded_session,
    move_session,
    put_session,
    was_changed,
)
from ..sessions.status import SETTLED, State
from .core import Core
from .identify import ANONYMOUS, Owner
from .order import Order, Refresh

__all__: list[str] = []


class Outcome(NamedTuple):
    """
    What a handler did to the session that its request came with.

    Attributes:
        anew: It was replaced or emptied, or its derived id was removed or changed.
        owner: Its identity and labels now.
        previous: Its identity and labels on arrival.
        renewed: It continues under another id.
        removed: Its id was removed, and without ``identify`` it isn't known if that is a log-out.
        relabelled: Its labels have changed.
    """

    anew: bool
    owner: Owner
    previous: Owner
    renewed: bool
    removed: bool
    relabelled: bool = False

    @property
    def changed_hands(self) -> bool:
        """
        Whether the session has another identity than on arrival, or none any more.
        """
        return not self.anew and self.owner.identity != self.previous.identity

    @property
    def logged_in(self) -> bool:
        """
        Whether an anonymous visitor has logged in.
        """
        return self.changed_hands and self.previous.identity is None


UNCHANGED: Final = Outcome(
    anew=False, owner=ANONYMOUS, previous=ANONYMOUS, renewed=False, removed=False
)


async def compare(
    core: Core, request: web.Request, context: RequestContext, session: Session
) -> Outcome:
    """
    Classify how the handler of *request* changed its session.

    Args:
        core: The registry's parts.
        request: The request.
        context: The context of the request, with the session as it arrived.
        session: The session that the request has now.
    """
    if _is_as_on_arrival(core, context, session):
        return await _unchanged(core, request, context)
    previous_id = None if context.fresh else context.session_ws_id
    anew = session is not context.session or _was_emptied(core, context, session)
    owner = previous = ANONYMOUS
    if core.overrides.ids:
        current_id = await core.current_id(request)
        if current_id != previous_id and not context.orders.renewed:
            # Without identify, a derived id serves as the identity.
            owner, previous = Owner(current_id), Owner(previous_id)
            anew = anew or (core.identifier.identify is not None and previous_id is not None)
    else:
        current_id = id_in(session, core.keys.id)
    renewed = context.orders.renewed or (
        not core.overrides.ids and current_id not in (None, previous_id)
    )
    removed = not core.overrides.ids and current_id is None and previous_id is not None
    relabelled = False
    if core.identifier.configured:
        found = await core.identifier.of(request)
        before = await _previous_owner(core, request, context)
        relabelled = _has_other_labels(context, found, before)
        if core.identifier.identify is not None:
            owner, previous = found, before
            renewed, removed = renewed or removed, False
        else:
            owner = owner._replace(labels=found.labels)
            previous = previous._replace(labels=before.labels)
    # Sockets and cookies with the older labels aren't found by the new ones: renew the session.
    renewed = renewed or (relabelled and not removed)
    return Outcome(anew, owner, previous, renewed and not anew, removed and not anew, relabelled)


async def _unchanged(core: Core, request: web.Request, context: RequestContext) -> Outcome:
    """
    Return the outcome of an unchanged session, with its owner if an end may concern its owner.
    """
    lineage = context.lineage
    if not core.identifier.configured or lineage is None:
        return UNCHANGED
    if core.records.latest_owner_end < lineage.began:
        return UNCHANGED
    owner = await _previous_owner(core, request, context)
    return UNCHANGED._replace(owner=owner, previous=owner)


def _has_other_labels(context: RequestContext, owner: Owner, previous: Owner) -> bool:
    """
    Return whether the labels of a session have changed, unless it is new with this request.
    """
    if context.fresh or (context.given and not context.held_data):
        return False
    return set(owner.labels) != set(previous.labels)


def _is_as_on_arrival(core: Core, context: RequestContext, session: Session) -> bool:
    """
    Return whether the only changes to the session are those that were made on arrival.
    """
    return (
        context.given
        and session is context.session
        and context.orders is NO_ORDERS
        and not core.overrides.ids
        and dict(session) == context.content
    )


def _was_emptied(core: Core, context: RequestContext, session: Session) -> bool:
    if context.carried:
        return core.keys.lineage not in session
    return context.held_data and session.empty


async def _previous_owner(core: Core, request: web.Request, context: RequestContext) -> Owner:
    if context.fresh or context.session is None or not context.content:
        return ANONYMOUS
    return await core.identifier.of_content(request, context.session, context.content)


class Settlement:
    """
    Settles one request.

    Args:
        core: The registry's parts.
        request: The request.
        context: The context of the request.
        response: The response that its handler returned or raised; ``None`` if there is none.
        saved: Whether aiohttp_session saves a changed session with the response.
        late: Whether it has done so already: the session can't be changed any more.
    """

    def __init__(
        self,
        core: Core,
        request: web.Request,
        context: RequestContext,
        response: web.StreamResponse | None,
        *,
        saved: bool,
        late: bool = False,
    ) -> None:
        self._core = core
        self._request = request
        self._context = context
        self._orders = context.orders
        self._saved = saved
        self._late = late
        self._failed = response is None
        self._refused = response is None or response.status >= 400
        # A refused handshake raises; a handler that has caught that may respond with a page.
        self._is_page = not self._refused and not isinstance(
            response, web.HTTPException | web.WebSocketResponse
        )

    async def settle(self) -> None:
        """
        Make the records, and discard the session's changes if they may not be saved.

        Raises:
            IdentifyFailed: If ``identify`` failed. Nothing of the session is saved.
        """
        context, session = self._context, loaded_session(self._request)
        context.stage = Stage.SETTLED
        if context.session is None:
            await self._settle_id()
        elif session is None or self._is_refused_handshake() or self._is_refused_newcomer(session):
            put_session(self._request, None)
        elif (
            session is not context.session
            or was_changed(session)
            or self._orders.begins
            or await self._has_other_id()
        ):
            try:
                await self._settle_session(session)
            except BaseException:
                put_session(self._request, None)
                raise

    async def _has_other_id(self) -> bool:
        """
        Return whether the handler has changed the id of a session, where ids are kept elsewhere.
        """
        core, orders = self._core, self._orders
        if not core.overrides.ids or not (orders.renewed or orders.other_id):
            return False  # another request may have changed it meanwhile
        return await core.current_id(self._request) != self._context.session_ws_id

    def _is_refused_handshake(self) -> bool:
        failed = self._context.handshake_failed and self._orders is NO_ORDERS
        return failed and not self._is_page

    def _is_refused_newcomer(self, session: Session) -> bool:
        """
        Return whether a new visitor gets an error response, with no data and no orders.
        """
        if not self._refused or not self._context.given or self._orders is not NO_ORDERS:
            return False
        return not self._context.held_data and not self._core.keys.holds_data(session)

    async def _settle_session(self, session: Session) -> None:
        outcome = await compare(self._core, self._request, self._context, session)
        saves = await self._may_save(session, outcome)
        carries = saves and self._may_reconnect(session, outcome)
        # The application's id_factory may fail: then the response carries no session.
        certain = self._core.overrides.random_ids
        self._record_end(outcome, carries=carries and certain)
        if not saves or self._failed:  # the response to a failure isn't the handler's
            put_session(self._request, None)
        elif self._late:
            if outcome.relabelled and self._saved:
                self._context.ordering().close_requested = True
        elif self._saved and session.empty:
            if cookie_of(self._request):
                session.changed()  # to have its cookie deleted
        elif self._saved:
            await self._write(session, outcome)
        if carries and not certain:
            self._record_end(outcome, carries=True)

    async def _may_save(self, session: Session, outcome: Outcome) -> bool:
        """
        Return whether the session as the handler left it may be saved.
        """
        core, context, lineage = self._core, self._context, self._context.lineage
        if self._orders.ended is not None:
            return True  # the session is a new one, begun after the end
        if self._orders.begins and lineage is not None:
            return await self._may_begin(lineage)
        if context.fresh:
            if context.status.state is State.REPLACED or context.status.age > SETTLED:
                return True
            begins = outcome.owner.identity is not None or session is not context.session
            return begins or (self._orders.renewed and core.identifier.identify is None)
        if outcome.anew or outcome.changed_hands or lineage is None:
            return True
        now = core.judge(lineage, context.session_ws_id, outcome.previous)
        if not context.status.alive:
            return False
        if outcome.renewed:
            return now.state is not State.ENDED and not self._renewed_meanwhile(
                lineage, by_login=True
            )
        return now.alive and not self._renewed_meanwhile(lineage)

    async def _may_begin(self, lineage: Lineage) -> bool:
        """
        Return whether the lineage that ``end_other_sessions_ws`` begins may be saved: not if
        another order has ended the old one meanwhile.
        """
        core, context = self._core, self._context
        subjects = [Subject("id", context.session_ws_id), *self._orders.own_ends]
        await core.cluster.check_request(lineage.token, subjects)
        return self._is_ended_by_itself(lineage)

    def _is_ended_by_itself(self, lineage: Lineage) -> bool:
        """
        Return whether only ``end_other_sessions_ws`` has ended a lineage, as far as is known.
        """
        core, ends = self._core, self._orders.own_ends
        if any(core.records.ended_before(who) > at for who, at in ends.items()):
            return False
        if self._context.fresh:
            return True  # it had ended before; a log-in begins a lineage all the same
        own = Subject("id", self._context.session_ws_id)
        record = core.records.lineage(lineage.token)
        if isinstance(record, LineageEnded) and record.at not in ends.values():
            return False
        if core.records.ended_before(own) >= lineage.began:
            return False
        return not self._renewed_meanwhile(lineage, by_login=True)

    def _renewed_meanwhile(self, lineage: Lineage, *, by_login: bool = False) -> bool:
        """
        Return whether another request gave the lineage its next generation meanwhile.

        With *by_login*, only a visitor's log-in counts.
        """
        record = self._core.records.lineage(lineage.token)
        if not isinstance(record, LineageRenewed):
            return False
        if record.generation == self._context.newest:
            return False
        return record.login or not by_login

    def _record_end(self, outcome: Outcome, *, carries: bool) -> None:
        """
        Record what the handler has ended, whether the session is saved or not.
        """
        context, lineage = self._context, self._context.lineage
        if lineage is None:
            return
        if self._orders.ended is not None:
            if carries:
                ended = self._core.clock.resolve(self._orders.ended)
                self._end(lineage, outcome, at=ended, carries=True)
        elif context.fresh or self._orders.begins or outcome.logged_in:
            pass  # it had ended on arrival, or ends by the order; a visitor's is replaced
        elif outcome.anew or outcome.changed_hands:
            self._end(lineage, outcome, carries=carries)
        elif outcome.removed and self._saved and context.status.alive:
            self._end(lineage, outcome, carries=True)

    def _may_reconnect(self, session: Session, outcome: Outcome) -> bool:
        """
        Return whether the response carries a session that may reconnect.
        """
        core = self._core
        if session.empty or not self._saved:
            return False
        if (
            outcome.anew
            and self._orders.ended is None
            and id_in(session, core.keys.id) is not None
        ):
            return True  # the handler has given an id to the session that replaces the old one
        if core.identifier.identify is not None and outcome.owner.identity is None:
            return False
        return core.keys.holds_data(session)

    def _end(
        self, lineage: Lineage, outcome: Outcome, *, carries: bool, at: float | None = None
    ) -> None:
        core, context = self._core, self._context
        at = core.clock.order_time() if at is None else at
        minor = not context.held_data and outcome.previous.identity is None
        previous_id = context.session_ws_id
        self._change(*core.end_of(lineage, previous_id, at, carries=carries, minor=minor))

    async def _write(self, session: Session, outcome: Outcome) -> None:
        """
        Write lineage and id into the session that is saved.
        """
        core, context, lineage = self._core, self._context, self._context.lineage
        begins = self._orders.begins or outcome.anew or outcome.changed_hands or outcome.removed
        if begins or context.fresh or lineage is None:
            visitor = outcome.logged_in and not (context.fresh or self._orders.begins)
            if visitor and lineage is not None:
                self._advance_generation(lineage, login=True)
            if core.keys.lineage not in session or begins:
                await self._begin(session, outcome)
            continues = self._orders.begins and self._orders.ended is None
            if continues and lineage is not None and not self._is_ended_by_itself(lineage):
                put_session(self._request, None)  # it was ended while its id was made
        elif outcome.renewed:
            new_id_ended = await self._new_id_ended(session, lineage, outcome)
            now = core.judge(lineage, context.session_ws_id, outcome.previous)
            if now.state is State.ENDED:  # meanwhile, by an id or a label that it no longer has
                put_session(self._request, None)
            elif new_id_ended:
                self._end(lineage, outcome, carries=True)
                await self._begin(session, outcome)
            else:
                if not self._renewed_meanwhile(lineage):
                    self._advance_generation(lineage, login=False)
                await self._renew(session, lineage, outcome)
        elif core.keys.lineage not in session:
            await maybe_await(core.ids.ensure_id(self._request))
            core.keys.write_lineage(session, lineage)

    async def _begin(self, session: Session, outcome: Outcome) -> None:
        """
        Begin a new lineage for the session, under a new key where the storage is server-side.
        """
        core, context = self._core, self._context
        own_ends = [at + TICK for at in self._orders.own_ends.values()]
        lineage = new_lineage(max([context.arrived, *own_ends]))
        if session is context.session and not self._orders.renewed and not context.fresh:
            session.pop(core.keys.id, None)  # the id of the old lineage
        if session is context.session and is_server_side(session) and not session.new:
            # Under the same key, every copy of the old cookie would carry the new lineage.
            if not outcome.logged_in:
                left = copy_of(session, {})
                await empty_in_storage(self._request, left, core.keys, context.lineage)
            session = await move_session(self._request, session)
        await maybe_await(core.ids.ensure_id(self._request))
        core.keys.write_lineage(session, lineage)
        core.identifier.remember(self._request, lineage.token, outcome.owner)

    async def _new_id_ended(self, session: Session, lineage: Lineage, outcome: Outcome) -> bool:
        """
        Return whether a renewal gives a lineage an id that was ended since the lineage began.

        That end concerned other sessions with the id, while this one had another id; since it
        began earlier, it would count as ended too. The labels or the id that the session loses
        are looked up as well: another node may have ended it by these, which it then wouldn't
        carry any more.
        """
        core, previous_id = self._core, self._context.session_ws_id
        left = [*outcome.previous.labels] if outcome.relabelled else []
        joined: Subject | None = None
        if not (core.overrides.random_ids or core.overrides.ids):
            await maybe_await(core.ids.ensure_id(self._request))
            session_ws_id = id_in(session, core.keys.id)
            if session_ws_id is not None and session_ws_id != previous_id:
                joined = Subject("id", session_ws_id)
                left.append(joined)
                if previous_id is not None:
                    left.append(Subject("id", previous_id))
        if left:
            await core.cluster.check_request(lineage.token, left)
        return joined is not None and core.records.ended_before(joined) >= lineage.began

    async def _renew(self, session: Session, lineage: Lineage, outcome: Outcome) -> None:
        """
        Continue the lineage with its next generation, under the id that the handler has given it.
        """
        core, context = self._core, self._context
        await maybe_await(core.ids.ensure_id(self._request))  # the handler may have removed it
        renewed = lineage.renewed(core.records.newest(lineage.token))
        core.keys.write_lineage(session, renewed)
        keeps = self._orders.keeps_sockets and not outcome.relabelled
        if keeps and not self._orders.close_requested:
            until = outcome.owner.until
            session_ws_id = await core.current_id(self._request)
            self._orders.refresh = Refresh(renewed, session_ws_id, until, context.session_ws_id)
            core.effects.apply(Order(refresh=self._orders.refresh))
        if not core.overrides.ids:
            # A shareable id that was given and replaced in one request isn't this lineage's.
            unknown = context.id_given and not core.overrides.random_ids
            was = None if unknown else context.session_ws_id
            for session_ws_id in (id_in(session, core.keys.id), was):
                if session_ws_id is not None:
                    self._change(core.note(session_ws_id, lineage))

    def _advance_generation(self, lineage: Lineage, *, login: bool) -> None:
        """
        Give a lineage its next generation.
        """
        core = self._core
        newest = max(core.records.newest(lineage.token), lineage.generation)
        self._change(
            LineageRenewed(
                lineage.token,
                newest + 1,
                lineage.generation,
                core.clock.order_time(),
                login,
                seen=False,
                ttl=LOGIN_TTL if login else core.ttl,
            )
        )

    async def _settle_id(self) -> None:
        """
        Settle a request without a session, where the application keeps ids elsewhere.
        """
        core, context = self._core, self._context
        previous_id, lineage = context.session_ws_id, context.lineage
        if previous_id is None or lineage is None or self._orders.ended is not None:
            return
        current_id = await core.current_id(self._request)
        if current_id != previous_id:
            at, carries = core.clock.order_time(), current_id is not None
            self._change(LineageEnded(lineage.token, at, carries, core.ttl))

    def _change(self, *changes: Change) -> None:
        """
        Apply records to handshakes on all nodes at once: merge them here, record them elsewhere.
        """
        order = Order(changes)
        self._core.effects.apply(order)
        self._core.cluster.record(order)
        self._context.ordering().changes += changes
