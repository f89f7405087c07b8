"""
Close orders of a registry, and peers and handlers that end when asked to, or don't.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Never

import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws import (
    REGISTRY_KEY,
    Close,
    SessionWSRegistry,
    Timeouts,
    registry_from,
    session_ws,
)
from aiohttp_session_ws.close_codes import GOING_AWAY
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.results import CloseReport
from tests.support import (
    NORMAL_CLOSE,
    PATIENCE,
    PATIENT,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    TlsPeer,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import connections, idle, inspect, opening

FLOOD = b"x" * 1_000_000


async def pour(ws: web.WebSocketResponse) -> Never:
    """Send without end, so that a peer that doesn't read fills every buffer."""
    while True:
        await ws.send_bytes(FLOOD)


async def flood(request: web.Request) -> web.WebSocketResponse:
    """Send without end, and do nothing else."""
    async with session_ws(request) as ws:
        await pour(ws)


async def deaf(request: web.Request) -> web.WebSocketResponse:
    """Never read, so that no close is noticed."""
    async with session_ws(request) as ws:
        await ws.send_str("here")
        await asyncio.Event().wait()
    return ws


async def client_of(
    aiohttp_client: AiohttpClient,
    registry: SessionWSRegistry,
    tls: ssl.SSLContext | None = None,
) -> Client:
    app = make_app(registry)
    app.router.add_get("/flood", flood)
    app.router.add_get("/deaf", deaf)
    client = await aiohttp_client(app, tls=tls)
    await client.get("/login")
    return client


async def session_id(client: Client) -> str:
    async with client.get("/whoami") as response:
        return str((await response.json())["id"])


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


@pytest.fixture
def patient() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=PATIENT)


class TestVocabulary:
    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
    def test_a_code_that_no_frame_can_carry_is_an_error(self, code: int) -> None:
        """A code that no close frame may carry (RFC 6455, 7.4.1) raises ValueError."""
        with pytest.raises(ValueError, match="3000 to 4999"):
            Close(code)

    def test_a_reason_has_room_for_123_bytes(self) -> None:
        """A reason has at most 123 bytes: a control frame holds 125, the code takes two."""
        Close(4000, "é" * 61)
        with pytest.raises(ValueError, match="123 bytes"):
            Close(4000, "é" * 62)

    def test_timeouts_are_not_negative(self) -> None:
        """A negative timeout raises ValueError."""
        with pytest.raises(ValueError, match="seconds"):
            Timeouts(close=-1)


