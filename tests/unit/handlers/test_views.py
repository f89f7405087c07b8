"""
Function handlers, class-based views and hooks, all of which end with the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web

from aiohttp_session_ws import (
    Connection,
    Limits,
    SessionWSRegistry,
    WebSocket,
    WebSocketView,
    session_ws,
    websocket_handler,
)
from aiohttp_session_ws.exceptions import WebSocketProtocolError
from aiohttp_session_ws.signals import CloseDetails, FailDetails, OpenDetails
from aiohttp_session_ws.typing import WebSocketOptions
from tests.support import (
    PATIENCE,
    PATIENT,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import connections, idle, inspect, left_handlers


@websocket_handler
async def echo(ws: WebSocket) -> None:
    """Echo, as a function."""
    await ws.connect()
    async for message in ws:
        await ws.send(message)


class Views:
    """Handlers that are methods."""

    @websocket_handler
    async def echo(self, ws: WebSocket) -> None:
        """Echo, as a method of any object."""
        await ws.connect()
        while (message := await ws.recv()) is not None:
            await ws.send(message)


class MethodView(web.View):
    """One of aiohttp's own views."""

    @websocket_handler(compress=False)
    async def get(self, ws: WebSocket) -> None:
        """Echo, as a method of a view."""
        assert self.request is ws.request
        await ws.connect()
        async for message in ws:
            await ws.send(message)


class EchoView(WebSocketView):
    """Echo, by callbacks."""

    async def on_message(self, message: str | bytes) -> None:
        """Echo."""
        await self.send(message)


