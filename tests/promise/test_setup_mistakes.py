"""
Mistakes that would leave sockets open raise errors, or are logged once with the remedy.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import (
    Connection,
    Expiry,
    Limits,
    PushQueue,
    SessionWSRegistry,
    Timeouts,
    WebSocket,
    WebSocketView,
    end_identity_ws,
    end_session_ws,
    registry_from,
    session_stream,
    session_ws,
    session_ws_middleware,
    setup,
    websocket_handler,
)
from aiohttp_session_ws.exceptions import NotSetUp
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.typing import Identified
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Site, page, user_of
from tests.support import PATIENCE, QUICK, AiohttpClient, until


def application(*middlewares: Any) -> web.Application:
    """Return an application with session middleware."""
    sessions = aiohttp_session.session_middleware(SimpleCookieStorage())
    return web.Application(middlewares=[sessions, *middlewares])


Use = Callable[[SessionWSRegistry], Any]

OF_IDENTITY: dict[str, Use] = {
    "end_identity": lambda registry: registry.end_identity("ann"),
    "close_all_identity": lambda registry: registry.close_all_identity("ann"),
    "send_identity": lambda registry: registry.send_identity("ann", "x"),
    "connections": lambda registry: registry.connections(identity="ann"),
}
USES: dict[str, Use] = {
    "end_session": lambda registry: registry.end_session("id"),
    "close_all": lambda registry: registry.close_all(),
    "close_all_session": lambda registry: registry.close_all_session("id"),
    "count": lambda registry: registry.count(),
    "send_session": lambda registry: registry.send_session("id", "x"),
    **OF_IDENTITY,
}


Order = Callable[[web.Request, web.Response], Any]

ORDERS: list[Order] = [end_session_ws, end_identity_ws]


async def end_by_id(request: web.Request) -> web.Response:
    """End a session as an administrator's page does."""
    await registry_from(request).end_session("somebody's")
    return web.Response(text="out")


async def end_by_response(request: web.Request) -> web.Response:
    """End the session of the request."""
    response = web.Response(text="out")
    await end_session_ws(request, response)
    return response


