"""
Regression tests: ways that once led around the promise.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage

from aiohttp_session_ws import (
    SessionWSRegistry,
    delete_session_ws_id,
    end_session_ws,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
)
from aiohttp_session_ws.sessions.records import LineageEnded
from aiohttp_session_ws.signals import OpenDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.clock import Wall
from tests.support.inspect import inspect, quiet
from tests.support.people import seen_as


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


class TestOneSessionManyIds:
    async def test_two_renewals_at_once(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A renewal's id that a concurrent renewal overwrites ends with its session."""
        renewing = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            response = web.Response()
            await renew_session_ws(request, response)
            await renewing()
            return response

        app = make_app(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        await client.get("/login")
        renewing.shut = True
        second = asyncio.ensure_future(client.get("/slow"))
        await renewing.arrived.wait()
        await client.get("/renew")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            renewing.let()
            await second
            await client.get("/out/end_session_ws")

            assert await expect_close(ws) == 4401

    async def test_a_cookie_from_before_a_renewal(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cookie from before a renewal ends with the session, and is anonymous an hour later."""
        wall = Wall(monkeypatch)
        client = await aiohttp_client(make_app(SessionWSRegistry(timeouts=QUICK)))
        await client.get("/login")
        stale = cookie_of(client)
        await client.get("/renew")
        await client.get("/out/end_session_ws")
        wall.advance(3600)

        assert await seen_as(client, stale) is None

    async def test_requests_at_once_to_an_old_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Concurrent requests give a session from before the installation the same id."""
        held = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            await held()
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        data = {"created": 9999999999, "session": {"user": "ann"}}
        client.session.cookie_jar.update_cookies({"AIOHTTP_SESSION": json.dumps(data)})
        held.shut = True
        slowly = asyncio.ensure_future(client.get("/slow"))
        await held.arrived.wait()
        async with client.get("/whoami") as response:
            first = (await response.json())["id"]
        held.let()
        await slowly
        async with client.get("/whoami") as response:
            assert (await response.json())["id"] == first

    @pytest.mark.parametrize("make", [new_session_ws_id, ensure_session_ws_id])
    async def test_an_id_that_is_saved_nowhere(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        make: Callable[[web.Request], Awaitable[None]],
    ) -> None:
        """A socket is filed under the session's own id, not one made before its handshake."""

        async def handler(request: web.Request) -> web.WebSocketResponse:
            await make(request)
            async with session_ws(request) as ws:
                await ws.send_str(str(*registry))
                await ws.receive()
            return ws

        app = make_app(registry)
        app.router.add_get("/making", handler)
        client = await aiohttp_client(app)
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/making") as ws:
            filed = (await ws.receive()).data
            await client.get("/out/end_session_ws")

            assert (filed, await expect_close(ws)) == (id_, 4401)


class TestInFlight:
    async def test_a_save_brings_nothing_back(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """A request that deleted the id saves nothing if the session ends meanwhile."""
        held = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            await delete_session_ws_id(request)
            await held()
            return web.Response()

        app = make_app(registry, storage)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        id_ = await (await client.get("/login")).text()
        held.shut = True
        request = asyncio.ensure_future(client.get("/slow"))
        await held.arrived.wait()
        await registry.end_session(id_)
        held.let()
        response = await request

        assert "Set-Cookie" not in response.headers
        assert await seen_as(client, cookie_of(client)) is None

    async def test_the_client_vanishes_while_get_id_waits(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """A log-out closes the socket although the client vanishes during a slow get_id()."""
        looking, path = Turnstile(), "/out/invalidate"

        class Registry(SessionWSRegistry):
            async def get_id(self, request: web.Request) -> Hashable | None:
                session_ws_id = await super().get_id(request)
                if request.path == path:
                    await looking()
                return session_ws_id

        registry = Registry(timeouts=QUICK)
        app = make_app(registry)
        client = await aiohttp_client(app, handler_cancellation=True)
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            looking.shut = True
            peer = await RawPeer.connect(client.make_url(path), cookie_of(client))
            await looking.arrived.wait()
            looking.let()
            looking.shut = True
            await looking.arrived.wait()
            peer.vanish()
            looking.let()
            code = await expect_close(ws)
        await quiet(registry)

        assert code == 4401

    async def test_a_child_that_is_late(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order given after the handler is done does not block the session's next socket."""
        held = Turnstile()
        children: list[asyncio.Task[None]] = []

        async def late(request: web.Request) -> None:
            await held()
            await schedule_close_all_session_ws(request, web.Response())

        async def parent(request: web.Request) -> web.Response:
            children.append(asyncio.ensure_future(late(request)))
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/parent", parent)
        client = await aiohttp_client(app)
        await client.get("/login")
        held.shut = True
        await client.get("/parent")
        held.let()
        await asyncio.gather(*children)
        await quiet(registry)
        async with client.ws_connect("/ws") as ws:
            await ws.receive_json(timeout=PATIENCE)


class TestWhoIsMeant:
    async def test_the_request_of_somebody_else(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A helper acts on the request it is given, not on the request that is being handled."""
        requests: list[web.Request] = []

        @registry.on_open
        async def note(details: OpenDetails) -> None:
            requests.append(details.request)

        async def kick(request: web.Request) -> web.Response:
            await end_session_ws(requests[0], web.Response())
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/kick", kick)
        client = await aiohttp_client(app)
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            client.session.cookie_jar.clear()
            mine = await (await client.get("/login?user=admin")).text()
            await client.get("/kick")
            code = await expect_close(ws)
        async with client.get("/whoami") as response:
            seen = await response.json()

        assert (code, seen["user"], seen["id"]) == (4401, "admin", mine)

    async def test_strangers_leave_minor_records(self, aiohttp_client: AiohttpClient) -> None:
        """Log-outs without a cookie leave minor records only."""
        registry = SessionWSRegistry(identify=user_of, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        for _ in range(3):
            client.session.cookie_jar.clear()
            await client.get("/out/end_session_ws")

        kept = [r for r in inspect(registry).records if isinstance(r, LineageEnded)]
        assert len(kept) == 3
        assert all(record.minor for record in kept)

    async def test_the_storage_that_lives_longest_counts(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The longest max_age of any storage determines how long records are kept."""
        sub = web.Application(
            middlewares=[
                aiohttp_session.session_middleware(
                    SimpleCookieStorage(cookie_name="OTHER", max_age=60)
                ),
                session_ws_middleware,
            ]
        )

        async def page(request: web.Request) -> web.Response:
            return web.Response()

        sub.router.add_get("/", page)
        app = make_app(registry, SimpleCookieStorage(max_age=100_000))
        app.add_subapp("/sub", sub)
        client = await aiohttp_client(app)
        await client.get("/login")
        await client.get("/sub/")

        assert inspect(registry).ttl == 103_600

    async def test_the_storage_of_sessions_of_before(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A new process keeps records as long as the storage's cookies live."""
        client = await aiohttp_client(make_app(registry, SimpleCookieStorage(max_age=10_000_000)))
        await client.get("/login")
        cookie = cookie_of(client)

        again = SessionWSRegistry(timeouts=QUICK)
        app = make_app(again, SimpleCookieStorage(max_age=10_000_000))
        client = await aiohttp_client(app)
        await client.get("/whoami", headers={"Cookie": cookie})

        assert inspect(again).ttl == 10_003_600


class TestHandlersThatStay:
    @pytest.mark.parametrize("how", ["order", "shutdown"])
    async def test_when_the_tab_was_closed(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, how: str
    ) -> None:
        """An order or the shutdown cancels a handler that goes on after its client left."""
        left = asyncio.Event()

        async def chat(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                reader = asyncio.ensure_future(ws.receive())
                try:
                    await asyncio.Event().wait()
                finally:
                    reader.cancel()
                    left.set()
            return ws

        app = make_app(registry)
        app.router.add_get("/chat", chat)
        client = await aiohttp_client(app)
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/chat"):
            await until(lambda: len(registry))
        await until(lambda: not len(registry))
        assert not left.is_set()
        if how == "order":
            report = await registry.end_session(id_)
            assert (report.sockets, report.cancelled) == (0, 1)
        else:
            await client.server.close()
        await left.wait()

    async def test_when_a_ping_fails(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handler that doesn't read is cancelled when a heartbeat ping fails."""
        left = asyncio.Event()

        async def beating(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request, heartbeat=0.05) as ws:
                try:
                    await asyncio.Event().wait()
                finally:
                    left.set()
            return ws

        app = make_app(registry)
        app.router.add_get("/beating", beating)
        client = await aiohttp_client(app)
        peer = await RawPeer.open(client.make_url("/beating"))
        peer.vanish()
        await left.wait()

        assert not len(registry)

    async def test_a_hook_that_refuses_to_end(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An unregister() that swallows its cancellation delays no order and no shutdown."""
        released = asyncio.Event()

        class Registry(SessionWSRegistry):
            async def unregister(self, session_ws_id: object, ws: object) -> None:
                while not released.is_set():
                    try:
                        await released.wait()
                    except asyncio.CancelledError:
                        continue

        registry = Registry(timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.close_all()
        await client.server.close()
        released.set()

        assert "is still running after it was cancelled" in caplog.text

    async def test_a_child_of_the_handler(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An order awaited by a child task doesn't wait for the parent handler."""
        ended: list[bool] = []

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.receive()
                id_ = await get_session_ws_id(request)
                await asyncio.gather(registry.end_session(id_))
                ended.append(id_ in registry)
            return ws

        app = make_app(registry)
        app.router.add_get("/parent", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/parent") as ws:
            await ws.send_str("now")
            code = await expect_close(ws)
        await until(lambda: ended)

        assert (code, ended) == (4401, [False])
