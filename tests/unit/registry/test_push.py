"""
Pushing to peers that read, to peers that don't, and to peers that go.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any
from unittest import mock

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from hypothesis import given, settings, strategies as st

from aiohttp_session_ws import (
    NORMAL,
    Connection,
    Delivery,
    InvalidSessionWSId,
    OpenDetails,
    PushQueue,
    SessionWSRegistry,
    Timeouts,
    outbox,
    session_ws,
)
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    Turnstile,
    expect_close,
    make_app,
    until,
)

BLOCK = b"x" * 500_000  # more than aiohttp writes before it looks whether the peer takes it
LINE = "x" * 1024
# What may be in a transport: aiohttp waits when it has written 256 KiB, and then one message
# more; by then there may be as much as the transport's own high-water mark.
WRITTEN = (256 + 64 + 2) * 1024


async def listen(request: web.Request) -> web.WebSocketResponse:
    """Say nothing."""
    async with session_ws(request) as ws:
        async for _ in ws:
            pass
    return ws


async def start(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    """Serve ``listen``; return a client that has a session."""
    app = make_app(registry)
    app.router.add_get("/listen", listen)
    client = await aiohttp_client(app)
    await client.get("/login")
    return client


async def stopped(client: Client, registry: SessionWSRegistry) -> tuple[RawPeer, Connection]:
    """Open a websocket of a session of its own to a peer that doesn't read."""
    others = set(registry._sockets.open)
    peer = await RawPeer.open(client.make_url("/listen"), receive_buffer=4096)
    (connection,) = set(registry._sockets.open) - others
    narrow(connection)
    return peer, connection


def narrow(connection: Connection) -> None:
    """Let the system keep little of what is sent."""
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def choke(connection: Connection, registry: SessionWSRegistry) -> None:
    """Push so much that the writer has to wait."""
    assert await registry.send_session(connection.session_ws_id, BLOCK) == Delivery(1)
    await until(lambda: unsent(connection) > 100_000)


def unsent(connection: Connection) -> int:
    """Return how much is in the transport."""
    assert connection.transport is not None
    return connection.transport.get_write_buffer_size()


def queued(connection: Connection) -> list[bytes]:
    """Return the messages in the queue."""
    box = connection.outbox
    return [] if box is None else [payload for payload, _ in box.queue]


def own(registry: SessionWSRegistry) -> Any:
    """Return the only id."""
    (session_ws_id,) = registry
    return session_ws_id


def idle(registry: SessionWSRegistry, *connections: Connection) -> bool:
    """Tell whether no task and no timer is left."""
    boxes = [c.outbox for c in connections if c.outbox is not None]
    return not registry._sockets._tasks and not any(b.queue or b._overdue for b in boxes)


def dead(ref: weakref.ref[Any]) -> bool:
    """Tell whether nothing keeps an object."""
    gc.collect()
    return ref() is None


async def texts(ws: ClientWebSocketResponse, count: int) -> list[str]:
    """Read *count* messages."""
    return [await ws.receive_str(timeout=PATIENCE) for _ in range(count)]


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


class SlowSocket:
    """Registered by hand: takes a message when it is told to."""

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
        """Take *count* messages."""
        wanted = len(self.took) + count
        for _ in range(count):
            self.turns.release()
        await until(lambda: len(self.took) == wanted)
        await asyncio.sleep(0)


async def slow(registry: SessionWSRegistry) -> tuple[SlowSocket, Connection]:
    """Register a slow socket as "slow"."""
    ws = SlowSocket()
    registry.register("slow", ws)
    (connection,) = registry._sockets.open.of("slow")
    return ws, connection


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"messages": 0}, "at least 1 message"),
            ({"bytes": 0}, "at least 1 message and 1 byte"),
            ({"patience": -1}, "seconds >= 0"),
        ],
    )
    def test_senseless(self, options: dict[str, int], message: str) -> None:
        """A queue has room for something, and patience has an end."""
        with pytest.raises(ValueError, match=message):
            PushQueue(**options)

    def test_defaults(self) -> None:
        """A registry has a queue that is right for most, and its own if given one."""
        mine = PushQueue(messages=1)

        assert SessionWSRegistry().push_queue == PushQueue(256, 1_048_576, 5.0)
        assert SessionWSRegistry(push_queue=mine).push_queue is mine


