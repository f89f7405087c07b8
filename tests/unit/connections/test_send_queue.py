"""
The bounded send queue of a connection: slow peers, and what a closed connection leaves.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any
from unittest import mock

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given, settings, strategies as st

from aiohttp_session_ws import PushQueue, SessionWSRegistry, Timeouts, session_ws
from aiohttp_session_ws.close_codes import NORMAL
from aiohttp_session_ws.results import Delivery
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Started,
    Stopwatch,
    Turnstile,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import (
    connections,
    inspect,
    is_closing,
    left_handlers,
    patience_of,
    waiting,
)
from tests.support.slow_peers import (
    BLOCK,
    LINE,
    choke,
    drained,
    listen,
    slow,
    start,
    stopped,
    texts,
    unsent,
)

# The most that a transport may hold: aiohttp waits after writing 256 KiB and one more message,
# on top of up to the transport's own high-water mark.
WRITTEN = (256 + 64 + 2) * 1024


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


@pytest.fixture
async def live(registry: SessionWSRegistry, started: Started) -> SessionWSRegistry:
    """Return the registry of an application that runs without a server."""
    return await started(registry)


def dead(ref: weakref.ref[Any]) -> bool:
    """Return whether an object has been garbage-collected."""
    gc.collect()
    return ref() is None


class TestSlowConsumers:
    async def test_delays_nobody_else(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A slow peer delays no other, and the messages queued for it are bounded."""
        inspect(registry).connections.pusher.limit = PushQueue(
            messages=50, bytes=40_000, patience=PATIENCE
        )
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        peers = [await RawPeer.open(client.make_url("/listen")) for _ in range(19)]
        sent = [f"{number} {LINE}" for number in range(500)]
        deliveries, most = [], 0
        for text in sent:
            deliveries.append(await registry.broadcast(text))
            most = max(most, sum(map(len, waiting(connection))))
            assert len(waiting(connection)) <= 50
            assert unsent(connection) <= WRITTEN
            for other in peers:
                assert await other.frame() == (1, text.encode())

        assert 30_000 < most <= 40_000
        assert deliveries[0] == Delivery(20)
        assert deliveries[-1] == Delivery(19, complete=False)
        for one in [peer, *peers]:
            one.close()

    async def test_is_closed_when_patience_ends(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A slow peer is closed with 1013, and the log has one warning without its id."""
        queue = PushQueue(messages=2, patience=0.05)
        registry = SessionWSRegistry(push_queue=queue)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        deliveries = [await registry.broadcast(LINE) for _ in range(4)]
        await until(lambda: is_closing(connection))
        code = await peer.closed()
        await until(lambda: not len(registry))

        assert [d.complete for d in deliveries] == [True, False, False, False]
        assert code == 1013
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert str(connection.session_ws_id) not in caplog.text
        peer.close()

    async def test_never_reads_again(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A peer that doesn't take the close frame is removed, with its tasks and timers."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=2, patience=0)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast(LINE)
        await registry.broadcast(LINE)
        await until(lambda: connection.removed and drained(registry, connection))

        assert not len(registry)
        assert connection.close_order is not None
        assert connection.close_order.code == 1013
        peer.close()

    async def test_recovers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A slow peer that reads again is not closed, and gets later messages."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=4, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        for number in range(5):
            await registry.broadcast(str(number))
        timer = patience_of(connection)
        frames = [await peer.frame() for _ in range(4)]
        await until(lambda: drained(registry, connection))
        await registry.broadcast("again")

        assert timer is not None
        assert timer.cancelled()
        assert frames == [(2, BLOCK), (1, b"0"), (1, b"1"), (1, b"2")]
        assert await peer.frame() == (1, b"again")
        assert connection.close_order is None
        peer.close()

    @pytest.mark.parametrize(
        ("sizes", "left"),
        [((50, 10, 10, 10, 10, 10, 0), 3), ((30, 20, 25, 25, 1), 2)],
        ids=["messages", "bytes"],
    )
    async def test_is_slow_until_half_of_it_is_sent(
        self, live: SessionWSRegistry, sizes: tuple[int, ...], left: int
    ) -> None:
        """A peer counts as slow until half of its queue is sent."""
        inspect(live).connections.pusher.limit = PushQueue(
            messages=6, bytes=100, patience=PATIENCE
        )
        ws, connection = await slow(live)
        for size in sizes:
            await live.broadcast(bytes(size))
        timer = patience_of(connection)
        assert timer is not None
        while not timer.cancelled():
            assert len(waiting(connection)) > left
            await ws.take(1)

        assert len(waiting(connection)) == left

    async def test_has_one_deadline(self, live: SessionWSRegistry) -> None:
        """Further messages that a slow peer misses don't postpone its deadline."""
        inspect(live).connections.pusher.limit = PushQueue(messages=2, patience=PATIENCE)
        _, connection = await slow(live)
        timers = set()
        for _ in range(5):
            await live.broadcast(LINE)
            timers.add(patience_of(connection))

        assert len(timers - {None}) == 1

    async def test_is_named_once(
        self, live: SessionWSRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A peer that is slow several times is logged once."""
        inspect(live).connections.pusher.limit = PushQueue(messages=1)
        ws, _ = await slow(live)
        for _ in range(3):
            await live.broadcast("taken")
            await live.broadcast("missed")
            await ws.take(1)

        assert ws.took == [b"taken"] * 3
        assert len(caplog.records) == 1

    async def test_large_message(self, live: SessionWSRegistry) -> None:
        """A message larger than the queue is accepted while the queue is empty."""
        inspect(live).connections.pusher.limit = PushQueue(bytes=10)
        ws, _ = await slow(live)
        first = [await live.broadcast(bytes(11)), await live.broadcast(b"")]
        await ws.take(1)
        second = [await live.broadcast(bytes(9)), await live.broadcast(bytes(11))]

        assert [d.complete for d in first + second] == [True, False, True, False]

    async def test_gives_way_to_the_writers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A loop that does nothing but push doesn't outrun a peer that reads."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=2)
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen", compress=15) as ws:
            deliveries = [await registry.broadcast(str(n)) for n in range(50)]

            assert all(delivery.complete for delivery in deliveries)
            assert await texts(ws, 50) == [str(n) for n in range(50)]


class TestQueue:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 30) | st.just(-1), max_size=60))
    def test_bound_and_order(self, steps: list[int]) -> None:
        """Accepted messages arrive in order, and the queue stays in bounds, whatever the steps."""

        async def run() -> None:
            registry = SessionWSRegistry(push_queue=PushQueue(messages=4, bytes=40))
            runner = web.AppRunner(make_app(registry))
            await runner.setup()
            ws, connection = await slow(registry)
            accepted: list[bytes] = []
            for number, size in enumerate(steps):
                if size < 0:
                    await ws.take(min(1, len(waiting(connection))))
                    continue
                data = b"%d " % number + bytes(size)
                before = waiting(connection)
                fits = not before or (len(before) < 4 and len(b"".join([*before, data])) <= 40)
                delivery = await registry.broadcast(data)
                assert delivery == Delivery(int(fits), complete=fits)
                accepted += [data] * delivery.sockets
                assert ws.took + waiting(connection) == accepted
            await ws.take(len(waiting(connection)))
            assert ws.took == accepted
            await runner.cleanup()

        asyncio.run(run())


class TestEnd:
    async def test_while_it_is_closing(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A push is not delivered from the order on, nor after the close."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            (connection,) = connections(registry)
            order = asyncio.ensure_future(registry.close_all())
            await until(lambda: connection.close_order)
            deliveries = [await registry.broadcast("ordered")]
            await until(lambda: is_closing(connection))
            deliveries.append(await registry.broadcast("closing"))
            message = await ws.receive()
            await order
            deliveries.append(await registry.broadcast("closed"))

        assert deliveries == [Delivery(0)] * 3
        assert message.type is WSMsgType.CLOSE

    async def test_while_its_handler_leaves(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A push is not delivered once the engine has begun to close the socket."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            (connection,) = connections(registry)
            _ = inspect(registry).connections.start_close(connection, NORMAL)

            assert await registry.broadcast("leaving") == Delivery(0)
            assert await expect_close(ws) == 1000

    async def test_fails(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A socket whose send fails stops no other, and is logged as a warning."""
        client = await start(aiohttp_client, registry)
        async with (
            client.ws_connect("/listen", compress=15),
            client.ws_connect("/listen") as ws,
        ):
            (broken,) = [c for c in connections(registry) if c.ws.compress]
            monkeypatch.setattr(broken.ws, "send_frame", mock.Mock(side_effect=LookupError))
            await registry.broadcast("on")

            assert await texts(ws, 1) == ["on"]
            await until(lambda: caplog.records)
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    async def test_connection_is_lost(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A push that would have to be queued for a lost connection isn't counted."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen", compress=15):
            (connection,) = connections(registry)
            connection.abort()

            assert await registry.broadcast("lost") == Delivery(0)

    async def test_while_its_handler_lingers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket that is closed gets no push, though its handler still runs."""
        held = Turnstile()
        held.shut = True

        async def linger(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                await held()
            return ws

        inspect(registry).connections.timeouts = Timeouts(handler_grace=PATIENCE)
        app = make_app(registry)
        app.router.add_get("/linger", linger)
        client = await aiohttp_client(app)
        async with client.ws_connect("/linger") as ws:
            order = asyncio.ensure_future(registry.close_all())
            await expect_close(ws)
            await until(lambda: left_handlers(registry))
            delivery = await registry.broadcast("still there?")
            held.let()
            await order

        assert delivery == Delivery(0)

    async def test_client_closes(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A socket that its client has closed is not counted, and nothing is logged."""
        held = Turnstile()
        held.shut = True

        async def linger(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                await held()
            return ws

        app = make_app(registry)
        app.router.add_get("/linger", linger)
        client = await aiohttp_client(app)
        async with client.ws_connect("/linger") as ws, client.ws_connect("/linger", compress=15):
            await ws.close()
            await held.arrived.wait()
            deliveries = [await registry.broadcast("?")]
            held.let()

        assert deliveries == [Delivery(1)]
        assert not caplog.records

    async def test_client_vanishes(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The writer ends with the connection, and nothing is logged."""
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast(LINE)
        peer.vanish()
        await until(lambda: connection.removed and drained(registry, connection))

        assert await registry.broadcast("?") == Delivery(0)
        assert not caplog.records

    async def test_log_out_with_a_full_queue(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A log-out with a full queue keeps its deadlines, and leaves no task and no timer."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=3, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        for _ in range(5):
            await registry.broadcast(LINE)
        watch = Stopwatch()
        report = await registry.end_session(connection.session_ws_id)
        seconds = watch.stop()
        await until(lambda: drained(registry, connection))

        assert (report.sockets, report.aborted) == (1, 1)
        assert seconds < QUICK.close + QUICK.handler_grace + 0.5
        assert not len(registry)
        peer.close()

    async def test_what_was_pushed_goes_no_further(self, aiohttp_client: AiohttpClient) -> None:
        """The close frame is sent before the queued messages, which are dropped."""
        registry = SessionWSRegistry()
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast("secret")
        order = asyncio.ensure_future(registry.close_all())
        await until(lambda: is_closing(connection))
        frames = [await peer.frame(), await peer.frame()]
        peer.close()
        await order

        assert frames[0] == (2, BLOCK)
        assert frames[1] is not None
        assert frames[1][0] == 8

    async def test_shutdown(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A shutdown with full queues completes, and releases the websockets."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=3, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peers, connections = zip(*[await stopped(client, registry) for _ in range(5)], strict=True)
        for number in range(5):
            await choke(connections[number], registry)
        for _ in range(5):
            await registry.broadcast(LINE)
        refs = weakref.WeakSet(connection.ws for connection in connections)
        await client.server.close()
        await until(lambda: drained(registry, *connections))
        for peer in peers:
            peer.close()
        connections = ()
        gc.collect()

        assert not refs

    async def test_keeps_no_request(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Neither the writer nor the timer keeps the request whose handler pushed."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=2, patience=PATIENCE)
        kept: ContextVar[web.Request] = ContextVar("kept")
        requests: list[weakref.ref[web.Request]] = []

        async def push(request: web.Request) -> web.Response:
            kept.set(request)
            requests.append(weakref.ref(request))
            await registry.broadcast(BLOCK)
            for _ in range(4):
                await registry.broadcast(LINE)
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/listen", listen)
        app.router.add_get("/push", push)
        client = await aiohttp_client(app)
        peer, connection = await stopped(client, registry)
        await client.get("/push", headers={"Connection": "close"})
        await until(lambda: dead(requests[0]))

        assert waiting(connection) == [BLOCK, LINE.encode()]
        peer.close()
