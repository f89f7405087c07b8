"""
Statistics of a registry: open sockets, closes, refusals, and sums over processes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import (
    Expiry,
    HandshakeRefused,
    Limits,
    SessionWSRegistry,
    Timeouts,
    WebSocket,
    session_stream,
    websocket_handler,
)
from aiohttp_session_ws.close_codes import POLICY_VIOLATION
from aiohttp_session_ws.exceptions import WebSocketProtocolError
from aiohttp_session_ws.results import ClusterStats, Stats
from aiohttp_session_ws.signals import FailDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    GatedStorage,
    Started,
    Turnstile,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import inspect


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


async def start(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    """Serve the app of most tests; return a client that is logged in."""
    client = await aiohttp_client(make_app(registry))
    await client.get("/login")
    return client


class TestCounting:
    async def test_closes(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Sockets are counted while they are open, and by cause and code when they close."""
        client = await start(aiohttp_client, registry)
        first, second, third = [await client.ws_connect("/ws") for _ in range(3)]
        assert registry.stats().open == 3

        await first.close(code=1001)
        await until(lambda: len(registry.stats().closes) == 1)
        await second.receive(timeout=PATIENCE)
        await second.send_bytes(b"no text: the handler fails")
        assert await expect_close(second) == 1011
        await registry.end_identity("ann")
        assert await expect_close(third) == 4401
        await until(lambda: not registry.stats().open)
        stats = registry.stats()
        assert stats.closes == {("client", 1001): 1, ("handler", 1011): 1, ("order", 4401): 1}
        assert (stats.orders_given, stats.records) == (2, 2)  # including that of the log-in

    async def test_by_hand(self, started: Started, registry: SessionWSRegistry) -> None:
        """A socket that was registered by hand is counted when it is closed."""

        class Thing:
            def close(self) -> None:
                """Do nothing."""

        await started(registry)
        registry.register("id", Thing())
        await registry.close_all_session("id")

        assert registry.stats().closes == {("order", 4403): 1}

    async def test_streams(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """An open stream is counted as open and as a stream."""
        entered = asyncio.Event()

        async def events(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
                entered.set()
                await asyncio.Event().wait()
            return response

        app = make_app(registry)
        app.router.add_get("/events", events)
        client = await aiohttp_client(app)
        async with client.get("/events"):
            await entered.wait()
            during = registry.stats()
            (session_ws_id,) = registry
            await registry.end_session(session_ws_id)
        await until(lambda: not registry.stats().streams)
        after = registry.stats()

        assert (during.open, during.streams) == (1, 1)
        assert (after.open, after.streams, after.closes) == (0, 0, {("order", 4401): 1})

    async def test_per_thread(self, started: Started, registry: SessionWSRegistry) -> None:
        """Statistics may be read in another thread, as an exporter does."""
        await started(registry)
        with ThreadPoolExecutor() as pool:
            stats = await asyncio.get_running_loop().run_in_executor(pool, registry.stats)

        assert stats == registry.stats() == Stats()

    async def test_busy(self, started: Started) -> None:
        """Statistics may be read in another thread while the registry changes them."""
        registry = await started(SessionWSRegistry(expiry=Expiry(revocation_ttl=1e-4)))
        counters = inspect(registry).connections.counters
        begun, stop = threading.Event(), threading.Event()

        def look() -> int:
            looks = 0
            begun.set()
            while not stop.is_set():
                looks += registry.stats().orders_given >= 0
            return looks

        looking = asyncio.create_task(asyncio.to_thread(look))
        await until(begun.is_set)
        for n in range(500):
            await registry.end_session(n)  # each record expires soon, while others are added
            counters.closed("client", 3000 + n)
            counters.refused(str(n))
        stop.set()

        assert await looking > 0


class TestRefusals:
    async def refusals(
        self, client: Client, registry: SessionWSRegistry, **options: str
    ) -> list[str]:
        """Try to connect; return the reasons under which refusals were counted."""
        try:
            async with client.ws_connect("/ws", headers=options) as ws:
                await ws.receive(timeout=PATIENCE)
        except WSServerHandshakeError:
            pass
        return list(registry.stats().refusals)

    async def test_origin(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handshake from a foreign page is counted as ``origin``."""
        client = await start(aiohttp_client, registry)

        assert await self.refusals(client, registry, Origin="https://evil.example") == ["origin"]

    @pytest.mark.parametrize(
        "answer",
        [
            False,
            POLICY_VIOLATION,
            web.HTTPUnauthorized,
            web.HTTPBadRequest,
            functools.partial(HandshakeRefused, POLICY_VIOLATION),
        ],
    )
    async def test_authorize(self, aiohttp_client: AiohttpClient, answer: object) -> None:
        """A refusal that ``authorize`` returns or raises is counted as ``authorize``."""

        def authorize(request: web.Request) -> object:
            if callable(answer):
                raise answer()
            return answer

        registry = SessionWSRegistry(authorize=authorize)
        client = await start(aiohttp_client, registry)

        assert await self.refusals(client, registry) == ["authorize"]

    @pytest.mark.parametrize(
        ("limits", "word"),
        [(Limits(total=1), "total"), (Limits(per_session=1, on_limit="refuse"), "limit")],
    )
    async def test_limits(self, aiohttp_client: AiohttpClient, limits: Limits, word: str) -> None:
        """A handshake over a limit is counted as ``total`` or ``limit``."""
        registry = SessionWSRegistry(limits=limits, timeouts=QUICK)
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/ws"):
            assert await self.refusals(client, registry) == [word]

    async def test_draining(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handshake during a drain is counted as ``draining``."""
        client = await start(aiohttp_client, registry)
        await registry.drain(0)

        assert await self.refusals(client, registry) == ["draining"]

    async def test_ended(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """A handshake with the cookie of an ended session is counted as ``ended``."""
        client = await start(aiohttp_client, registry)
        await registry.end_identity("ann")

        assert await self.refusals(client, registry) == ["ended"]

    async def test_identify(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake whose ``identify`` raises is counted as ``identify``."""
        registry = SessionWSRegistry(identify=lambda request: 1 / 0)
        client = await aiohttp_client(make_app(registry))

        assert await self.refusals(client, registry) == ["identify"]

    @pytest.mark.parametrize("by", ["hook", "handler"])
    async def test_handler(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, by: str
    ) -> None:
        """A refusal by a hook or a handler before it connects is counted as ``handler``."""

        async def refuse(ws: WebSocket) -> None:
            raise WebSocketProtocolError("not today")

        async def connect(ws: WebSocket) -> None:
            await ws.connect()

        if by == "hook":
            registry.on_request.append(refuse)
        app = make_app(registry)
        app.router.add_get("/talk", websocket_handler(refuse if by == "handler" else connect))
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            assert await expect_close(ws) == 1002

        assert registry.stats().refusals == {"handler": 1}

    async def test_an_order_with_a_code_of_its_own(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that an order closes with its own code is counted as ``reconnect``."""
        gate = Turnstile()
        gate.shut = True

        async def authorize(request: web.Request) -> bool:
            await gate()
            return True

        registry = SessionWSRegistry(identify=user_of, authorize=authorize, timeouts=QUICK)
        client = await start(aiohttp_client, registry)
        knocking = asyncio.ensure_future(client.ws_connect("/ws"))
        await gate.arrived.wait()
        await registry.close_all_identity("ann", close=4000)
        gate.let()

        assert await expect_close(await knocking) == 4000
        assert registry.stats().refusals == {"reconnect": 1}

    @pytest.mark.parametrize("slow", ["storage", "authorize"])
    async def test_late(self, aiohttp_client: AiohttpClient, slow: str) -> None:
        """A timeout before the handler runs is counted as ``late``, and ``on_fail`` is called."""
        storage = GatedStorage(SimpleCookieStorage())
        gate = storage.loading if slow == "storage" else Turnstile()

        async def authorize(request: web.Request) -> bool:
            if slow == "authorize":
                await gate()
            return True

        registry = SessionWSRegistry(authorize=authorize, timeouts=Timeouts(handshake=0.1))
        failed: list[FailDetails] = []

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failed.append(details)

        client = await aiohttp_client(make_app(registry, storage))
        await client.get("/login")
        gate.shut = True
        with pytest.raises(WSServerHandshakeError, match="503"):
            await client.ws_connect("/ws")
        gate.let()

        assert registry.stats().refusals == {"late": 1}
        assert [type(details.exception).__base__ for details in failed] == [
            web.HTTPServiceUnavailable
        ]

    async def test_no_websocket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A plain GET is counted as ``no websocket``."""
        client = await start(aiohttp_client, registry)
        await client.get("/ws")

        assert registry.stats().refusals == {"no websocket": 1}


class TestStats:
    STATS = Stats(
        node="a", open=2, outage_seconds=1.5, closes={("order", 4401): 2}, refusals={"late": 1}
    )

    def test_json(self) -> None:
        """``Stats`` survive a round trip through JSON, and ignore unknown keys."""
        body = json.loads(json.dumps(self.STATS.as_dict()))

        assert body["closes"] == {"order": {"4401": 2}}
        assert Stats.from_dict({**body, "news": 7}) == self.STATS

    def test_total(self) -> None:
        """The statistics of several processes add up."""
        other = Stats(node="b", open=1, closes={("order", 4401): 1, ("client", 1000): 1})
        both = ClusterStats([other, self.STATS], complete=False)

        assert [stats.node for stats in both] == ["a", "b"]
        assert not both.complete
        assert both.total == Stats(
            open=3,
            outage_seconds=1.5,
            closes={("order", 4401): 3, ("client", 1000): 1},
            refusals={"late": 1},
        )

    async def test_of_one(self, started: Started, registry: SessionWSRegistry) -> None:
        """A single process has only its own figures in ``cluster_stats()``."""
        await started(registry)
        stats = await registry.cluster_stats()

        assert list(stats) == [registry.stats()]
        assert stats.complete
