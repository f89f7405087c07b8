"""
Push: which sockets receive it, which data it takes, and the order of messages.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import PushQueue, SessionWSRegistry, session_ws
from aiohttp_session_ws.exceptions import InvalidIdentity, InvalidSessionWSId
from aiohttp_session_ws.results import Delivery
from aiohttp_session_ws.signals import OpenDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Started,
    Turnstile,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, inspect, waiting
from tests.support.people import session_of
from tests.support.slow_peers import (
    LINE,
    listen,
    narrow,
    own,
    slow,
    start,
    stopped,
    texts,
    unsent,
)


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


@pytest.fixture
async def live(registry: SessionWSRegistry, started: Started) -> SessionWSRegistry:
    """The same registry, in an application that runs without a server."""
    return await started(registry)


class TestReceivers:
    async def test_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """All sockets of a session receive its pushes, and sockets of other sessions don't."""
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
        """All sessions of an identity receive its pushes; ``None`` is not an identity."""
        client = await start(aiohttp_client, registry)
        anns = [await session_of(client), await session_of(client)]
        opened = [await stopped(client, registry, cookie) for cookie in [*anns, ""]]
        delivery = await registry.send_identity("ann", "hello ann")
        nobody = await registry.send_identity("nobody", "hello?")
        with pytest.raises(InvalidIdentity):
            await registry.send_identity(None, "hello?")
        await registry.broadcast("all")

        assert (delivery, nobody) == (Delivery(2), Delivery(0))
        assert [await peer.frame() for peer, _ in opened] == [
            (1, b"hello ann"),
            (1, b"hello ann"),
            (1, b"all"),
        ]
        for peer, _ in opened:
            peer.close()

    async def test_nobody(self, live: SessionWSRegistry) -> None:
        """A push that matches no socket reports 0 sockets."""
        assert await live.send_session("nobody", "?") == Delivery(0)
        assert await live.send_identity("nobody", "?") == Delivery(0)
        assert await live.broadcast("?") == Delivery(0)

    async def test_handshake_in_flight(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket whose handshake isn't finished gets no pushes."""
        held = Turnstile()
        held.shut = True

        async def authorize(request: web.Request) -> bool:
            await held()
            return True

        inspect(registry).authorize = authorize
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
        """A handler may broadcast to all sockets, its own included."""

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
        """Text is sent as a text frame, and bytes-like data as a binary frame."""
        client = await start(aiohttp_client, registry)
        peer, connection = await stopped(client, registry)
        await registry.broadcast(data)
        await registry.send_session(connection.session_ws_id, data)

        assert [await peer.frame(), await peer.frame()] == [frame, frame]
        peer.close()

    async def test_json(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The ``_json`` methods send JSON, with another encoder if one is given."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
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
        """Data other than str and bytes raises an error that names the remedy; sockets stay."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            with pytest.raises(TypeError, match=r"send_session_json\(\)"):
                await registry.broadcast(data)
            with pytest.raises(TypeError, match="only str or bytes"):
                await registry.send_session("nobody", data)
            await registry.broadcast("fine")

            assert await texts(ws, 1) == ["fine"]

    async def test_a_wait_that_is_none(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A wrong ``wait`` raises before any socket gets the push, also without a cluster."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            with pytest.raises(TypeError, match="wait is a number of seconds, not 'long'"):
                await registry.broadcast("no", wait="long")  # type: ignore[arg-type]
            await registry.broadcast("fine")

            assert await texts(ws, 1) == ["fine"]

    async def test_what_cannot_be_encoded(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Data that can't be encoded raises before anything is sent."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            with pytest.raises(UnicodeEncodeError):
                await registry.broadcast("\ud800")
            with pytest.raises(TypeError, match="not JSON serializable"):
                await registry.broadcast_json(object())
            await registry.broadcast("fine")

            assert await texts(ws, 1) == ["fine"]

    async def test_what_cannot_be_a_key(self, live: SessionWSRegistry) -> None:
        """An unhashable id or identity raises an error, and so does ``None`` as an id."""
        with pytest.raises(InvalidSessionWSId, match="hashable"):
            await live.send_session([], "?")  # type: ignore[arg-type]  # that's the point
        with pytest.raises(InvalidSessionWSId, match="None"):
            await live.send_session(None, "?")
        with pytest.raises(TypeError, match="hashable"):
            await live.send_identity([], "?")  # type: ignore[arg-type]  # that's the point

    async def test_changed_while_it_waits(self, live: SessionWSRegistry) -> None:
        """Changing a bytearray after the push doesn't change the queued message."""
        ws, _ = await slow(live)
        data = bytearray(b"before")
        await live.broadcast(data)
        data[:] = b"after!"
        await ws.take(1)

        assert ws.took == [b"before"]


class TestOrder:
    async def test_of_a_peer_that_stops_and_goes_on(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Messages arrive in the order of the calls, whether queued or written directly."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=10_000, bytes=10**9)
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
        assert len(waiting(connection)) > 100
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
        """A small message doesn't overtake a large one whose queue isn't being written yet."""
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/listen") as ws:
            await asyncio.gather(registry.broadcast(LINE * 100), registry.broadcast("small"))

            assert await texts(ws, 2) == [LINE * 100, "small"]

    async def test_of_sockets_that_compress(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Small and large messages arrive in order at a socket that compresses."""
        client = await start(aiohttp_client, registry)
        sent = [LINE * (40 if n % 10 == 5 else 1) + str(n) for n in range(100)]
        async with client.ws_connect("/listen", compress=15) as ws:
            (connection,) = connections(registry)
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
        """A handler's messages and simultaneous pushes each arrive in their own order."""

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
        """Messages arrive in order over TLS, whose transport has a second write buffer."""
        inspect(registry).connections.pusher.limit = PushQueue(messages=10_000, bytes=10**9)
        app = make_app(registry)
        app.router.add_get("/listen", listen)
        client = await aiohttp_client(app, tls=tls)
        async with client.ws_connect("/listen", ssl=False) as ws:
            (connection,) = connections(registry)
            narrow(connection)
            sent = 0
            while not waiting(connection):  # the client receives some before it stops reading
                await registry.broadcast(f"{LINE * 64} {sent}")
                sent += 1
            for number in range(sent, sent + 100):
                await registry.broadcast(f"{LINE * (number % 90)} {number}")
            numbers = [int(text.split()[-1]) for text in await texts(ws, sent + 100)]

        assert numbers == list(range(sent + 100))