class TestReceivers:
    async def test_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """All tabs of a session get it, and nobody else does."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as one, client.ws_connect("/listen") as two:
            session_ws_id = own(registry)
            other, connection = await stopped(client, registry)
            delivery = await registry.send_session(session_ws_id, "both")
            await registry.send_session(connection.session_ws_id, "other")

            assert delivery == Delivery(sockets=2, nodes=1, complete=True)
            assert await texts(one, 1) == await texts(two, 1) == ["both"]
            assert await other.frame() == (1, b"other")
        other.close()

    async def test_identity(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """All sessions of an identity get it; who has none is not an identity."""
        client = await start(aiohttp_client, registry)
        opened = [await stopped(client, registry) for _ in range(3)]
        for _, connection in opened[:2]:
            registry._sockets.identified(connection, "ann")
        delivery = await registry.send_identity("ann", "hello ann")
        nobody = await registry.send_identity(None, "hello?")
        await registry.broadcast("all")

        assert (delivery, nobody) == (Delivery(2), Delivery(0))
        assert [await peer.frame() for peer, _ in opened] == [
            (1, b"hello ann"),
            (1, b"hello ann"),
            (1, b"all"),
        ]
        for peer, _ in opened:
            peer.close()

    async def test_nobody(self, registry: SessionWSRegistry) -> None:
        """A push to nobody reaches nobody."""
        assert await registry.send_session("nobody", "?") == Delivery(0)
        assert await registry.send_identity("nobody", "?") == Delivery(0)
        assert await registry.broadcast("?") == Delivery(0)

    async def test_handshake_in_flight(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket that isn't open yet gets nothing."""
        held = Turnstile()
        held.shut = True

        async def authorize(request: web.Request) -> bool:
            await held()
            return True

        registry.authorize = authorize
        client = await start(aiohttp_client, registry)
        peer = await RawPeer.connect(client.make_url("/listen"))
        await held.arrived.wait()
        delivery = await registry.broadcast("early")
        held.let()
        await peer.read_head()
        await registry.broadcast("late")

        assert delivery == Delivery(0)
        assert await peer.frame() == (1, b"late")
        peer.close()

    async def test_from_on_open(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A receiver of on_open may push to the socket that has just opened."""

        async def greet(details: OpenDetails) -> None:
            await registry.send_session(details.session_ws_id, "welcome")

        registry.on_open.append(greet)
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            assert await texts(ws, 1) == ["welcome"]

    async def test_from_a_handler(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handler may push to everybody, itself included."""

        async def chat(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                async for message in ws:
                    await registry.broadcast(message.data)
            return ws

        app = make_app(registry)
        app.router.add_get("/chat", chat)
        client = await aiohttp_client(app)
        async with client.ws_connect("/chat") as one, client.ws_connect("/chat") as two:
            await one.send_str("hi")

            assert await texts(one, 1) == await texts(two, 1) == ["hi"]


class TestData:
    @pytest.mark.parametrize(
        ("data", "frame"),
        [
            ("grün", (1, "grün".encode())),
            ("", (1, b"")),
            (b"\0\xff", (2, b"\0\xff")),
            (bytearray(b"ab"), (2, b"ab")),
            (memoryview(b"abcd")[::2], (2, b"ac")),
        ],
    )
    async def test_text_and_bytes(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        data: Any,
        frame: tuple[int, bytes],
    ) -> None:
        """Text comes as text, bytes of any kind as bytes, and large as small."""
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await registry.broadcast(data)
        await registry.send_session(connection.session_ws_id, data)

        assert [await peer.frame(), await peer.frame()] == [frame, frame]
        peer.close()

    async def test_json(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The twins send JSON, by another encoder if wanted."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            registry._sockets.identified(next(iter(registry._sockets.open)), "ann")
            deliveries = [
                await registry.broadcast_json({"a": [1]}),
                await registry.send_session_json(own(registry), None),
                await registry.send_identity_json("ann", 1, dumps=lambda data: f"<{data}>"),
            ]

            assert deliveries == [Delivery(1)] * 3
            assert await texts(ws, 3) == ['{"a": [1]}', "null", "<1>"]

    @pytest.mark.parametrize("data", [None, 5, ["a"], {"a": 1}, web.Response])
    async def test_anything_else(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, data: Any
    ) -> None:
        """Other data raises an error that tells what to do, and harms no socket."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            with pytest.raises(TypeError, match=r"send_session_json\(\)"):
                await registry.broadcast(data)
            with pytest.raises(TypeError, match="only str or bytes"):
                await registry.send_session("nobody", data)
            await registry.broadcast("fine")

            assert await texts(ws, 1) == ["fine"]

    async def test_what_cannot_be_encoded(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """It raises before anything is sent."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            with pytest.raises(UnicodeEncodeError):
                await registry.broadcast("\ud800")
            with pytest.raises(TypeError, match="not JSON serializable"):
                await registry.broadcast_json(object())
            await registry.broadcast("fine")

            assert await texts(ws, 1) == ["fine"]

    async def test_what_cannot_be_a_key(self, registry: SessionWSRegistry) -> None:
        """An id or identity that can't be hashed belongs to nobody, and is a mistake."""
        with pytest.raises(InvalidSessionWSId, match="hashable"):
            await registry.send_session([], "?")  # type: ignore[arg-type]  # that's the point
        with pytest.raises(InvalidSessionWSId, match="None"):
            await registry.send_session(None, "?")
        with pytest.raises(TypeError, match="hashable"):
            await registry.send_identity([], "?")  # type: ignore[arg-type]  # that's the point

    async def test_changed_while_it_waits(self, registry: SessionWSRegistry) -> None:
        """What the caller does to a bytearray later doesn't matter."""
        ws, _ = await slow(registry)
        data = bytearray(b"before")
        await registry.broadcast(data)
        data[:] = b"after!"
        await ws.take(1)

        assert ws.took == [b"before"]


class TestOrder:
    async def test_of_a_peer_that_stops_and_goes_on(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Thousands arrive in the order of the calls, whichever way each went."""
        registry.push_queue = PushQueue(messages=10_000, bytes=10**9)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        received: list[bytes] = []

        async def push(first: int, last: int) -> None:
            for number in range(first, last):
                size = 100_000 if number % 500 == 499 else number % 2000
                await registry.broadcast(b"%d " % number + bytes(size))

        async def read(count: int) -> None:
            for _ in range(count):
                frame = await peer.frame()
                assert frame is not None
                received.append(frame[1])

        await push(0, 1000)
        assert len(queued(connection)) > 100
        await asyncio.gather(push(1000, 2000), read(1500))
        await read(500)
        await until(lambda: not unsent(connection))
        await push(2000, 2020)
        await read(20)

        assert [int(data.split()[0]) for data in received] == list(range(2020))
        peer.close()

    async def test_of_two_at_once(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A small one doesn't overtake a large one whose writer has not begun yet."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            await asyncio.gather(registry.broadcast(LINE * 100), registry.broadcast("small"))

            assert await texts(ws, 2) == [LINE * 100, "small"]

    async def test_of_sockets_that_compress(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Compressed ones go through the queue, small ones and those in a thread."""
        client = await start(aiohttp_client, registry)
        sent = [LINE * (40 if n % 10 == 5 else 1) + str(n) for n in range(100)]
        async with client.ws_connect("/listen", compress=15) as ws:
            (connection,) = registry._sockets.open
            deliveries = [await registry.broadcast(text) for text in sent]

            assert connection.ws.compress
            assert deliveries == [Delivery(1)] * 100
            assert await texts(ws, 100) == sent

    async def test_while_the_handler_compresses(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A push doesn't wait for the thread that compresses what a handler sends."""
        free = threading.Event()

        async def talk(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_str(LINE * 100)
                await ws.receive()
            return ws

        app = make_app(registry)
        app.router.add_get("/talk", talk)
        client = await aiohttp_client(app)
        with ThreadPoolExecutor(1) as executor:
            asyncio.get_running_loop().set_default_executor(executor)
            executor.submit(free.wait)
            async with client.ws_connect("/talk", compress=15) as ws:
                push = asyncio.ensure_future(registry.broadcast("pushed"))
                await asyncio.wait({push}, timeout=PATIENCE)
                waited = not push.done()
                free.set()

                assert not waited
                assert await push == Delivery(1)
                assert await texts(ws, 2) == [LINE * 100, "pushed"]

    async def test_beside_the_handler(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """What a handler sends at the same time mixes with it and breaks nothing."""

        async def talk(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                for number in range(300):
                    await ws.send_str(f"{LINE} sent {number}")
                    await asyncio.sleep(0)
                await ws.receive()
            return ws

        app = make_app(registry)
        app.router.add_get("/talk", talk)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            for number in range(300):
                await registry.broadcast(f"{LINE} pushed {number}")
                await asyncio.sleep(0)
            words = [text.split() for text in await texts(ws, 600)]

        for kind in ("sent", "pushed"):
            assert [int(n) for _, k, n in words if k == kind] == list(range(300))

    async def test_over_tls(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, tls: ssl.SSLContext
    ) -> None:
        """It is the same over TLS, whose transport has a buffer before another's."""
        registry.push_queue = PushQueue(messages=10_000, bytes=10**9)
        app = make_app(registry)
        app.router.add_get("/listen", listen)
        client = await aiohttp_client(app, tls=tls)
        async with client.ws_connect("/listen", ssl=False) as ws:
            (connection,) = registry._sockets.open
            narrow(connection)
            sent = 0
            while not queued(connection):  # the client takes some before it stops to read
                await registry.broadcast(f"{LINE * 64} {sent}")
                sent += 1
            for number in range(sent, sent + 100):
                await registry.broadcast(f"{LINE * (number % 90)} {number}")
            numbers = [int(text.split()[-1]) for text in await texts(ws, sent + 100)]

        assert numbers == list(range(sent + 100))


class TestSlowConsumers:
    async def test_delays_nobody_else(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The others get everything at once; what waits for the slow one is bounded."""
        registry.push_queue = PushQueue(messages=50, bytes=40_000, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        peers = [await RawPeer.open(client.make_url("/listen")) for _ in range(19)]
        sent = [f"{number} {LINE}" for number in range(500)]
        deliveries, most = [], 0
        for text in sent:
            deliveries.append(await registry.broadcast(text))
            most = max(most, sum(map(len, queued(connection))))
            assert len(queued(connection)) <= 50
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
        """It is told 1013, and the log has one warning without its id."""
        queue = PushQueue(messages=2, patience=0.05)
        registry = SessionWSRegistry(push_queue=queue)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        deliveries = [await registry.broadcast(LINE) for _ in range(4)]
        await until(lambda: connection.closing)
        code = await peer.closed()
        await until(lambda: not registry)

        assert [d.complete for d in deliveries] == [True, False, False, False]
        assert code == 1013
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert str(connection.session_ws_id) not in caplog.text
        peer.close()

    async def test_never_reads_again(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """It is cut though it doesn't take the close frame, and nothing of it stays."""
        registry.push_queue = PushQueue(messages=2, patience=0)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast(LINE)
        await registry.broadcast(LINE)
        await until(lambda: connection.gone and idle(registry, connection))

        assert not registry
        assert connection.close is not None
        assert connection.close.code == 1013
        peer.close()

    async def test_recovers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """One that reads again is not closed, and gets what comes then."""
        registry.push_queue = PushQueue(messages=4, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        for number in range(5):
            await registry.broadcast(str(number))
        box = connection.outbox
        assert box is not None
        timer = box._overdue
        frames = [await peer.frame() for _ in range(4)]
        await until(lambda: idle(registry, connection))
        await registry.broadcast("again")

        assert timer is not None
        assert timer.cancelled()
        assert frames == [(2, BLOCK), (1, b"0"), (1, b"1"), (1, b"2")]
        assert await peer.frame() == (1, b"again")
        assert connection.close is None
        peer.close()

    @pytest.mark.parametrize(
        ("sizes", "left"),
        [((50, 10, 10, 10, 10, 10, 0), 3), ((30, 20, 25, 25, 1), 2)],
        ids=["messages", "bytes"],
    )
    async def test_is_slow_until_half_of_it_is_sent(
        self, registry: SessionWSRegistry, sizes: tuple[int, ...], left: int
    ) -> None:
        """A peer that takes just one now and then goes on to be slow."""
        registry.push_queue = PushQueue(messages=6, bytes=100, patience=PATIENCE)
        ws, connection = await slow(registry)
        for size in sizes:
            await registry.broadcast(bytes(size))
        box = connection.outbox
        assert box is not None
        timer = box._overdue
        assert timer is not None
        while not timer.cancelled():
            assert len(queued(connection)) > left
            await ws.take(1)

        assert len(queued(connection)) == left

    async def test_has_one_deadline(self, registry: SessionWSRegistry) -> None:
        """Further messages that it misses don't put the deadline off."""
        registry.push_queue = PushQueue(messages=2, patience=PATIENCE)
        _, connection = await slow(registry)
        timers = set()
        for _ in range(5):
            await registry.broadcast(LINE)
            if connection.outbox is not None and connection.outbox._overdue is not None:
                timers.add(connection.outbox._overdue)

        assert len(timers) == 1

    async def test_is_named_once(
        self, registry: SessionWSRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that is slow now and then doesn't fill the log."""
        registry.push_queue = PushQueue(messages=1)
        ws, _ = await slow(registry)
        for _ in range(3):
            await registry.broadcast("taken")
            await registry.broadcast("missed")
            await ws.take(1)

        assert ws.took == [b"taken"] * 3
        assert len(caplog.records) == 1

    async def test_large_message(self, registry: SessionWSRegistry) -> None:
        """One that is larger than the queue is taken when nothing is on its way."""
        registry.push_queue = PushQueue(bytes=10)
        ws, _ = await slow(registry)
        first = [await registry.broadcast(bytes(11)), await registry.broadcast(b"")]
        await ws.take(1)
        second = [await registry.broadcast(bytes(9)), await registry.broadcast(bytes(11))]

        assert [d.complete for d in first + second] == [True, False, True, False]

    async def test_gives_way_to_the_writers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A loop that does nothing but push doesn't outrun a peer that reads."""
        registry.push_queue = PushQueue(messages=2)
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen", compress=15) as ws:
            deliveries = [await registry.broadcast(str(n)) for n in range(50)]

            assert all(delivery.complete for delivery in deliveries)
            assert await texts(ws, 50) == [str(n) for n in range(50)]


class TestQueue:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 30) | st.just(-1), max_size=60))
    def test_bound_and_order(self, steps: list[int]) -> None:
        """Whatever is pushed and taken: what was accepted arrives, in order, in bounds."""

        async def run() -> None:
            registry = SessionWSRegistry(push_queue=PushQueue(messages=4, bytes=40))
            ws, connection = await slow(registry)
            accepted: list[bytes] = []
            for number, size in enumerate(steps):
                if size < 0:
                    await ws.take(min(1, len(queued(connection))))
                    continue
                data = b"%d " % number + bytes(size)
                waiting = queued(connection)
                fits = not waiting or (len(waiting) < 4 and len(b"".join([*waiting, data])) <= 40)
                delivery = await registry.broadcast(data)
                assert delivery == Delivery(int(fits), complete=fits)
                accepted += [data] * delivery.sockets
                assert ws.took + queued(connection) == accepted
            await ws.take(len(queued(connection)))
            assert ws.took == accepted
            await registry._sockets.stop()

        asyncio.run(run())


class TestEnd:
    async def test_while_it_is_closing(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """From the order on nothing is pushed, and neither is afterwards."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            (connection,) = registry._sockets.open
            order = asyncio.ensure_future(registry.close_all())
            await until(lambda: connection.close)
            deliveries = [await registry.broadcast("ordered")]
            await until(lambda: connection.closing)
            deliveries.append(await registry.broadcast("closing"))
            message = await ws.receive()
            await order
            deliveries.append(await registry.broadcast("closed"))

        assert deliveries == [Delivery(0)] * 3
        assert message.type is WSMsgType.CLOSE

    async def test_while_its_handler_leaves(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """From the moment that the engine is started nothing is pushed."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            (connection,) = registry._sockets.open
            _ = registry._sockets.begin_close(connection, NORMAL)

            assert await registry.broadcast("leaving") == Delivery(0)
            assert await expect_close(ws) == 1000

    async def test_fails(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A socket that fails in a way of its own stops no other; the log tells."""
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        async with client.ws_connect("/listen") as ws:
            monkeypatch.setattr(connection.ws, "send_frame", mock.Mock(side_effect=LookupError))

            assert await registry.broadcast("on") == Delivery(1)
            assert await texts(ws, 1) == ["on"]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        peer.close()

    async def test_connection_is_lost(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """What would have to wait is not counted either."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen", compress=15):
            (connection,) = registry._sockets.open
            connection.cut()

            assert await registry.broadcast("lost") == Delivery(0)

    async def test_while_its_handler_lingers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket that is gone gets nothing, though its handler is still there."""
        held = Turnstile()
        held.shut = True

        async def linger(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                await held()
            return ws

        registry.timeouts = registry._sockets.timeouts = Timeouts(handler_grace=PATIENCE)
        app = make_app(registry)
        app.router.add_get("/linger", linger)
        client = await aiohttp_client(app)
        async with client.ws_connect("/linger") as ws:
            order = asyncio.ensure_future(registry.close_all())
            await expect_close(ws)
            await until(lambda: registry._sockets._lingering)
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
        """A socket that its client has closed is not counted, and makes no noise."""
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
        """The writer ends with the connection, without a word."""
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast(LINE)
        peer.vanish()
        await until(lambda: connection.gone and idle(registry, connection))

        assert await registry.broadcast("?") == Delivery(0)
        assert not caplog.records

    async def test_log_out_with_a_full_queue(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """It takes no longer than any log-out, and leaves no task and no timer."""
        registry.push_queue = PushQueue(messages=3, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        for _ in range(5):
            await registry.broadcast(LINE)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        report = await registry.end_session(connection.session_ws_id)
        seconds = loop.time() - begin
        await until(lambda: idle(registry, connection))

        assert (report.sockets, report.aborted) == (1, 1)
        assert seconds < QUICK.close + QUICK.handler_grace + 0.5
        assert not registry
        peer.close()

    async def test_what_was_pushed_goes_no_further(self, aiohttp_client: AiohttpClient) -> None:
        """The close frame comes before what is in the queue, which is dropped."""
        registry = SessionWSRegistry()
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await choke(connection, registry)
        await registry.broadcast("secret")
        order = asyncio.ensure_future(registry.close_all())
        await until(lambda: connection.closing)
        frames = [await peer.frame(), await peer.frame()]
        peer.close()
        await order

        assert frames[0] == (2, BLOCK)
        assert frames[1] is not None
        assert frames[1][0] == 8

    async def test_shutdown(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The application ends with full queues, and nothing is left of them."""
        registry.push_queue = PushQueue(messages=3, patience=PATIENCE)
        client = await start(aiohttp_client, registry)
        peers, connections = zip(*[await stopped(client, registry) for _ in range(5)], strict=True)
        for number in range(5):
            await choke(connections[number], registry)
        for _ in range(5):
            await registry.broadcast(LINE)
        refs = weakref.WeakSet(connection.ws for connection in connections)
        await client.server.close()
        await until(lambda: idle(registry, *connections))
        for peer in peers:
            peer.close()
        connections = ()
        gc.collect()

        assert not refs

    async def test_keeps_no_request(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Neither writer nor timer keep the request in which something was pushed."""
        registry.push_queue = PushQueue(messages=2, patience=PATIENCE)
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

        assert queued(connection) == [BLOCK, LINE.encode()]
        peer.close()


class TestSharedWaiting:
    """In aiohttp, all who wait to send on a socket wait for the same future."""

    async def senders(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        send: Callable[[web.WebSocketResponse], Awaitable[None]],
    ) -> tuple[RawPeer, Connection]:
        """Let a handler send to a peer for whom the writer waits already."""
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
        """A handler that sends when its queue is dropped gets no CancelledError."""
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
        """The writer goes on when there is room again; until then it writes no more."""
        spoilt = asyncio.Event()

        async def send(ws: web.WebSocketResponse) -> None:
            sending = asyncio.ensure_future(ws.send_bytes(BLOCK))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait({sending})
            spoilt.set()

        registry.push_queue = PushQueue(messages=1000, bytes=10**9)
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
        self, registry: SessionWSRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The writer for what was registered by hand goes on after a while."""
        monkeypatch.setattr(outbox, "_BLIND", 0)
        waiter = asyncio.get_running_loop().create_future()

        class Shared(SlowSocket):
            async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
                self.took.append(payload)
                await waiter

        ws = Shared()
        registry.register("shared", ws)
        await registry.broadcast("one")
        await registry.broadcast("two")
        waiter.cancel()
        await until(lambda: not registry._sockets._tasks)

        assert ws.took == [b"one", b"two"]


class TestByHand:
    async def test_websocket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A websocket response that was registered by hand is pushed to while it is open."""
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

    async def test_something_to_close(self, registry: SessionWSRegistry) -> None:
        """What can only be closed is no receiver."""

        class Door:
            def close(self) -> None:
                """Shut."""

        registry.register("door", Door())

        assert await registry.broadcast("knock") == Delivery(0)

    async def test_taken_out(self, registry: SessionWSRegistry) -> None:
        """Taken out by hand, it gets nothing more; no task and no timer is left."""
        registry.push_queue = PushQueue(messages=2, patience=PATIENCE)
        ws, connection = await slow(registry)
        for _ in range(3):
            await registry.broadcast(LINE)
        registry.unregister("slow", ws)
        await until(lambda: idle(registry, connection))

        assert ws.took == []

    async def test_let_go(self, registry: SessionWSRegistry) -> None:
        """Out of the index, nothing is kept for it."""
        registry.push_queue = PushQueue(messages=2, patience=PATIENCE)
        ws, connection = await slow(registry)
        for _ in range(3):
            await registry.broadcast(LINE)
        await registry._sockets.let_go(connection)
        await until(lambda: idle(registry, connection))

        assert ws.took == []

    async def test_closed(self, registry: SessionWSRegistry) -> None:
        """When its own close() is called, what waited for it has been dropped."""
        left: list[list[bytes]] = []

        class Closing(SlowSocket):
            async def close(self, *, code: int, message: bytes) -> None:
                left.append(queued(connection))

        registry.register("closing", Closing())
        (connection,) = registry._sockets.open
        await registry.broadcast(LINE)
        assert queued(connection)
        await registry.close_all()

        assert left == [[]]

    async def test_too_slow(self, registry: SessionWSRegistry) -> None:
        """It gets its own close() with 1013."""
        registry.push_queue = PushQueue(messages=1, patience=0)
        ws, connection = await slow(registry)
        await registry.broadcast(LINE)
        await registry.broadcast(LINE)
        await until(lambda: connection.gone and idle(registry, connection))

        assert ws.code == 1013
        assert not registry

    async def test_fails(
        self, registry: SessionWSRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that raises stops no other; the log tells."""

        class Broken(SlowSocket):
            async def send_frame(self, payload: bytes, opcode: WSMsgType) -> None:
                raise LookupError("a bug")

        registry.register("broken", Broken())
        ws, _ = await slow(registry)
        await registry.broadcast("one")
        await registry.broadcast("two")
        await ws.take(2)

        assert ws.took == [b"one", b"two"]
        assert caplog.text.count("LookupError: a bug") == 2
        assert {record.levelno for record in caplog.records} == {logging.ERROR}
