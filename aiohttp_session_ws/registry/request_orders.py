"""
The registry's methods for orders of a request about its own session: log-out, renewal.

Each order is recorded before anything is awaited, so that a client that disconnects can't undo
it; open sockets are closed when the response has been sent. One module, though over 300 lines
long, since log-out, log-out everywhere and renewal share these steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Iterable
from typing import Any, Literal

from aiohttp import web

from .._lineage import Subject, new_lineage
from .._tasks import maybe_await
from ..connections.connection import TrackedConnection
from ..exceptions import SessionWSError
from ..sessions.context import HANDLING, RequestContext
from ..sessions.records import Change, LineageEnded, SubjectEnded
from ..sessions.session import (
    begin_session,
    empty_in_storage,
    storage_in,
    will_be_saved,
)
from .core import Core
from .deferred import close_later, context_for, settle, settle_when_sent
from .identify import ANONYMOUS, subjects_of
from .order import Order

__all__: list[str] = []


class ScheduledOrders:
    """
    Orders about the session of the request that is being handled.
    """

    _core: Core

    async def schedule_close_all_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> Any:
        """
        Close the sockets of the session that *request* came with, when the response has been sent.

        Handshakes in flight are rejected at once. A handler that replaces or empties the session
        ends it; this is determined when the handler is done. A session that is left unchanged may
        reconnect. Called in the handler of an open websocket, it closes the sockets of that
        session now.

        Args:
            request: The request that is being handled.
            response: The response. Its connection will not be kept alive, as in 1.1.1.
        """
        response.force_close()  # as in 1.1.1; nothing depends on it
        core = self._core
        context = await context_for(core, request)
        if context.connection is not None:
            await maybe_await(core.hooks.close_all_session(context.connection.session_ws_id))
            return
        context.ordering().close_requested = True
        if context.session_ws_id is not None:
            order = Order(closes=(Subject("id", context.session_ws_id),))
            core.effects.apply(order)
        if context.behind_middleware:
            close_later(core, request, context)
        await self._settle_without_middleware(request, context, response, when_sent=True)

    async def schedule_end_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out: end the session of *request* and give it a new, empty one.

        The end is recorded before anything is awaited. Open sockets are closed with 4401 when
        the response has been sent. Data that a server-side storage keeps under the old key is
        deleted. Called in the handler of an open websocket, it ends that session and closes its
        sockets now.

        Args:
            request: The request that is being handled.
            response: The response; it carries the new session.
        """
        core = self._core
        context = await context_for(core, request)
        if context.connection is not None:
            await self._end_open(context.connection)
            return
        self._end_own(request, context)
        await self._shielded(context, self._begin_after(request, context), "begin after an end")
        await self._settle_without_middleware(request, context, response)

    async def schedule_end_identity(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out everywhere: end all sessions of the identity behind *request*.

        Combines :meth:`schedule_end_session` and :meth:`end_identity`. If the session is
        anonymous, only the session of *request* ends.

        Args:
            request: The request that is being handled.
            response: The response; it carries the new session.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            IdentifyFailed: If ``identify`` raised. The session of *request* has ended.
        """
        core = self._core
        core.identifier.expect()
        context = await context_for(core, request)
        connection = context.connection
        if connection is not None:
            changes: list[Change] = []
            if connection.identity is not None:
                subject = Subject("identity", connection.identity)
                changes.append(SubjectEnded(subject, core.clock.end_time(), core.ttl))
            await self._end_open(connection, *changes)
            return
        self._end_own(request, context)
        await self._shielded(context, self._end_everywhere(request, context), "end an identity")
        await self._settle_without_middleware(request, context, response)

    async def schedule_end_others(
        self, request: web.Request, response: web.StreamResponse
    ) -> bool:
        """
        Log out everywhere else: end all other sessions of the identity behind *request*.

        The session of *request* continues as a new lineage that is saved with the response; every
        copy of its older cookies ends with the other sessions.

        Args:
            request: The request that is being handled.
            response: The response; it carries the continued session.

        Returns:
            Whether the sessions were ended. False, with nothing ended, if *request* has no
            identity or no session, if the session is no longer alive, or in a cluster if Redis
            is unavailable.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            IdentifyFailed: If ``identify`` raised. Nothing has ended.
            SessionWSError: If the session can't be saved with *response*.
        """
        core = self._core
        core.identifier.expect()
        context = await context_for(core, request)
        _expect_savable(context, response)
        identity = (await core.identifier.of(request)).identity
        session = context.session
        if identity is None or session is None:
            return False
        previous, was = None if context.fresh else context.lineage, ANONYMOUS
        if previous is not None:
            was = await core.identifier.of_content(request, session, context.content or {})
        logged_in = identity != was.identity
        if previous is None or (logged_in and not context.status.alive):
            # A log-in begins a lineage, whatever the status of the one that the request carries.
            lineage, session_ws_id, was = new_lineage(context.arrived), None, ANONYMOUS
        else:
            lineage, session_ws_id = previous, context.session_ws_id
        since = context.arrived if logged_in else lineage.began
        subject = Subject("identity", identity)
        found = core.judge(lineage, session_ws_id, was)
        if not found.alive or core.records.ended_before(subject) >= since:
            return False
        before = core.clock.end_time()
        changes: tuple[Change, ...] = (SubjectEnded(subject, before, core.ttl),)
        if previous is not None:
            changes += core.end_of(previous, session_ws_id, before, carries=True)
        subjects = [subject, *subjects_of(session_ws_id, was._replace(identity=None))]
        if not await core.cluster.end_others(Order(changes), lineage, subjects, since):
            return False
        orders = context.ordering()
        orders.begins = True
        orders.own_ends[subject] = before
        core.effects.apply(Order(changes))
        orders.changes += changes
        close_later(core, request, context)
        await self._settle_without_middleware(request, context, response)
        return True

    async def renew_session(
        self,
        request: web.Request,
        response: web.StreamResponse,
        *,
        sockets: Literal["close", "keep"] = "close",
    ) -> None:
        """
        Renew the session of *request*: it continues under a new id.

        Its sockets are closed with 4403 when the response has been sent, and reconnect with the
        new cookie; an older cookie opens no socket. A server-side storage keeps the session under
        the same key, so that the cookie stays the same.

        Args:
            request: The request that is being handled.
            response: The response; it carries the session with its new id.
            sockets: ``"keep"`` keeps open sockets under the new id, on all nodes, and sends
                ``on_refresh``; not if the identity changes in the same request.

        Raises:
            SessionEnded: If the session had ended when the request arrived.
            SessionWSError: If the session can't be saved with *response*.
            ValueError: If *sockets* is neither ``"close"`` nor ``"keep"``.
        """
        core = self._core
        context = await context_for(core, request)
        _expect_savable(context, response)
        if sockets not in ("close", "keep"):
            raise ValueError(f"sockets is 'close' or 'keep', not {sockets!r}")
        await maybe_await(core.ids.new_id(request))
        context.ordering().keeps_sockets = sockets == "keep"
        await self._settle_without_middleware(request, context, response)

    async def _shielded(
        self, context: RequestContext, ending: Coroutine[Any, Any, None], name: str
    ) -> None:
        """
        Await *ending*, which continues if the request is cancelled since its client disconnects.

        If only its handler is cancelled, as by a time limit, settling waits for *ending*.
        """
        task = context.ordering().ending = self._core.tasks.spawn(ending, name)
        await asyncio.shield(task)

    async def _end_everywhere(self, request: web.Request, context: RequestContext) -> None:
        core, identity = self._core, await self._identity_behind(request, context)
        if identity is not None:
            end = SubjectEnded(Subject("identity", identity), core.clock.end_time(), core.ttl)
            context.ordering().own_ends[end.subject] = end.at
            self._record(request, context, [end])
        await self._begin_after(request, context)

    def _end_own(self, request: web.Request, context: RequestContext) -> None:
        """
        Record the end of the lineage that a request came with.
        """
        core, lineage = self._core, context.lineage
        ended = context.ordering().ended = core.clock.order_time()
        if lineage is None:
            return
        minor = not context.held_data and core.identifier.identify is not None
        changes = core.end_of(lineage, context.session_ws_id, ended, carries=False, minor=minor)
        self._record(request, context, changes)

    def _record(
        self, request: web.Request, context: RequestContext, changes: Iterable[Change]
    ) -> None:
        """
        Apply an order of a request to handshakes on all nodes now, and to open sockets when the
        response has been sent.
        """
        order = Order(tuple(changes))
        if context.stage is not HANDLING:  # the request was cancelled, and is settled already
            self._core.issue_soon(order)
            return
        self._core.effects.apply(order)
        self._core.cluster.record(order)
        context.ordering().changes += order.changes
        close_later(self._core, request, context)

    async def _identity_behind(
        self, request: web.Request, context: RequestContext
    ) -> Hashable | None:
        """
        Return the identity of the session of *request*, else of the one that it arrived with.
        """
        identifier = self._core.identifier
        owner = await identifier.of(request)
        if owner.identity is None and context.session is not None and context.content:
            owner = await identifier.of_content(request, context.session, context.content)
        return owner.identity

    async def _begin_after(self, request: web.Request, context: RequestContext) -> None:
        """
        Give a request whose session was ended a new, empty one.
        """
        core = self._core
        await self._claim(request, context)
        if storage_in(request) is not None:
            await empty_in_storage(request, context.session, core.keys, context.lineage)
            await begin_session(request)
        else:
            await maybe_await(core.ids.delete_id(request))
        await maybe_await(core.ids.ensure_id(request))

    async def _claim(self, request: web.Request, context: RequestContext) -> None:
        """
        Record the end of a session as that of one with data, if it belonged to an identity.
        """
        core, lineage = self._core, context.lineage
        record = None if lineage is None else core.records.lineage(lineage.token)
        if not isinstance(record, LineageEnded) or not record.minor:
            return
        if await self._identity_behind(request, context) is not None:
            self._record(request, context, [record._replace(minor=False)])

    async def _end_open(self, connection: TrackedConnection, *others: Change) -> None:
        """
        End the session of an open websocket, and apply further changes with it.
        """
        core, lineage = self._core, connection.lineage
        session_ws_id = connection.session_ws_id
        own = core.end_of(lineage, session_ws_id, core.clock.order_time(), carries=False)
        await core.issue(Order((*others, *own), closes=(Subject("id", session_ws_id),)))

    async def _settle_without_middleware(
        self,
        request: web.Request,
        context: RequestContext,
        response: web.StreamResponse,
        *,
        when_sent: bool = False,
    ) -> None:
        """
        Settle a request that no middleware settles: now, before aiohttp_session saves, or when
        the response has been sent, if the handler may still change the session.
        """
        core = self._core
        if context.behind_middleware or context.orders.deferred:
            return
        context.ordering().deferred = True
        if not context.after_middleware:
            core.warn.missing_middleware()
        if when_sent:
            saved = will_be_saved(response)
            coro = settle_when_sent(core, request, context, response, saved=saved)
            _ = core.tasks.spawn(coro, "settle when sent")
        else:
            await settle(core, request, context, response)


def _expect_savable(context: RequestContext, response: web.StreamResponse) -> None:
    if context.connection is not None or not will_be_saved(response):
        raise SessionWSError(
            "the session can't be saved with this response: aiohttp_session saves it with a"
            " web.Response that has not been sent, not with a websocket or a stream"
        )
