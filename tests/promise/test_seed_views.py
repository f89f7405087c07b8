"""
Examples of other libraries' documentation with this library's API; structure and text are kept.

They come from apistar's ``WebSocket``, Aiopyramid's websocket views, serverwamp's session
lifecycle and the signals of wsrpc-aiohttp.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any, TypeAlias

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from aiohttp.typedefs import Handler

from aiohttp_session_ws import (
    Connection,
    SessionWSRegistry,
    WebSocket,
    WebSocketDisconnect,
    WebSocketView,
    websocket_handler,
)
from aiohttp_session_ws.close_codes import POLICY_VIOLATION
from aiohttp_session_ws.exceptions import WebSocketProtocolError
from aiohttp_session_ws.signals import AuthDetails, CloseDetails, FailDetails, HandshakeDetails
from tests.support import AiohttpClient, Client, RawPeer, expect_close, make_app, until

log = logging.getLogger(__name__)

Routes: TypeAlias = list[web.RouteDef]


async def connect(
    aiohttp_client: AiohttpClient,
    handler: Handler | type[WebSocketView],
    registry: SessionWSRegistry | None = None,
    **options: Any,
) -> ClientWebSocketResponse:
    """Serve a handler, and open a websocket to it."""
    client = await serve(aiohttp_client, handler, registry)
    ws: ClientWebSocketResponse = await client.ws_connect("/example", **options)
    return ws


async def serve(
    aiohttp_client: AiohttpClient,
    handler: Handler | type[WebSocketView],
    registry: SessionWSRegistry | None = None,
) -> Client:
    """Serve a handler."""
    app = make_app(registry)
    app.add_routes([web.get("/example", handler)])
    return await aiohttp_client(app)


# ---- apistar: "Basic Usage"


@websocket_handler
async def websocket_helloworld(ws: WebSocket) -> None:
    await ws.connect()

    # Send 100 Hello World!
    for _ in range(100):
        await ws.send("Hello World!")

    await ws.close()


@websocket_handler
async def websocket_helloworld_not_closed(ws: WebSocket) -> None:
    await ws.connect()

    # Send 100 Hello World!
    for _ in range(100):
        await ws.send("Hello World!")


# ---- apistar: "Event Hooks"


class ConnectAlways:
    async def on_request(self, ws: WebSocket) -> None:
        # Connect the WebSocket, always. Take care of that boilerplate.
        await ws.connect()


class RequireProtocol:
    async def on_request(self, ws: WebSocket) -> None:
        if "my.protocol.example.io" not in ws.protocols:
            raise WebSocketProtocolError(
                detail="Protocol {} is required".format("my.protocol.example.io")
            )
        await ws.connect("my.protocol.example.io")


class HaveANiceDay:
    async def on_response(self, ws: WebSocket) -> None:
        if ws.connected:
            await ws.send_json(
                {
                    "status": "ok",
                    "message": "Have a nice Day!",
                }
            )


@websocket_handler
async def websocket_without_boilerplate(ws: WebSocket) -> None:
    await ws.send("Hello World!")


# ---- apistar: "More Examples"


@websocket_handler
async def websocket_helloworld_msg(ws: WebSocket) -> None:
    await ws.connect()

    # Send 100 Hello World! JSON messages
    for idx in range(100):
        await ws.send_json(
            {
                "index": idx,
                "text": "Hello World!",
            }
        )


post_processed: list[str] = []


@websocket_handler
async def websocket_helloworld_forever(ws: WebSocket) -> None:
    await ws.connect()

    try:
        while True:
            await ws.send_json(
                {
                    "timestamp": datetime.now().isoformat(),
                    "text": "Hello World!",
                }
            )

            await asyncio.sleep(0.01)

    except WebSocketDisconnect:
        # The WebSocket was closed by the client
        pass

    # Do any needed post processing here
    post_processed.append("done")


@websocket_handler
async def websocket_pingpong_forever(ws: WebSocket) -> None:
    await ws.connect()

    try:
        while True:
            # wait for the ping. ws.receive() will block until a message comes in.
            await ws.receive()
            await ws.send("pong")
    except WebSocketDisconnect:
        pass
    post_processed.append("done")


@websocket_handler
async def websocket_pingpong_json_forever(ws: WebSocket) -> None:
    await ws.connect()

    try:
        while True:
            # wait for the ping. ws.receive_json() will block until a message comes in.
            await ws.receive_json()
            await ws.send_json(
                {
                    "paddle": "pong",
                }
            )
    except WebSocketDisconnect:
        pass
    post_processed.append("done")


routes: Routes = [
    web.get("/", websocket_helloworld),
    web.get("/forever", websocket_helloworld_forever),
]


class TestApistar:
    @pytest.mark.parametrize("handler", [websocket_helloworld, websocket_helloworld_not_closed])
    async def test_hello_world(self, aiohttp_client: AiohttpClient, handler: Handler) -> None:
        """A handler sends a hundred messages; the socket closes when it closes or returns."""
        ws = await connect(aiohttp_client, handler)
        messages = [await ws.receive_str() for _ in range(100)]

        assert messages == ["Hello World!"] * 100
        assert await expect_close(ws) == 1000

    async def test_routes(self, aiohttp_client: AiohttpClient) -> None:
        """Handlers can be listed as routes."""
        app = make_app()
        app.add_routes(routes)
        client = await aiohttp_client(app)
        async with client.ws_connect("/") as ws:
            assert await ws.receive_str() == "Hello World!"

    async def test_a_hook_that_connects(self, aiohttp_client: AiohttpClient) -> None:
        """An ``on_request`` hook accepts the handshake for a handler that doesn't."""
        registry = SessionWSRegistry()
        registry.on_request.append(ConnectAlways().on_request)
        ws = await connect(aiohttp_client, websocket_without_boilerplate, registry)

        assert await ws.receive_str() == "Hello World!"

    async def test_a_hook_that_enforces_a_protocol(self, aiohttp_client: AiohttpClient) -> None:
        """A hook refuses a client without the subprotocol, with 1002 and a reason."""
        registry = SessionWSRegistry()
        registry.on_request.append(RequireProtocol().on_request)
        client = await serve(aiohttp_client, websocket_without_boilerplate, registry)
        async with client.ws_connect("/example", protocols=["other"]) as ws:
            message = await ws.receive()
        mine = ["other", "my.protocol.example.io"]
        async with client.ws_connect("/example", protocols=mine) as ws:
            text = await ws.receive_str()

        assert (message.type, message.data) == (WSMsgType.CLOSE, 1002)
        assert message.extra == "Protocol my.protocol.example.io is required"
        assert (ws.protocol, text) == ("my.protocol.example.io", "Hello World!")

    async def test_a_hook_on_response(self, aiohttp_client: AiohttpClient) -> None:
        """An ``on_response`` hook is called once, after the handler; the socket may be closed."""
        registry = SessionWSRegistry()
        registry.on_response.append(HaveANiceDay().on_response)
        ws = await connect(aiohttp_client, websocket_helloworld_not_closed, registry)
        texts = [await ws.receive_str() for _ in range(101)]
        assert texts[-1] == '{"status": "ok", "message": "Have a nice Day!"}'
        assert await expect_close(ws) == 1000

        registry = SessionWSRegistry()
        registry.on_response.append(HaveANiceDay().on_response)
        ws = await connect(aiohttp_client, websocket_helloworld, registry)
        texts = [await ws.receive_str() for _ in range(100)]
        assert texts == ["Hello World!"] * 100
        assert await expect_close(ws) == 1000

    async def test_json(self, aiohttp_client: AiohttpClient) -> None:
        """JSON is sent as text."""
        ws = await connect(aiohttp_client, websocket_helloworld_msg)
        messages = [await ws.receive_json() for _ in range(100)]

        assert messages == [{"index": idx, "text": "Hello World!"} for idx in range(100)]

    @pytest.mark.parametrize(
        ("handler", "ping", "pong"),
        [
            (websocket_helloworld_forever, None, None),
            (websocket_pingpong_forever, "ping", "pong"),
            (websocket_pingpong_json_forever, "{}", '{"paddle": "pong"}'),
        ],
    )
    async def test_until_the_client_goes(
        self,
        aiohttp_client: AiohttpClient,
        handler: Handler,
        ping: str | None,
        pong: str | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A disconnect is raised by receiving and by sending, and logs no warning."""
        post_processed.clear()
        ws = await connect(aiohttp_client, handler)
        for _ in range(3):
            if ping is not None:
                await ws.send_str(ping)
            text = await ws.receive_str()
            assert pong is None or text == pong
        await ws.close()
        await until(lambda: post_processed)

        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    async def test_the_object(self, aiohttp_client: AiohttpClient) -> None:
        """The object has the attributes and methods that the documentation lists."""
        seen: list[Any] = []

        @websocket_handler
        async def handler(ws: WebSocket) -> None:
            seen.append((ws.subprotocols, ws.connecting, ws.connected, ws.closed))
            await ws.accept(subprotocol="b")
            data = await ws.receive()
            await ws.send(data)
            await ws.send_json(await ws.receive_json())
            seen.append((ws.subprotocols, ws.connecting, ws.connected, ws.closed))
            await ws.close(1001)
            seen.append((ws.subprotocols, ws.connecting, ws.connected, ws.closed))

        ws = await connect(aiohttp_client, handler, protocols=["a", "b"])
        await ws.send_bytes(b"data")
        assert await ws.receive_bytes() == b"data"
        await ws.send_json([1, {}])
        assert await ws.receive_json() == [1, {}]
        assert await expect_close(ws) == 1001
        await until(lambda: len(seen) == 3)

        assert [names for names, *_ in seen] == [["a", "b"]] * 3
        assert [states for _, *states in seen] == [
            [True, False, False],
            [False, True, False],
            [False, False, True],
        ]

    async def test_connect_and_reject(self, aiohttp_client: AiohttpClient) -> None:
        """``connect(subprotocol, close)`` rejects with a code."""

        @websocket_handler
        async def handler(ws: WebSocket) -> None:
            await ws.connect(None, POLICY_VIOLATION)

        ws = await connect(aiohttp_client, handler)

        assert await expect_close(ws) == 1008


# ---- Aiopyramid: "Websockets"


@websocket_handler
async def echo(ws: WebSocket) -> None:
    await ws.connect()
    while True:
        message = await ws.recv()
        if message is None:
            break
        await ws.send(message)
    post_processed.append("done")


class MyWebsocket(WebSocketView):
    async def on_open(self) -> None:
        post_processed.append("open")

    async def on_close(self, code: int) -> None:
        post_processed.append(f"close {code}")


class EchoWebsocket(MyWebsocket):
    async def on_message(self, message: str | bytes) -> None:
        assert self.ws.request is self.request
        await self.send(message)


class TestAiopyramid:
    async def test_function(self, aiohttp_client: AiohttpClient) -> None:
        """``recv()`` returns ``None`` when the connection is closed."""
        post_processed.clear()
        ws = await connect(aiohttp_client, echo)
        await ws.send_str("text")
        await ws.send_bytes(b"bytes")
        assert (await ws.receive_str(), await ws.receive_bytes()) == ("text", b"bytes")
        await ws.close()
        await until(lambda: post_processed)

    async def test_class(self, aiohttp_client: AiohttpClient) -> None:
        """A view that extends another one has callbacks, ``send()`` and ``self.ws``."""
        post_processed.clear()
        ws = await connect(aiohttp_client, EchoWebsocket)
        await ws.send_str("text")
        assert await ws.receive_str() == "text"
        await ws.close(code=4000)
        await until(lambda: len(post_processed) == 2)

        assert post_processed == ["open", "close 4000"]

    async def test_no_noise(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception that ends a view after the close isn't logged."""

        class Talkative(MyWebsocket):
            async def on_message(self, message: str | bytes) -> None:
                while True:
                    await self.send(message)
                    await asyncio.sleep(0)

        post_processed.clear()
        ws = await connect(aiohttp_client, Talkative)
        await ws.send_str("text")
        await ws.receive_str()
        await ws.close()
        await until(lambda: len(post_processed) == 2)

        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# ---- serverwamp: "Session Open and Close", "Session Data"


class TestServerwamp:
    @pytest.mark.parametrize("how", ["leave", "crash", "vanish"])
    async def test_count_session(self, aiohttp_client: AiohttpClient, how: str) -> None:
        """A context begins after the authorization and ends at the close, however it closes."""
        app_metrics = {"activeSessions": 0}

        async def count_session(connection: Connection) -> AsyncIterator[None]:
            # This part is called when the connection is authenticated…
            app_metrics["activeSessions"] += 1

            yield

            # This part is called when it is closed…
            app_metrics["activeSessions"] -= 1

        class View(WebSocketView):
            async def on_open(self) -> None:
                await self.send_json(app_metrics)

            async def on_message(self, message: str | bytes) -> None:
                raise LookupError("a bug")

        allowed = False
        registry = SessionWSRegistry(authorize=lambda request: allowed)
        registry.connection_ctx.append(count_session)
        client = await serve(aiohttp_client, View, registry)
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/example")
        assert app_metrics == {"activeSessions": 0}

        allowed = True
        peer = await RawPeer.open(client.make_url("/example"))
        assert await peer.frame() == (1, b'{"activeSessions": 1}')
        if how == "vanish":
            peer.vanish()
        else:
            await peer.say(8 if how == "leave" else 1, b"")
        await until(lambda: app_metrics == {"activeSessions": 0})
        peer.close()

    async def test_session_data(self, aiohttp_client: AiohttpClient) -> None:
        """Connection data can be set and read by the view and by the context."""
        names: list[str] = []

        async def remember(connection: Connection) -> AsyncIterator[None]:
            connection.data["name"] = "nobody"
            yield
            names.append(connection.data["name"])

        class SetMyName(WebSocketView):
            async def on_message(self, message: str | bytes) -> None:
                await self.send_json({"before": self.ws["name"]})
                self.ws["name"] = message

        registry = SessionWSRegistry()
        registry.connection_ctx.append(remember)
        ws = await connect(aiohttp_client, SetMyName, registry)
        for name, before in (("Ann", "nobody"), ("Bob", "Ann")):
            await ws.send_str(name)
            assert await ws.receive_json() == {"before": before}
        await ws.close()
        await until(lambda: names)

        assert names == ["Bob"]


# ---- wsrpc-aiohttp: "Signals"


conn_started_at: ContextVar[float] = ContextVar("conn_started_at")


async def on_conn_open(details: HandshakeDetails) -> None:
    ts = time()
    log.debug("Connection of %s opened at %f", details.request.path, ts)
    conn_started_at.set(ts)


async def on_conn_end(details: CloseDetails) -> None:
    ts = time() - conn_started_at.get()
    log.info("Connection of %s open for %f", details.request.query_string, ts)


class SlowView(WebSocketView):
    async def on_open(self) -> None:
        assert conn_started_at.get() <= time()

    async def on_message(self, message: str | bytes) -> None:
        await asyncio.sleep(float(message))
        await self.send_json(True)


class TestWsrpc:
    async def test_the_example(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A context variable set by a receiver is seen by its connection's view and receivers."""
        caplog.set_level(logging.INFO, __name__)
        registry = SessionWSRegistry()
        # Connecting handlers to signals
        registry.on_handshake.append(on_conn_open)
        registry.on_close.append(on_conn_end)
        app = make_app(registry)
        app.router.add_route("*", "/example/", SlowView)  # Websocket route
        app.router.add_static("/", Path(__file__).parent)  # Your static files
        client = await aiohttp_client(app)

        async def stay(seconds: float) -> None:
            async with client.ws_connect(f"/example/?{seconds}") as ws:
                await ws.send_str(str(seconds))
                assert await ws.receive_json() is True

        await asyncio.gather(*[stay(seconds) for seconds in (0.05, 0.1, 0.2)])
        await until(lambda: not len(registry))
        logged = [r.args for r in caplog.records if r.name == __name__]

        assert len(logged) == 3
        for args in logged:
            assert isinstance(args, tuple)
            assert float(str(args[0])) <= float(str(args[1]))
        async with client.get(f"/{Path(__file__).name}") as response:
            assert response.status == 200

    @pytest.mark.parametrize(
        ("how", "heard"),
        [
            ("good", ["open", "auth_success", "close"]),
            ("unauthorized", ["open", "auth_fail", "fail 403"]),
            ("plain", ["fail 400"]),
        ],
    )
    async def test_signals(
        self, aiohttp_client: AiohttpClient, how: str, heard: list[str]
    ) -> None:
        """Handshake comes before the authorization, close before closing, fail with its error."""
        events: list[str] = []
        registry = SessionWSRegistry(authorize=lambda request: how == "good")

        @registry.on_handshake
        async def on_conn_open(details: HandshakeDetails) -> None:
            events.append("open")

        @registry.on_auth_success
        async def on_auth_success(details: AuthDetails) -> None:
            events.append("auth_success")

        @registry.on_auth_fail
        async def on_auth_fail(details: AuthDetails) -> None:
            events.append("auth_fail")

        @registry.on_fail
        async def on_conn_fail(details: FailDetails) -> None:
            assert isinstance(details.exception, web.HTTPException)
            events.append(f"fail {details.exception.status}")

        @registry.on_close
        async def on_conn_close(details: CloseDetails) -> None:
            assert not details.ws.closed
            events.append("close")

        client = await serve(aiohttp_client, websocket_helloworld_not_closed, registry)
        if how == "plain":
            async with client.get("/example") as response:
                assert response.status == 400
        elif how == "unauthorized":
            with pytest.raises(WSServerHandshakeError, match="403"):
                await client.ws_connect("/example")
        else:
            async with client.ws_connect("/example") as ws:
                await expect_close(ws)

        assert events == heard
