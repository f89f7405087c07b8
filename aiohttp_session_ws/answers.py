"""
Orders that a request gives about its own session, and that wait for its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from typing import TYPE_CHECKING

import aiohttp_session
from aiohttp import web

from .closing import RECONNECT, SESSION_ENDED, Close
from .exceptions import SessionWSError
from .records import blame
from .revocation import Kind
from .visit import (
    Visit,
    answered,
    end_visit,
    fate,
    put_session,
    session_of,
    visit_of,
    will_be_saved,
)

if TYPE_CHECKING:
    from .registry import SessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")


class Answers:
    """
    What the registry does when a handler is done and when its answer has left.
    """

    def __init__(self, registry: SessionWSRegistry) -> None:
        self._registry = registry

    async def schedule_close(self, request: web.Request, response: web.StreamResponse) -> None:
        """
        See :meth:`SessionWSRegistry.schedule_close_all_session`.
        """
        response.force_close()  # as 1.1.1 did; nothing depends on it
        visit = await self._visit(request)
        if visit.connection is not None:
            await self._registry.close_all_session(visit.session_ws_id)
        else:
            self._ask(request, visit, response, RECONNECT)

    async def end(
        self, request: web.Request, response: web.StreamResponse, *, everywhere: bool
    ) -> None:
        """
        See :meth:`SessionWSRegistry.schedule_end_session` and ``schedule_end_identity``.
        """
        registry = self._registry
        if everywhere:
            registry._expect_identify()
        visit = await self._visit(request)
        identity = await self._whose(request, visit) if everywhere else None
        if visit.connection is not None:
            if identity is not None:
                await registry.end_identity(identity)
            await registry.end_session(visit.session_ws_id)
            return
        ids = [] if identity is None else registry._end_identity(identity)
        if visit.session_ws_id is not None:
            ids.append(visit.session_ws_id)
            if self._deserves_record(visit):
                ids += registry._revocations.end(visit.session_ws_id, registry._ttl())
        visit.ids = list(dict.fromkeys([*visit.ids, *ids]))
        visit.identity = identity
        registry._store(visit.ids, SESSION_ENDED, identity=identity)
        self._ask(request, visit, response, SESSION_ENDED)
        await registry.delete_id(request)
        if aiohttp_session.STORAGE_KEY in request:
            await _wipe(request, visit.session)
            await aiohttp_session.new_session(request)
        await registry.ensure_id(request)

    async def _whose(self, request: web.Request, visit: Visit) -> Hashable | None:
        """
        Return whom the session of *request* belongs to, or did before it was replaced.
        """
        registry = self._registry
        if visit.connection is not None:
            return visit.connection.identity
        identity = await registry._identify(request)
        if identity is None:
            identity, _ = await registry._arrived(request, visit.session_ws_id)
        return identity

    async def renew(self, request: web.Request, response: web.StreamResponse) -> None:
        """
        See :meth:`SessionWSRegistry.renew_session`.
        """
        visit = await self._visit(request)
        if visit.connection is not None or not will_be_saved(response):
            raise SessionWSError(
                "the session can't be renewed with this response: aiohttp_session saves it"
                " with a web.Response that has not been sent, not with a websocket or a stream"
            )
        await self._registry.new_id(request)
        self._ask(request, visit, response, RECONNECT)

    async def _visit(self, request: web.Request) -> Visit:
        """
        Return the visit of *request*, with the id it came with.
        """
        visit = visit_of(request)
        if not visit.noted and visit.connection is None:
            await self.note(request, visit)
        return visit

    async def note(self, request: web.Request, visit: Visit) -> None:
        """
        Find out which id *request* came with, though its handler may have replaced it.
        """
        registry = self._registry
        session = session_of(request)
        if session is None:
            session_ws_id = await registry._load_id(request)
            visit.came_with(session_ws_id, session_of(request), registry._revocations.ends)
            return
        session_ws_id, stored = await registry._reload_id(request)
        visit.came_with(session_ws_id, stored, registry._revocations.ends)
        # A new session where the storage has an old one: the handler has replaced it.
        if stored is None or stored.new or not session.new:
            visit.session = session

    def _ask(
        self, request: web.Request, visit: Visit, response: web.StreamResponse, close: Close
    ) -> None:
        """
        Hold off handshakes until the order of *request* is decided.
        """
        if visit.session_ws_id is None and not visit.ids:
            log.debug("a request asked to close its session's sockets, but had no session ws id")
            return
        if visit.close is not SESSION_ENDED:
            visit.close = close
        visit.asked = True
        visit.ids = visit.ids or [visit.session_ws_id]
        # Without an id it will not be decided what became of it.
        self._registry._order(visit.ids, visit.close, hold=visit.session_ws_id is not None)
        if visit.over:  # a child task of a handler that is done
            visit.watched = False
        self._wait(request, visit, saved=will_be_saved(response) and not visit.over)

    def _wait(self, request: web.Request, visit: Visit, *, saved: bool) -> None:
        if visit.waiting is None or visit.waiting.done():
            coro = self._when_answered(request, visit, saved=saved)
            visit.waiting = self._registry._sockets.spawn(coro, "close when answered")

    async def _when_answered(self, request: web.Request, visit: Visit, *, saved: bool) -> None:
        registry = self._registry
        await answered(visit, request.transport, registry.timeouts.response)
        if not visit.watched:
            await self.settle(request, visit, saved=saved)
            end_visit(visit)
        close = visit.close
        assert close is not None
        _ = registry._tell(visit.ids, close, identity=visit.identity)
        sockets = [
            connection
            for session_ws_id in visit.ids
            for connection in registry._sockets.of(session_ws_id)
            if connection.started <= visit.ordered
        ]
        await registry._sockets.close(sockets, close)

    async def settle(self, request: web.Request, visit: Visit, *, saved: bool) -> None:
        """
        Decide what became of the id that a request came with.

        Behind the middleware this comes when the handler is done and before its answer
        leaves; without it, when the answer has left.

        Args:
            request: The request.
            visit: What was noted of it.
            saved: Whether a changed session is saved with its answer.
        """
        came_with = visit.session_ws_id
        if came_with is None:
            if visit.minted is None:
                await self._mint_late(request, visit, saved=saved)
            return
        registry = self._registry
        try:
            current = await registry.get_id(request)
        except Exception as exc:  # noqa: BLE001  the application's
            log.error("get_id() failed, it is taken as if the id were the same: %s", blame(exc))  # noqa: TRY400  no traceback, which may hold a session's key
            current = came_with
        revocations = registry._revocations
        session = session_of(request)
        if revocations.ends != visit.ends and await self._overtaken(request, visit):
            # Meanwhile, by somebody else: saving it would bring it back.
            put_session(request, None)
        elif current is None:
            current = await self._mint_late(request, visit, saved=saved)
        if current == came_with and not visit.asked:
            return
        if visit.close is not SESSION_ENDED:
            kind = fate(visit, session, current, saved=saved, own=registry._own_keys)
            visit.ids = [came_with]
            if kind is not None and self._deserves_record(visit):
                ttl = registry._ttl()
                if kind is Kind.ENDED:
                    visit.ids = revocations.end(came_with, ttl)
                else:
                    revocations.move(came_with, current, ttl)
            may_come_back = kind is None or (current is not None and saved)
            visit.close = RECONNECT if may_come_back else SESSION_ENDED
        visit.ordered = asyncio.get_running_loop().time()
        registry._order(visit.ids, visit.close)
        registry._store(visit.ids, visit.close)
        self._wait(request, visit, saved=saved)

    async def _mint_late(
        self, request: web.Request, visit: Visit, *, saved: bool
    ) -> Hashable | None:
        """
        Give an id to a session that a handler has begun; by its next request it looks old.
        """
        session = session_of(request)
        if not (session and session.new and visit.watched and saved):
            return None
        try:
            await self._registry.ensure_id(request)
            return await self._registry.get_id(request)
        except SessionWSError as exc:  # the sockets of the old session are closed all the same
            log.error("a new session is not saved: %s", blame(exc))  # noqa: TRY400  as above
            put_session(request, None)
            return None

    async def _overtaken(self, request: web.Request, visit: Visit) -> bool:
        """
        Tell whether the session that *request* came with has ended while it was handled.
        """
        record = self._registry._revocations.get(visit.session_ws_id)
        ended = record is not None and record.kind is Kind.ENDED
        if ended and session_of(request) is visit.session:
            return True
        try:
            return await self._registry._ended_meanwhile(request)
        except Exception as exc:  # noqa: BLE001  the application's
            log.error("identify failed, it is taken as if nobody had ended: %s", blame(exc))  # noqa: TRY400  as above
            return False

    def _deserves_record(self, visit: Visit) -> bool:
        # A visitor who comes and goes without a word must not fill the memory.
        registry, id_ = self._registry, visit.session_ws_id
        if registry._elsewhere or visit.held_others(registry._own_keys):
            return True
        return bool(registry._sockets.open.of(id_) or registry._sockets.opening.of(id_))


async def _wipe(request: web.Request, session: aiohttp_session.Session | None) -> None:
    """
    Empty what the storage keeps on the server, lest a stale cookie find it there.

    A storage that keeps sessions in the cookie gives them no identity.
    """
    if session is None or session.identity is None:
        return
    session.invalidate()
    storage: aiohttp_session.AbstractStorage = request[aiohttp_session.STORAGE_KEY]
    try:
        await storage.save_session(request, web.Response(), session)
    except Exception as exc:  # noqa: BLE001  the storage's
        log.error("the ended session could not be emptied in its storage: %s", blame(exc))  # noqa: TRY400  no traceback, which may hold its key
