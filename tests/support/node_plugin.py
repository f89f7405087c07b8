"""
A pytest plugin: the fixtures of tests with several nodes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from .clients import AiohttpClient, Client
from .nodes import StartNode, acquaint, node_app
from .redis_servers import RedisServer


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect garbage within the test, and wait 5 s for Redis: a slow machine is no outage."""
    for module in ("commands", "line", "outbox", "subscriber", "watchdog"):
        monkeypatch.setattr(f"aiohttp_session_ws.redis.io.{module}.REPLY_TIMEOUT", 5.0)
    yield
    gc.collect()


@pytest.fixture
def start_node(aiohttp_client: AiohttpClient) -> StartNode:
    """Start nodes on request, each with a client of its own."""

    async def start(redis: Any, name: str = "node", **options: Any) -> Client:
        client = await aiohttp_client(node_app(redis, name, **options))
        client.session.cookie_jar.clear()
        return client

    return start


@pytest.fixture
async def nodes(redis_server: RedisServer, start_node: StartNode) -> tuple[Client, Client]:
    """Two nodes, each of which lists the other as a member."""
    a = await start_node(redis_server.url, "a")
    b = await start_node(redis_server.url, "b")
    await acquaint(a, b)
    return a, b
