"""
Redis clients of an application that are unusable, or fail at times.
"""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster as ClusterClient

from aiohttp_session_ws import NotSetUp
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import expect_close
from tests.support.nodes import (
    StartNode,
    acquaint,
    becomes,
    leaky,
    log_in,
    nowhere,
    refused,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisCluster, RedisServer


class TestClients:
    @pytest.mark.parametrize(
        "make",
        [lambda: Redis.from_url(nowhere(), decode_responses=True), lambda: None],
        ids=["decodes", "none"],
    )
    async def test_unusable(self, make: Any) -> None:
        """A client that decodes responses, or a callable that returns none, is an error."""
        with pytest.raises(NotSetUp, match="redis= is a callable"):
            async with RedisSessionWSRegistry(make):
                pass

    async def test_raises_once(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A callable that raises is called again until it returns a client."""
        fails = [True]

        def make() -> Redis:
            if fails:
                raise LookupError("the vault is closed")
            return Redis.from_url(redis_server.url)

        a = await start_node(make, "a")
        assert registry_of(a).state == "degraded"
        fails.clear()
        await becomes(a, "connected")

    @pytest.mark.parametrize("option", ["socket_timeut=3", "decode_responses=True"])
    def test_url_option(self, option: str) -> None:
        """A URL option that would break every command raises at once, without the password."""
        with pytest.raises(ValueError, match=r"behind the '\?'") as refused:
            RedisSessionWSRegistry(f"redis://:secret@localhost?{option}")
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize("url", ["localhost:6379", "http://localhost?a=1", "redis://a:b"])
    def test_no_url(self, url: str) -> None:
        """An argument that is not a URL for Redis raises ValueError."""
        with pytest.raises(ValueError, match="not a URL for Redis"):
            RedisSessionWSRegistry(url)

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_protocol(
        self, redis_server: RedisServer, start_node: StartNode, protocol: int
    ) -> None:
        """RESP2 and RESP3 both work, with the answers to PINGs on quiet subscriptions."""
        url = f"{redis_server.url}?protocol={protocol}"
        a, b = await start_node(url, "a"), await start_node(url, "b")
        await acquaint(a, b)
        cookie = await log_in(b)
        async with socket(b, cookie) as ws, redis_server.client() as observer:

            async def pinged() -> int:
                clients = await observer.client_list()
                return sum(client["cmd"] == "ping" for client in clients if client["sub"] != "0")

            while await pinged() < 4:  # all four subscriptions
                await visit(a, "/whoami", cookie)
            assert registry_of(b).state == "connected"
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401

    @leaky
    async def test_cluster_away(self, redis_cluster: RedisCluster, start_node: StartNode) -> None:
        """A node reconnects to a Redis Cluster whose servers were all killed."""

        def make() -> Any:
            return ClusterClient.from_url(redis_cluster.url)

        a = await start_node(make, "a")
        await becomes(a, "connected")
        cookie = await log_in(a)
        for server in redis_cluster.servers:
            server.kill()
        await becomes(a, "degraded")
        await visit(a, "/out/end_session_ws", cookie)
        for server in redis_cluster.servers:
            await server.start()
        await settled(a)
        assert await refused(a, cookie) == 4401