class TestOneRegistry:
    async def test_in_two_applications(self, aiohttp_client: AiohttpClient) -> None:
        """A second application with the same registry fails to start; the first serves on."""
        registry = SessionWSRegistry(timeouts=QUICK)
        first, second = application(session_ws_middleware), application(session_ws_middleware)
        for app in (first, second):
            setup(app, registry)
        first.router.add_get("/ws", own_page)
        client = await aiohttp_client(first)
        runner = web.AppRunner(second)

        with pytest.raises(NotSetUp, match="registry"):
            await runner.setup()
        await runner.cleanup()
        async with client.ws_connect("/ws") as ws:
            assert await ws.receive_str(timeout=PATIENCE) == "in"

    async def test_one_after_the_other(self, aiohttp_client: AiohttpClient) -> None:
        """A second application may use the registry after the first has stopped."""
        registry = SessionWSRegistry(timeouts=QUICK)
        for _ in range(2):
            app = application(session_ws_middleware)
            setup(app, registry)
            app.router.add_get("/ws", own_page)
            client = await aiohttp_client(app)
            async with client.ws_connect("/ws") as ws:
                assert await ws.receive_str(timeout=PATIENCE) == "in"
            await client.close()

    def test_setup_twice(self) -> None:
        """A second ``setup()`` for one application raises an error."""
        app = application(session_ws_middleware)
        setup(app)

        with pytest.raises(NotSetUp):
            setup(app)

    async def test_one_registry_for_a_sub_application_too(self) -> None:
        """Passing the registry to a sub-application as well is an error that names the root."""
        registry = SessionWSRegistry()
        app, sub = application(session_ws_middleware), web.Application()
        setup(sub, registry)
        setup(app, registry)
        app.add_subapp("/sub", sub)
        runner = web.AppRunner(app)

        with pytest.raises(NotSetUp, match="for its root"):
            await runner.setup()
        await runner.cleanup()

    @pytest.mark.parametrize("path", ["/sub/ws", "/sub/page"])
    async def test_setup_twice_in_one_tree(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture, path: str
    ) -> None:
        """Requests to a registry below another, which misses log-outs above it, are refused."""
        root, sub = application(session_ws_middleware), web.Application()
        setup(root)
        setup(sub)
        sub.router.add_get("/ws", own_page)
        sub.router.add_get("/page", page)
        root.add_subapp("/sub", sub)
        client = await aiohttp_client(root)
        async with client.get(path) as response:
            assert response.status == 500

        assert "call setup() for the root application only" in caplog.text

    @pytest.mark.parametrize("log_out", [end_by_id, end_by_response])
    async def test_log_out_below_the_root(
        self,
        aiohttp_client: AiohttpClient,
        caplog: pytest.LogCaptureFixture,
        log_out: Callable[[web.Request], Awaitable[web.Response]],
    ) -> None:
        """A log-out through a registry below another, which would close no socket, is refused."""
        root, sub = application(session_ws_middleware), web.Application()
        setup(root)
        setup(sub)
        root.router.add_get("/page", page)
        sub.router.add_get("/out", log_out)
        root.add_subapp("/sub", sub)
        client = await aiohttp_client(root)
        async with client.get("/page") as response:
            assert response.status == 200
        async with client.get("/sub/out") as response:
            assert response.status == 500

        assert "call setup() for the root application only" in caplog.text

    async def test_below_the_root(self, aiohttp_client: AiohttpClient) -> None:
        """A sub-application uses the registry of its root."""
        root, sub = application(session_ws_middleware), web.Application()
        registry = setup(root)
        sub.router.add_get("/ws", own_page)
        root.add_subapp("/sub", sub)
        client = await aiohttp_client(root)
        async with client.ws_connect("/sub/ws") as ws:
            assert await ws.receive_str(timeout=PATIENCE) == "in"
            assert len(registry) == 1

    @pytest.mark.parametrize("use", USES)
    async def test_before_it_runs(self, use: str) -> None:
        """Using a registry that isn't started raises an error."""
        with pytest.raises(NotSetUp, match="setup"):
            await USES[use](SessionWSRegistry(identify=user_of))


async def own_page(request: web.Request) -> web.WebSocketResponse:
    """Send a message when the socket is open."""
    async with session_ws(request) as ws:
        await ws.send_str("in")
        await ws.receive()
    return ws


class TestIdentityWithoutIdentify:
    @pytest.mark.parametrize("use", OF_IDENTITY)
    async def test_it_is_an_error(self, serve: Serve, use: str) -> None:
        """An order or listing by identity needs ``identify``; the error names it."""
        site = await serve()

        with pytest.raises(NotSetUp, match="identify"):
            await OF_IDENTITY[use](site.registry)

    async def test_in_a_handler(self, serve: Serve) -> None:
        """A log-out everywhere needs ``identify``; the error names it."""

        async def everywhere(request: web.Request) -> web.Response:
            with pytest.raises(NotSetUp, match="identify"):
                await end_identity_ws(request, web.Response())
            return web.Response()

        site = await serve(views={"/everywhere": everywhere})
        assert (await (await site.browser()).get("/everywhere")).status == 200

    def test_a_limit(self) -> None:
        """A limit per identity needs ``identify``; the error names it."""
        with pytest.raises((NotSetUp, ValueError), match="identify"):
            SessionWSRegistry(limits=Limits(per_identity=3))


def wrong(make: Callable[[], object], name: str) -> Any:
    """Return a test parameter: a mistaken call, and what its error must name."""
    return pytest.param(make, name, id=name)


def call(function: Callable[..., object], *args: Any, **options: Any) -> object:
    """Call *function* without type checking."""
    return function(*args, **options)


