"""
Pushes to a socket on which a handler sends, too, and to objects registered by hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws import (
    PushQueue,
    SessionWSRegistry,
    Timeouts,
    session_ws,
)
from aiohttp_session_ws.connections import send_queue
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.results import Delivery
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Started,
    Turnstile,
    make_app,
    until,
)
from tests.support.inspect import connections, inspect, quiet, waiting
from tests.support.slow_peers import (
    BLOCK,
    LINE,
    SlowSocket,
    choke,
    drained,
    slow,
    stopped,
    texts,
    unsent,
)


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


@pytest.fixture
async def live(registry: SessionWSRegistry, started: Started) -> SessionWSRegistry:
    """Return the registry of an application that runs without a server."""
    return await started(registry)


class TestSharedWaiting:
    """In aiohttp, all tasks that wait to send on a socket wait for the same future."""

    async def senders(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        send: Callable[[web.WebSocketResponse], Awaitable[None]],
    ) -> tuple[RawPeer, TrackedConnection]:
        """Make a handler send on a socket on which the writer of the queue already waits."""
        go = asyncio.Event()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await go.wait()
                await send(ws)
                await ws.receive()
            return ws

        app = make_app(registry)
        app.router.add_get("/listen", handler)
        client = await aiohttp_client(app)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        go.set()
        await until(lambda: unsent(connection) > len(BLOCK))
        return peer, connection

    async def test_log_out_does_not_cancel_the_handler(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """A handler that is sending when its queue is dropped gets no CancelledError."""
        registry = SessionWSRegistry(timeouts=Timeouts(close=0.1, handler_grace=PATIENCE))
        raised: list[BaseException] = []

        async def send(ws: web.WebSocketResponse) -> None:
            try:
                while True:
                    await ws.send_bytes(BLOCK)
            except BaseException as exc:
                raised.append(exc)
                raise

        peer, _ = await self.senders(aiohttp_client, registry, send)
        report = await registry.close_all()
        peer.close()

        assert [isinstance(exc, ConnectionError) for exc in raised] == [True]
        assert (report.aborted, report.cancelled) == (1, 0)

    async def test_cancelled_handler_does_not_cancel_the_writer(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """After a handler's send is cancelled, the writer waits for room, then sends the rest."""
        spoilt = asyncio.Event()

        async def send(ws: web.WebSocketResponse) -> None:
            sending = asyncio.ensure_future(ws.send_bytes(BLOCK))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait({sending})
            spoilt.set()

        inspect(registry).connections.pusher.limit = PushQueue(messages=1000, bytes=10**9)
        peer, connection = await self.senders(aiohttp_client, registry, send)
        await spoilt.wait()
        before = unsent(connection)
        for number in range(20):
            await registry.broadcast(b"%d" % number + BLOCK)
            assert unsent(connection) <= before + len(BLOCK) * 2
        frames = [await peer.frame() for _ in range(22)]

        assert [len(f[1]) for f in frames[:2] if f is not None] == [len(BLOCK)] * 2
        assert [int(f[1].split(b"x")[0]) for f in frames[2:] if f is not None] == list(range(20))
        peer.close()

    async def test_without_a_transport_to_look_at(
        self, live: SessionWSRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The writer of an object registered by hand continues after a send is cancelled."""
        monkeypatch.setattr(send_queue, "_BLIND_WAIT", 0)
        waiter = asyncio.get_running_loop().create_future()

        class Shared(SlowSocket):
            async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
                self.took.append(payload)
                await waiter

        ws = Shared()
        live.register("shared", ws)
        await live.broadcast("one")
        await live.broadcast("two")
        waiter.cancel()
        await quiet(live)

        assert ws.took == [b"one", b"two"]


class TestByHand:
    async def test_websocket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A websocket response that was registered by hand gets pushes only while it is open."""
        held = Turnstile()
        held.shut = True

        async def bare(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            registry.register("bare", ws)
            unprepared = await registry.broadcast("early")
            await ws.prepare(request)
            opened = await registry.broadcast("open")
            await ws.receive()
            closed = await registry.broadcast("late")
            registry.unregister("bare", ws)
            deliveries.extend([unprepared, opened, closed])
            return ws

        deliveries: list[Delivery] = []
        app = make_app(registry)
        app.router.add_get("/bare", bare)
        client = await aiohttp_client(app)
        async with client.ws_connect("/bare") as ws:
            assert await texts(ws, 1) == ["open"]
        await until(lambda: deliveries)

        assert deliveries == [Delivery(0), Delivery(1), Delivery(0)]

    async def test_something_to_close(self, live: SessionWSRegistry) -> None:
        """An object that has only a close() gets no pushes."""

        class Door:
            def close(self) -> None:
                """Do nothing."""

        live.register("door", Door())

        assert await live.broadcast("knock") == Delivery(0)

    async def test_taken_out(self, live: SessionWSRegistry) -> None:
        """An unregistered object gets no queued message; no task and no timer is left."""
        inspect(live).connections.pusher.limit = PushQueue(messages=2, patience=PATIENCE)
        ws, connection = await slow(live)
        for _ in range(3):
            await live.broadcast(LINE)
        live.unregister("slow", ws)
        await until(lambda: drained(live, connection))

        assert ws.took == []

    async def test_closed(self, live: SessionWSRegistry) -> None:
        """The queue of an object is dropped before its own close() is called."""
        left: list[list[bytes]] = []

        class Closing(SlowSocket):
            async def close(self, *, code: int, message: bytes) -> None:
                left.append(waiting(connection))

        live.register("closing", Closing())
        (connection,) = connections(live)
        await live.broadcast(LINE)
        assert waiting(connection)
        await live.close_all()

        assert left == [[]]

    async def test_too_slow(self, live: SessionWSRegistry) -> None:
        """A slow object is closed by its own close() with 1013, and removed."""
        inspect(live).connections.pusher.limit = PushQueue(messages=1, patience=0)
        ws, connection = await slow(live)
        await live.broadcast(LINE)
        await live.broadcast(LINE)
        await until(lambda: connection.removed and drained(live, connection))

        assert ws.code == 1013
        assert not len(live)

    async def test_fails(self, live: SessionWSRegistry, caplog: pytest.LogCaptureFixture) -> None:
        """An object whose send raises doesn't stop others; each failure is logged as a warning."""

        class Broken(SlowSocket):
            async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
                raise LookupError("a bug")

        live.register("broken", Broken())
        ws, _ = await slow(live)
        await live.broadcast("one")
        await live.broadcast("two")
        await ws.take(2)

        assert ws.took == [b"one", b"two"]
        assert caplog.text.count("LookupError: a bug") == 2
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