async def plain_echo(request: web.Request) -> web.WebSocketResponse:
    """Echo, with ``session_ws`` alone."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


table = web.RouteTableDef()


@table.get("/table")
@websocket_handler
async def in_a_table(ws: WebSocket) -> None:
    """Echo, in a route table."""
    await ws.connect()
    async for message in ws:
        await ws.send(message)


@table.view("/table/view")
class InATable(EchoView):
    """Echo, as a view in a route table."""


KINDS = [
    *("/function", "/method", "/view/method", "/view", "/route", "/plain"),
    *("/table", "/table/view"),
]


def all_kinds(registry: SessionWSRegistry) -> web.Application:
    """Return an app that has each kind of handler."""
    app = make_app(registry)
    app.router.add_get("/function", echo)
    app.router.add_get("/method", Views().echo)
    app.router.add_view("/view/method", MethodView)
    app.router.add_view("/view", EchoView)
    app.router.add_route("*", "/route", EchoView)
    app.router.add_get("/plain", plain_echo)
    app.add_routes(table)
    return app


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the log records at the level of a warning or above."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


class TestEveryKind:
    @pytest.mark.parametrize("path", KINDS)
    async def test_echoes(
        self, aiohttp_client: AiohttpClient, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each kind of handler echoes, and leaves nothing behind when its client disconnects."""
        registry = SessionWSRegistry()
        client = await aiohttp_client(all_kinds(registry))
        async with client.ws_connect(path) as ws:
            await ws.send_str("there?")
            assert await ws.receive_str() == "there?"
            assert await registry.count() == 1
        await until(lambda: not len(registry) and idle(registry))

        assert not warnings(caplog)

    async def test_one_log_out(self, aiohttp_client: AiohttpClient) -> None:
        """A log-out ends all kinds of handlers of its session, and those of no other session."""
        registry = SessionWSRegistry(timeouts=PATIENT)
        client = await aiohttp_client(all_kinds(registry))
        other = await aiohttp_client(client.server)
        await client.get("/login")
        sockets = [await client.ws_connect(path) for path in KINDS]
        others = [await other.ws_connect(path) for path in KINDS]
        await until(lambda: len(connections(registry)) == 2 * len(KINDS))
        await client.get("/out/end_session_ws")
        codes = [await expect_close(ws) for ws in sockets]
        for ws in others:
            await ws.send_str("still there?")

            assert await ws.receive_str() == "still there?"
        assert codes == [4401] * len(KINDS)
        assert await registry.count() == len(KINDS)

    @pytest.mark.parametrize("path", KINDS)
    async def test_limits_hold(self, aiohttp_client: AiohttpClient, path: str) -> None:
        """A connection over the limit closes the oldest one."""
        registry = SessionWSRegistry(limits=Limits(per_session=1))
        client = await aiohttp_client(all_kinds(registry))
        await client.get("/login")
        async with client.ws_connect(path) as old:
            new = asyncio.ensure_future(client.ws_connect(path))

            assert await expect_close(old) == 4429
            await (await new).close()

    @pytest.mark.parametrize("path", KINDS)
    async def test_foreign_pages(self, aiohttp_client: AiohttpClient, path: str) -> None:
        """A handshake by a page of another origin gets 403."""
        client = await aiohttp_client(all_kinds(SessionWSRegistry()))
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect(path, origin="https://evil.example")

        assert refused.value.status == 403

    @pytest.mark.parametrize("path", KINDS)
    async def test_a_plain_get(self, aiohttp_client: AiohttpClient, path: str) -> None:
        """A plain GET gets 400."""
        client = await aiohttp_client(all_kinds(SessionWSRegistry()))
        async with client.get(path) as response:
            assert response.status == 400

    @pytest.mark.parametrize("path", KINDS)
    async def test_signals_and_contexts(self, aiohttp_client: AiohttpClient, path: str) -> None:
        """A context variable set by an ``on_open`` receiver is kept until ``on_close``."""
        name: ContextVar[str] = ContextVar("name", default="nobody")
        registry = SessionWSRegistry()
        events: list[str] = []

        @registry.on_open
        async def opening(details: OpenDetails) -> None:
            name.set(details.request.path)

        @registry.connection_ctx.append
        async def context(connection: Connection) -> AsyncIterator[None]:
            events.append(f"in {name.get()}")
            yield
            events.append(f"out {name.get()}")

        @registry.on_close
        async def closing(details: CloseDetails) -> None:
            events.append(f"{details.code} {name.get()}")

        # Records what the handler sees, in a hook that runs after all kinds but one.
        async def seen(ws: WebSocket) -> None:
            events.append(f"handler {name.get()}")

        registry.on_response.append(seen)
        client = await aiohttp_client(all_kinds(registry))
        for _ in range(2):
            async with client.ws_connect(path) as ws:
                await ws.send_str("there?")
                await ws.receive_str()
        await until(lambda: not len(registry))

        handler = [] if path == "/plain" else [f"handler {path}"]
        assert events == [f"in {path}", *handler, f"out {path}", f"1000 {path}"] * 2


