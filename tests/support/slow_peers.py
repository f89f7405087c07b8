"""
Peers that read slowly or not at all, and helpers that inspect their send queues.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aiohttp import ClientWebSocketResponse, WSMsgType, web

from aiohttp_session_ws import SessionWSRegistry, session_ws
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.results import Delivery
from tests.support import (
    PATIENCE,
    AiohttpClient,
    Client,
    RawPeer,
    make_app,
    until,
)

from .inspect import connections, idle, inspect, patience_of, waiting

BLOCK = b"x" * 500_000  # more than aiohttp writes before it waits for the peer to read


LINE = "x" * 1024


async def listen(request: web.Request) -> web.WebSocketResponse:
    """Send nothing, and ignore all messages."""
    async with session_ws(request) as ws:
        async for _ in ws:
            pass
    return ws


async def start(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    """Serve ``listen``; return a client that is logged in."""
    app = make_app(registry)
    app.router.add_get("/listen", listen)
    client = await aiohttp_client(app)
    await client.get("/login")
    return client


async def stopped(
    client: Client, registry: SessionWSRegistry, cookie: str = ""
) -> tuple[RawPeer, TrackedConnection]:
    """Open a websocket to a peer that doesn't read; without *cookie* in a new session."""
    others = set(connections(registry))
    peer = await RawPeer.open(client.make_url("/listen"), cookie, receive_buffer=4096)
    (connection,) = set(connections(registry)) - others
    narrow(connection)
    return peer, connection


def narrow(connection: TrackedConnection) -> None:
    """Make the kernel's send buffer of a connection small."""
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def choke(connection: TrackedConnection, registry: SessionWSRegistry) -> None:
    """Push so much that the writer of the send queue has to wait."""
    assert await registry.send_session(connection.session_ws_id, BLOCK) == Delivery(1)
    await until(lambda: unsent(connection) > 100_000)


def unsent(connection: TrackedConnection) -> int:
    """Return how many bytes are in the transport's write buffer."""
    assert connection.transport is not None
    return connection.transport.get_write_buffer_size()


def own(registry: SessionWSRegistry) -> Any:
    """Return the only session ws id of a registry."""
    (session_ws_id,) = registry
    return session_ws_id


def drained(registry: SessionWSRegistry, *slow_ones: TrackedConnection) -> bool:
    """Return whether no task, no queued message and no timer is left."""
    return idle(registry) and not any(waiting(c) or patience_of(c) for c in slow_ones)


async def texts(ws: ClientWebSocketResponse, count: int) -> list[str]:
    """Read *count* messages."""
    return [await ws.receive_str(timeout=PATIENCE) for _ in range(count)]


class SlowSocket:
    """A socket to register by hand; it accepts a message only when a test permits it."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(0)
        self.took: list[bytes] = []
        self.code: int | None = None

    async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
        await self.turns.acquire()
        self.took.append(payload)

    async def close(self, *, code: int, message: bytes) -> None:
        self.code = code

    async def take(self, count: int) -> None:
        """Accept *count* messages, and wait until they have been sent."""
        wanted = len(self.took) + count
        for _ in range(count):
            self.turns.release()
        await until(lambda: len(self.took) == wanted)
        await asyncio.sleep(0)


async def slow(registry: SessionWSRegistry) -> tuple[SlowSocket, TrackedConnection]:
    """Register a slow socket under the id "slow"; return it and its connection."""
    ws = SlowSocket()
    registry.register("slow", ws)
    (connection,) = inspect(registry).connections.open.of("slow")
    return ws, connection