class TestWrongTypes:
    @pytest.mark.parametrize(
        ("make", "name"),
        [
            wrong(lambda: call(SessionWSRegistry, limits=5), "limits"),
            wrong(lambda: call(SessionWSRegistry, timeouts=5), "timeouts"),
            wrong(lambda: call(SessionWSRegistry, expiry=5), "expiry"),
            wrong(lambda: call(SessionWSRegistry, identify="user"), "identify"),
            wrong(lambda: call(SessionWSRegistry, authorize="user"), "authorize"),
            wrong(lambda: call(SessionWSRegistry, origins=5), "origins"),
            wrong(lambda: call(SessionWSRegistry, id_factory="id"), "id_factory"),
            wrong(lambda: call(SessionWSRegistry, session_key=5), "session_key"),
            wrong(lambda: call(SessionWSRegistry, push_queue=5), "push_queue"),
            wrong(lambda: call(Timeouts, close="2"), "close"),
            wrong(lambda: call(Timeouts, drain="2"), "drain"),
            wrong(lambda: call(Limits, per_session="2"), "per_session"),
            wrong(lambda: call(Limits, total=2.5), "total"),
            wrong(lambda: call(Expiry, max_lifetime=datetime.timedelta(hours=1)), "max_lifetime"),
            wrong(lambda: call(PushQueue, messages="2"), "messages"),
            wrong(lambda: call(setup, web.Application(), "redis://localhost"), "registry"),
            wrong(lambda: call(setup, web.Application(), SessionWSRegistry), "takes a"),
            wrong(lambda: call(setup, web.RouteTableDef()), "web.Application"),
            wrong(lambda: call(SessionWSRegistry, handle_key=5), "str or bytes"),
            wrong(lambda: call(SessionWSRegistry, origins=b"same"), "not bytes"),
            wrong(lambda: call(SessionWSRegistry().on_close, 5), "receiver"),
            wrong(lambda: call(registry_from, web.Response()), "first argument is the request"),
            wrong(lambda: call(RedisSessionWSRegistry, "redis://x", prefix=5), "prefix"),
            wrong(lambda: call(RedisSessionWSRegistry, "redis://x", node=5), "node"),
            wrong(lambda: call(RedisSessionWSRegistry, "redis://x", timeouts=5), "timeouts "),
        ],
    )
    def test_are_found_at_once(self, make: Callable[[], object], name: str) -> None:
        """A wrong type raises a ``TypeError`` at construction that names the argument."""
        with pytest.raises(TypeError, match=name):
            make()

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            wrong(lambda: call(Limits, per_session=-1), "per_session"),
            wrong(lambda: call(Limits, per_session=1, on_limit="reject"), "on_limit"),
            wrong(lambda: call(Timeouts, close=-1), "close"),
            wrong(lambda: call(Timeouts, response=float("nan")), "response"),
            wrong(lambda: call(Expiry, max_lifetime=-1), "max_lifetime"),
            wrong(lambda: call(SessionWSRegistry, origins=["example.org"]), "not an origin"),
        ],
    )
    def test_bad_values(self, make: Callable[[], object], name: str) -> None:
        """A wrong value raises a ``ValueError`` at construction that names the argument."""
        with pytest.raises(ValueError, match=name):
            make()


def warnings_of(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    """Return the warnings that name *word*."""
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for record in found if word in (text := record.getMessage())]


