"""
What a node is told that makes no sense, and what it is given that doesn't work.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster as ClusterClient

from aiohttp_session_ws import Expiry
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import PATIENCE, expect_close, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    becomes,
    id_of,
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

HUGE = "1" + "0" * 400


def message(order: str) -> str:
    """Return a message that carries the text of an order."""
    return f'{{"v":1,"from":"x","units":[{{"orders":[{order}]}}]}}'


class TestForeign:
    @pytest.mark.parametrize(
        "text",
        [
            '{"v":1,"from":"x","units":[{"orders":[],"code":Infinity,"reason":""}]}',
            message('{"v":1,"do":"close","id":Infinity,"n":"1"}'),
            message(f'{{"v":1,"do":"end","id":"y","at":{HUGE},"ttl":9}}'),
            message('{"v":1,"do":"end","id":[[NaN]],"at":1,"ttl":9}'),
            message(f'{{"v":1,"do":"end","id":{"[" * 300}1{"]" * 300},"at":1,"ttl":9}}'),
            message('{"v":1,"do":"end identity","who":"x","before":NaN,"out":[],"ttl":9}'),
        ],
    )
    async def test_orders(self, redis_server: RedisServer, nodes: Nodes, text: str) -> None:
        """An order that can be read and makes no sense stops nobody."""
        a, b = nodes
        cookie = await log_in(a)
        await redis_server.cli("PUBLISH", "aiohttp_session_ws:orders", text)
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401
        assert registry_of(b).state == "connected"

    @pytest.mark.parametrize(
        "text",
        [
            '{"v":1,"from":"\\ud800","q":"1","do":"count"}\n',
            '{"v":1,"from":"x","q":"1","do":[],"age":1}\n',
            '{"v":1,"from":"x","q":"1","do":"push","to":["session",Infinity],"text":true}\n',
        ],
    )
    async def test_questions(self, redis_server: RedisServer, nodes: Nodes, text: str) -> None:
        """Nor does a question."""
        a, b = nodes
        await redis_server.cli("PUBLISH", "aiohttp_session_ws:data", text)
        assert (await registry_of(a).count()).complete
        assert (await registry_of(b).count()).complete

    async def test_ttl(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """An absurd time to live can be heard of, and written back."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        order = json.dumps({"v": 1, "do": "end", "id": id_, "at": 1, "ttl": 1e306})
        await redis_server.cli("PUBLISH", "aiohttp_session_ws:orders", message(order))
        await until(lambda: registry_of(b)._revocations.has_ended(id_))
        registry_of(b)._store([id_], None)  # type: ignore[arg-type]
        assert (await registry_of(b).end_session("other", wait=PATIENCE)).stored

    async def test_for_ever(self, redis_server: RedisServer) -> None:
        """Somebody wants revocations to be kept for ever."""
        expiry = Expiry(revocation_ttl=sys.maxsize)
        async with RedisSessionWSRegistry(redis_server.url, expiry=expiry) as registry:
            assert (await registry.end_session("x", wait=PATIENCE)).stored


class TestClients:
    @pytest.mark.parametrize(
        "make",
        [lambda: Redis.from_url(nowhere(), decode_responses=True), lambda: None],
        ids=["decodes", "none"],
    )
    async def test_unusable(self, start_node: StartNode, caplog: Any, make: Any) -> None:
        """A client that decodes, or that is none, is told of."""
        a = await start_node(make, "a")
        assert registry_of(a).state == "degraded"
        assert "client" in caplog.text

    async def test_raises_once(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """What makes clients may fail, and is asked again."""
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
        """An option that would let each command fail is refused at once."""
        with pytest.raises(ValueError, match="not a URL"):
            RedisSessionWSRegistry(f"redis://localhost?{option}")

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_protocol(
        self, redis_server: RedisServer, start_node: StartNode, protocol: int
    ) -> None:
        """RESP2 and RESP3 are the same to us, silence and the answer to a PING included."""
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
        """A Cluster that has gone altogether comes back."""

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
