"""
The facet of a registry that gives orders: whose sockets are to close, and what has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Iterable
from typing import Any, Literal

from aiohttp import web

from .._lineage import Lineage, Subject
from .._tasks import maybe_await
from ..close_codes import RECONNECT, SESSION_ENDED, Close, as_close
from ..connections.connection import Connection
from ..exceptions import SessionEnded, SessionWSError
from ..results import CloseReport
from ..sessions.context import HANDLING, RequestContext
from ..sessions.records import Change, LineageEnded, SubjectEnded
from ..sessions.session import (
    begin_session,
    empty_in_storage,
    has_storage,
    will_be_saved,
)
from .cluster import Order
from .core import Core
from .deferred import context_for, settle, settle_when_sent

__all__: list[str] = []


class Orders:
    """
    Orders. Each counts for handshakes at once, on every node that can be reached.

    Whatever peers do, closing takes ``timeouts.close + timeouts.handler_grace`` seconds at most.
    A handler may give an order about its own session: it is neither waited for nor cancelled.
    """

    _core: Core

    async def close_all(
        self, *, close: Close | int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close all sockets of this process; their sessions may reconnect.

        Waits until they are gone. Handshakes in flight are rejected.

        Args:
            close: The close code, 4403 by default.
            reason: The close reason.
        """
        core = self._core
        core.expect_loop()
        told = as_close(close, reason, RECONNECT)
        if core.overrides.close_all_session:
            for session_ws_id in tuple(core.connections.open.keys()):
                await maybe_await(core.hooks.close_all_session(session_ws_id))
        return await core.close_everything(told)

    async def close_all_session(
        self,
        session_ws_id: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of a session; it may reconnect.

        Waits until the sockets of this process are gone.

        Args:
            session_ws_id: Whose sockets.
            close: The close code, 4403 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, where there are any.
            by: Who gives the order, for the log.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
        """
        subject = Subject("id", self._core.usable_id(session_ws_id))
        return await self._close(subject, close, reason, wait, by)

    async def close_all_identity(
        self,
        identity: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of all sessions of an identity; they may reconnect.

        Arguments and waiting are those of :meth:`close_all_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        identifier = self._core.identifier
        identifier.expect()
        subject = Subject("identity", identifier.usable(identity))
        return await self._close(subject, close, reason, wait, by)

    async def close_all_label(
        self,
        name: str,
        value: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of all sessions with a label; they may reconnect.

        Args:
            name: The name of the label, as ``labels`` returns it.
            value: Its value.
            close: The close code, 4403 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, where there are any.
            by: Who gives the order, for the log.

        Raises:
            NotSetUp: If the registry has no ``labels``.
            InvalidIdentity: If no label can be called so.
        """
        identifier = self._core.identifier
        identifier.expect_labels()
        subject = identifier.usable_label(name, value)
        return await self._close(subject, close, reason, wait, by)

    async def _close(
        self,
        subject: Subject,
        close: Close | int | None,
        reason: str | None,
        wait: float,
        by: str | None,
    ) -> CloseReport:
        core = self._core
        core.expect_loop()
        told = as_close(close, reason, RECONNECT)
        return await core.give(Order(closes=(subject,), close=told, by=by), wait)

    async def end_session(
        self,
        session_ws_id: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        End what belongs to an id: no socket of it survives, and no copy of its cookie opens one.

        A lineage that begins later under the same id lives: an id that the application derives,
        as a user's id, isn't locked. What a storage keeps of the session is left alone; an HTTP
        request that comes with it is given an empty session. Waits until the sockets of this
        process are gone.

        Args:
            session_ws_id: Which id.
            close: The close code, 4401 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, where there are any.
            by: Who gives the order, for the log.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
        """
        core = self._core
        core.expect_loop()
        subject = Subject("id", core.usable_id(session_ws_id))
        before = core.clock.end_time()
        end = SubjectEnded(subject, before, core.ttl)
        changes = (end, *self._ends_of_known(subject.value, before))
        told = as_close(close, reason, SESSION_ENDED)
        return await core.give(Order(changes, close=told, by=by), wait)

    def _ends_of_known(self, session_ws_id: Hashable, before: float) -> Iterable[Change]:
        """
        Return the ends of the lineages that are known to have an id.
        """
        core = self._core
        tokens = {
            connection.lineage.token
            for connection in core.connections.of(session_ws_id)
            if connection.lineage.token and connection.lineage.began <= before
        }
        note = core.records.note_of(session_ws_id)
        if note is not None and note.began <= before:
            tokens.add(note.token)
        return (LineageEnded(token, before, carries=False, ttl=core.ttl) for token in tokens)

    async def end_identity(
        self,
        identity: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Log out everywhere: end all sessions of an identity that have begun by now.

        A session without an open socket ends as well, and every copy of its cookie. A log-in
        afterwards begins later, and lives. Arguments and waiting are those of
        :meth:`end_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        identifier = self._core.identifier
        identifier.expect()
        subject = Subject("identity", identifier.usable(identity))
        return await self._end(subject, close, reason, wait, by)

    async def end_label(
        self,
        name: str,
        value: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        End all sessions with a label that have begun by now, as :meth:`end_identity` does.

        Args:
            name: The name of the label, as ``labels`` returns it.
            value: Its value: an identity provider's session id, a device.
            close: The close code, 4401 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, where there are any.
            by: Who gives the order, for the log.

        Raises:
            NotSetUp: If the registry has no ``labels``.
            InvalidIdentity: If no label can be called so.
        """
        identifier = self._core.identifier
        identifier.expect_labels()
        subject = identifier.usable_label(name, value)
        return await self._end(subject, close, reason, wait, by)

    async def _end(
        self,
        subject: Subject,
        close: Close | int | None,
        reason: str | None,
        wait: float,
        by: str | None,
    ) -> CloseReport:
        core = self._core
        core.expect_loop()
        end = SubjectEnded(subject, core.clock.end_time(), core.ttl)
        told = as_close(close, reason, SESSION_ENDED)
        return await core.give(Order((end,), close=told, by=by), wait)

    # What a client has proven over its socket

    def now(self) -> float:
        """
        Return the time by the one clock, for :meth:`prove`.
        """
        return self._core.clock.begin_time()

    async def prove(self, connection: Connection, identity: Hashable, *, since: float) -> None:
        """
        File an open connection under an identity that its client has proven over the socket.

        It is found by every order, push and question for that identity, beside that of its
        session. One per connection; another replaces it. The periodic check leaves it alone.

        Args:
            connection: An open connection.
            identity: Whom its client has proven to be.
            since: When the proof began, as :meth:`now` said: an end of the identity since then
                concerns it.

        Raises:
            SessionEnded: If that identity was ended since. The connection is closed with 4401.
            InvalidIdentity: If *identity* can't be one.
        """
        core = self._core
        core.expect_loop()
        subject = Subject("identity", core.identifier.usable(identity))
        tracked = core.connections.tracked(connection)
        core.connections.file_proven(tracked, identity, since)  # first, so that orders find it
        if core.status_of(tracked).alive and core.cluster.remote:
            await core.cluster.check_request(tracked.lineage.token, [subject])
        if not core.status_of(tracked).alive:
            core.connections.close_soon([tracked], SESSION_ENDED)
            raise SessionEnded("the identity was ended while its client proved it")

    def disprove(self, connection: Connection) -> None:
        """
        Take back what :meth:`prove` has filed; nothing happens if there is nothing.
        """
        core = self._core
        core.expect_loop()
        core.connections.discard_proven(core.connections.tracked(connection))

    # Orders about the session of a request

    async def schedule_close_all_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> Any:
        """
        Close the sockets of the session that *request* came with, once it is answered.

        Handshakes in flight are rejected at once. When the handler is done it is decided what
        happened: whoever replaces or empties the session has ended it. A session that is
        left as it was may reconnect. Called in the handler of an open websocket, it closes the
        sockets of that session now.

        Args:
            request: The request that is being handled.
            response: The response. Its connection will not be kept alive, as in 1.1.1.
        """
        response.force_close()  # as 1.1.1 did; nothing depends on it
        core = self._core
        context = await context_for(core, request)
        if context.connection is not None:
            await maybe_await(core.hooks.close_all_session(context.session_ws_id))
            return
        context.ordering().close_requested = True
        if context.session_ws_id is not None:
            order = Order(closes=(Subject("id", context.session_ws_id),))
            core.reject_handshakes(order)
        await self._settle_without_middleware(request, context, response, when_sent=True)

    async def schedule_end_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out: end the session of *request* and give it a new, empty one.

        The end is recorded before anything is awaited. Open sockets are closed with 4401 when
        the response has been sent. What a storage keeps on the server under the old key is
        emptied. Called in the handler of an open websocket, it ends that session and closes its
        sockets now.

        Args:
            request: The request that is being handled.
            response: The response; it carries the new session.
        """
        core = self._core
        context = await context_for(core, request)
        if context.connection is not None:
            await self._end_open(context.connection.lineage, context.session_ws_id)
            return
        self._end_own(context)
        await self._shielded(self._begin_after(request, context), "begin after an end")
        await self._settle_without_middleware(request, context, response)

    async def schedule_end_identity(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out everywhere: end all sessions of the identity behind *request*.

        As :meth:`schedule_end_session` and :meth:`end_identity` in one. If nobody is
        identified, only the session of *request* ends.

        Args:
            request: The request that is being handled.
            response: The response; it carries the new session.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            IdentifyFailed: If that raised. The session of *request* has ended.
        """
        core = self._core
        core.identifier.expect()
        context = await context_for(core, request)
        connection = context.connection
        if connection is not None:
            if connection.identity is not None:
                await self.end_identity(connection.identity)
            await self._end_open(connection.lineage, context.session_ws_id)
            return
        self._end_own(context)
        await self._shielded(self._end_everywhere(request, context), "end an identity")
        await self._settle_without_middleware(request, context, response)

    async def schedule_end_others(
        self, request: web.Request, response: web.StreamResponse
    ) -> bool:
        """
        Log out everywhere else: end all other sessions of the identity behind *request*.

        The session of *request* goes on as a new one that is saved with the response; every
        copy of its older cookies has ended with the others.

        Args:
            request: The request that is being handled.
            response: The response; it carries the session as it goes on.

        Returns:
            Whether that was done. Not if the session isn't alive any more at this moment, or
            in a cluster if Redis can't be asked: then nothing has ended.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            IdentifyFailed: If that raised. Nothing has ended.
            SessionWSError: If *response* can't carry the session.
        """
        core = self._core
        core.identifier.expect()
        context = await context_for(core, request)
        _expect_savable(context, response)
        identity = (await core.identifier.of(request)).identity
        lineage, session = context.lineage, context.session
        if identity is None or lineage is None or session is None or context.fresh:
            return False
        was = await core.identifier.of_content(request, session, context.content or {})
        since = lineage.began if identity == was.identity else context.arrived
        subject = Subject("identity", identity)
        found = core.judge(lineage, context.session_ws_id, was)
        if not found.alive or core.records.ended_before(subject) >= since:
            return False
        before = core.clock.end_time()
        end = SubjectEnded(subject, before, core.ttl)
        own = LineageEnded(lineage.token, before, carries=True, ttl=core.ttl)
        subjects = [Subject("id", context.session_ws_id), subject]
        if not await core.cluster.end_others(Order((end, own)), lineage, subjects, since):
            return False
        orders = context.ordering()
        orders.begins = True
        orders.own_ends[subject] = before
        core.apply(Order((end, own)))
        orders.changes += (end, own)
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
        Renew the session of *request*: it goes on under a new id.

        Its sockets are closed with 4403 when the response has been sent, and reconnect with the
        new cookie; an older one opens nothing.

        Args:
            request: The request that is being handled.
            response: The response; it carries the session with its new id.
            sockets: ``"keep"`` lets open sockets go on under the new id, on all nodes, and sends
                ``on_refresh``; not if the identity changes in the same request.

        Raises:
            SessionEnded: If the session had ended when the request arrived.
            SessionWSError: If *response* can't carry the session.
        """
        core = self._core
        context = await context_for(core, request)
        _expect_savable(context, response)
        if sockets not in ("close", "keep"):
            raise ValueError(f"sockets is 'close' or 'keep', not {sockets!r}")
        await maybe_await(core.ids.new_id(request))
        context.ordering().keeps_sockets = sockets == "keep"
        await self._settle_without_middleware(request, context, response)

    async def _shielded(self, ending: Coroutine[Any, Any, None], name: str) -> None:
        """
        Await *ending*, which goes on if the client vanishes and its request is cancelled.
        """
        await asyncio.shield(self._core.tasks.spawn(ending, name))

    async def _end_everywhere(self, request: web.Request, context: RequestContext) -> None:
        identity = await self._identity_behind(request, context)
        if identity is not None:
            self._end_in_request(context, Subject("identity", identity))
        await self._begin_after(request, context)

    def _end_own(self, context: RequestContext) -> None:
        """
        Record the end of the lineage that a request came with.
        """
        core, lineage = self._core, context.lineage
        ended = context.ordering().ended = core.clock.end_time()
        if lineage is None:
            return
        minor = not context.held_data and core.identifier.identify is not None
        changes: list[Change] = [
            LineageEnded(lineage.token, ended, carries=False, ttl=core.ttl, minor=minor)
        ]
        if not minor and core.overrides.random_ids and context.session_ws_id is not None:
            # What is registered by hand under this id is refused by it.
            changes.append(core.note(context.session_ws_id, lineage))
        self._record(context, changes)

    def _end_in_request(self, context: RequestContext, subject: Subject) -> None:
        core = self._core
        before = core.clock.end_time()
        context.ordering().own_ends[subject] = before
        self._record(context, [SubjectEnded(subject, before, core.ttl)])

    def _record(self, context: RequestContext, changes: Iterable[Change]) -> None:
        """
        Let an order of a request take effect for handshakes, here and everywhere.
        """
        order = Order(tuple(changes))
        if context.stage is not HANDLING:  # its request was cancelled, and has been settled
            self._core.give_soon(order)
            return
        self._core.apply(order)
        self._core.cluster.record(order)
        context.ordering().changes += order.changes

    async def _identity_behind(
        self, request: web.Request, context: RequestContext
    ) -> Hashable | None:
        """
        Return whom the session of *request* belongs to, or did before it was replaced.
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
        if has_storage(request):
            await empty_in_storage(request, context.session)
            await begin_session(request)
        else:
            await maybe_await(core.ids.delete_id(request))
        await maybe_await(core.ids.ensure_id(request))

    async def _claim(self, request: web.Request, context: RequestContext) -> None:
        """
        Keep the end of a session with those that hold data if it belonged to somebody.
        """
        core, lineage = self._core, context.lineage
        record = None if lineage is None else core.records.lineage(lineage.token)
        if not isinstance(record, LineageEnded) or not record.minor:
            return
        if await self._identity_behind(request, context) is not None:
            self._record(context, [record.as_major()])

    async def _end_open(self, lineage: Lineage, session_ws_id: Hashable) -> None:
        """
        End the session of an open websocket.
        """
        core = self._core
        at = core.clock.end_time()
        changes: list[Change] = [LineageEnded(lineage.token, at, carries=False, ttl=core.ttl)]
        if core.overrides.random_ids:
            changes.append(core.note(session_ws_id, lineage))
        await core.give(Order(tuple(changes), closes=(Subject("id", session_ws_id),)))

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
        the response has been sent, if the handler may go on to change the session.
        """
        core = self._core
        if context.behind_middleware or context.orders.deferred:
            return
        context.ordering().deferred = True
        core.warn_missing_middleware()
        if when_sent:
            coro = settle_when_sent(core, request, context, response)
            _ = core.tasks.spawn(coro, "settle when sent")
        else:
            await settle(core, request, context, response)


def _expect_savable(context: RequestContext, response: web.StreamResponse) -> None:
    if context.connection is not None or not will_be_saved(response):
        raise SessionWSError(
            "the session can't be saved with this response: aiohttp_session saves it with a"
            " web.Response that has not been sent, not with a websocket or a stream"
        )
