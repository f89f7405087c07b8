"""
Closing many sockets, some of them unresponsive, takes bounded time and leaks nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import (
    SessionWSRegistry,
    Timeouts,
    WebSocket,
    get_session_ws_id,
    session_ws,
    websocket_handler,
)
from tests.promise.conftest import Serve
from tests.support import AiohttpClient, Client, RawPeer, cookie_of, make_app, until
from tests.support.inspect import connections, is_closing, left_handlers, opening, ticks

SOCKETS = 1000
RUDE = SOCKETS // 100
TIMEOUTS = Timeouts(close=2.0, handler_grace=0.25)
LARGE = bytes(1 << 16)  # a few of them fill the buffers, so that senders block


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
    """Start an application, and a client that has a session."""
    registry = SessionWSRegistry(timeouts=TIMEOUTS)
    app = make_app(registry)
    app.router.add_get("/flood", flood)
    app.router.add_get("/deaf", deaf)
    client = await aiohttp_client(app)
    await client.get("/login")
    return client, registry


async def crowd(client: Client, registry: SessionWSRegistry) -> list[RawPeer]:
    """Open sockets whose handlers never read, whose clients never read, and normal ones."""
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
        """All sockets are closing at once; unresponsive ones are cut off at the deadline."""
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
        """A shutdown leaves no task, timer, entry, socket or file descriptor."""
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


class TestHandlersThatNeverLeave:
    @pytest.mark.parametrize("what", ["receive", "recv", "send", "raw receive", "raw send"])
    async def test_those_that_take_every_error_for_a_bad_message(
        self, serve: Serve, what: str
    ) -> None:
        """A handler that suppresses all errors is cancelled and never blocks the event loop."""
        stood_still = False

        async def turns(act: Callable[[], Awaitable[object]]) -> bool:
            turned = asyncio.Event()
            _ = asyncio.get_running_loop().call_soon(turned.set)
            for _ in range(1000):
                with contextlib.suppress(Exception):
                    await act()
                if turned.is_set():
                    return True
            return False

        async def stay(act: Callable[[], Awaitable[object]], ws: WebSocket | Any) -> None:
            nonlocal stood_still
            while not (ws.closed and stood_still):
                with contextlib.suppress(Exception):
                    await act()
                if ws.closed:
                    stood_still = not await turns(act)

        @websocket_handler
        async def ours(ws: WebSocket) -> None:
            await ws.connect()
            await ws.send_json({"user": None, "id": ws.session_ws_id})
            acts: dict[str, Callable[[], Awaitable[object]]] = {
                "receive": ws.receive_json,
                "recv": ws.recv,
                "send": lambda: ws.send(LARGE),
            }
            await stay(acts[what], ws)

        async def raw(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_json({"user": None, "id": await get_session_ws_id(request)})
                act = ws.receive if what == "raw receive" else lambda: ws.send_bytes(LARGE)
                await stay(act, ws)
            return ws

        site = await serve(views={"/stay": raw if "raw" in what else ours})
        browser = await site.logged_in()
        socket = await browser.open("/stay")
        report = await site.registry.end_session(socket.id)
        await until(lambda: not left_handlers(site.registry))

        assert (report.sockets, report.cancelled) == (1, 1)
        assert not stood_still