class TestToldOnce:
    """Mistakes that would go unnoticed are logged once, with the remedy."""

    async def socket_after(self, site: Site, ws: str, out: str) -> None:
        """Log in, open a socket, log out; twice."""
        for _ in range(2):
            browser = await site.logged_in("/login")
            opened = await browser.open(ws)
            await browser.get(out)
            await opened.ws.close()

    async def test_no_middleware(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        """A missing middleware, without which invalidate() closes no socket, is logged once."""
        site = await serve(site={"middleware": False})
        await self.socket_after(site, "/ws", "/out/invalidate")

        assert len(warnings_of(caplog, "session_ws_middleware")) == 1

    @pytest.mark.parametrize("order", ORDERS)
    async def test_an_order_of_a_handler_whose_socket_has_ended(
        self, serve: Serve, order: Order, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An order after ``session_ws()`` is left ends the session, without a warning."""
        ordered = asyncio.Event()

        async def leaving(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_json({"user": await user_of(request), "id": "?"})
            for _ in range(2):
                await order(request, web.Response())
            ordered.set()
            return ws

        site = await serve(views={"/leaving": leaving}, identify=user_of)
        browser = await site.logged_in("/login")
        socket = await browser.open("/leaving")
        await socket.code()
        await asyncio.wait_for(ordered.wait(), PATIENCE)

        assert await site.knock(browser.cookie) == DEAD
        assert not warnings_of(caplog, "")

    @pytest.mark.parametrize("socket", [False, True])
    @pytest.mark.parametrize("order", ORDERS)
    async def test_an_order_of_a_task_that_outlives_its_request(
        self, serve: Serve, order: Order, socket: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An order by a task that outlives its request ends the session, without a warning."""
        over, tasks = asyncio.Event(), list[asyncio.Task[None]]()

        async def end(request: web.Request) -> None:
            await over.wait()
            for _ in range(2):
                await order(request, web.Response())

        async def starting(request: web.Request) -> web.StreamResponse:
            tasks.append(asyncio.ensure_future(end(request)))
            if not socket:
                return web.Response()
            async with session_ws(request) as ws:
                tasks.append(asyncio.ensure_future(end(request)))
                await ws.send_json({"user": await user_of(request), "id": "?"})
            return ws

        site = await serve(views={"/starting": starting}, identify=user_of)
        browser = await site.logged_in("/login")
        if socket:
            await (await browser.open("/starting")).code()
        await browser.get("/starting" if not socket else "/page")
        over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

        assert await site.knock(browser.cookie) == DEAD
        assert not warnings_of(caplog, "")

    async def test_a_websocket_that_isnt_ours(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A websocket without ``session_ws()`` is logged once, with the remedy."""

        async def own(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            await ws.send_json({"user": None, "id": "?"})
            await ws.receive()
            return ws

        site = await serve(views={"/own": own})
        await self.socket_after(site, "/own", "/out/helper")

        (warning,) = warnings_of(caplog, "without session_ws")
        assert "registry.adopt(request, ws)" in warning

    async def test_a_foreign_origin(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        """Each foreign origin is logged once, with the option that allows it."""
        site = await serve()
        for origin in ("https://a.example", "https://b.example", "https://a.example"):
            assert await site.knock("", Origin=origin) == 403

        assert len(warnings_of(caplog, "https://a.example")) == 1
        assert len(warnings_of(caplog, "https://b.example")) == 1
        assert "origins" in warnings_of(caplog, "https://b.example")[0]

    async def test_a_session_changed_in_a_websocket(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A session changed in a websocket handler, where it isn't saved, is logged once."""

        async def counting(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                session = await aiohttp_session.get_session(request)
                session["count"] = session.get("count", 0) + 1
                await ws.send_json({"user": await user_of(request), "id": "?"})
                await ws.receive()
            return ws

        site = await serve(views={"/counting": counting})
        for _ in range(2):
            browser = await site.logged_in()
            socket = await browser.open("/counting")
            await socket.ws.close()
            assert "count" not in (await browser.get()).data

        assert len(warnings_of(caplog, "saved")) == 1

    async def test_nothing_where_all_is_well(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An application without a mistake logs no warning."""
        site = await serve(identify=user_of)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/everywhere")
        assert await socket.code() == DEAD
        await asyncio.sleep(0)

        assert not warnings_of(caplog, "")

    async def test_no_registry(self, aiohttp_client: AiohttpClient) -> None:
        """A handler without a registry gets an error that names ``setup()``."""
        said: list[str] = []

        async def ask(request: web.Request) -> web.Response:
            try:
                registry_from(request)
            except NotSetUp as exc:
                said.append(str(exc))
            return web.Response()

        app = application()
        app.router.add_get("/", ask)
        await (await aiohttp_client(app)).get("/")

        assert "setup(" in said[0]


class TestOneConnectionPerRequest:
    async def test_session_ws_in_session_ws(self, serve: Serve) -> None:
        """A nested ``session_ws()`` is refused; the outer socket still ends with its session."""
        errors: list[Exception] = []

        async def nested(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                try:
                    async with session_ws(request):
                        pass
                except NotSetUp as exc:
                    errors.append(exc)
                await ws.send_json({"user": await user_of(request), "id": "?"})
                await ws.receive()
            return ws

        site = await serve(identify=user_of, views={"/nested": nested})
        browser = await site.logged_in()
        socket = await browser.open("/nested")
        await browser.get("/everywhere")

        assert await socket.code() == DEAD
        assert "tied to its session already" in str(errors[0])
        assert site.registry.stats().opening == 0

    async def test_a_websocket_as_a_stream(self, serve: Serve) -> None:
        """``session_stream()`` rejects a websocket with an error that names ``session_ws()``."""
        errors: list[Exception] = []

        async def stream(request: web.Request) -> web.StreamResponse:
            try:
                session_stream(request, web.WebSocketResponse())
            except TypeError as exc:
                errors.append(exc)
            return web.Response()

        site = await serve(views={"/stream": stream})
        await (await site.browser()).get("/stream")

        assert "session_ws(request)" in str(errors[0])


LATE_MISTAKES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "close_connection": ("connection_id", lambda registry: registry.close_connection(5)),
    "drain": ("drain is a number", lambda registry: registry.drain("20")),
    "by": ("by must be", lambda registry: registry.end_session("id", by=7)),
    "wait": ("wait is a number", lambda registry: registry.end_identity("ann", wait="5")),
    "except_": (
        "Connection",
        lambda registry: registry.close_all_session("id", except_=web.WebSocketResponse()),
    ),
    "push": (
        "Connection",
        lambda registry: registry.broadcast("x", except_=web.WebSocketResponse()),
    ),
    "prove": ("Connection", lambda registry: registry.prove(None, "ann", since=0.0)),
    "register": (r"close\(\)", lambda registry: registry.register("id", "thing")),
}


class TestWrongArguments:
    @pytest.mark.parametrize("use", LATE_MISTAKES)
    async def test_change_nothing(self, serve: Serve, use: str) -> None:
        """A wrong argument raises an error that names it; the registry works as before."""
        site = await serve(identify=user_of)
        name, call_it = LATE_MISTAKES[use]

        with pytest.raises(TypeError, match=name):
            await call_it(site.registry)
        browser = await site.logged_in()
        assert (await browser.open()).user is not None

    @pytest.mark.parametrize("options", [{"by": 7}, {"wait": "5"}, {"close": 5}])
    @pytest.mark.parametrize("order", ["end_session", "close_all_session"])
    async def test_sockets_stay_open(
        self, serve: Serve, order: str, options: dict[str, Any]
    ) -> None:
        """An order with a wrong argument closes no socket."""
        site = await serve(identify=user_of)
        socket = await (await site.logged_in()).open()

        with pytest.raises((TypeError, ValueError)):
            await getattr(site.registry, order)(socket.id, **options)
        assert await socket.lives()

    async def test_the_one_to_be_spared(self, serve: Serve) -> None:
        """An order with a wrong ``except_`` closes no socket."""
        site = await serve(identify=user_of)
        socket = await (await site.logged_in()).open()
        (ws,) = site.registry[socket.id]

        with pytest.raises(TypeError, match="Connection"):
            await site.registry.close_all_session(socket.id, except_=cast("Any", ws))
        assert await socket.lives()

    async def test_the_response_first(self, serve: Serve) -> None:
        """A helper called with response and request swapped raises an error that says so."""
        errors: list[Exception] = []

        async def swapped(request: web.Request) -> web.Response:
            response = web.Response()
            for helper in (end_identity_ws, end_session_ws):
                try:
                    await cast("Any", helper)(response, request)
                except TypeError as exc:
                    errors.append(exc)
            return response

        site = await serve(identify=user_of, views={"/swapped": swapped})
        await (await site.browser()).get("/swapped")

        assert len(errors) == 2
        assert all("first argument is the request" in str(exc) for exc in errors)


async def nobody() -> str:
    """Return an id."""
    return "ann"


MISTAKEN: dict[str, Callable[[], Any]] = {
    "a coroutine": lambda: nobody(),
    "a socket": lambda: web.WebSocketResponse(),
    "a request": lambda: make_mocked_request("GET", "/"),
    "an application": lambda: web.Application(),
    "what identify returned": lambda: Identified("ann", 2e9),
}


@pytest.mark.filterwarnings("ignore:coroutine 'nobody' was never awaited")
class TestWhatHasAnId:
    """An order by an object that isn't an id would find nothing and report success."""

    @pytest.mark.parametrize("what", MISTAKEN)
    @pytest.mark.parametrize(
        "use", ["end_session", "close_all_session", "end_identity", "recheck"]
    )
    async def test_is_none(self, serve: Serve, use: str, what: str) -> None:
        """An order by such an object raises an error that says what to pass."""
        site = await serve(identify=user_of)
        mistaken = MISTAKEN[what]()

        with pytest.raises(TypeError, match=r"await it|pass"):
            await getattr(site.registry, use)(mistaken)


async def no_generator(connection: Connection) -> None:
    """A function that is no generator, so no context."""


def no_async_generator(connection: Connection) -> Iterator[None]:
    """A generator that is not async, so no context."""
    yield


@pytest.mark.parametrize("context", [no_generator, no_async_generator])
async def test_a_context_of_a_wrong_kind(
    serve: Serve, caplog: pytest.LogCaptureFixture, context: Any
) -> None:
    """A context of a wrong kind is logged with its name and the remedy."""
    site = await serve()
    site.registry.connection_ctx(context)
    assert await site.knock("") == 1011

    await until(lambda: "one 'yield'" in caplog.text)
    assert context.__name__ in caplog.text
    await until(lambda: len(site.registry) == 0)


def sync(*args: object) -> None:
    """A plain function in place of a coroutine function."""


class SyncOpen(WebSocketView):
    on_open: Any = sync


class SyncMessage(WebSocketView):
    on_message: Any = sync


class SyncClose(WebSocketView):
    on_close: Any = sync


@pytest.mark.parametrize("view", [SyncOpen, SyncMessage, SyncClose])
async def test_a_callback_of_a_view_that_is_sync(
    serve: Serve, caplog: pytest.LogCaptureFixture, view: type[WebSocketView]
) -> None:
    """A sync callback of a view is logged with its name and the remedy."""
    site = await serve(None, {"/view": view})
    async with site.thief.ws_connect(site.url.with_path("/view")) as ws:
        await ws.send_str("hello")

    await until(lambda: "write 'async def'" in caplog.text)
    assert "sync" in caplog.text


@pytest.mark.parametrize("where", ["on_request", "on_response", "on_open", "on_close"])
async def test_a_hook_that_is_sync(
    serve: Serve, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A sync hook or receiver is logged with its name and the remedy."""

    @websocket_handler
    async def converse(ws: WebSocket) -> None:
        await ws.connect()
        await ws.send_json({"user": None})

    site = await serve(None, {"/conversation": converse})
    getattr(site.registry, where)(sync)
    await site.knock("", "/conversation")

    await until(lambda: "write 'async def'" in caplog.text)
    assert "sync" in caplog.text
