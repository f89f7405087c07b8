"""
Orders that a request handler gives, and when they close sockets.
"""

from __future__ import annotations

import asyncio
import socket

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import (
    SessionWSError,
    SessionWSRegistry,
    Timeouts,
    delete_session_ws_id,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    GatedStorage,
    RawPeer,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import quiet
from tests.support.people import outcome, seen_as


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


async def logged_in(
    aiohttp_client: AiohttpClient, app: web.Application, *, handler_cancellation: bool = False
) -> tuple[Client, str]:
    """Return a client with a session that holds a user, and the session's id."""
    client = await aiohttp_client(app, handler_cancellation=handler_cancellation)
    async with client.get("/login") as response:
        return client, await response.text()


async def fate(client: Client, cookie: str) -> str:
    """Return whether the session of *cookie* is alive, replaced or ended."""
    if await seen_as(client, cookie) is None:
        return "ended"
    return "alive" if await outcome(client, cookie) == "ann" else "replaced"


class TestDecision:
    """The outcome of a request for its session is determined when the handler has returned."""

    @pytest.mark.parametrize(
        ("path", "left", "code"),
        [
            ("/close", "alive", 4403),
            ("/reset", "replaced", 4403),
            ("/renew", "replaced", 4403),
            ("/out/pattern", "ended", 4403),
            ("/out/end_session_ws", "ended", 4401),
            ("/out/invalidate", "ended", 4401),
            ("/out/new_session", "ended", 4401),
        ],
    )
    async def test_table_of_orders(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        path: str,
        left: str,
        code: int,
    ) -> None:
        """Each order closes with its code, and leaves the session alive, replaced or ended."""
        client, _ = await logged_in(aiohttp_client, make_app(registry))
        cookie = cookie_of(client)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get(path, allow_redirects=False)

            assert await expect_close(ws) == code
        assert await fate(client, cookie) == left

    @pytest.mark.parametrize(
        ("change", "left", "code"),
        [
            ("delete", "ended", 4403),
            ("new", "replaced", 4403),
            ("invalidate and new", "ended", 4403),
            ("invalidate and farewell", "ended", 4403),
            ("new and fail", "alive", None),
            ("delete and fail", "alive", None),
            ("invalidate and fail", "ended", 4401),
            ("new and stream", "alive", None),
        ],
    )
    async def test_no_orphans(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        change: str,
        left: str,
        code: int | None,
    ) -> None:
        """A change of a session closes its sockets if it ends the session, or is saved."""

        async def handler(request: web.Request) -> web.StreamResponse:
            if "delete" in change:
                await delete_session_ws_id(request)
            if "invalidate" in change:
                (await aiohttp_session.get_session(request)).invalidate()
            if "farewell" in change:
                (await aiohttp_session.get_session(request))["flash"] = "bye"
            if "new" in change:
                await new_session_ws_id(request)
            if "fail" in change:
                raise ZeroDivisionError
            return web.StreamResponse() if "stream" in change else web.Response()

        app = make_app(registry)
        app.router.add_get("/change", handler)
        client, _ = await logged_in(aiohttp_client, app)
        cookie = cookie_of(client)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/change")
            await quiet(registry)
            if code is None:
                await ws.send_str("still there?")

            message = await ws.receive(timeout=PATIENCE)
            assert message.data == ("still there?" if code is None else code)
        assert await fate(client, cookie) == left

    async def test_renewed_in_vain(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A renewal whose handler fails keeps the id and the open socket."""

        async def handler(request: web.Request) -> web.Response:
            await renew_session_ws(request, web.Response())
            raise ZeroDivisionError

        app = make_app(registry)
        app.router.add_get("/fail", handler)
        client, id_ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/fail")
            await quiet(registry)
            await ws.send_str("still there?")
            assert (await ws.receive()).data == "still there?"
        async with client.ws_connect("/ws") as ws:
            assert (await ws.receive()).json()[0] == id_

    async def test_successors_end_too(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order to end a session by an old id closes the sockets of its newest id."""
        client, id_ = await logged_in(aiohttp_client, make_app(registry))
        await client.get("/renew")
        await client.get("/reset")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            report = await registry.end_session(id_)

            assert (report.sockets, await expect_close(ws)) == (1, 4401)

    async def test_ended_beats_moved(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A renewal that was in progress when its session was ended doesn't revive the session."""
        renewing = Turnstile()

        async def slow_renewal(request: web.Request) -> web.Response:
            response = web.Response()
            await renew_session_ws(request, response)
            await renewing()
            return response

        app = make_app(registry)
        app.router.add_get("/slow", slow_renewal)
        client, id_ = await logged_in(aiohttp_client, app)
        renewing.shut = True
        request = asyncio.ensure_future(client.get("/slow"))
        await renewing.arrived.wait()
        await registry.end_session(id_)
        renewing.let()
        await request
        async with client.ws_connect("/ws") as ws:
            code = await expect_close(ws)

        assert code == 4401

    async def test_renewed_after_the_end(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A request that takes a new id after its session was ended saves no session."""
        arrived = Turnstile()

        async def late(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["gain"] = "nothing"
            await arrived()
            await new_session_ws_id(request)
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/late", late)
        client, id_ = await logged_in(aiohttp_client, app)
        arrived.shut = True
        request = asyncio.ensure_future(client.get("/late"))
        await arrived.arrived.wait()
        await registry.end_session(id_)
        arrived.let()
        response = await request

        assert response.status == 200
        assert "Set-Cookie" not in response.headers


class TestWhen:
    """Sockets close when the response has been sent, or after ``Timeouts.response`` seconds."""

    async def order(self, request: web.Request) -> web.Response:
        """Order a close as with 1.1.1; the response is large if the URL has a query."""
        response = web.Response(body=b"x" * 20_000_000 if request.query else b"")
        await schedule_close_all_session_ws(request, response)
        return response

    async def test_after_the_answer(self, aiohttp_client: AiohttpClient) -> None:
        """A socket stays open until the response to the order has been sent."""
        registry = SessionWSRegistry(timeouts=Timeouts(response=60))
        answering = Turnstile()

        @web.middleware
        async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if request.path == "/order":
                await answering()
            return response

        app = make_app(registry, None, slow)
        app.router.add_get("/order", self.order)
        client, _ = await logged_in(aiohttp_client, app)
        answering.shut = True
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            request = asyncio.ensure_future(client.get("/order"))
            await answering.arrived.wait()
            await ws.send_str("before")
            echo = await ws.receive()
            answering.let()
            await request
            code = await expect_close(ws)

        assert (echo.data, code) == ("before", 4403)

    @pytest.mark.parametrize("handler_cancellation", [False, True])
    async def test_the_client_vanishes(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        *,
        handler_cancellation: bool,
    ) -> None:
        """An order is carried out even if its client disconnects before the response."""
        given, over = asyncio.Event(), asyncio.Event()

        async def order(request: web.Request) -> web.Response:
            await schedule_close_all_session_ws(request, web.Response())
            given.set()
            await over.wait()
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/order", order)
        client, _ = await logged_in(aiohttp_client, app, handler_cancellation=handler_cancellation)
        async with client.ws_connect("/ws") as ws:
            peer = await RawPeer.connect(client.make_url("/order"), cookie_of(client))
            await given.wait()
            peer.vanish()
            code = await expect_close(ws)
        over.set()

        assert code == 4403

    async def test_the_answer_is_never_read(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A client that doesn't read its response doesn't keep the sockets open."""
        app = make_app(registry)
        app.router.add_get("/order", self.order)
        client, _ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/ws") as ws:
            url = client.make_url("/order?large")
            peer = await RawPeer.connect(url, cookie_of(client), receive_buffer=4096)

            assert await expect_close(ws) == 4403
        peer.vanish()

    @pytest.mark.parametrize("closes", [False, True], ids=["keep alive", "close"])
    async def test_the_answer_is_read_slowly(
        self, aiohttp_client: AiohttpClient, *, closes: bool
    ) -> None:
        """Sockets stay open until a buffered response is read, even with ``Connection: close``."""
        registry = SessionWSRegistry(timeouts=Timeouts(response=10 * PATIENCE))
        tasks: list[asyncio.Task[None] | None] = []

        async def order(request: web.Request) -> web.Response:
            assert request.transport is not None
            sock = request.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            tasks.append(asyncio.current_task())
            response = web.Response(body=b"x" * 50_000)  # aiohttp waits for more than 64 KiB
            if closes:
                await schedule_close_all_session_ws(request, response)
            else:
                await end_session_ws(request, response)
            return response

        app = make_app(registry)
        app.router.add_get("/order", order)
        client, _ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            url = client.make_url("/order")
            peer = await RawPeer.connect(url, cookie_of(client), receive_buffer=4096)
            await until(lambda: tasks and (tasks[0] is None or tasks[0].done()))
            for _ in range(20):
                await ws.send_str("before")
                assert (await ws.receive()).data == "before"
            read = 0
            while read < 50_000:
                read += len(await peer.receive())

            assert await expect_close(ws) == (4403 if closes else 4401)
        peer.close()

    @pytest.mark.parametrize("how", ["redirect", "rewrap", "crash", "keep alive"])
    async def test_another_answer_is_sent(self, aiohttp_client: AiohttpClient, how: str) -> None:
        """An order is carried out whichever response is sent in the end."""
        registry = SessionWSRegistry(timeouts=Timeouts(response=60))

        async def order(request: web.Request) -> web.Response:
            await schedule_close_all_session_ws(request, web.Response())
            if how == "redirect":
                raise web.HTTPFound("/whoami")
            if how == "crash":
                raise ZeroDivisionError
            return web.Response()

        @web.middleware
        async def rewrap(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            return web.Response(text="other") if how == "rewrap" else response

        app = make_app(registry)
        app.router.add_get("/order", order)
        app.middlewares.insert(0, rewrap)
        client, _ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/ws") as ws:
            await client.get("/order", allow_redirects=False)

            assert await expect_close(ws) == 4403

    async def test_pipelined_requests_are_answered(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A request that is pipelined behind a log-out is answered on the same connection."""
        client, _ = await logged_in(aiohttp_client, make_app(registry))
        peer = await RawPeer.connect(client.make_url("/whoami"), cookie_of(client))
        await peer.read_head()
        host = client.make_url("/").authority
        for path in ["/out/end_session_ws", "/whoami"]:
            line = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie_of(client)}\r\n\r\n"
            await peer.send(line.encode())
        await peer.read_head()
        first = peer.head
        await peer.read_head()

        assert b"200 OK" in first
        assert b"200 OK" in peer.head
        peer.close()


class TestHandshakes:
    async def test_in_flight(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handshake that loaded the session before the log-out is closed as ended."""
        storage = GatedStorage(SimpleCookieStorage())
        client, _ = await logged_in(aiohttp_client, make_app(registry, storage))
        storage.loading.shut = True
        peer = await RawPeer.connect(client.make_url("/ws"), cookie_of(client))
        await storage.loading.arrived.wait()
        storage.loading.shut = False
        await client.get("/out/end_session_ws")
        storage.loading.let()

        assert await peer.read_head()
        assert await peer.frame() == (8, b"\x11\x31session ended")
        peer.close()

    async def test_in_flight_while_only_closed(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order that only closes sockets also closes a handshake that began before it."""
        storage = GatedStorage(SimpleCookieStorage())
        client, id_ = await logged_in(aiohttp_client, make_app(registry, storage))
        storage.loading.shut = True
        peer = await RawPeer.connect(client.make_url("/ws"), cookie_of(client))
        await storage.loading.arrived.wait()
        await registry.close_all_session(id_)
        storage.loading.let()

        assert await peer.read_head()
        assert await peer.frame() == (8, b"\x11\x33reconnect")
        peer.close()

    async def test_until_it_is_decided(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order closes sockets that open before its handler returns, and none later."""
        deciding = Turnstile()

        async def order(request: web.Request) -> web.Response:
            response = web.Response()
            await schedule_close_all_session_ws(request, response)
            await deciding()
            return response

        app = make_app(registry)
        app.router.add_get("/order", order)
        client, id_ = await logged_in(aiohttp_client, app)
        deciding.shut = True
        request = asyncio.ensure_future(client.get("/order"))
        await deciding.arrived.wait()
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            deciding.let()
            await request
            early = await expect_close(ws)
        async with client.ws_connect("/ws") as ws:
            late = await ws.receive()

        assert (early, late.json()[0]) == (4403, id_)

    async def test_those_that_came_after_the_decision(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order doesn't close a socket that opens while its response is being sent."""
        answering = Turnstile()

        @web.middleware
        async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if request.path == "/close":
                await answering()
            return response

        app = make_app(registry)
        app.middlewares.insert(0, slow)
        client, _ = await logged_in(aiohttp_client, app)
        answering.shut = True
        async with client.ws_connect("/ws") as before:
            request = asyncio.ensure_future(client.get("/close"))
            await answering.arrived.wait()
            async with client.ws_connect("/ws") as after:
                await after.receive()
                answering.let()
                await request
                code = await expect_close(before)
                await quiet(registry)
                await after.send_str("still here")

                assert (code, (await after.receive()).data) == (4403, "still here")


class TestInAnOpenSocket:
    async def test_end(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """A websocket handler may end its session, which closes all sockets of the session."""
        done = asyncio.Event()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                await end_session_ws(request, ws)
                done.set()
            return ws

        app = make_app(registry)
        app.router.add_get("/quit", handler)
        client, _ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/quit") as ws, client.ws_connect("/ws") as other:
            await ws.send_str("quit")
            codes = await expect_close(ws), await expect_close(other)
        await done.wait()

        assert codes == (4401, 4401)
        assert await fate(client, cookie_of(client)) == "ended"

    async def test_renew(self, aiohttp_client: AiohttpClient) -> None:
        """Renewing the session of an open websocket fails; the error names ``web.Response``."""
        errors: list[SessionWSError] = []

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                try:
                    await renew_session_ws(request, ws)
                except SessionWSError as exc:
                    errors.append(exc)
            return ws

        app = make_app()
        app.router.add_get("/renewing", handler)
        client, _ = await logged_in(aiohttp_client, app)
        async with client.ws_connect("/renewing") as ws:
            await expect_close(ws)

        assert "web.Response" in str(errors[0])


class TestWithoutTheMiddleware:
    """Applications with aiohttp_session's middleware alone, which was enough for 1.1.1."""

    def app(self, registry: SessionWSRegistry) -> web.Application:
        app = make_app(registry)
        app.middlewares.remove(session_ws_middleware)
        return app

    async def opens(self, client: Client, cookie: str) -> bool:
        """Return whether a handshake with *cookie* is accepted."""
        client.session.cookie_jar.clear()
        peer = await RawPeer.connect(client.make_url("/ws"), cookie)
        head = await peer.read_head()
        peer.close()
        return head.startswith(b"HTTP/1.1 101")

    @pytest.mark.parametrize(
        ("path", "lives", "code"),
        [
            ("/close", True, 4403),
            ("/reset", True, 4403),  # saved before the order is settled: use renew_session_ws()
            ("/renew", False, 4403),
            ("/out/pattern", False, 4403),
            ("/out/end_session_ws", False, 4401),
        ],
    )
    async def test_orders(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        path: str,
        lives: bool,
        code: int,
    ) -> None:
        """Each order closes sockets with its code; a close or a reset keeps the cookie valid."""
        client, _ = await logged_in(aiohttp_client, self.app(registry))
        cookie = cookie_of(client)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get(path, allow_redirects=False)

            assert await expect_close(ws) == code
        assert await self.opens(client, cookie) is lives

    async def test_the_id_that_the_request_came_with(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order concerns the id that the request came with, even after a change of the id."""

        async def backwards(request: web.Request) -> web.Response:
            response = web.Response()
            await aiohttp_session.get_session(request)
            await aiohttp_session.new_session(request)
            await new_session_ws_id(request)
            await schedule_close_all_session_ws(request, response)
            return response

        app = self.app(registry)
        app.router.add_get("/backwards", backwards)
        client = await aiohttp_client(app)
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            cookie = cookie_of(client)
            await client.get("/backwards")

            assert await expect_close(ws) == 4403
        assert not await self.opens(client, cookie)

    async def test_no_id_at_all(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A log-out by a client without an id succeeds."""
        client = await aiohttp_client(self.app(registry))
        async with client.get("/out/end_session_ws") as response:
            status = response.status

        assert status == 200

    async def test_refusals_are_http(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handshake of an ended session gets HTTP 403 if no middleware makes it a close code."""
        client = await aiohttp_client(self.app(registry))
        async with client.ws_connect("/ws") as ws:
            id_ = (await ws.receive()).json()[0]
            cookie = cookie_of(client)
            await registry.end_session(id_)
        peer = await RawPeer.connect(client.make_url("/ws"), cookie)

        assert (await peer.read_head()).startswith(b"HTTP/1.1 403")
        peer.close()


class TestSubApplications:
    async def test_the_parents_registry(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """``setup()`` and the middleware of a root application also serve its sub-applications."""
        root = web.Application(
            middlewares=[
                aiohttp_session.session_middleware(SimpleCookieStorage()),
                session_ws_middleware,
            ]
        )
        setup(root, registry)
        sub = web.Application()
        sub.router.add_get("/id", _text)

        async def socket(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
            return ws

        sub.router.add_get("/ws", socket)
        root.add_subapp("/sub", sub)
        client = await aiohttp_client(root)
        async with client.get("/sub/id") as response:
            id_ = await response.text()
        async with client.ws_connect("/sub/ws") as ws:
            await until(lambda: len(registry))
            ids = list(registry)
            await registry.close_all_session(id_)

            assert await expect_close(ws) == 4403
        assert ids == [id_]


async def _text(request: web.Request) -> web.Response:
    return web.Response(text=str(await get_session_ws_id(request)))
