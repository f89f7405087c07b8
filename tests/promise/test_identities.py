"""
Ending an identity ends all of its sessions, whatever happens at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from yarl import URL

from aiohttp_session_ws import (
    SessionWSRegistry,
    end_identity_ws,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    session_ws,
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
    out_everywhere,
    until,
    user_of,
)
from tests.support.clock import Wall
from tests.support.people import outcome, seen_as, session_of


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


def url_of(client: Client) -> URL:
    return client.make_url("/ws")


Order = Callable[[SessionWSRegistry], Awaitable[Any]]


ORDERS: dict[str, tuple[Order, int]] = {
    "end": (lambda registry: registry.end_identity("ann"), 4401),
    "close": (lambda registry: registry.close_all_identity("ann"), 4403),
}


@pytest.mark.parametrize(("order", "code"), ORDERS.values(), ids=ORDERS)
class TestInFlight:
    """An order reaches handshakes at every step."""

    async def test_while_loading(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, order: Order, code: int
    ) -> None:
        """A handshake that is loading its session, so of unknown identity, is closed."""
        storage = GatedStorage(SimpleCookieStorage())
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await session_of(client)
        storage.loading.shut = True
        peer = await RawPeer.connect(url_of(client), cookie)
        await storage.loading.arrived.wait()
        await order(registry)
        storage.loading.let()

        assert await peer.read_head()
        assert await peer.closed() == code
        peer.close()

    async def test_while_identifying(
        self, aiohttp_client: AiohttpClient, order: Order, code: int
    ) -> None:
        """A handshake that waits for ``identify`` is closed."""
        asking = Turnstile()

        async def slow(request: web.Request) -> str | None:
            user = await user_of(request)
            await asking()
            return user

        registry = SessionWSRegistry(identify=slow, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        cookie = await session_of(client)
        asking.shut = True
        peer = await RawPeer.connect(url_of(client), cookie)
        await asking.arrived.wait()
        await order(registry)
        asking.let()

        assert await peer.read_head()
        assert await peer.closed() == code
        peer.close()

    async def test_while_authorizing(
        self, aiohttp_client: AiohttpClient, order: Order, code: int
    ) -> None:
        """A handshake that waits for ``authorize``, its identity known, is closed."""
        asking = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asking()
            return True

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        cookie = await session_of(client)
        asking.shut = True
        peer = await RawPeer.connect(url_of(client), cookie)
        await asking.arrived.wait()
        report = await order(registry)
        asking.let()

        assert report.handshakes == 1
        assert await peer.read_head()
        assert await peer.closed() == code
        peer.close()


class TestEverywhere:
    """``end_identity_ws``: the view of "log out everywhere"."""

    async def test_all(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """All sessions of the identity end, with and without sockets, and no others."""
        client = await aiohttp_client(make_app(registry, storage))
        idle, other, mine = [await session_of(client) for _ in range(3)]
        bob = await session_of(client, "bob")
        async with (
            client.ws_connect("/ws", headers={"Cookie": other}) as a,
            client.ws_connect("/ws", headers={"Cookie": mine}) as b,
            client.ws_connect("/ws", headers={"Cookie": bob}) as c,
        ):
            await asyncio.gather(a.receive(), b.receive(), c.receive())
            client.session.cookie_jar.clear()
            await client.get("/out/everywhere", headers={"Cookie": mine})

            assert (await expect_close(a), await expect_close(b)) == (4401, 4401)
            await c.send_str("still there?")
            assert await c.receive_str(timeout=PATIENCE) == "still there?"
        after = cookie_of(client)
        for cookie in (idle, other):
            assert await outcome(client, cookie) == 4401
            assert await seen_as(client, cookie) is None
        # A server-side storage was emptied: there is no ended session to find.
        assert await outcome(client, mine) in (4401, "None")
        assert await seen_as(client, mine) is None
        assert await seen_as(client, after) is None
        assert await outcome(client, after) == "None"
        assert await outcome(client, bob) == "bob"

    async def test_after_forget(self, aiohttp_client: AiohttpClient) -> None:
        """The order ends the identity that the request arrived with, even if it was deleted."""
        registry = SessionWSRegistry(identify=user_of, timeouts=QUICK)

        async def forget(request: web.Request) -> web.Response:
            del (await aiohttp_session.get_session(request))["user"]
            return await out_everywhere(request)

        app = make_app(registry)
        app.router.add_get("/forget", forget)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        await client.get("/forget", headers={"Cookie": mine})

        assert await outcome(client, other) == 4401
        assert await outcome(client, mine) == 4401

    async def test_by_an_ended_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An ended session can't log out the user's other sessions."""
        client = await aiohttp_client(make_app(registry))
        stale, other = await session_of(client), await session_of(client)
        await client.get("/out/end_session_ws", headers={"Cookie": stale})
        client.session.cookie_jar.clear()
        await client.get("/out/everywhere", headers={"Cookie": stale})

        assert await outcome(client, other) == "ann"

    async def test_from_a_socket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A websocket handler may log its user out everywhere."""

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                async for _ in ws:
                    await end_identity_ws(request, ws)
            return ws

        app = make_app(registry)
        app.router.add_get("/ws-out", handler)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        async with (
            client.ws_connect("/ws", headers={"Cookie": other}) as a,
            client.ws_connect("/ws-out", headers={"Cookie": mine}) as b,
        ):
            await a.receive()
            await b.send_str("everywhere, please")

            assert (await expect_close(a), await expect_close(b)) == (4401, 4401)
        assert await outcome(client, mine) == 4401

    async def test_nobody(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An anonymous session that logs out everywhere ends alone."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/whoami")
        mine = cookie_of(client)
        client.session.cookie_jar.clear()
        ann = await session_of(client)
        async with client.ws_connect("/ws", headers={"Cookie": mine}) as ws:
            await ws.receive()
            await client.get("/out/everywhere", headers={"Cookie": mine})
            assert await expect_close(ws) == 4401
        assert await outcome(client, ann) == "ann"

    async def test_closes_when_answered(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Sockets close after the response; handshakes are refused at once."""
        answering = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            response = await out_everywhere(request)
            await answering()
            return response

        app = make_app(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        answering.shut = True
        async with client.ws_connect("/ws", headers={"Cookie": other}) as ws:
            await ws.receive()
            leaving = asyncio.ensure_future(client.get("/slow", headers={"Cookie": mine}))
            await answering.arrived.wait()
            assert await outcome(client, other) == 4401
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
            answering.let()
            await leaving
            assert await expect_close(ws) == 4401


class TestRaces:
    @pytest.mark.parametrize("helper", [renew_session_ws, new_session_ws_id])
    async def test_renewed_meanwhile(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, helper: Any
    ) -> None:
        """A renewal under way when the identity ends is not saved."""
        working = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            await get_session_ws_id(request)
            await working()
            response = web.Response()
            await (helper(request, response) if helper is renew_session_ws else helper(request))
            return response

        app = make_app(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        cookie = await session_of(client)
        working.shut = True
        request = asyncio.ensure_future(client.get("/slow", headers={"Cookie": cookie}))
        await working.arrived.wait()
        await registry.end_identity("ann")
        working.let()

        assert not (await request).cookies
        assert await outcome(client, cookie) == 4401

    async def test_clock_set_back(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log-in after an end succeeds although the clock was set back in between."""
        wall = Wall(monkeypatch)
        registry = SessionWSRegistry(identify=user_of, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        old = await session_of(client)
        wall.advance(1000)
        await registry.end_identity("ann")
        wall.set_back(1500)

        assert await outcome(client, await session_of(client)) == "ann"
        assert await outcome(client, old) == 4401

    async def test_older_than_the_installation(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session from before the installation ends with its identity."""
        client = await aiohttp_client(make_app(registry))
        middleware = aiohttp_session.session_middleware(SimpleCookieStorage())
        without = web.Application(middlewares=[middleware])

        async def enter(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["user"] = "ann"
            return web.Response()

        without.router.add_get("/", enter)
        old = await aiohttp_client(without)
        await old.get("/")
        cookie = cookie_of(old)
        await registry.end_identity("ann")

        assert await seen_as(client, cookie) is None
        assert await outcome(client, cookie) == 4401

    async def test_opened_before_the_log_in(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket from before a log-in reconnects, and then ends with the identity."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/whoami")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/login")  # which doesn't renew the session

            assert await expect_close(ws) == 4403
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.end_identity("ann")

            assert await expect_close(ws) == 4401

    async def test_both_log_outs(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A view that gives both orders also ends the user's other sessions."""

        async def both(request: web.Request) -> web.Response:
            response = web.Response()
            await end_identity_ws(request, response)
            await end_session_ws(request, response)
            return response

        app = make_app(registry)
        app.router.add_get("/both", both)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        async with client.ws_connect("/ws", headers={"Cookie": other}) as ws:
            await ws.receive()
            await client.get("/both", headers={"Cookie": mine})

            assert await expect_close(ws) == 4401

    @pytest.mark.parametrize("way", ["user, renew", "renew, user", "new session"])
    async def test_one_session_at_a_time(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, way: str
    ) -> None:
        """A log-in that ends all earlier sessions of its user lives itself."""

        async def enter(request: web.Request) -> web.Response:
            response = web.Response()
            await registry.end_identity("ann")
            session = await aiohttp_session.get_session(request)
            if way == "new session":
                session = await aiohttp_session.new_session(request)
            if way == "renew, user":
                await renew_session_ws(request, response)
            session["user"] = "ann"
            if way == "user, renew":
                await renew_session_ws(request, response)
            return response

        app = make_app(registry)
        app.router.add_get("/single", enter)
        client = await aiohttp_client(app)
        old = await session_of(client)
        await client.get("/whoami")
        await client.get("/single")
        mine = cookie_of(client)

        assert await seen_as(client, mine) == "ann"
        assert await outcome(client, mine) == "ann"
        assert await outcome(client, old) == 4401

    @pytest.mark.parametrize("with_socket", [False, True])
    @pytest.mark.parametrize("way", ["delete and new", "new session"])
    async def test_minted_meanwhile(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        way: str,
        with_socket: bool,
    ) -> None:
        """A new id or a new session made during the end doesn't escape it."""
        working = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            await working()
            if way == "new session":
                held = dict(session)
                (await aiohttp_session.new_session(request))["user"] = held["user"]
            else:
                await registry.delete_id(request)
                await registry.new_id(request)
            return web.Response()

        app = make_app(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        client.session.cookie_jar.clear()
        await client.get("/enter")
        old = cookie_of(client)
        if with_socket:
            await client.ws_connect("/ws")
            await until(lambda: len(registry))
        working.shut = True
        request = asyncio.ensure_future(client.get("/slow"))
        await working.arrived.wait()
        await registry.end_identity("ann")
        working.let()
        await request
        after = cookie_of(client)

        assert await outcome(client, old) in (4401, 4403)  # replaced by an ended one
        assert await outcome(client, after) != "ann"
