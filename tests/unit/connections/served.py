"""
A server with a connection manager, without sessions, and peers that connect to it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from aiohttp import web
from yarl import URL

from aiohttp_session_ws._tasks import BackgroundTasks
from aiohttp_session_ws.close_codes import NORMAL, Close
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.connections.manager import ConnectionManager
from aiohttp_session_ws.connections.websocket import ServedWebSocket
from aiohttp_session_ws.options import PushQueue, Timeouts
from tests.support.clients import PATIENCE, until
from tests.support.peers import NORMAL_CLOSE, RawPeer, TlsPeer

#: So long that nothing is aborted or cancelled, however slow the machine.
PATIENT = Timeouts(close=PATIENCE, handler_grace=PATIENCE)
#: So short that peers that don't answer are aborted quickly.
QUICK = Timeouts(close=0.2, handler_grace=0.1)

Body: TypeAlias = Callable[[TrackedConnection], Awaitable[object]]

# A list, which can be emptied: the event loop keeps contexts of cancelled timers for a while.
_serving: ContextVar[list[TrackedConnection]] = ContextVar("serving")


def current() -> TrackedConnection | None:
    """Return the connection whose handler, or a child task of it, is calling."""
    serving = _serving.get([])
    return serving[0] if serving else None


async def echo(connection: TrackedConnection) -> None:
    """Send each message back."""
    async for message in connection.ws:
        await connection.ws.send_str(message.data)


async def deaf(connection: TrackedConnection) -> None:
    """Never read, so that no close is noticed."""
    await asyncio.Event().wait()


async def flood(connection: TrackedConnection) -> None:
    """Send without end, so that a peer that doesn't read fills every buffer."""
    while True:
        await connection.ws.send_bytes(b"x" * 1_000_000)


class Served:
    """
    The server of a test, and its connections.

    Attributes:
        manager: The manager.
        tasks: Its background tasks.
        url: The URL of the server.
        tls: Whether the server uses TLS.
        left: The connections whose handlers have left, in that order.
    """

    def __init__(self, timeouts: Timeouts, push_queue: PushQueue, tls: bool) -> None:
        self.tasks = BackgroundTasks()
        self.manager = ConnectionManager(timeouts, push_queue, self.tasks, current)
        self.url = URL()
        self.tls = tls
        self.left: list[TrackedConnection] = []
        self._peers: list[RawPeer] = []

    async def serve(
        self, request: web.Request, body: Body, options: dict[str, Any]
    ) -> ServedWebSocket:
        """Open, serve and close a websocket as ``session_ws`` does."""
        ws = ServedWebSocket(**options)
        task = asyncio.current_task()
        connection = TrackedConnection(request.query.get("id", "session"), ws, request, task)
        self.manager.add_handshake(connection)
        await ws.prepare(request)
        self.manager.open_connection(connection)
        serving = [connection]
        _serving.set(serving)
        try:
            await body(connection)
        except ConnectionError:
            pass
        finally:
            self.left.append(connection)
            self.manager.handler_exited(connection)
            serving.clear()
            if not self.manager.remove_if_ended(connection):
                await self.manager.wait_closed(connection, connection.close_order or NORMAL)
        return ws

    async def peer(self, path: str = "/echo", *, receive_buffer: int = 0) -> RawPeer:
        """Return a peer whose websocket is open."""
        count = self.manager.open.size
        kind = TlsPeer if self.tls else RawPeer
        peer = await kind.open(self.url.join(URL(path)), receive_buffer=receive_buffer)
        self._peers.append(peer)
        await until(lambda: self.manager.open.size > count)
        return peer

    async def end(self) -> None:
        """Close all connections and all peers."""
        self.manager.timeouts = Timeouts(close=0.0, handler_grace=0.0)
        await self.manager.close_now(self.manager.all(), NORMAL)
        for peer in self._peers:
            peer.close()

    async def connect(
        self, path: str = "/echo", *, receive_buffer: int = 0
    ) -> tuple[RawPeer, TrackedConnection]:
        """Return a peer and its connection."""
        others = set(self.manager.open)
        peer = await self.peer(path, receive_buffer=receive_buffer)
        (connection,) = set(self.manager.open) - others
        return peer, connection

    async def slow(self, path: str = "/echo") -> tuple[RawPeer, TrackedConnection]:
        """Return a peer with small socket buffers, and its connection."""
        peer, connection = await self.connect(path, receive_buffer=4096)
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return peer, connection

    async def stuck(self) -> tuple[RawPeer, TrackedConnection]:
        """Return a peer that doesn't read, and its connection, whose buffers are full."""
        peer, connection = await self.connect("/flood", receive_buffer=4096)
        transport = connection.transport
        assert transport is not None
        await until(transport.get_write_buffer_size)
        return peer, connection


async def answer(peer: RawPeer) -> list[tuple[int, bytes]]:
    """Read to the end, answer the close frame, and disconnect; return the frames received."""
    frames: list[tuple[int, bytes]] = []
    while (frame := await peer.frame()) is not None:
        frames.append(frame)
        if frame[0] == 8:
            await peer.say(8, frame[1][:2])
    peer.close()
    return frames


def close_frame(close: Close) -> tuple[int, bytes]:
    """Return a close frame as a peer reads it."""
    return 8, close.code.to_bytes(2) + close.reason.encode()


@asynccontextmanager
async def served(
    timeouts: Timeouts = PATIENT,
    *,
    push_queue: PushQueue | None = None,
    tls: ssl.SSLContext | None = None,
    options: dict[str, Any] | None = None,
    **bodies: Body,
) -> AsyncIterator[Served]:
    """Serve ``/echo``, ``/deaf``, ``/flood`` and *bodies* within the block."""
    served = Served(timeouts, push_queue or PushQueue(), tls is not None)
    app = web.Application()
    for name, body in {"echo": echo, "deaf": deaf, "flood": flood, **bodies}.items():

        async def handler(request: web.Request, body: Body = body) -> ServedWebSocket:
            return await served.serve(request, body, options or {"compress": False})

        app.router.add_get(f"/{name}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    served.url = URL.build(scheme="https" if tls else "http", host=host, port=port)
    try:
        yield served
    finally:
        await served.end()
        await runner.cleanup()
        await served.manager.stop()
        await served.tasks.stop(PATIENCE)


__all__ = [
    "NORMAL_CLOSE",
    "PATIENT",
    "QUICK",
    "Body",
    "RawPeer",
    "Served",
    "TlsPeer",
    "answer",
    "close_frame",
    "deaf",
    "echo",
    "flood",
    "served",
    "until",
]
