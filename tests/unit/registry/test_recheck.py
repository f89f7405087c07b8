"""
``recheck()``: check at once whether the sockets of an identity are still authorized.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import Close, NotSetUp, SessionWSRegistry, session_ws
from aiohttp_session_ws.exceptions import HandshakeRefused, InvalidIdentity
from aiohttp_session_ws.registry import revalidation
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    Started,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
    user_of,
)


@dataclass
class Rights:
    """An ``authorize`` whose refusals a test sets, and which records its calls."""

    refused: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def authorize(self, request: web.Request) -> object:
        """Return whether the user of a request may connect."""
        user = str(await user_of(request))
        self.asked.append(user)
        return self.refused.get(user, True)


@pytest.fixture
def rights() -> Rights:
    return Rights()


@pytest.fixture
def registry(rights: Rights) -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, authorize=rights.authorize, timeouts=QUICK)


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    return await aiohttp_client(make_app(registry))


async def cookie_for(client: Client, user: str) -> dict[str, str]:
    """Log in as a new browser; return its cookie header."""
    client.session.cookie_jar.clear()
    await client.get("/login", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return {"Cookie": cookie}


async def held(request: web.Request) -> web.WebSocketResponse:
    """Echo all messages, at another address."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


class TestRecheck:
    @pytest.mark.parametrize(("answer", "code"), [(False, 4403), (Close(4499, "paid up?"), 4499)])
    async def test_closed(
        self,
        client: Client,
        registry: SessionWSRegistry,
        rights: Rights,
        answer: object,
        code: int,
    ) -> None:
        """``recheck`` closes sockets that are no longer authorized, of the given identity only."""
        ann, bob = await cookie_for(client, "ann"), await cookie_for(client, "bob")
        async with (
            client.ws_connect("/ws", headers=ann) as anns,
            client.ws_connect("/ws", headers=bob) as bobs,
        ):
            await bobs.receive(timeout=PATIENCE)
            rights.refused["ann"] = rights.refused["bob"] = answer
            report = await registry.recheck("ann")

            assert await expect_close(anns) == code
            await bobs.send_str("still there?")
            assert await bobs.receive_str(timeout=PATIENCE) == "still there?"
        assert (report.sockets, report.complete) == (1, True)

    async def test_once_per_session(
        self, client: Client, registry: SessionWSRegistry, rights: Rights
    ) -> None:
        """Sockets of one session share a call of ``authorize``; each session gets its own call."""
        first, second = await cookie_for(client, "ann"), await cookie_for(client, "ann")
        async with (
            client.ws_connect("/ws", headers=first),
            client.ws_connect("/ws", headers=first),
            client.ws_connect("/ws", headers=second),
        ):
            rights.asked.clear()
            report = await registry.recheck("ann")

        assert (report.sockets, rights.asked) == (0, ["ann", "ann"])

    async def test_slow_answers_about_many(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All sockets are checked, even if that takes longer than the limit of one check."""
        monkeypatch.setattr(revalidation, "CHECK_LIMIT", 1.0)
        allowed, late = True, 0.0
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + late)

        async def authorize(request: web.Request) -> bool:
            nonlocal late
            if not allowed:
                late += 0.6
                await asyncio.sleep(0)  # timeouts that have expired take effect here
            return allowed

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        ann = await cookie_for(client, "ann")
        async with contextlib.AsyncExitStack() as stack:
            for number in range(6):
                await stack.enter_async_context(client.ws_connect(f"/ws?{number}", headers=ann))
            allowed = False
            report = await registry.recheck("ann")

        assert report.sockets == 6

    async def test_one_that_hangs(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A check that hangs keeps no other socket of its session open."""
        allowed, late = True, 0.0
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + late)

        async def authorize(request: web.Request) -> bool:
            nonlocal late
            if not allowed and request.query_string == "one":
                late += revalidation.CHECK_LIMIT
                await asyncio.Event().wait()
            return allowed

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        ann = await cookie_for(client, "ann")
        async with (
            client.ws_connect("/ws?one", headers=ann),
            client.ws_connect("/ws?two", headers=ann),
            client.ws_connect("/ws?three", headers=ann),
        ):
            allowed = False
            report = await registry.recheck("ann")

        assert report.sockets == 2

    async def test_one_that_fails(self, aiohttp_client: AiohttpClient) -> None:
        """A socket whose ``authorize`` raises stays; others of its session are still checked."""
        rooms = {"one": {"ann"}, "two": {"ann"}, "three": {"ann"}}

        async def authorize(request: web.Request) -> bool:
            return await user_of(request) in rooms[request.query_string]

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        ann = await cookie_for(client, "ann")
        async with (
            client.ws_connect("/ws?one", headers=ann) as one,
            client.ws_connect("/ws?two", headers=ann) as two,
            client.ws_connect("/ws?three", headers=ann) as three,
        ):
            rooms["one"].clear()
            del rooms["three"]
            report = await registry.recheck("ann")

            assert await expect_close(one) == 4403
            for ws in (two, three):
                await ws.receive(timeout=PATIENCE)
                await ws.send_str("still there?")
                assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        assert report.sockets == 1

    async def test_each_address(self, aiohttp_client: AiohttpClient) -> None:
        """Rights are checked per address: only sockets at a refused address are closed."""
        admins = {"ann"}

        async def authorize(request: web.Request) -> bool:
            return request.path != "/admin" or await user_of(request) in admins

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        app = make_app(registry)
        app.router.add_get("/admin", held)
        client = await aiohttp_client(app)
        ann = await cookie_for(client, "ann")
        async with (
            client.ws_connect("/admin", headers=ann) as first,
            client.ws_connect("/ws", headers=ann) as ws,
            client.ws_connect("/admin", headers=ann) as last,
        ):
            await ws.receive(timeout=PATIENCE)
            admins.clear()
            report = await registry.recheck("ann")

            assert [await expect_close(socket) for socket in (first, last)] == [4403, 4403]
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        assert report.sockets == 2

    @pytest.mark.parametrize(
        ("refusal", "code"),
        [
            (web.HTTPForbidden(), 4403),
            (web.HTTPUnauthorized(), 4403),
            (HandshakeRefused(Close(4499, "paid up?")), 4499),
        ],
    )
    async def test_raised(
        self, aiohttp_client: AiohttpClient, refusal: Exception, code: int
    ) -> None:
        """An exception that refuses a handshake closes an open socket."""
        refusals: list[Exception] = []

        async def authorize(request: web.Request) -> bool:
            for one in refusals:
                raise one
            return True

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws", headers=await cookie_for(client, "ann")) as ws:
            await ws.receive(timeout=PATIENCE)
            refusals.append(refusal)
            await registry.recheck("ann")

            assert await expect_close(ws) == code

    async def test_while_it_opens(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that was authorized before the recheck is checked again once it is open."""
        banned: set[str] = set()
        gate = Turnstile()

        async def authorize(request: web.Request) -> bool:
            allowed = await user_of(request) not in banned
            await gate()
            return allowed

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        ann = await cookie_for(client, "ann")
        gate.shut = True
        opening = asyncio.ensure_future(client.ws_connect("/ws", headers=ann))
        await gate.arrived.wait()
        banned.add("ann")
        await registry.recheck("ann")
        gate.let()
        async with await opening as ws:
            assert await expect_close(ws) == 4403

    async def test_after_one_under_way(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, rights: Rights
    ) -> None:
        """A recheck doesn't rely on a running check, which may have seen the old rights."""
        storage, gate = SimpleCookieStorage(), Turnstile()
        load = storage.load_session
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await cookie_for(client, "ann")
        async with client.ws_connect("/ws", headers=cookie) as ws:
            await ws.receive(timeout=PATIENCE)

            async def slowly(request):  # type: ignore[no-untyped-def]
                await gate()
                return await load(request)

            storage.load_session = slowly  # type: ignore[method-assign]
            gate.shut = True
            first = asyncio.create_task(registry.recheck("ann"))
            await gate.arrived.wait()
            rights.asked.clear()
            second = asyncio.create_task(registry.recheck("ann"))
            gate.let()
            await asyncio.gather(first, second)

        assert rights.asked == ["ann", "ann"]

    async def test_nobody(self, client: Client, registry: SessionWSRegistry) -> None:
        """A recheck of an identity without sockets closes none; ``None`` is not an identity."""
        assert (await registry.recheck("ann")).sockets == 0
        with pytest.raises(InvalidIdentity):
            await registry.recheck(None)

    async def test_without_identify(self, started: Started) -> None:
        """A recheck without ``identify`` raises ``NotSetUp``."""
        registry = await started(SessionWSRegistry())
        with pytest.raises(NotSetUp):
            await registry.recheck("ann")

    async def test_storage_fails(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A socket that can't be checked since the storage fails stays open."""
        storage = SimpleCookieStorage()
        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws", headers=await cookie_for(client, "ann")) as ws:
            await ws.receive(timeout=PATIENCE)

            async def fail(request):  # type: ignore[no-untyped-def]
                raise OSError

            storage.load_session = fail  # type: ignore[method-assign]
            assert (await registry.recheck("ann")).sockets == 0
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        await until(lambda: not len(registry))
