"""
Many sockets, some of them rude: closing them is bounded, and nothing stays behind.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, Timeouts, session_ws
from tests.support import AiohttpClient, Client, RawPeer, cookie_of, make_app, until
from tests.support.inspect import connections, is_closing, opening, ticks

SOCKETS = 1000
RUDE = SOCKETS // 100
TIMEOUTS = Timeouts(close=2.0, handler_grace=0.25)


async def flood(request: web.Request) -> web.WebSocketResponse:
    """Send without end."""
    async with session_ws(request) as ws:
        while True:
            await ws.send_bytes(b"x" * 1_000_000)


async def deaf(request: web.Request) -> web.WebSocketResponse:
    """Never read."""
    async with session_ws(request) as ws:
        await asyncio.Event().wait()
    return ws


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def start(aiohttp_client: AiohttpClient) -> tuple[Client, SessionWSRegistry]:
    """Start an app, and a client that has a session."""
    registry = SessionWSRegistry(timeouts=TIMEOUTS)
    app = make_app(registry)
    app.router.add_get("/flood", flood)
    app.router.add_get("/deaf", deaf)
    client = await aiohttp_client(app)
    await client.get("/login")
    return client, registry


async def crowd(client: Client, registry: SessionWSRegistry) -> list[RawPeer]:
    """Open the sockets: mute ones, ones that don't read, and polite ones."""
    cookie = cookie_of(client)
    paths = ["/deaf"] * RUDE + ["/flood"] * RUDE + ["/ws"] * (SOCKETS - 2 * RUDE)
    peers = [
        await RawPeer.open(client.make_url(path), cookie, receive_buffer=4096) for path in paths
    ]
    transports = [connection.transport for connection in connections(registry)]
    await until(lambda: sum(bool(t and t.get_write_buffer_size()) for t in transports) >= RUDE)
    return peers


class TestThousandSockets:
    async def test_close_all(self, aiohttp_client: AiohttpClient) -> None:
        """All are being closed at once, and the rude are cut at the deadline."""
        client, registry = await start(aiohttp_client)
        peers = await crowd(client, registry)
        there = connections(registry)
        order = asyncio.ensure_future(registry.close_all())
        await until(lambda: all(is_closing(connection) for connection in there))
        still_there = sum(not connection.removed for connection in there)
        report = await order
        for peer in peers:
            peer.close()

        assert still_there >= 2 * RUDE
        assert (report.sockets, report.aborted, report.cancelled) == (SOCKETS, 2 * RUDE, RUDE)
        assert not len(registry)

    async def test_shutdown_leaves_nothing(self, aiohttp_client: AiohttpClient) -> None:
        """No task, timer, entry, connection or file descriptor is left."""
        files, tasks = open_files(), asyncio.all_tasks()
        client, registry = await start(aiohttp_client)
        peers = await crowd(client, registry)
        sockets = weakref.WeakSet(connection.ws for connection in connections(registry))
        await client.close()
        for peer in peers:
            peer.close()
        await until(lambda: open_files() <= files and asyncio.all_tasks() <= tasks)
        gc.collect()

        assert not len(registry)
        assert not opening(registry)
        assert not ticks(registry)
        assert not sockets
