from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web

from aiohttp_session_ws import (
    Connection,
    HandshakeRefused,
    SessionWSRegistry,
    Timeouts,
    get_session_ws_id,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.signals import (
    AuthDetails,
    CloseDetails,
    FailDetails,
    HandshakeDetails,
    OpenDetails,
    Signal,
)
from tests.support import PATIENCE, AiohttpClient, Client, RawPeer
from tests.support.inspect import opening

NAMES = ("on_handshake", "on_auth_success", "on_auth_fail", "on_fail", "on_open", "on_close")

greeting: ContextVar[str] = ContextVar("greeting", default="nobody")


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send everything back."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def crash(request: web.Request) -> web.WebSocketResponse:
    """Raise an error while the socket is open."""
    async with session_ws(request):
        raise LookupError("a bug")


async def leave(request: web.Request) -> web.WebSocketResponse:
    """Close at once."""
    async with session_ws(request) as ws:
        pass
    return ws


async def hang_up(request: web.Request) -> web.WebSocketResponse:
    """Close with a code of its own."""
    async with session_ws(request) as ws:
        await ws.close(code=4000)
    return ws


async def forbid(request: web.Request) -> web.WebSocketResponse:
    """Raise an HTTP exception while the socket is open."""
    async with session_ws(request):
        raise web.HTTPForbidden


def make_app(registry: SessionWSRegistry) -> web.Application:
    """Return an app with all handlers above."""
    storage = aiohttp_session.SimpleCookieStorage()
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
    app = web.Application(middlewares=middlewares)
    setup(app, registry)
    for handler in (echo, crash, leave, hang_up, forbid):
        app.router.add_get(f"/{handler.__name__}", handler)
    return app


class Tape:
    """Records all signals of a registry, in order."""

    def __init__(self, registry: SessionWSRegistry) -> None:
        self.names: list[str] = []
        self.details: list[Any] = []
        self.closed: asyncio.Queue[CloseDetails] = asyncio.Queue()
        self.failed: asyncio.Queue[FailDetails] = asyncio.Queue()
        for name in NAMES:
            getattr(registry, name).append(self.receiver(name))
        registry.on_close.append(self.closed.put)
        registry.on_fail.append(self.failed.put)

    def receiver(self, name: str) -> Callable[[Any], Awaitable[None]]:
        """Return a receiver that records a signal of this name."""

        async def receive(details: Any) -> None:
            self.names.append(name)
            self.details.append(details)

        return receive

    async def close(self) -> CloseDetails:
        """Wait for ``on_close``, and return its details."""
        return await asyncio.wait_for(self.closed.get(), PATIENCE)

    async def fail(self) -> FailDetails:
        """Wait for ``on_fail``, and return its details."""
        return await asyncio.wait_for(self.failed.get(), PATIENCE)


async def expect_close(ws: Any, code: int) -> None:
    """Wait for a close frame with this code."""
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.CLOSE
    assert message.data == code


async def refused(client: Client, path: str = "/echo", **options: Any) -> int:
    """Return the status that a handshake fails with."""
    with pytest.raises(WSServerHandshakeError) as caught:
        await client.ws_connect(path, **options)
    return caught.value.status


class TestOrder:
    async def test_good_end(self, aiohttp_client: AiohttpClient) -> None:
        """A connection without errors sends four signals, in order, with consistent details."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo"):
            pass
        await tape.close()

        assert tape.names == ["on_handshake", "on_auth_success", "on_open", "on_close"]
        handshake, auth, opened, closed = tape.details
        assert handshake == HandshakeDetails(handshake.request, handshake.session_ws_id)
        assert auth == AuthDetails(handshake.request, handshake.session_ws_id)
        assert opened == OpenDetails(handshake.request, handshake.session_ws_id, opened.ws)
        assert (closed.request, closed.session_ws_id) == (opened.request, opened.session_ws_id)
        assert closed.ws is opened.ws
        assert isinstance(opened.ws, web.WebSocketResponse)

    @pytest.mark.parametrize("name", ["on_handshake", "on_auth_success", "on_open", "on_close"])
    async def test_the_only_receiver(self, aiohttp_client: AiohttpClient, name: str) -> None:
        """Each signal is sent even if the other signals have no receivers."""
        registry = SessionWSRegistry()
        told = asyncio.Event()

        async def note(details: object) -> None:
            told.set()

        getattr(registry, name).append(note)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo"):
            pass

        async with asyncio.timeout(PATIENCE):
            await told.wait()

    async def test_id_is_that_of_the_session(self, aiohttp_client: AiohttpClient) -> None:
        """The id in the details is the one that ``get_session_ws_id()`` returns."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        seen = []
        registry.on_handshake.append(lambda details: look(details.request))

        async def look(request: web.Request) -> None:
            seen.append(await get_session_ws_id(request))

        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo"):
            pass
        details = await tape.close()

        assert seen == [details.session_ws_id]

    async def test_foreign_page(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake of a foreign page sends ``on_fail`` only."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))

        assert await refused(client, origin="https://evil.example") == 403
        assert isinstance((await tape.fail()).exception, web.HTTPForbidden)
        assert tape.names == ["on_fail"]

    async def test_not_authorized(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that isn't authorized sends ``on_auth_fail``, then ``on_fail``."""
        registry = SessionWSRegistry(authorize=lambda request: False)
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))

        assert await refused(client) == 403
        assert tape.names == ["on_handshake", "on_auth_fail", "on_fail"]
        handshake, auth, failed = tape.details
        assert auth == AuthDetails(handshake.request, handshake.session_ws_id)
        assert failed.request is handshake.request
        assert isinstance(failed.exception, web.HTTPForbidden)

    async def test_ended_session(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake of an ended session sends ``on_fail`` only, with the close code."""
        registry = SessionWSRegistry(id_factory=lambda request: "anna")
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            order = asyncio.create_task(registry.end_session("anna"))
            await expect_close(ws, 4401)
        await order
        async with client.ws_connect("/echo") as ws:
            await expect_close(ws, 4401)
        exception = (await tape.fail()).exception

        assert isinstance(exception, HandshakeRefused)
        assert exception.close.code == 4401
        assert tape.names[4:] == ["on_fail"]

    async def test_not_a_handshake(self, aiohttp_client: AiohttpClient) -> None:
        """A plain request to a websocket's address gets 400, and sends ``on_fail`` only."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.get("/echo") as response:
            status = response.status

        assert status == 400
        assert isinstance((await tape.fail()).exception, web.HTTPBadRequest)
        assert tape.names == ["on_fail"]


class TestClose:
    async def test_by_client(self, aiohttp_client: AiohttpClient) -> None:
        """A close by the client is reported with the code that the client sent."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            await ws.close(code=4321)
        details = await tape.close()

        assert (details.by, details.code) == ("client", 4321)

    @pytest.mark.parametrize(
        ("path", "code"), [("/leave", 1000), ("/hang_up", 4000), ("/forbid", 1008)]
    )
    async def test_by_handler(self, aiohttp_client: AiohttpClient, path: str, code: int) -> None:
        """A close by the handler's end is reported with the code that the client received."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect(path) as ws:
            await expect_close(ws, code)
        details = await tape.close()

        assert (details.by, details.code) == ("handler", code)

    async def test_by_a_client_without_a_code(self, aiohttp_client: AiohttpClient) -> None:
        """A close frame without a code, as of a browser's ``close()``, is reported as 1005."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        peer = await RawPeer.open(client.make_url("/echo"))
        await peer.say(8, b"")
        details = await tape.close()
        peer.close()

        assert (details.code, details.by) == (1005, "client")

    @pytest.mark.parametrize("cancels", [False, True])
    async def test_by_crash(
        self,
        aiohttp_client: AiohttpClient,
        cancels: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A handler that raises closes the socket with 1011, and its error is logged."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry), handler_cancellation=cancels)
        async with client.ws_connect("/crash") as ws:
            await expect_close(ws, 1011)
        details = await tape.close()
        await client.close()

        assert (details.by, details.code) == ("handler", 1011)
        assert "LookupError: a bug" in caplog.text

    @pytest.mark.parametrize(
        ("order", "options", "code"),
        [
            ("close_all_session", {}, 4403),
            ("end_session", {}, 4401),
            ("end_session", {"close": 4999, "reason": "go"}, 4999),
        ],
    )
    async def test_by_order(
        self, aiohttp_client: AiohttpClient, order: str, options: Any, code: int
    ) -> None:
        """A close by an order is reported once, with the order's code."""
        registry = SessionWSRegistry(id_factory=lambda request: "anna")
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            report = asyncio.create_task(getattr(registry, order)("anna", **options))
            await expect_close(ws, code)
            details = await tape.close()
        await report

        assert (details.by, details.code) == ("order", code)
        assert tape.names.count("on_close") == 1

    async def test_by_shutdown(self, aiohttp_client: AiohttpClient) -> None:
        """A close by the app's shutdown is reported as one by an order, with 1001."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            end = asyncio.create_task(client.server.close())
            await expect_close(ws, 1001)
            details = await tape.close()
        await end

        assert (details.by, details.code) == ("order", 1001)

    async def test_while_registered(self, aiohttp_client: AiohttpClient) -> None:
        """``on_open`` and ``on_close`` are sent while the socket is in the registry."""
        registry = SessionWSRegistry()
        seen: list[bool] = []

        async def look(details: OpenDetails | CloseDetails) -> None:
            seen.append(details.ws in registry.get(details.session_ws_id, ()))

        registry.on_open.append(look)
        registry.on_close.append(look)
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo"):
            pass
        await tape.close()

        assert seen == [True, True]


class TestReceivers:
    async def test_failing(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An error of a receiver is logged, and affects neither other receivers nor the socket."""

        async def fail(details: object) -> None:
            raise LookupError("a bug")

        registry = SessionWSRegistry()
        for name in NAMES:
            getattr(registry, name).append(fail)
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            await ws.send_str("there?")
            assert await ws.receive_str(timeout=PATIENCE) == "there?"
        await tape.close()

        assert tape.names == ["on_handshake", "on_auth_success", "on_open", "on_close"]
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 4
        assert all(r.exc_info and r.exc_info[0] is LookupError for r in errors)
        assert all("fail" in r.getMessage() for r in errors)

    async def test_failing_of_failures(self, aiohttp_client: AiohttpClient) -> None:
        """An error of a receiver doesn't change how a handshake is refused."""

        async def fail(details: object) -> None:
            raise LookupError("a bug")

        registry = SessionWSRegistry(authorize=lambda request: False)
        registry.on_auth_fail.append(fail)
        registry.on_fail.append(fail)
        client = await aiohttp_client(make_app(registry))

        assert await refused(client) == 403

    async def test_one_after_another(self) -> None:
        """Receivers are awaited in the order in which they were added."""
        signal: Signal[int] = Signal(object())
        heard: list[str] = []

        @signal
        async def first(number: int) -> None:
            await asyncio.sleep(0)
            heard.append(f"first {number}")

        @signal
        async def second(number: int) -> None:
            heard.append(f"second {number}")

        await signal.send(1)

        assert heard == ["first 1", "second 1"]

    async def test_added_while_open(self, aiohttp_client: AiohttpClient) -> None:
        """A receiver may be added while a socket is open, with the signal as a decorator."""
        registry = SessionWSRegistry()
        client = await aiohttp_client(make_app(registry))
        closed = asyncio.Event()
        async with client.ws_connect("/echo"):

            @registry.on_close
            async def heard(details: CloseDetails) -> None:
                closed.set()

        await asyncio.wait_for(closed.wait(), PATIENCE)
        assert heard in registry.on_close

    async def test_greeting(self, aiohttp_client: AiohttpClient) -> None:
        """A receiver of ``on_open`` may send messages to the client."""
        registry = SessionWSRegistry()

        @registry.on_open
        async def greet(details: OpenDetails) -> None:
            await details.ws.send_str("hello")

        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            assert await ws.receive_str(timeout=PATIENCE) == "hello"

    @pytest.mark.parametrize("name", ["on_handshake", "on_open"])
    async def test_context_variable(self, aiohttp_client: AiohttpClient, name: str) -> None:
        """A context variable that a receiver sets is seen by the handler and in ``on_close``."""
        seen: asyncio.Queue[str] = asyncio.Queue()

        async def greet(details: object) -> None:
            greeting.set("anna")

        async def look(details: object) -> None:
            seen.put_nowait(greeting.get())

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                seen.put_nowait(greeting.get())
            return ws

        registry = SessionWSRegistry()
        getattr(registry, name).append(greet)
        registry.on_close.append(look)
        app = make_app(registry)
        app.router.add_get("/handler", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/handler"):
            for _ in range(2):
                assert await asyncio.wait_for(seen.get(), PATIENCE) == "anna"
        assert greeting.get() == "nobody"

    async def test_details_are_frozen(self, aiohttp_client: AiohttpClient) -> None:
        """The details of signals are frozen: a receiver can't change them for the next one."""
        registry = SessionWSRegistry()
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo"):
            pass
        await tape.close()
        await refused(client, origin="null")

        assert {type(details) for details in tape.details} == {
            *(HandshakeDetails, AuthDetails, OpenDetails, CloseDetails, FailDetails)
        }
        for details in tape.details:
            with pytest.raises(dataclasses.FrozenInstanceError):
                details.request = None


class TestAuthorize:
    async def test_sync(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake is accepted if ``authorize``, given the request, returns a true value."""
        registry = SessionWSRegistry(authorize=lambda request: request.headers.get("X-User"))
        client = await aiohttp_client(make_app(registry))

        assert await refused(client) == 403
        assert await refused(client, headers={"X-User": ""}) == 403
        async with client.ws_connect("/echo", headers={"X-User": "anna"}) as ws:
            await ws.send_str("there?")
            assert await ws.receive_str(timeout=PATIENCE) == "there?"

    async def test_async(self, aiohttp_client: AiohttpClient) -> None:
        """``authorize`` may be async, and use the session."""

        async def authorize(request: web.Request) -> bool:
            session = await aiohttp_session.get_session(request)
            return bool(session.get("user"))

        async def log_in(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["user"] = "anna"
            return web.Response()

        app = make_app(SessionWSRegistry(authorize=authorize))
        app.router.add_get("/log_in", log_in)
        client = await aiohttp_client(app)

        assert await refused(client) == 403
        async with client.get("/log_in"), client.ws_connect("/echo") as ws:
            await ws.send_str("there?")
            assert await ws.receive_str(timeout=PATIENCE) == "there?"

    @pytest.mark.parametrize("answer", [None, False, 0, "", ()])
    async def test_falsy(self, aiohttp_client: AiohttpClient, answer: object) -> None:
        """Any false result of ``authorize`` refuses: nothing is registered and no cookie set."""
        registry = SessionWSRegistry(authorize=lambda request: answer)
        client = await aiohttp_client(make_app(registry))

        assert await refused(client) == 403
        assert not len(registry)
        assert not opening(registry)
        assert not client.session.cookie_jar.filter_cookies(client.make_url("/"))

    async def test_raises(self, aiohttp_client: AiohttpClient) -> None:
        """An error of ``authorize`` fails the handshake with 500 and sends ``on_fail``."""
        failure = LookupError("a bug")

        async def authorize(request: web.Request) -> bool:
            raise failure

        registry = SessionWSRegistry(authorize=authorize)
        tape = Tape(registry)
        client = await aiohttp_client(make_app(registry))

        assert await refused(client) == 500
        assert (await tape.fail()).exception is failure
        assert tape.names == ["on_handshake", "on_fail"]
        assert not opening(registry)

    async def test_raises_http(self, aiohttp_client: AiohttpClient) -> None:
        """``authorize`` may refuse with a status of its own, by an HTTP exception."""

        def authorize(request: web.Request) -> bool:
            raise web.HTTPUnauthorized

        client = await aiohttp_client(make_app(SessionWSRegistry(authorize=authorize)))

        assert await refused(client) == 401


class TestConnectionContext:
    @pytest.mark.parametrize("path", ["/echo", "/leave", "/crash", "/hang_up", "/forbid"])
    async def test_enters_and_exits(self, aiohttp_client: AiohttpClient, path: str) -> None:
        """The code after a context's ``yield`` runs however the connection ends."""
        events: asyncio.Queue[tuple[str, Connection]] = asyncio.Queue()

        async def context(connection: Connection) -> AsyncIterator[None]:
            events.put_nowait(("enter", connection))
            try:
                yield
            finally:
                events.put_nowait(("exit", connection))

        registry = SessionWSRegistry()
        registry.connection_ctx.append(context)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect(path):
            name, connection = await events.get()
            assert name == "enter"
        assert await asyncio.wait_for(events.get(), PATIENCE) == ("exit", connection)
        assert connection.session_ws_id is not None
        assert connection.request is not None

    @pytest.mark.parametrize("path", ["/echo", "/leave", "/crash", "/hang_up", "/forbid"])
    async def test_needs_no_finally(
        self, aiohttp_client: AiohttpClient, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The code after a ``yield`` runs without ``try``, even if the handler or others fail."""
        ends = asyncio.Queue[str]()

        async def plain(connection: Connection) -> AsyncIterator[None]:
            yield
            ends.put_nowait("plain")

        async def bad(connection: Connection) -> AsyncIterator[None]:
            yield
            ends.put_nowait("bad")
            raise LookupError("a bug")

        async def twice(connection: Connection) -> AsyncIterator[None]:
            yield
            ends.put_nowait("twice")
            yield

        registry = SessionWSRegistry()
        registry.connection_ctx += [plain, bad, twice]
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect(path):
            pass

        assert [await asyncio.wait_for(ends.get(), PATIENCE) for _ in range(3)] == [
            *("twice", "bad", "plain")
        ]
        await client.close()
        assert "in bad\n" in caplog.text
        assert "RuntimeError: more than one 'yield'" in caplog.text

    async def test_is_cancelled(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Cancelling a context's exit skips no other exit, and hides no error of the handler."""
        there, left = asyncio.Event(), asyncio.Event()

        async def plain(connection: Connection) -> AsyncIterator[None]:
            yield
            left.set()

        async def slow(connection: Connection) -> AsyncIterator[None]:
            yield
            there.set()
            await asyncio.Event().wait()

        registry = SessionWSRegistry(timeouts=Timeouts(handler_grace=0.1))
        registry.connection_ctx += [plain, slow]
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/crash"):
            await there.wait()
            await registry.close_all()
            await left.wait()
        await client.close()

        assert caplog.text.count("a websocket handler failed") == 1

    async def test_an_order_while_it_is_entered(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A socket closed while contexts are entered logs no failure, even if a context hangs."""
        there, go_on, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hangs(connection: Connection) -> AsyncIterator[None]:
            yield
            left.set()
            await asyncio.Event().wait()

        async def enters(connection: Connection) -> AsyncIterator[None]:
            there.set()
            await go_on.wait()
            yield

        registry = SessionWSRegistry(timeouts=Timeouts(handler_grace=0.5))
        registry.connection_ctx += [hangs, enters]
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            await there.wait()
            closing = asyncio.ensure_future(registry.close_all())
            await expect_close(ws, 4403)
            go_on.set()
            await closing
        await client.close()

        assert left.is_set()
        assert "failed" not in caplog.text

    @pytest.mark.parametrize("order", ["close_all", "shutdown"])
    async def test_exits_at_an_order(self, aiohttp_client: AiohttpClient, order: str) -> None:
        """A context exits when an order closes the socket, and at the app's shutdown."""
        left = asyncio.Event()

        async def context(connection: Connection) -> AsyncIterator[None]:
            try:
                yield
            finally:
                left.set()

        registry = SessionWSRegistry()
        registry.connection_ctx.append(context)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/echo") as ws:
            await ws.send_str("there?")
            await ws.receive_str(timeout=PATIENCE)
            coro: Any = registry.close_all() if order == "close_all" else client.server.close()
            end = asyncio.ensure_future(coro)
            await expect_close(ws, 4403 if order == "close_all" else 1001)
            await asyncio.wait_for(left.wait(), PATIENCE)
        await end

    async def test_nested(self, aiohttp_client: AiohttpClient) -> None:
        """Several contexts nest, between ``on_open`` and ``on_close``."""
        events: list[str] = []

        def context(name: str) -> Callable[[Connection], AsyncIterator[None]]:
            async def run(connection: Connection) -> AsyncIterator[None]:
                events.append(f"enter {name}")
                yield
                events.append(f"exit {name}")

            return run

        registry = SessionWSRegistry()
        registry.connection_ctx += [context("one"), context("two")]
        tape = Tape(registry)
        registry.on_open.append(lambda details: note("open"))
        registry.on_close.insert(0, lambda details: note("close"))

        async def note(name: str) -> None:
            events.append(name)

        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/leave"):
            await tape.close()

        assert events == [
            *("open", "enter one", "enter two"),
            *("exit two", "exit one", "close"),
        ]

    @pytest.mark.parametrize("late", [False, True])
    async def test_failing_start(
        self, aiohttp_client: AiohttpClient, late: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A context that fails to start closes with 1011 before the handler; earlier ones exit."""
        left = asyncio.Event()
        ran = False

        async def good(connection: Connection) -> AsyncIterator[None]:
            try:
                yield
            finally:
                left.set()

        async def bad(connection: Connection) -> AsyncIterator[None]:
            if late:
                await asyncio.sleep(0)
            if connection.opened_at is not None:
                raise LookupError("a bug")
            yield

        async def handler(request: web.Request) -> web.WebSocketResponse:
            nonlocal ran
            async with session_ws(request) as ws:
                ran = True
            return ws

        registry = SessionWSRegistry()
        registry.connection_ctx += [good, bad]
        app = make_app(registry)
        app.router.add_get("/handler", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/handler") as ws:
            await expect_close(ws, 1011)
        await client.close()

        assert left.is_set()
        assert not ran
        assert not len(registry)
        assert "LookupError: a bug" in caplog.text

    async def test_failing_end(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A context that fails at its exit closes with 1011; the other contexts exit, too."""
        left = asyncio.Event()

        async def good(connection: Connection) -> AsyncIterator[None]:
            try:
                yield
            finally:
                left.set()

        async def bad(connection: Connection) -> AsyncIterator[None]:
            yield
            raise LookupError("a bug")

        registry = SessionWSRegistry()
        registry.connection_ctx += [good, bad]
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/leave") as ws:
            await expect_close(ws, 1011)
        await client.close()

        assert left.is_set()
        assert not len(registry)
        assert "LookupError: a bug" in caplog.text