class TestOrders:
    async def test_code_and_reason_reach_the_client(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The code and the reason given with an order reach the client."""
        client = await client_of(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.close_all_session(await session_id(client), close=4000, reason="bye")
            message = await ws.receive()

        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4000, "bye")

    async def test_only_that_session(
        self, aiohttp_client: AiohttpClient, patient: SessionWSRegistry
    ) -> None:
        """The end of a session leaves the sockets of other sessions open."""
        client = await client_of(aiohttp_client, patient)
        other = await aiohttp_client(client.server)
        await other.get("/login")
        async with client.ws_connect("/ws") as mine, other.ws_connect("/ws") as theirs:
            await mine.receive()
            await theirs.receive()
            report = await patient.end_session(await session_id(client))
            await theirs.send_str("still here")
            echo = await theirs.receive()

        assert echo.data == "still here"
        assert report == CloseReport(sockets=1)

    async def test_close_all(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """close_all() closes all sockets, and the same sessions may reconnect."""
        client = await client_of(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            report = await registry.close_all()
            code = await expect_close(ws)
        async with client.ws_connect("/ws") as ws:
            back = await ws.receive()

        assert (report.sockets, code, back.type) == (1, 4403, WSMsgType.TEXT)

    async def test_of_nobody(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order for an id that has no socket closes nothing."""
        await client_of(aiohttp_client, registry)
        assert await registry.close_all_session("nobody") == CloseReport()
        assert await registry.end_session("nobody") == CloseReport()

    async def test_twice(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """Two simultaneous orders close a socket once, and both count it."""
        client = await client_of(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            id_ = await session_id(client)
            first, second = await asyncio.gather(registry.end_session(id_), registry.close_all())
            code = await expect_close(ws)

        assert (first.sockets, second.sockets, code) == (1, 1, 4401)
        assert not len(registry)

    async def test_from_the_handler_of_that_very_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handler may end its own session: all sockets are closed, and the handler continues."""
        ended = asyncio.Event()

        async def suicide(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                await registry_from(request).end_session(await session_id(client))
                ended.set()
            return ws

        app = make_app(registry)
        app.router.add_get("/suicide", suicide)
        client = await aiohttp_client(app)
        await client.get("/login")
        async with client.ws_connect("/ws") as other, client.ws_connect("/suicide") as ws:
            await ws.send_str("now")
            codes = await expect_close(other), await expect_close(ws)
            await ended.wait()

        assert codes == (4401, 4401)

    async def test_a_cancelled_caller_stops_nothing(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Cancelling the caller of an order doesn't stop the close."""
        client = await client_of(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            order = asyncio.ensure_future(registry.end_session(await session_id(client)))
            await asyncio.sleep(0)
            order.cancel()
            code = await expect_close(ws)

        assert code == 4401


class TestRudePeers:
    async def test_never_answers_the_close_frame(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A peer that never answers the close frame is aborted, and its handler cancelled."""
        client = await client_of(aiohttp_client, registry)
        peer = await RawPeer.open(client.make_url("/deaf"), cookie_of(client))
        report = await registry.close_all()

        assert report == CloseReport(sockets=1, aborted=1, cancelled=1)
        assert await peer.closed() == 4403
        assert not len(registry)
        peer.close()

    async def test_stopped_reading(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A peer that has stopped reading is aborted, and its unsent data is discarded."""
        client = await client_of(aiohttp_client, registry)
        peer = await RawPeer.open(
            client.make_url("/flood"), cookie_of(client), receive_buffer=4096
        )
        (connection,) = connections(registry)
        transport = connection.transport
        assert transport is not None
        await until(transport.get_write_buffer_size)
        report = await registry.close_all()
        await until(transport.is_closing)

        assert report.sockets == report.aborted == 1
        assert transport.get_write_buffer_size() == 0
        peer.close()

    async def test_vanished_while_the_handler_looks_elsewhere(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A lost connection is removed, and its handler cancelled, without an order."""
        client = await client_of(aiohttp_client, registry)
        peer = await RawPeer.open(client.make_url("/deaf"), cookie_of(client))
        (connection,) = connections(registry)
        peer.vanish()
        assert connection.task is not None
        await asyncio.wait({connection.task})

        assert connection.cancelled
        assert not len(registry)

    async def test_half_closed_by_a_handler_that_hangs_in_close(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handler's close() to a peer that doesn't read returns, and the socket is removed."""
        done = asyncio.Event()

        async def hang(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                sending = asyncio.ensure_future(ws.send_bytes(FLOOD * 20))
                await asyncio.sleep(0)
                await ws.close()
            done.set()
            sending.cancel()
            await asyncio.wait({sending})
            return ws

        app = make_app(registry)
        app.router.add_get("/hang", hang)
        client = await aiohttp_client(app)
        peer = await RawPeer.open(client.make_url("/hang"), receive_buffer=4096)
        await done.wait()

        assert not len(registry)
        peer.close()


class TestTls:
    @pytest.fixture
    async def client(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, tls: ssl.SSLContext
    ) -> Client:
        return await client_of(aiohttp_client, registry, tls)

    async def test_behaves(
        self, aiohttp_client: AiohttpClient, patient: SessionWSRegistry, tls: ssl.SSLContext
    ) -> None:
        """A TLS client receives the close code, and its connection ends."""
        client = await client_of(aiohttp_client, patient, tls)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            (connection,) = connections(patient)
            report = await patient.end_session(await session_id(client))
            code = await expect_close(ws)

        assert (report, code) == (CloseReport(sockets=1), 4401)
        assert connection.tls_socket.fileno() == -1

    @staticmethod
    async def full(
        client: Client, registry: SessionWSRegistry, path: str
    ) -> tuple[TlsPeer, TrackedConnection]:
        """Return a peer that doesn't read, once its buffers are full, and its connection."""
        peer = await TlsPeer.open(client.make_url(path), cookie_of(client), receive_buffer=4096)
        (connection,) = connections(registry)
        assert connection.transport is not None
        await until(connection.transport.get_write_buffer_size)
        return peer, connection

    @pytest.mark.parametrize("says_so", ["never", "before", "after"])
    async def test_stopped_reading(
        self, client: Client, registry: SessionWSRegistry, says_so: str
    ) -> None:
        """A TLS peer that doesn't read is aborted, whether or not it sends close_notify."""
        peer, connection = await self.full(client, registry, "/flood")
        assert connection.transport is not None
        if says_so == "before":
            await peer.notify()
            await until(connection.transport.is_closing)
        order = asyncio.ensure_future(registry.end_session(connection.session_ws_id))
        if says_so == "after":
            await until(lambda: connection.ws.closed)
            await peer.notify()
        async with asyncio.timeout(PATIENCE):
            report = await order
        await until(lambda: connection.tls_socket.fileno() == -1)

        assert report.sockets == report.aborted == 1
        assert not len(registry)
        peer.close()

    async def test_closed_by_the_handler_too(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, tls: ssl.SSLContext
    ) -> None:
        """A TLS connection that both sides began to close ends though its peer doesn't read."""
        said = asyncio.Event()

        async def shut(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                flooding = asyncio.ensure_future(pour(ws))
                await said.wait()
                await ws.close()
            flooding.cancel()
            await asyncio.wait({flooding})
            return ws

        app = make_app(registry)
        app.router.add_get("/shut", shut)
        client = await aiohttp_client(app, tls=tls)
        await client.get("/login")
        peer, connection = await self.full(client, registry, "/shut")
        assert connection.transport is not None
        await peer.notify()
        await until(connection.transport.is_closing)
        said.set()
        await until(lambda: connection.tls_socket.fileno() == -1)

        assert not len(registry)
        peer.close()


class TestHandlers:
    async def test_learns_of_the_close_in_receive(
        self, aiohttp_client: AiohttpClient, patient: SessionWSRegistry
    ) -> None:
        """A handler that reads ends by itself and is not cancelled."""
        client = await client_of(aiohttp_client, patient)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            report = await patient.close_all()

        assert report == CloseReport(sockets=1)

    async def test_refuses_to_be_cancelled(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A handler that suppresses its cancellation is logged, and its socket is closed."""
        stop = asyncio.Event()

        async def stubborn(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                while not stop.is_set():
                    try:
                        await stop.wait()
                    except asyncio.CancelledError:
                        continue
            return ws

        app = make_app(registry)
        app.router.add_get("/stubborn", stubborn)
        client = await aiohttp_client(app)
        async with client.ws_connect("/stubborn") as ws:
            report = await registry.close_all()
            await expect_close(ws)
        await until(lambda: "is still running after its socket was closed" in caplog.text)
        stop.set()

        assert report.cancelled == 1
        assert not len(registry)

    async def test_sends_after_the_order(
        self,
        aiohttp_client: AiohttpClient,
        patient: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The exception of a send after an order isn't logged as an error."""
        tick = Turnstile()
        tick.shut = True

        async def ticker(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                while True:
                    await ws.send_str("tick")
                    await tick()

        app = make_app(patient)
        app.router.add_get("/ticker", ticker)
        client = await aiohttp_client(app)
        async with client.ws_connect("/ticker") as ws:
            await ws.receive()
            closing = asyncio.ensure_future(patient.close_all())
            code = await expect_close(ws)
            tick.let()
            report = await closing

        assert (code, report.cancelled) == (4403, 0)
        assert not [r for r in caplog.records if r.levelno >= logging.ERROR]

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (web.HTTPForbidden, 1008),
            (web.HTTPFound, 1000),
            (web.HTTPInternalServerError, 1011),
            (ZeroDivisionError, 1011),
        ],
    )
    async def test_raises_in_an_open_socket(
        self, aiohttp_client: AiohttpClient, error: type[Exception], code: int
    ) -> None:
        """An exception in an open socket becomes a close code; no HTTP response is written."""

        async def failing(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request):
                raise error("/") if error is web.HTTPFound else error()

        app = make_app()
        app.router.add_get("/failing", failing)
        client = await aiohttp_client(app)
        peer = await RawPeer.open(client.make_url("/failing"))
        frame = await peer.frame()
        assert frame is not None
        await peer.say(8, NORMAL_CLOSE)

        assert (frame[0], int.from_bytes(frame[1][:2])) == (8, code)
        assert await peer.frame() is None
        peer.close()

    @pytest.mark.parametrize("answer", [None, web.Response(text="oops")])
    async def test_returns_something_else(
        self, aiohttp_client: AiohttpClient, answer: web.Response | None
    ) -> None:
        """A handler that doesn't return its websocket writes nothing after the close frame."""

        async def forgetful(request: web.Request) -> web.Response | None:
            async with session_ws(request) as ws:
                await ws.receive()
            return answer

        app = make_app()
        app.router.add_get("/forgetful", forgetful)  # type: ignore[arg-type]  # that's the point
        client = await aiohttp_client(app)
        peer = await RawPeer.open(client.make_url("/forgetful"))
        await peer.say(1, b"go")
        frame = await peer.frame()
        await peer.say(8, NORMAL_CLOSE)

        assert frame == (8, NORMAL_CLOSE)
        assert await peer.frame() is None
        peer.close()

    async def test_leaves_and_says_goodbye(self, aiohttp_client: AiohttpClient) -> None:
        """A message sent before the end of the block arrives before the close frame."""

        async def hello(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_bytes(FLOOD)
            return ws

        app = make_app()
        app.router.add_get("/hello", hello)
        client = await aiohttp_client(app)
        async with client.ws_connect("/hello") as ws:
            message = await ws.receive()
            code = await expect_close(ws)

        assert (message.data, code) == (FLOOD, 1000)
        await until(lambda: not len(app[REGISTRY_KEY]))


class TestShutdown:
    async def test_rude_peers_and_a_handshake_in_flight(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A shutdown completes though no peer answers, and leaves no connection and no task."""
        held = Turnstile()
        held.shut = True

        async def authorize(request: web.Request) -> bool:
            if request.query:
                await held()
            return True

        inspect(registry).authorize = authorize
        client = await client_of(aiohttp_client, registry)
        cookie = cookie_of(client)
        paths = ["/deaf", "/deaf", "/ws"]
        peers = [await RawPeer.open(client.make_url(path), cookie) for path in paths]
        late = await RawPeer.connect(client.make_url("/ws?late"), cookie)
        await held.arrived.wait()
        await client.server.close()

        assert {await peer.closed() for peer in peers} == {1001}
        assert await late.closed() is None
        assert not len(registry)
        assert not opening(registry)
        assert idle(registry)
        for peer in [*peers, late]:
            peer.close()

    async def test_refuses_new_handshakes(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An application that shuts down answers handshakes with 503 and Retry-After."""
        client = await client_of(aiohttp_client, registry)
        inspect(registry).drainer.refuses = True
        peer = await RawPeer.connect(client.make_url("/ws"), cookie_of(client))
        head = await peer.read_head()

        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in head
        peer.close()

    async def test_tells_1001(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A shutdown closes sockets with 1001."""
        client = await client_of(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            closing = asyncio.ensure_future(client.server.close())
            code = await expect_close(ws)
            await closing

        assert code == GOING_AWAY.code
