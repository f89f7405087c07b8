"""
Whom a socket belongs to, and logging out everywhere.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import aiohttp_security
import aiohttp_session
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from yarl import URL

from aiohttp_session_ws import (
    FailDetails,
    HandshakeDetails,
    IdentifyFailed,
    InvalidIdentity,
    NotSetUp,
    SessionEnded,
    SessionWSRegistry,
    end_identity_ws,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    session_ws,
)
from aiohttp_session_ws.identity import EndedIdentities
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


async def user_of(request: web.Request) -> str | None:
    """Identify by what the log-in wrote."""
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


async def everywhere(request: web.Request) -> web.Response:
    """Log out everywhere."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


async def log_in_and_renew(request: web.Request) -> web.Response:
    """Log in as one should."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query.get("user", "ann")
    response = web.Response()
    await renew_session_ws(request, response)
    return response


def make(registry: SessionWSRegistry, storage: AbstractStorage | None = None) -> web.Application:
    """Build an app that can log out everywhere."""
    app = make_app(registry, storage)
    app.router.add_get("/everywhere", everywhere)
    app.router.add_get("/enter", log_in_and_renew)
    return app


async def session_of(client: Client, user: str = "ann") -> str:
    """Make a session of *user* in a browser of its own; return its cookie."""
    client.session.cookie_jar.clear()
    await client.get("/enter", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return cookie


async def outcome(client: Client, cookie: str) -> int | str:
    """Connect with *cookie*; return the code of the refusal, or as whom one is in."""
    client.session.cookie_jar.clear()
    async with client.ws_connect("/ws", headers={"Cookie": cookie}) as ws:
        message = await ws.receive(timeout=PATIENCE)
        if isinstance(message.data, int):
            return message.data
        return str(json.loads(message.data)[1])


async def seen_as(client: Client, cookie: str) -> str | None:
    """Tell as whom an HTTP request with *cookie* is seen."""
    client.session.cookie_jar.clear()
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        user: str | None = (await response.json())["user"]
        return user


def url_of(client: Client) -> URL:
    return client.make_url("/ws")


class TestEndIdentity:
    async def test_all_sessions(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """All sockets of all sessions of one user are closed; another's stay."""
        client = await aiohttp_client(make(registry, storage))
        first, second = await session_of(client), await session_of(client)
        other = await session_of(client, "bob")
        async with (
            client.ws_connect("/ws", headers={"Cookie": first}) as a,
            client.ws_connect("/ws", headers={"Cookie": second}) as b,
            client.ws_connect("/ws", headers={"Cookie": other}) as c,
        ):
            await asyncio.gather(a.receive(), b.receive(), c.receive())
            report = await registry.end_identity("ann")

            assert (await expect_close(a), await expect_close(b)) == (4401, 4401)
            assert report.sockets == 2
            await c.send_str("still there?")
            assert await c.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, first) == 4401
        assert await outcome(client, other) == "bob"

    async def test_without_a_socket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """A session that has no socket open ends on its next handshake."""
        client = await aiohttp_client(make(registry, storage))
        cookie = await session_of(client)
        report = await registry.end_identity("ann")

        assert report.sockets == 0
        assert await outcome(client, cookie) == 4401
        assert await outcome(client, cookie) == 4401

    async def test_by_http(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """Or on its next request, which sees an empty session."""
        client = await aiohttp_client(make(registry, storage))
        cookie = await session_of(client)
        await registry.end_identity("ann")

        assert await seen_as(client, cookie) is None
        assert await outcome(client, cookie) == 4401

    async def test_log_in_again(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """Who logs in again is let in, in a session that was there before as well."""
        client = await aiohttp_client(make(registry, storage))
        await client.get("/whoami")
        anonymous = cookie_of(client)
        await registry.end_identity("ann")
        client.session.cookie_jar.clear()
        await client.get("/enter", headers={"Cookie": anonymous})

        assert await outcome(client, cookie_of(client)) == "ann"
        assert await outcome(client, await session_of(client)) == "ann"

    async def test_log_in_without_renewal(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """It has to be done twice in a session that is older than the end."""
        client = await aiohttp_client(make(registry))
        await client.get("/whoami")
        await registry.end_identity("ann")
        seen = []
        for _ in range(2):
            await client.get("/login")
            seen.append((await (await client.get("/whoami")).json())["user"])

        assert seen == [None, "ann"]

    async def test_except_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """One session may live on, its other ids and its sockets too."""
        client = await aiohttp_client(make(registry))
        mine, other = await session_of(client), await session_of(client)
        async with (
            client.ws_connect("/ws", headers={"Cookie": mine}) as a,
            client.ws_connect("/ws", headers={"Cookie": other}) as b,
        ):
            my_id = (await a.receive()).json()[0]
            await b.receive()
            report = await registry.end_identity("ann", except_session=my_id)

            assert await expect_close(b) == 4401
            assert report.sockets == 1
            await a.send_str("still there?")
            assert await a.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, mine) == "ann"
        assert await outcome(client, other) == 4401
        client.session.cookie_jar.clear()
        await client.get("/renew", headers={"Cookie": mine})
        assert await outcome(client, cookie_of(client)) == "ann"

    async def test_except_session_that_moved(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The session that lives on may be named by an id that it had before."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        before = json.loads(await (await client.get("/whoami")).text())["id"]
        await client.get("/renew")
        await registry.end_identity("ann", except_session=before)

        assert await outcome(client, cookie_of(client)) == "ann"

    async def test_twice(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The second time ends what the first left out."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        cookie = cookie_of(client)
        mine = json.loads(await (await client.get("/whoami")).text())["id"]
        await registry.end_identity("ann", except_session=mine)
        assert await outcome(client, cookie) == "ann"
        await registry.end_identity("ann")

        assert await outcome(client, cookie) == 4401

    @pytest.mark.parametrize("renewed", [False, True])
    async def test_other_ids_of_a_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, renewed: bool
    ) -> None:
        """A session ends with all its ids, be they known by a socket or not."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        if renewed:
            await client.get("/renew")
        cookie = cookie_of(client)
        await registry.end_identity("ann")
        client.session.cookie_jar.clear()

        # The handler asks for a new id; it must not get one for the ended session.
        await client.get("/renew", headers={"Cookie": cookie})
        after = cookie_of(client)
        assert await outcome(client, cookie) == 4401
        assert await outcome(client, after) == "None"

    async def test_nobody(self, aiohttp_client: AiohttpClient) -> None:
        """A registry that can't identify says so, and ends nobody."""
        registry = SessionWSRegistry(timeouts=QUICK)
        client = await aiohttp_client(make(registry))
        cookie = await session_of(client)
        for order in (registry.end_identity, registry.close_all_identity):
            with pytest.raises(NotSetUp, match="identify="):
                await order("ann")

        assert (await client.get("/everywhere", headers={"Cookie": cookie})).status == 500
        assert await outcome(client, cookie) == "ann"

    @pytest.mark.parametrize("method", ["end_identity", "close_all_identity"])
    @pytest.mark.parametrize("identity", [None, [], {}])
    async def test_bad_identity(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        method: str,
        identity: Any,
    ) -> None:
        """What can't be an identity is refused, and harms no socket."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            with pytest.raises(InvalidIdentity, match="identi"):
                await getattr(registry, method)(identity)
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"


class TestCloseAllIdentity:
    async def test_may_come_back(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The sockets of all sessions are told to come back, and may."""
        client = await aiohttp_client(make(registry))
        first, second = await session_of(client), await session_of(client)
        async with (
            client.ws_connect("/ws", headers={"Cookie": first}) as a,
            client.ws_connect("/ws", headers={"Cookie": second}) as b,
        ):
            await asyncio.gather(a.receive(), b.receive())
            report = await registry.close_all_identity("ann")

            assert (await expect_close(a), await expect_close(b)) == (4403, 4403)
            assert report.sockets == 2
        assert await outcome(client, first) == "ann"

    async def test_code(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The caller may choose the code."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.close_all_identity("ann", code=4999)
            assert await expect_close(ws) == 4999


Order = Callable[[SessionWSRegistry], Awaitable[Any]]
ORDERS: dict[str, tuple[Order, int]] = {
    "end": (lambda registry: registry.end_identity("ann"), 4401),
    "close": (lambda registry: registry.close_all_identity("ann"), 4403),
}


@pytest.mark.parametrize(("order", "code"), ORDERS.values(), ids=ORDERS)
class TestInFlight:
    """An order meets handshakes wherever they are."""

    async def test_while_loading(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, order: Order, code: int
    ) -> None:
        """A handshake that is loading its session: nobody knows whose it is."""
        storage = GatedStorage(SimpleCookieStorage())
        client = await aiohttp_client(make(registry, storage))
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
        """A handshake whose identity is being looked up."""
        asking = Turnstile()

        async def slow(request: web.Request) -> str | None:
            user = await user_of(request)
            await asking()
            return user

        registry = SessionWSRegistry(identify=slow, timeouts=QUICK)
        client = await aiohttp_client(make(registry))
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
        """A handshake whose identity is known."""
        asking = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asking()
            return True

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make(registry))
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
    """``end_identity_ws``: the log-out view of *log out everywhere*."""

    async def test_all(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """This session and all others end, with and without sockets."""
        client = await aiohttp_client(make(registry, storage))
        idle, other, mine = [await session_of(client) for _ in range(3)]
        bob = await session_of(client, "bob")
        async with (
            client.ws_connect("/ws", headers={"Cookie": other}) as a,
            client.ws_connect("/ws", headers={"Cookie": mine}) as b,
            client.ws_connect("/ws", headers={"Cookie": bob}) as c,
        ):
            await asyncio.gather(a.receive(), b.receive(), c.receive())
            client.session.cookie_jar.clear()
            await client.get("/everywhere", headers={"Cookie": mine})

            assert (await expect_close(a), await expect_close(b)) == (4401, 4401)
            await c.send_str("still there?")
            assert await c.receive_str(timeout=PATIENCE) == "still there?"
        after = cookie_of(client)
        for cookie in (idle, other):
            assert await outcome(client, cookie) == 4401
            assert await seen_as(client, cookie) is None
        # A storage on the server was emptied: nothing is there to be ended.
        assert await outcome(client, mine) in (4401, "None")
        assert await seen_as(client, mine) is None
        assert await seen_as(client, after) is None
        assert await outcome(client, after) == "None"
        assert await outcome(client, bob) == "bob"

    async def test_after_forget(self, aiohttp_client: AiohttpClient) -> None:
        """It is about whom the request came from, though the view has forgotten them."""
        registry = SessionWSRegistry(identify=user_of, timeouts=QUICK)

        async def forget(request: web.Request) -> web.Response:
            del (await aiohttp_session.get_session(request))["user"]
            return await everywhere(request)

        app = make(registry)
        app.router.add_get("/forget", forget)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        await client.get("/forget", headers={"Cookie": mine})

        assert await outcome(client, other) == 4401
        assert await outcome(client, mine) == 4401

    async def test_by_an_ended_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Who was logged out can't log others out with the old cookie."""
        client = await aiohttp_client(make(registry))
        stale, other = await session_of(client), await session_of(client)
        await client.get("/out/end_session_ws", headers={"Cookie": stale})
        client.session.cookie_jar.clear()
        await client.get("/everywhere", headers={"Cookie": stale})

        assert await outcome(client, other) == "ann"

    async def test_from_a_socket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket's handler may ask for it."""

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                async for _ in ws:
                    await end_identity_ws(request, ws)
            return ws

        app = make(registry)
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
        """A session of nobody ends alone."""
        client = await aiohttp_client(make(registry))
        await client.get("/whoami")
        mine = cookie_of(client)
        client.session.cookie_jar.clear()
        ann = await session_of(client)
        async with client.ws_connect("/ws", headers={"Cookie": mine}) as ws:
            await ws.receive()
            await client.get("/everywhere", headers={"Cookie": mine})
            assert await expect_close(ws) == 4401
        assert await outcome(client, ann) == "ann"

    async def test_closes_when_answered(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Sockets close when the answer has left, but nobody new gets in meanwhile."""
        answering = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            response = await everywhere(request)
            await answering()
            return response

        app = make(registry)
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
        """A request that was on its way can't carry its session over the end."""
        working = Turnstile()
        refused: list[Exception] = []

        async def slow(request: web.Request) -> web.Response:
            await get_session_ws_id(request)
            await working()
            response = web.Response()
            try:
                await (
                    helper(request, response) if helper is renew_session_ws else helper(request)
                )
            except SessionEnded as exc:
                refused.append(exc)
                raise
            return response

        app = make(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        cookie = await session_of(client)
        working.shut = True
        request = asyncio.ensure_future(client.get("/slow", headers={"Cookie": cookie}))
        await working.arrived.wait()
        await registry.end_identity("ann")
        working.let()

        assert (await request).status == 403
        assert refused
        assert await outcome(client, cookie) == 4401

    async def test_clock_set_back(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Who logs in after the end is let in, though the clock says it was before."""
        wall = [1000.0]
        registry._identities = EndedIdentities(wall=lambda: wall[0])
        client = await aiohttp_client(make(registry))
        old = await session_of(client)
        wall[0] = 2000.0
        await registry.end_identity("ann")
        wall[0] = 500.0

        assert await outcome(client, await session_of(client)) == "ann"
        assert await outcome(client, old) == 4401

    async def test_older_than_the_installation(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session that has no id yet is as old as its last change."""
        client = await aiohttp_client(make(registry))
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

    async def test_found_by_a_request(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket that was opened before the log-in ends when its session is found ended."""
        client = await aiohttp_client(make(registry))
        await client.get("/whoami")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/login")  # which should renew the session, but doesn't
            await registry.end_identity("ann")
            await client.get("/whoami")

            assert await expect_close(ws) == 4401

    async def test_both_log_outs(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A view that asks for both gets both."""

        async def both(request: web.Request) -> web.Response:
            response = web.Response()
            await end_identity_ws(request, response)
            await end_session_ws(request, response)
            return response

        app = make(registry)
        app.router.add_get("/both", both)
        client = await aiohttp_client(app)
        other, mine = await session_of(client), await session_of(client)
        async with client.ws_connect("/ws", headers={"Cookie": other}) as ws:
            await ws.receive()
            await client.get("/both", headers={"Cookie": mine})

            assert await expect_close(ws) == 4401
        assert not registry._orders._held

    @pytest.mark.parametrize("which", ["new", "old"])
    @pytest.mark.parametrize("first", ["renew", "end"])
    async def test_change_of_password(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, which: str, first: str
    ) -> None:
        """A request may renew its session and end all others, in any order that makes sense."""

        async def change(request: web.Request) -> web.Response:
            response = web.Response()
            mine = await get_session_ws_id(request)
            if first == "renew":
                await renew_session_ws(request, response)
                mine = await get_session_ws_id(request) if which == "new" else mine
            await registry.end_identity("ann", except_session=mine)
            if first == "end":
                await renew_session_ws(request, response)
            return response

        app = make(registry)
        app.router.add_get("/change", change)
        client = await aiohttp_client(app)
        other = await session_of(client)
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await client.get("/change")
            assert await expect_close(ws) == 4403
        mine = cookie_of(client)

        assert await seen_as(client, mine) == "ann"
        assert await outcome(client, mine) == "ann"
        assert await outcome(client, other) == 4401

    async def test_renewed_by_another_request(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The session that lives on may just be getting another id."""
        answering = Turnstile()

        async def slow(request: web.Request) -> web.Response:
            response = web.Response()
            await renew_session_ws(request, response)
            await answering()
            return response

        app = make(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        await client.get("/enter")
        mine = (await (await client.get("/whoami")).json())["id"]
        answering.shut = True
        renewing = asyncio.ensure_future(client.get("/slow"))
        await answering.arrived.wait()
        await registry.end_identity("ann", except_session=mine)
        answering.let()
        await renewing

        assert await outcome(client, cookie_of(client)) == "ann"

    async def test_no_time_beside_the_id(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handshake in flight whose session has none has to come back."""
        storage = GatedStorage(SimpleCookieStorage())
        client = await aiohttp_client(make(registry, storage))

        async def set_id(request: web.Request, session_ws_id: Hashable) -> None:
            (await aiohttp_session.get_session(request))[registry.session_key] = session_ws_id

        registry.set_id = set_id  # type: ignore[method-assign]  # as 1.1.1 did
        cookie = await session_of(client)
        storage.loading.shut = True
        peer = await RawPeer.connect(url_of(client), cookie)
        await storage.loading.arrived.wait()
        await registry.end_identity("ann")
        storage.loading.let()

        assert await peer.read_head()
        assert await peer.closed() == 4403
        peer.close()

    @pytest.mark.parametrize("way", ["user, renew", "renew, user", "new session"])
    async def test_one_session_at_a_time(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, way: str
    ) -> None:
        """A log-in may end all that was before, and lives on itself."""

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

        app = make(registry)
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
        """No new id, and no new session, carries the user over the end."""
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

        app = make(registry)
        app.router.add_get("/slow", slow)
        client = await aiohttp_client(app)
        client.session.cookie_jar.clear()
        await client.get("/enter")
        old = cookie_of(client)
        if with_socket:
            await client.ws_connect("/ws")
            await until(lambda: registry)
        working.shut = True
        request = asyncio.ensure_future(client.get("/slow"))
        await working.arrived.wait()
        await registry.end_identity("ann")
        working.let()
        status = (await request).status
        after = cookie_of(client)

        assert status == (200 if way == "new session" else 403)
        assert await outcome(client, old) == 4401
        assert await outcome(client, after) != "ann"


class TestRecords:
    def test_forgotten(self) -> None:
        """A record is kept for its time, which starts anew when it is met."""
        now = [0.0]
        identities = EndedIdentities(clock=lambda: now[0])
        identities.end("ann", (), 10.0, 1, identities.now())
        now[0] = 9.0
        assert identities.get("ann") is not None
        now[0] = 18.0
        assert identities.get("ann") is not None
        now[0] = 28.0
        assert identities.get("ann") is None

    def test_not_counted(self) -> None:
        """What is forgotten is not counted, so that nobody is asked for in vain."""
        now = [0.0]
        identities = EndedIdentities(clock=lambda: now[0])
        identities.end("ann", (), 10.0, 1, identities.now())
        assert identities
        now[0] = 10.0
        assert not identities

    def test_bounded(self, caplog: pytest.LogCaptureFixture) -> None:
        """The oldest goes, with a warning that names nobody."""
        identities = EndedIdentities(limit=2)
        for name in ("ann", "bob", "cat"):
            identities.end(name, (), 10.0, 1, identities.now())

        assert identities.get("ann") is None
        assert len(identities) == 2
        assert "ended identities" in caplog.text
        assert "ann" not in caplog.text

    @pytest.mark.parametrize(
        ("minted", "ends"),
        [
            *[(99.0, True), (100.0, True), (math.nextafter(100.0, 200.0), False), (101, False)],
            *[(math.nan, True), (-math.inf, True), (None, False), ("99", False), ([99], False)],
        ],
    )
    def test_minted(self, minted: object, ends: bool) -> None:
        """A session ends if its id was minted before; without a time its ids alone count."""
        identities = EndedIdentities(wall=lambda: 100.0)
        identities.end("ann", ("left out",), 10.0, 1, identities.now())
        record = identities.get("ann")

        assert record is not None
        assert record.ends(minted, 200.0) is ends
        assert identities.time() > 100.0

    def test_still_to_come(self) -> None:
        """A time that is still to come is by a clock that was wrong."""
        identities = EndedIdentities(wall=lambda: 100.0)
        identities.end("ann", (), 10.0, 1, identities.now())
        record = identities.get("ann")

        assert record is not None
        assert not record.ends(101.0, 101.0)
        assert record.ends(101.5, 101.0)


class TestIdentify:
    @pytest.mark.parametrize("identity", ["ann", 7, ("org", 7), frozenset({1})])
    async def test_hashable(self, aiohttp_client: AiohttpClient, identity: Hashable) -> None:
        """Sync or async, anything hashable will do."""
        registry = SessionWSRegistry(identify=lambda request: identity, timeouts=QUICK)
        client = await aiohttp_client(make(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            (info,) = await registry.connections(identity=identity)
            assert info.identity == identity
            await registry.end_identity(identity)
            assert await expect_close(ws) == 4401

    @pytest.mark.parametrize("identity", [[], {}, set()])
    async def test_unhashable(self, aiohttp_client: AiohttpClient, identity: Any) -> None:
        """Something else is a clear error; nobody else is harmed."""
        harmed: list[BaseException] = []
        bad = [False]
        registry = SessionWSRegistry(
            identify=lambda request: identity if bad[0] else "ann", timeouts=QUICK
        )

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            harmed.append(details.exception)

        client = await aiohttp_client(make(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            bad[0] = True
            with pytest.raises(WSServerHandshakeError, match="500"):
                await client.ws_connect("/ws")
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        assert isinstance(harmed[0], InvalidIdentity)
        assert "hashable" in str(harmed[0])
        assert registry._sockets.opening.size == 0

    async def test_raises(self, aiohttp_client: AiohttpClient) -> None:
        """One that fails refuses the handshake and leaves nothing behind."""
        failures: list[BaseException] = []

        def identify(request: web.Request) -> str:
            raise LookupError("no database")

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failures.append(details.exception)

        client = await aiohttp_client(make(registry))
        with pytest.raises(WSServerHandshakeError, match="500"):
            await client.ws_connect("/ws")

        assert isinstance(failures[0], IdentifyFailed)
        assert isinstance(failures[0].__cause__, LookupError)
        assert "hashable identity" in str(failures[0])
        assert registry._sockets.opening.size == 0

    async def test_raises_on_a_page(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A page is served all the same, even if somebody was logged out everywhere."""

        def identify(request: web.Request) -> str:
            raise LookupError("no database")

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)
        client = await aiohttp_client(make(registry))
        await client.get("/login")
        await registry.end_identity("ann")

        for _ in range(3):
            assert (await client.get("/whoami")).status == 200
        assert caplog.text.count("can't be identified") == 1

    async def test_http_answer(self, aiohttp_client: AiohttpClient) -> None:
        """One that raises an HTTP answer refuses the handshake with it."""

        def identify(request: web.Request) -> str:
            raise web.HTTPUnauthorized

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)
        client = await aiohttp_client(make(registry))
        with pytest.raises(WSServerHandshakeError, match="401"):
            await client.ws_connect("/ws")

    async def test_known_to_authorize(self, aiohttp_client: AiohttpClient) -> None:
        """It comes after ``on_handshake`` and before ``authorize``."""
        steps: list[str] = []

        def identify(request: web.Request) -> str:
            steps.append("identify")
            return "ann"

        def authorize(request: web.Request) -> bool:
            steps.append("authorize")
            return True

        registry = SessionWSRegistry(identify=identify, authorize=authorize, timeouts=QUICK)

        @registry.on_handshake
        async def note(details: HandshakeDetails) -> None:
            steps.append("on_handshake")

        client = await aiohttp_client(make(registry))
        async with client.ws_connect("/ws"):
            pass
        assert steps == ["on_handshake", "identify", "authorize"]

    async def test_index_is_left(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Nothing stays under an identity when its sockets have gone."""
        client = await aiohttp_client(make(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws, client.ws_connect("/ws") as other:
            await asyncio.gather(ws.receive(), other.receive())
            assert registry._sockets.identities.size == 2
        await until(lambda: not registry._sockets.open.size)

        assert registry._sockets.identities.size == 0
        assert len(registry._sockets.identities) == 0


class Everybody(aiohttp_security.AbstractAuthorizationPolicy):
    """Knows everybody who says a name."""

    async def permits(self, identity: str | None, permission: Any, context: Any = None) -> bool:
        """Permit everything to whom one knows."""
        return identity is not None

    async def authorized_userid(self, identity: str) -> str | None:
        """Return the user's id."""
        return f"user {identity}"


class TestAiohttpSecurity:
    """``identify=aiohttp_security.authorized_userid`` fits as it is."""

    async def test_session_identity_policy(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage
    ) -> None:
        """Log in and out everywhere with the real package."""
        registry = SessionWSRegistry(identify=aiohttp_security.authorized_userid, timeouts=QUICK)

        async def remember(request: web.Request) -> web.Response:
            response = web.Response()
            await aiohttp_security.remember(request, response, request.query["name"])
            await renew_session_ws(request, response)
            return response

        async def forget(request: web.Request) -> web.Response:
            response = web.Response()
            await aiohttp_security.forget(request, response)
            await end_identity_ws(request, response)
            return response

        app = make_app(registry, storage)
        app.router.add_get("/remember", remember)
        app.router.add_get("/forget", forget)
        aiohttp_security.setup(app, aiohttp_security.SessionIdentityPolicy(), Everybody())
        client = await aiohttp_client(app)
        cookies = []
        for name in ("ann", "ann", "bob"):
            client.session.cookie_jar.clear()
            await client.get("/remember", params={"name": name})
            cookies.append(cookie_of(client))
        client.session.cookie_jar.clear()
        async with (
            client.ws_connect("/ws", headers={"Cookie": cookies[0]}) as ann,
            client.ws_connect("/ws", headers={"Cookie": cookies[2]}) as bob,
        ):
            await asyncio.gather(ann.receive(), bob.receive())
            infos = await registry.connections(identity="user ann")
            assert [info.identity for info in infos] == ["user ann"]
            await client.get("/forget", headers={"Cookie": cookies[1]})

            assert await expect_close(ann) == 4401
            await bob.send_str("still there?")
            assert await bob.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, cookies[0]) == 4401
