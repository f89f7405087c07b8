"""
The middleware, for requests that are not websocket handshakes, and for those that
only look like one.
"""

from __future__ import annotations

from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import (
    SessionWSRegistry,
    get_session_ws_id,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.registry.core import STORAGES
from tests.support import (
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    cookie_of,
    expect_close,
    make_app,
)
from tests.support.clock import Wall
from tests.support.inspect import inspect


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


@pytest.fixture
def registry(wall: Wall) -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


async def seen(client: Client, cookie: str | None = None) -> dict[str, Any]:
    """Return what a request sees, and whether its response sets a cookie."""
    headers = {}
    if cookie is not None:
        client.session.cookie_jar.clear()
        headers["Cookie"] = cookie
    async with client.get("/whoami", headers=headers) as response:
        return {**await response.json(), "set": "Set-Cookie" in response.headers}


class Broken(SimpleCookieStorage):
    """A storage that returns no session once ``broken`` is set."""

    broken = False

    async def load_session(self, request: web.Request) -> Any:
        """Return a session, or an empty dictionary."""
        return {} if self.broken else await super().load_session(request)


class TestLoading:
    async def test_no_session(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A request for which the storage returns no session object gets 500, which is logged."""
        storage = Broken()
        client = await aiohttp_client(make_app(storage=storage))
        first = await seen(client)
        storage.broken = True
        async with client.get("/whoami") as response:
            assert response.status == 500
        storage.broken = False

        assert "storage should return session instance" in caplog.text
        assert (await seen(client))["id"] == first["id"]

    async def test_a_session_that_was_loaded_before(self, aiohttp_client: AiohttpClient) -> None:
        """Data that another middleware has put into the session reaches the handler."""

        @web.middleware
        async def write(request: web.Request, handler: Handler) -> web.StreamResponse:
            (await aiohttp_session.get_session(request))["n"] = request.query["n"]
            return await handler(request)

        async def read(request: web.Request) -> web.Response:
            return web.Response(text=(await aiohttp_session.get_session(request))["n"])

        app = make_app()
        app.middlewares.insert(1, write)
        app.router.add_get("/read", read)
        client = await aiohttp_client(app)
        for number in ("1", "2", "3"):
            async with client.get("/read", params={"n": number}) as response:
                assert await response.text() == number

    async def test_a_storage_for_each_request(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Of storages made for each request few are kept, and the longest ``max_age`` counts."""

        @web.middleware
        async def of_tenant(request: web.Request, handler: Handler) -> web.StreamResponse:
            storage = SimpleCookieStorage(max_age=int(request.query["age"]))
            return await aiohttp_session.session_middleware(storage)(request, handler)

        async def page(request: web.Request) -> web.Response:
            return web.Response(text=str(await get_session_ws_id(request)))

        app = web.Application(middlewares=[of_tenant, session_ws_middleware])
        setup(app, registry)
        app.router.add_get("/", page)
        client = await aiohttp_client(app)
        ids = set()
        for age in (10_000_000, *[1000] * 2 * STORAGES):
            async with client.get("/", params={"age": age}) as response:
                ids.add(await response.text())

        assert len(ids) == 1
        assert len(inspect(registry).storages) == STORAGES
        assert inspect(registry).ttl == 10_003_600


class TestMinting:
    async def test_a_new_visitor(self, aiohttp_client: AiohttpClient) -> None:
        """The first request mints an id and sets a cookie, the second changes nothing."""
        client = await aiohttp_client(make_app())
        first, second = await seen(client), await seen(client)

        assert first["id"] == second["id"]
        assert (first["set"], second["set"]) == (True, False)

    @pytest.mark.parametrize("status", [404, 500])
    async def test_an_error_saves_nothing(
        self, aiohttp_client: AiohttpClient, status: int
    ) -> None:
        """An error response to a new visitor sets no cookie."""

        async def failing(request: web.Request) -> web.Response:
            return web.Response(status=status)

        app = make_app()
        app.router.add_get("/returned", failing)
        client = await aiohttp_client(app)
        for path in ["/nowhere", "/returned"]:
            async with client.get(path) as response:
                assert "Set-Cookie" not in response.headers

    async def test_an_error_with_something_to_keep(self, aiohttp_client: AiohttpClient) -> None:
        """Data that a handler put into the session is saved with an error response, too."""

        async def handler(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["tries"] = 1
            return web.Response(status=403)

        app = make_app()
        app.router.add_get("/try", handler)
        client = await aiohttp_client(app)
        async with client.get("/try") as response:
            assert "Set-Cookie" in response.headers


class TestDeadIds:
    async def test_ended(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, wall: Wall
    ) -> None:
        """A cookie of an ended session gets an empty session, and later a new cookie, too."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        stale = cookie_of(client)
        await registry.end_session(id_)
        young = await seen(client, stale)
        wall.advance(11)
        old = await seen(client, stale)

        assert young == {"user": None, "id": None, "set": False}
        assert (old["user"], old["set"]) == (None, True)
        assert old["id"] not in (None, id_)

    @pytest.mark.parametrize("met", [True, False])
    async def test_renewed(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, wall: Wall, met: bool
    ) -> None:
        """
        A cookie from before a renewal is left alone during the grace; afterwards it is replaced
        by an empty session if the newer cookie has been used, else it remains valid.
        """
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        stale = cookie_of(client)
        await client.get("/renew")
        if met:
            await client.get("/whoami")
        young = await seen(client, stale)
        wall.advance(31)
        old = await seen(client, stale)

        assert young == {"user": "ann", "id": id_, "set": False}
        if met:
            assert (old["user"], old["set"]) == (None, True)
            assert old["id"] not in (None, id_)
        else:
            assert old == young

    async def test_renewed_and_saved_meanwhile(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, redis_port: int
    ) -> None:
        """An older generation that a race has written to a server-side storage is repaired."""
        async with Redis(host="127.0.0.1", port=redis_port) as redis:
            client = await aiohttp_client(make_app(registry, RedisStorage(redis)))
            await client.get("/login")
            key = cookie_of(client).replace("=", "_")
            before = await redis.get(key)
            await client.get("/renew")
            assert before is not None
            await redis.set(key, before)  # as an overlapping request that saves its older copy
            await client.get("/whoami")
            async with client.ws_connect("/ws") as ws:
                _, user = (await ws.receive()).json()

        assert user == "ann"

    async def test_the_old_data_is_wiped_from_the_server(
        self, aiohttp_client: AiohttpClient, redis_port: int, storage: AbstractStorage
    ) -> None:
        """end_session_ws() empties the data on the server; data in a cookie can't be emptied."""
        client = await aiohttp_client(make_app(storage=storage))
        await client.get("/login")
        stale = cookie_of(client)
        await client.get("/out/end_session_ws")
        forgetful = await aiohttp_client(make_app(storage=storage))
        after_restart = await seen(forgetful, stale)

        kept_in_the_cookie = "Cookie" in type(storage).__name__
        assert after_restart["user"] == ("ann" if kept_in_the_cookie else None)


class TestUpgradeHeaderOnAPage:
    """A stale cookie gets no more from a page if the request has a handshake's headers."""

    async def ask(self, client: Client, path: str, cookie: str) -> bytes:
        peer = await RawPeer.connect(client.make_url(path), cookie)
        head = await peer.read_head()
        peer.close()
        return head

    async def test_an_ended_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A page sees no user of an ended session, despite the headers of a handshake."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        async with client.get("/whoami", headers=headers) as response:
            assert (await response.json())["user"] is None

    @pytest.mark.parametrize("way", ["invalidate", "new_session", "pattern", "end_session_ws"])
    async def test_logging_out(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, way: str
    ) -> None:
        """A log-out works though its request has the headers of a handshake."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            stale = cookie_of(client)
            await self.ask(client, f"/out/{way}", stale)
            await expect_close(ws)

        assert (await seen(client, stale))["user"] is None

    async def test_a_post(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A POST with the headers of a handshake is treated like any other request."""

        async def post(request: web.Request) -> web.Response:
            return web.Response(text=str(await get_session_ws_id(request)))

        app = make_app(registry)
        app.router.add_post("/post", post)
        client = await aiohttp_client(app)
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        async with client.post("/post", headers=headers) as response:
            text = await response.text()

        assert text == "None"
