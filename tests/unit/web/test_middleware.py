"""
What the middleware does to requests that are not websocket handshakes, and to those that
only pretend to be.
"""

from __future__ import annotations

from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session_ws.revocation import Kind, Revocations

from aiohttp_session_ws import SessionWSRegistry, get_session_ws_id
from tests.support import (
    COOKIE,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    cookie_of,
    expect_close,
    make_app,
)


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> SessionWSRegistry:
    registry = SessionWSRegistry(timeouts=QUICK)
    registry._revocations = Revocations(clock=clock)
    return registry


async def seen(client: Client, cookie: str | None = None) -> dict[str, Any]:
    """Return what a request sees, and whether its answer sets a cookie."""
    headers = {}
    if cookie is not None:
        client.session.cookie_jar.clear()
        headers["Cookie"] = cookie
    async with client.get("/whoami", headers=headers) as response:
        return {**await response.json(), "set": "Set-Cookie" in response.headers}


class TestMinting:
    async def test_a_new_visitor(self, aiohttp_client: AiohttpClient) -> None:
        """The first request gives an id, the second changes nothing."""
        client = await aiohttp_client(make_app())
        first, second = await seen(client), await seen(client)

        assert first["id"] == second["id"]
        assert (first["set"], second["set"]) == (True, False)

    @pytest.mark.parametrize("status", [404, 500])
    async def test_an_error_saves_nothing(
        self, aiohttp_client: AiohttpClient, status: int
    ) -> None:
        """A visitor who gets an error is given neither cookie nor record."""

        async def failing(request: web.Request) -> web.Response:
            return web.Response(status=status)

        app = make_app()
        app.router.add_get("/returned", failing)
        client = await aiohttp_client(app)
        for path in ["/nowhere", "/returned"]:
            async with client.get(path) as response:
                assert "Set-Cookie" not in response.headers

    async def test_an_error_with_something_to_keep(self, aiohttp_client: AiohttpClient) -> None:
        """What a handler put into the session is saved as ever."""

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
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, clock: Clock
    ) -> None:
        """A stale cookie gets an empty session; after a while it gets a new cookie too."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        stale = cookie_of(client)
        await registry.end_session(id_)
        young = await seen(client, stale)
        clock.now += 11
        old = await seen(client, stale)

        assert young == {"user": None, "id": None, "set": False}
        assert (old["user"], old["set"]) == (None, True)
        assert old["id"] not in (None, id_)

    async def test_moved(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, clock: Clock
    ) -> None:
        """A cookie from before a renewal is left alone, and after a while given a new id."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        stale = cookie_of(client)
        await client.get("/renew")
        young = await seen(client, stale)
        clock.now += 11
        old = await seen(client, stale)

        assert young == {"user": "ann", "id": id_, "set": False}
        assert (old["user"], old["set"]) == ("ann", True)
        assert old["id"] not in (None, id_)

    async def test_moved_and_saved_meanwhile(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A request that loaded the session just before its renewal was saved sees the new one."""
        sessions = ["old", "new"]

        class ServerSide(SimpleCookieStorage):
            async def load_session(self, request: web.Request) -> aiohttp_session.Session:
                data = {"created": 9999999999, "session": {registry.session_key: sessions.pop(0)}}
                return aiohttp_session.Session("key", data=data, new=False)  # type: ignore[arg-type]  # test data

        registry._revocations.move("old", "new", 60)
        client = await aiohttp_client(make_app(registry, ServerSide()))

        assert await seen(client) == {"user": None, "id": "new", "set": False}

    async def test_meeting_one_restarts_its_time(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, clock: Clock
    ) -> None:
        """As long as a stale cookie is tried, its id stays dead."""
        client = await aiohttp_client(make_app(registry, SimpleCookieStorage(max_age=100_000)))
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)
        ttl = 100_000 + 3600
        clock.now += ttl - 1
        met = registry._revocations.get(id_)
        clock.now += ttl - 1

        assert met is not None
        assert registry._revocations.get(id_) is not None

    async def test_the_old_data_is_wiped_from_the_server(
        self, aiohttp_client: AiohttpClient, redis_port: int, storage: AbstractStorage
    ) -> None:
        """end_session_ws() empties what the old cookie stands for, where it can."""
        client = await aiohttp_client(make_app(storage=storage))
        await client.get("/login")
        stale = cookie_of(client)
        await client.get("/out/end_session_ws")
        forgetful = await aiohttp_client(make_app(storage=storage))
        after_restart = await seen(forgetful, stale)

        kept_in_the_cookie = "Cookie" in type(storage).__name__
        assert after_restart["user"] == ("ann" if kept_in_the_cookie else None)


class TestUpgradeHeaderOnAPage:
    """A stale cookie doesn't get further by pretending to want a websocket."""

    async def ask(self, client: Client, path: str, cookie: str) -> bytes:
        peer = await RawPeer.connect(client.make_url(path), cookie)
        head = await peer.read_head()
        peer.close()
        return head

    async def test_an_ended_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """It gets 403 and not the page."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)

        assert (await self.ask(client, "/whoami", cookie_of(client))).startswith(b"HTTP/1.1 403")

    @pytest.mark.parametrize("way", ["invalidate", "new_session", "pattern", "end_session_ws"])
    async def test_logging_out(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, way: str
    ) -> None:
        """A log-out works though the request asks for a websocket."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await self.ask(client, f"/out/{way}", cookie_of(client))
            await expect_close(ws)
        record = registry._revocations.get(id_)

        assert record is not None
        assert record.kind is Kind.ENDED

    async def test_a_post(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A request that can't be a handshake is treated like any other."""

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

    async def test_a_page_without_a_session(self, aiohttp_client: AiohttpClient) -> None:
        """A handler that needs no session is not bothered with one."""

        async def static(request: web.Request) -> web.Response:
            return web.Response()

        app = make_app()
        app.router.add_get("/static", static)
        client = await aiohttp_client(app)
        head = await self.ask(client, "/static", f"{COOKIE}=x")

        assert head.startswith(b"HTTP/1.1 200")