class TestFunctions:
    async def test_keep_their_names(self) -> None:
        """A decorated handler keeps the name and the docstring of its function."""
        assert echo.__name__ == "echo"
        assert echo.__doc__ == "Echo, as a function."

    async def test_options(self, aiohttp_client: AiohttpClient) -> None:
        """The options of ``websocket_handler`` are passed to aiohttp's response."""

        @websocket_handler(max_msg_size=100, protocols=("chat",))
        async def handler(ws: WebSocket) -> None:
            await ws.connect()
            await ws.recv()

        app = make_app()
        app.router.add_get("/talk", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk", protocols=["other", "chat"]) as ws:
            await ws.send_str("x" * 200)

            assert (ws.protocol, await expect_close(ws)) == ("chat", 1009)


class Tape(WebSocketView):
    """A view that records its callbacks, and acts as a message or the query says."""

    options: ClassVar[WebSocketOptions] = {"max_msg_size": 100}
    calls: list[Any]

    async def on_open(self) -> None:
        """Record the call; crash if the query says so."""
        self.calls = self.request.app["tapes"]
        self.calls.append("open")
        if self.request.query.get("crash") == "open":
            raise LookupError("a bug")
        await self.send_json({"rank": self.ws.request.path})

    async def on_message(self, message: str | bytes) -> None:
        """Record the message, and do what it says."""
        self.calls.append(message)
        if message == "crash":
            raise LookupError("a bug")
        if message == "forbid":
            raise web.HTTPForbidden
        if message == "protocol":
            raise WebSocketProtocolError("no such word")
        if message == "close":
            await self.ws.close(4000)
        if message == "close and send":
            await self.ws.close(4000)
            await self.send("x")
        if message == "hang":
            await asyncio.Event().wait()

    async def on_close(self, code: int) -> None:
        """Record the code; crash if the query says so."""
        self.calls.append(code)
        if self.request.query.get("crash") == "close":
            raise LookupError("a bug")


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
async def client(
    aiohttp_client: AiohttpClient, registry: SessionWSRegistry, calls: list[Any]
) -> Client:
    """A client of an app that serves the tape, and records ``on_close`` signals."""
    app = make_app(registry)
    app["tapes"] = calls
    app.router.add_view("/tape", Tape)

    @registry.on_close
    async def note(details: CloseDetails) -> None:
        calls.append((details.code, details.by))

    return await aiohttp_client(app)


@pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")
class TestView:
    @pytest.mark.parametrize(
        ("message", "code", "by", "logged"),
        [
            ("crash", 1011, "handler", 1),
            ("forbid", 1008, "handler", 0),
            ("protocol", 1002, "handler", 0),
            ("close", 4000, "handler", 0),
            ("close and send", 4000, "handler", 0),
            ("x" * 101, 1009, "handler", 0),
        ],
    )
    async def test_ends_by_itself(
        self,
        client: Client,
        calls: list[Any],
        caplog: pytest.LogCaptureFixture,
        message: str,
        code: int,
        by: str,
        logged: int,
    ) -> None:
        """``on_close`` is called once, with the code that the client and the signal get."""
        async with client.ws_connect("/tape") as ws:
            await ws.send_str("hello")
            await ws.send_str(message)

            assert await expect_close(ws) == code
        heard = [message] if len(message) < 100 else []
        await until(lambda: len(calls) == 4 + len(heard))
        await client.close()

        assert calls == ["open", "hello", *heard, code, (code, by)]
        assert len(warnings(caplog)) == logged

    @pytest.mark.parametrize("message", ["hello", "hang"])
    async def test_is_closed_by_the_client(
        self, client: Client, calls: list[Any], registry: SessionWSRegistry, message: str
    ) -> None:
        """``on_close`` gets the client's code, even if a hanging callback is ended later."""
        ws = await client.ws_connect("/tape")
        await ws.send_str(message)
        await until(lambda: message in calls)
        await ws.close(code=4321)
        if message == "hang":  # only an order ends a handler that hangs after the close
            await until(lambda: not len(registry))
            await registry.close_all()
        await until(lambda: len(calls) == 4)

        assert calls == ["open", message, 4321, (4321, "client")]

    @pytest.mark.parametrize("message", ["hello", "hang"])
    async def test_is_closed_by_an_order(
        self, client: Client, calls: list[Any], registry: SessionWSRegistry, message: str
    ) -> None:
        """``on_close`` gets the order's code, even if the handler had to be cancelled."""
        async with client.ws_connect("/tape") as ws:
            await ws.send_str(message)
            await until(lambda: message in calls)
            await registry.close_all()

            assert await expect_close(ws) == 4403
        await until(lambda: len(calls) == 4)

        assert calls == ["open", message, 4403, (4403, "order")]

    async def test_vanishes(self, client: Client, calls: list[Any]) -> None:
        """A client that vanishes without a close frame is reported as 1006."""
        peer = await RawPeer.open(client.make_url("/tape"))
        await peer.frame()
        peer.vanish()
        await until(lambda: len(calls) == 3)

        assert calls == ["open", 1006, (1006, "client")]

    async def test_at_the_shutdown(self, client: Client, calls: list[Any]) -> None:
        """``on_close`` is called at the shutdown, with 1001."""
        async with client.ws_connect("/tape") as ws:
            await ws.receive()
            stopping = asyncio.ensure_future(client.server.close())

            assert await expect_close(ws) == 1001
            await stopping
        assert calls == ["open", 1001, (1001, "order")]

    @pytest.mark.parametrize("where", ["open", "close"])
    async def test_crashes(
        self, client: Client, calls: list[Any], caplog: pytest.LogCaptureFixture, where: str
    ) -> None:
        """A crash in a callback is logged once, and ``on_close`` is called once."""
        async with client.ws_connect(f"/tape?crash={where}") as ws:
            if where == "close":
                await ws.receive()
                await ws.close(code=4321)
            else:
                assert await expect_close(ws) == 1011
        await until(lambda: len(calls) == 3)
        await client.close()
        end = (4321, "client") if where == "close" else (1011, "handler")

        assert calls == ["open", end[0], end]
        assert len(warnings(caplog)) == 1

    async def test_refused(
        self, client: Client, calls: list[Any], registry: SessionWSRegistry
    ) -> None:
        """No callback of a view is called if its handshake was refused."""
        inspect(registry).authorize = lambda request: False
        with pytest.raises(WSServerHandshakeError):
            await client.ws_connect("/tape")

        assert calls == []

    async def test_other_methods(self, client: Client) -> None:
        """A POST to a view gets 405."""
        async with client.post("/tape") as response:
            assert response.status == 405


Hook = Callable[[WebSocket], Awaitable[None]]


class TestHooks:
    @pytest.fixture
    def events(self) -> list[str]:
        return []

    def hook(self, events: list[str], name: str) -> Hook:
        async def note(ws: WebSocket) -> None:
            events.append(f"{name}{' open' if ws.connected else ''}")

        return note

    async def test_nest(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, events: list[str]
    ) -> None:
        """``on_request`` hooks run in their order, ``on_response`` hooks in reverse order."""
        registry.on_request += [self.hook(events, "one"), self.hook(events, "two")]
        registry.on_response += [self.hook(events, "one"), self.hook(events, "two")]

        @websocket_handler
        async def handler(ws: WebSocket) -> None:
            await ws.connect()
            events.append("handler")
            await ws.send("hello")

        app = make_app(registry)
        app.router.add_get("/talk", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            await expect_close(ws)

        assert events == ["one", "two", "handler", "two open", "one open"]

    @pytest.mark.parametrize("how", ["disconnect", "close", "crash"])
    async def test_on_response(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        events: list[str],
        how: str,
    ) -> None:
        """``on_response`` hooks run once after a disconnect or a close, and not after a crash."""

        async def says_goodbye(ws: WebSocket) -> None:
            events.append("goodbye")
            await ws.send("goodbye")  # fails, and the other hook still runs

        registry.on_response += [self.hook(events, "last"), says_goodbye]

        @websocket_handler
        async def handler(ws: WebSocket) -> None:
            await ws.connect()
            if how == "crash":
                raise LookupError("a bug")
            if how == "close":
                await ws.close()
            while True:
                await ws.receive()

        app = make_app(registry)
        app.router.add_get("/talk", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            if how == "disconnect":
                await ws.close()
            else:
                await expect_close(ws)
        await until(lambda: not len(registry) and not left_handlers(registry))

        assert events == ([] if how == "crash" else ["goodbye", "last"])

    @pytest.mark.parametrize("path", ["/function", "/view"])
    async def test_connect_for_all(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, path: str
    ) -> None:
        """An ``on_request`` hook may connect in place of the handler."""

        async def connect(ws: WebSocket) -> None:
            await ws.connect(subprotocol=ws.subprotocols[-1])

        @websocket_handler
        async def handler(ws: WebSocket) -> None:
            await ws.send("hello")

        class Greeter(WebSocketView):
            async def on_open(self) -> None:
                await self.send("hello")

        registry.on_request.append(connect)
        app = make_app(registry)
        app.router.add_get("/function", handler)
        app.router.add_view("/view", Greeter)
        client = await aiohttp_client(app)
        async with client.ws_connect(path, protocols=["a", "b"]) as ws:
            assert (ws.protocol, await ws.receive_str()) == ("b", "hello")

    @pytest.mark.parametrize("how", ["raise", "close", "connect and close", "http"])
    async def test_refuse(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        events: list[str],
        how: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Neither the next hook nor the handler is called after a hook has refused."""
        failed: list[FailDetails] = []

        async def refuse(ws: WebSocket) -> None:
            if how == "raise":
                raise WebSocketProtocolError("not today")
            if how == "http":
                raise web.HTTPPaymentRequired
            if how == "connect and close":
                await ws.connect()
            await ws.close(1002, "not today")

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failed.append(details)

        registry.on_request += [refuse, self.hook(events, "next")]
        registry.on_response.append(self.hook(events, "response"))
        app = make_app(registry)
        app.router.add_get("/talk", websocket_handler(self.hook(events, "handler")))
        client = await aiohttp_client(app)
        status: int | None = None
        told: Any = None
        try:
            async with client.ws_connect("/talk") as ws:
                message = await ws.receive()
                assert message.type is WSMsgType.CLOSE
                told = message.data, message.extra
        except WSServerHandshakeError as exc:
            status = exc.status

        assert events == []
        assert told == (None if how in ("http", "close") else (1002, "not today"))
        assert status == {"http": 402, "close": 403}.get(how)
        assert len(failed) == (how != "connect and close")
        assert not [r for r in caplog.records if r.name != "aiohttp.access"]

    async def test_refuse_a_foreign_page(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A page of another origin gets 403, even if a hook refuses with a close code."""
        failed = asyncio.Queue[FailDetails]()

        async def refuse(ws: WebSocket) -> None:
            raise WebSocketProtocolError("not today")

        registry.on_request.append(refuse)
        registry.on_fail.append(failed.put)
        client = await aiohttp_client(all_kinds(registry))
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/function", origin="https://evil.example")

        assert refused.value.status == 403
        assert "origin" in str((await failed.get()).exception.text).lower()  # type: ignore[attr-defined]  # HTTPForbidden
        assert failed.empty()

    async def test_crash(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A hook that crashes causes 500 before the connection and 1011 after it, both logged."""

        async def crash(ws: WebSocket) -> None:
            raise LookupError("a bug")

        registry.on_request.append(crash)
        app = all_kinds(registry)
        app.router.add_get("/talk", websocket_handler(WebSocket.connect))
        client = await aiohttp_client(app)
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/function")
        registry.on_request.clear()
        registry.on_response.append(crash)
        async with client.ws_connect("/talk") as ws:
            code = await expect_close(ws)
        await client.close()

        assert (refused.value.status, code) == (500, 1011)
        assert len(warnings(caplog)) == 2

    async def test_in_a_sub_application(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, events: list[str]
    ) -> None:
        """The hooks of the root application's registry run in a sub-application."""
        registry.on_request.append(self.hook(events, "hook"))
        inner = web.Application()
        inner.router.add_view("/view", EchoView)
        app = make_app(registry)
        app.add_subapp("/inner", inner)
        client = await aiohttp_client(app)
        async with client.ws_connect("/inner/view") as ws:
            await ws.send_str("x")
            await ws.receive_str(timeout=PATIENCE)

        assert events == ["hook"]


def test_types() -> None:
    """A type checker reports a handler or a receiver that takes another argument."""

    async def of_request(request: web.Request) -> None:
        pass

    async def of_websocket(ws: WebSocket) -> AsyncIterator[None]:
        yield

    registry = SessionWSRegistry()
    websocket_handler(of_request)  # type: ignore[arg-type]
    registry.connection_ctx(of_websocket)  # type: ignore[arg-type]
    registry.on_refresh(of_request)  # type: ignore[arg-type]
