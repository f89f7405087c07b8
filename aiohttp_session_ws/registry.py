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
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp import web

from .answers import Answers
from .closing import GOING_AWAY, Timeouts
from .connection import Connection, SupportsClose
from .expiry import Checker
from .gate import Gate, Origins
from .identify import Identify
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory, SessionWSIds
from .limits import Limits
from .outbox import PushQueue
from .push import SessionWSPushes
from .revocation import Expiry
from .signals import AuthDetails, CloseDetails, FailDetails, HandshakeDetails, OpenDetails, Signal
from .snapshot import Count, Snapshot, snapshot

if TYPE_CHECKING:
    from .hooks import WebSocketHook

__all__ = ["Authorize", "ConnectionContext", "SessionWSRegistry"]

log = logging.getLogger("aiohttp_session_ws")

Authorize: TypeAlias = Callable[[web.Request], object]
ConnectionContext: TypeAlias = Callable[[Connection], AsyncIterator[None]]

ANY: Final = object()  # where None says nobody

SHUTDOWN_CLOSE: Final = 0.5  # seconds: aiohttp no longer hears what clients answer


class SessionWSRegistry(SessionWSPushes, Mapping[Hashable, "frozenset[web.WebSocketResponse]"]):
    """
    The sockets of this process by the id of their session, and the orders to close them.

    As a mapping it shows for each id the open sockets, as a snapshot. All methods belong
    to the event loop that the application runs in.

    Args:
        id_factory: Called with the request, sync or async; returns a new hashable id.
        session_key: The key of the id in the session.
        identify: Called with the request, sync or async; returns whom its session belongs
            to, as something hashable, or ``None`` for nobody. It reads the session that
            the request carries; ``aiohttp_security.authorized_userid`` fits.
        authorize: Called with the request before the upgrade, sync or async; a handshake
            for which it returns something false gets 403.
        origins: Which pages may connect; see :class:`~aiohttp_session_ws.gate.Gate`.
        limits: How many sockets there may be; by default, any number.
        expiry: When sockets end with their sessions, and how long dead ids are remembered.
        push_queue: How much of what is pushed may wait for a slow peer, and for how long.
        timeouts: How long peers, handlers and answers are waited for.

    Attributes:
        connection_ctx: Async generator functions with one ``yield``, like aiohttp's
            ``cleanup_ctx``. Each is called with every :class:`Connection` that opens;
            what follows the ``yield`` runs however the connection ends.
        on_request: Async callables that are given each :class:`WebSocket` before its handler
            is, to connect on the handler's behalf or to refuse.
        on_response: Async callables that are given it once its handler has returned; it may
            be open still. They nest with those of ``on_request`` as middlewares do: the
            first comes first there and last here.
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
        identify: Identify | None = None,
        authorize: Authorize | None = None,
        origins: Origins = "same",
        limits: Limits | None = None,
        expiry: Expiry | None = None,
        push_queue: PushQueue | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(
            id_factory=id_factory,
            session_key=session_key,
            identify=identify,
            expiry=expiry,
            timeouts=timeouts,
        )
        self.authorize = authorize
        self.limits = Limits() if limits is None else limits
        if self.limits.per_identity is not None and identify is None:
            raise ValueError("per_identity needs to know whose a socket is: pass identify= too")
        self.push_queue = PushQueue() if push_queue is None else push_queue
        self.connection_ctx: list[ConnectionContext] = []
        self.on_request: list[WebSocketHook] = []
        self.on_response: list[WebSocketHook] = []
        self.on_handshake: Signal[HandshakeDetails] = Signal(self)
        self.on_auth_success: Signal[AuthDetails] = Signal(self)
        self.on_auth_fail: Signal[AuthDetails] = Signal(self)
        self.on_fail: Signal[FailDetails] = Signal(self)
        self.on_open: Signal[OpenDetails] = Signal(self)
        self.on_close: Signal[CloseDetails] = Signal(self)
        self._gate = Gate(origins)
        self._sockets.on_gone = self._call_unregister
        self._answers = Answers(self)
        self._checker = Checker(self)
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
        self._expect_loop()
        hash(ws)
        if self._sockets.open.get(self._usable(session_ws_id), ws) is None:
            self._sockets.opened(Connection(session_ws_id, ws))
        return None

    def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:
        """
        Take out what was registered by hand; nothing happens if it isn't there.

        ``session_ws`` calls this when a socket is gone. It can't take out a socket that
        ``session_ws`` still serves.
        """
        self._expect_loop()
        connection = self._sockets.open.get(self._usable(session_ws_id), ws)
        if connection is not None and connection.request is None:
            if connection.outbox is not None:
                connection.outbox.drop()
            self._sockets.open.discard(session_ws_id, ws)
        return None

    def _call_unregister(self, connection: Connection) -> Awaitable[None] | None:
        return self.unregister(connection.session_ws_id, connection.ws)

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
        await self._answers.end(request, response, everywhere=False)

    async def schedule_end_identity(
        self, request: web.Request, response: web.StreamResponse
    ) -> None:
        """
        Log out everywhere: end all sessions of the identity behind *request*.

        As :meth:`schedule_end_session` and :meth:`end_identity` in one. If nobody is
        identified, only the session of *request* ends.

        Args:
            request: The request that is being handled.
            response: The answer; it carries the new session.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            IdentifyFailed: If that raised. Nothing is changed.
        """
        await self._answers.end(request, response, everywhere=True)

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

    # Looking

    async def connections(
        self, *, session: Hashable | None = ANY, identity: Hashable | None = ANY
    ) -> Snapshot:
        """
        Return what is open at this moment.

        Args:
            session: Only sockets of the session with this id; ``None`` is no session.
            identity: Only sockets of this identity; ``None`` is nobody.
        """
        self._expect_loop()
        found = self._find(session=session, identity=identity)
        return snapshot(found, asyncio.get_running_loop().time())

    def _find(
        self, *, session: Hashable | None = ANY, identity: Hashable | None = ANY
    ) -> Iterable[Connection]:
        """
        Return the open connections of this process that :meth:`connections` tells of.
        """
        found: Iterable[Connection] = self._sockets.open
        if session is None or identity is None:
            found = ()
        elif session is not ANY:
            found = self._sockets.open.of(self._usable(session))
        elif identity is not ANY:
            found = self._sockets.identities.of(self._usable_identity(identity))
        if identity is not ANY:
            found = [c for c in found if c.opened and c.identity == identity]
        return found

    async def count(self) -> Count:
        """
        Return how many sockets are open, as an ``int`` that tells whether it is complete.
        """
        self._expect_loop()
        return Count(self._sockets.open.size)

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
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._sockets.timeouts = self.timeouts
        self._checker.start()
        await self._join()
        yield
        self._checker.stop()
        await self._sockets.stop()
        await self._part()
        self._loop = None
