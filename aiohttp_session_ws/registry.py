"""
The registry: which sockets belong to which session, and the orders that close them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import replace
from typing import Final, TypeAlias

import aiohttp_session
from aiohttp import web

from .answers import Answers
from .closing import GOING_AWAY, RECONNECT, SESSION_ENDED, Close, CloseReport, Timeouts
from .connection import Connection, SupportsClose
from .gate import Gate, Origins
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory, SessionWSIds, usable
from .revocation import CloseOrders, Expiry, Kind
from .signals import AuthDetails, CloseDetails, FailDetails, HandshakeDetails, OpenDetails, Signal
from .sockets import Sockets

__all__ = ["Authorize", "ConnectionContext", "SessionWSRegistry"]

log = logging.getLogger("aiohttp_session_ws")

Authorize: TypeAlias = Callable[[web.Request], object]
ConnectionContext: TypeAlias = Callable[[Connection], AsyncIterator[None]]

SHUTDOWN_CLOSE: Final = 0.5  # seconds: aiohttp no longer hears what clients answer


class SessionWSRegistry(SessionWSIds, Mapping[Hashable, "frozenset[web.WebSocketResponse]"]):
    """
    The sockets of this process by the id of their session, and the orders to close them.

    As a mapping it shows for each id the open sockets, as a snapshot. All methods belong
    to the event loop that the application runs in.

    Args:
        id_factory: Called with the request, sync or async; returns a new hashable id.
        session_key: The key of the id in the session.
        authorize: Called with the request before the upgrade, sync or async; a handshake
            for which it returns something false gets 403.
        origins: Which pages may connect; see :class:`~aiohttp_session_ws.gate.Gate`.
        expiry: How long dead ids are remembered.
        timeouts: How long peers, handlers and answers are waited for.

    Attributes:
        connection_ctx: Async generator functions with one ``yield``, like aiohttp's
            ``cleanup_ctx``. Each is called with every :class:`Connection` that opens;
            what follows the ``yield`` runs however the connection ends.
        on_handshake: Signal; the gate has been passed.
        on_auth_success: Signal; ``authorize`` agreed.
        on_auth_fail: Signal; ``authorize`` did not.
        on_fail: Signal; a handshake failed, for whatever reason.
        on_open: Signal; the contexts and the handler run next.
        on_close: Signal; the socket is let go next.
    """

    def __init__(
        self,
        *,
        id_factory: IdFactory = DEFAULT_ID_FACTORY,
        session_key: str = DEFAULT_SESSION_KEY,
        authorize: Authorize | None = None,
        origins: Origins = "same",
        expiry: Expiry | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(id_factory=id_factory, session_key=session_key)
        self.authorize = authorize
        self.expiry = Expiry() if expiry is None else expiry
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self.connection_ctx: list[ConnectionContext] = []
        self.on_handshake: Signal[HandshakeDetails] = Signal(self)
        self.on_auth_success: Signal[AuthDetails] = Signal(self)
        self.on_auth_fail: Signal[AuthDetails] = Signal(self)
        self.on_fail: Signal[FailDetails] = Signal(self)
        self.on_open: Signal[OpenDetails] = Signal(self)
        self.on_close: Signal[CloseDetails] = Signal(self)
        self._gate = Gate(origins)
        self._draining = False
        self._orders = CloseOrders()
        self._sockets = Sockets(self.timeouts, self._call_unregister)
        self._answers = Answers(self)
        self._max_ages: set[int | None] = set()  # of the storages that were seen
        # Only one that is overridden can be interrupted once the session is loaded.
        self._own_get_id = type(self).get_id is not SessionWSIds.get_id
        self._warned = False  # that sessions are loaded too early

    def __getitem__(self, session_ws_id: Hashable) -> frozenset[web.WebSocketResponse]:
        connections = self._sockets.open.of(session_ws_id)
        if not connections:
            raise KeyError(session_ws_id)
        return frozenset(connection.ws for connection in connections)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._sockets.open.keys())

    def __len__(self) -> int:
        return len(self._sockets.open)

    def register(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:
        """
        Add *ws* to the sockets of a session.

        ``session_ws`` calls this when a socket is open; override it, sync or async, to
        hear of sockets. Whatever an override does, the socket is in the registry before
        and as long as its transport lives. Called by hand, it takes any object that has
        a ``close()``; an order calls it with ``code=`` and ``message=`` if it takes them.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be a key.
            TypeError: If *ws* can't be hashed.
        """
        hash(ws)
        if self._sockets.open.get(usable(session_ws_id), ws) is None:
            self._sockets.opened(Connection(session_ws_id, ws))
        return None

    def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:
        """
        Take out what was registered by hand; nothing happens if it isn't there.

        ``session_ws`` calls this when a socket is gone. It can't take out a socket that
        ``session_ws`` still serves.
        """
        connection = self._sockets.open.get(usable(session_ws_id), ws)
        if connection is not None and connection.request is None:
            self._sockets.open.discard(session_ws_id, ws)
        return None

    def _call_unregister(self, connection: Connection) -> Awaitable[None] | None:
        return self.unregister(connection.session_ws_id, connection.ws)

    # Orders

    async def close_all(
        self, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close all sockets of this process; their sessions may come back.

        Waits until they are gone, ``timeouts.close + timeouts.handler_grace`` seconds at
        most. Handshakes in flight are refused.

        Args:
            code: The close code, 4403 by default.
            reason: The close reason.
        """
        close = RECONNECT.replace(code, reason)
        handshakes = list(self._sockets.opening)
        for connection in handshakes:
            connection.refuse(close)
        self._orders.note_all(_now())
        return await self._carry_out(self._sockets.all(), close, len(handshakes))

    async def close_all_session(
        self, session_ws_id: Hashable, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close the sockets of a session; it may come back.

        Waits as :meth:`close_all` does. A handler may call it for its own session.

        Args:
            session_ws_id: Whose sockets.
            code: The close code, 4403 by default.
            reason: The close reason.
        """
        close = RECONNECT.replace(code, reason)
        ids = [usable(session_ws_id)]
        return await self._carry_out(*self._order(ids, close))

    async def end_session(
        self, session_ws_id: Hashable, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Revoke an id, and all ids that its session ever had, and close their sockets.

        Nobody opens a socket with these ids any more, and an HTTP request that comes with
        one gets a new session; what a storage keeps of the old one is left alone. Waits as
        :meth:`close_all` does.

        Args:
            session_ws_id: Which session.
            code: The close code, 4401 by default.
            reason: The close reason.
        """
        close = SESSION_ENDED.replace(code, reason)
        ids = self._revocations.end(usable(session_ws_id), self._ttl())
        return await self._carry_out(*self._order(ids, close))

    def _order(
        self, ids: Iterable[Hashable], close: Close, *, hold: bool = False
    ) -> tuple[list[Connection], Close, int]:
        """
        Let an order take effect for handshakes; return what :meth:`_carry_out` takes.

        Args:
            ids: Whom the order is about.
            close: What the handshakes are told.
            hold: Whether to hold handshakes off until the next order to the same ids.
        """
        now = _now()
        sockets: list[Connection] = []
        handshakes = 0
        for session_ws_id in ids:
            self._orders.note(session_ws_id, now)
            if hold:
                self._orders.hold(session_ws_id)
            for connection in self._sockets.opening.of(session_ws_id):
                connection.refuse(close)
                handshakes += 1
            sockets += self._sockets.of(session_ws_id)
        return sockets, close, handshakes

    async def _carry_out(
        self, connections: Iterable[Connection], close: Close, handshakes: int = 0
    ) -> CloseReport:
        connections = list(connections)
        sockets = sum(not connection.gone for connection in connections)
        aborted, cancelled = await self._sockets.close(connections, close)
        return CloseReport(sockets, aborted, cancelled, handshakes)

    # Orders that wait for the answer of a request

    async def schedule_close_all_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Close the sockets of the session that *request* came with, once it is answered.

        Handshakes are held off at once. When the handler is done it is decided what
        happened: a session that was replaced or emptied, or whose id was taken away, has
        ended; one that has got another id has moved there; one that keeps its id, since
        nothing was changed or saved, was just told to come back.
        The sockets are closed when the answer has left the server, or after
        ``timeouts.response`` seconds. Called in the handler of an open websocket, it
        closes the sockets of that session now.

        Args:
            request: The request that is being handled.
            response: The answer. Its connection will not be kept alive.
        """
        await self._answers.schedule_close(request, response)

    async def schedule_end_session(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out: end the session of *request* and give it a new, empty one.

        The id is revoked at once; its sockets are closed when the answer has left. What
        a storage keeps on the server under the old key is emptied. Called in the handler
        of an open websocket, it ends that session and closes its sockets now, and leaves
        what the storage keeps alone.

        Args:
            request: The request that is being handled.
            response: The answer; it carries the new session.
        """
        await self._answers.end(request, response)

    async def renew_session(self, request: web.Request, response: web.StreamResponse) -> None:
        """
        Give the session of *request* a new id and revoke the old one.

        For a log-in or a change of rights: the sockets are closed when the answer has
        left, and come back under the new id.

        Args:
            request: The request that is being handled.
            response: The answer; it carries the session with its new id.

        Raises:
            SessionEnded: If the session has been ended meanwhile. Nothing is changed.
            SessionWSError: If *response* can't carry the session.
        """
        await self._answers.renew(request, response)

    # The application's end

    async def _shutdown(self, app: web.Application) -> None:
        """
        Refuse handshakes and close all sockets with 1001; never raise.
        """
        self._draining = True
        handshakes = list(self._sockets.opening)
        for connection in handshakes:
            connection.refuse(GOING_AWAY)
        close = min(SHUTDOWN_CLOSE, self.timeouts.close)
        self._sockets.timeouts = replace(self.timeouts, close=close)
        try:
            await self._sockets.close([*self._sockets.all(), *handshakes], GOING_AWAY)
        except Exception:
            log.exception("closing the websockets at shutdown failed")

    async def _lifetime(self, app: web.Application) -> AsyncIterator[None]:
        """
        Hold the registry's tasks for as long as handlers may run.
        """
        self._draining = False
        self._sockets.timeouts = self.timeouts
        yield
        await self._sockets.stop()

    # What the middleware and session_ws need

    def _verdict(self, connection: Connection) -> Close | None:
        """
        Return why a handshake may not open, ``None`` if it may.
        """
        if self._draining:
            return GOING_AWAY
        session_ws_id = connection.session_ws_id
        record = self._revocations.get(session_ws_id)
        if record is not None:
            return SESSION_ENDED if record.kind is Kind.ENDED else RECONNECT
        missed = self._orders.concern(session_ws_id, connection.started, _now())
        return RECONNECT if missed else None

    def _saw(self, request: web.Request) -> None:
        """
        Note for how long sessions live.
        """
        storage = request.get(aiohttp_session.STORAGE_KEY)
        self._max_ages.add(None if storage is None else storage.max_age)

    def _ttl(self) -> float:
        return max(map(self.expiry.ttl, self._max_ages or {None}))


def _now() -> float:
    return asyncio.get_running_loop().time()
