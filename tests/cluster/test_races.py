"""
What comes at the same time on a node, or is given up half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import Close
from aiohttp_session_ws.redis import learning, telling
from tests.support import PATIENCE, AiohttpClient, Client, Turnstile, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    id_of,
    log_in,
    node_app,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer


async def who(client: Client, cookie: str) -> str | None:
    """Return whose page a browser gets."""
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        user: str | None = (await response.json())["user"]
        return user


class TestPages:
    """Requests that a node has never heard of come with the cookie of an ended session."""

    @pytest.fixture
    async def stale(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        """The cookie; nodes that start from now on know of it when they ask, and only then."""
        monkeypatch.setattr(learning, "PATIENCE", PATIENCE)
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await redis_server.cli("DEL", "aiohttp_session_ws:recent")
        return cookie

    @pytest.fixture
    async def fresh(
        self, stale: str, redis_server: RedisServer, aiohttp_client: AiohttpClient
    ) -> Client:
        """Such a node; its handlers are cancelled when their clients go."""
        app = node_app(redis_server.url, "fresh")
        client = await aiohttp_client(app, handler_cancellation=True)
        client.session.cookie_jar.clear()
        return client

    @pytest.fixture
    def asking(self, fresh: Client, monkeypatch: pytest.MonkeyPatch) -> Turnstile:
        """A place where the node's questions to Redis can be held."""
        store, turnstile = registry_of(fresh)._node.store, Turnstile()
        read = store.read

        async def held(keys: Sequence[str]) -> Any:
            await turnstile()
            return await read(keys)

        monkeypatch.setattr(store, "read", held)
        return turnstile

    async def test_at_once(
        self, fresh: Client, stale: str, asking: Turnstile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of several at once none is let through before Redis has answered the first."""
        registry, met = registry_of(fresh), []
        meet = registry._meet

        async def note(request: web.Request, session_ws_id: Hashable) -> None:
            met.append(session_ws_id)
            await meet(request, session_ws_id)

        monkeypatch.setattr(registry, "_meet", note)
        asking.shut = True
        pages = [asyncio.create_task(who(fresh, stale)) for _ in range(5)]
        await until(lambda: len(met) == 5)
        await asking.arrived.wait()
        asking.let()
        assert await asyncio.gather(*pages) == [None] * 5

    async def test_gone(self, fresh: Client, stale: str, asking: Turnstile) -> None:
        """A client that goes before Redis has answered spares the next one nothing."""
        asking.shut = True
        first = asyncio.create_task(who(fresh, stale))
        await asking.arrived.wait()
        first.cancel()
        await until(lambda: not registry_of(fresh)._learning._now)
        asking.let()
        async with asyncio.timeout(PATIENCE):
            assert await who(fresh, stale) is None


class TestLeaks:
    async def test_recorded(self, nodes: Nodes) -> None:
        """Nothing is kept of an order to close that an end has overtaken."""
        a, _ = nodes
        registry_of(a)._store(["x"], Close(4403))
        assert registry_of(a)._telling._untold
        await registry_of(a).end_session("x")
        assert not registry_of(a)._telling._untold

    async def test_closing(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor of a question, if who waits is cancelled while sockets close."""
        monkeypatch.setattr(telling, "FORGOTTEN", 0.0)
        a, _ = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(a, cookie):  # it answers no close frame as long as nobody reads
            order = asyncio.create_task(registry_of(a).end_session(id_, wait=0.01))
            await until(lambda: registry_of(a)._asking._open)
            order.cancel()
            await asyncio.wait({order})
            assert order.cancelled()
        await until(lambda: not registry_of(a)._asking._open)

    async def test_waiting(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Nor if he is while others are waited for."""
        a, _ = nodes
        await redis_server.cli("ZADD", "aiohttp_session_ws:nodes", "+inf", "ghost/1")
        await acquaint(a)
        await until(lambda: len(registry_of(a)._node.members) == 3)
        order = asyncio.create_task(registry_of(a).end_session("x", wait=PATIENCE))
        await until(lambda: registry_of(a)._asking._open)
        await settled(a)
        order.cancel()
        await asyncio.wait({order})
        assert order.cancelled()
        assert not registry_of(a)._asking._open


class TestBeats:
    async def test_overlapping(
        self, nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of two signs of life at once none is taken for a Redis that has lost data."""
        node, turnstile = registry_of(nodes[0])._node, Turnstile()
        pulse = node.store.pulse

        async def held(*args: Any, **kwargs: Any) -> Any:
            result = await pulse(*args, **kwargs)
            await turnstile()
            return result

        monkeypatch.setattr(node.store, "pulse", held)
        turnstile.shut = True
        first = asyncio.create_task(node.beat())
        await turnstile.arrived.wait()
        turnstile.shut = False  # for others
        second = asyncio.create_task(node.beat())
        for _ in range(5):  # time enough for it, if it doesn't wait for its turn
            await node.store.read(["x"])
        turnstile.let()
        await asyncio.gather(first, second)
        await node.beat()
        assert "lost data" not in caplog.text
