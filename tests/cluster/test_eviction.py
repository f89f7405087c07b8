"""
A Redis that evicts keys, although it should be configured not to.
"""

from __future__ import annotations

import time

import pytest

from tests.support import PATIENCE, expect_close, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    becomes,
    cluster_of,
    log_in,
    refused,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"
FILLER = 200  # keys that aren't ours, of 10 kB


async def evict(redis: RedisServer, *keys: str) -> None:
    """Have Redis evict at least one key, and delete *keys* as if it had evicted them."""

    async def evicted() -> int:
        for number in range(FILLER):
            await redis.cli("SET", f"filler {number}", "x" * 10_000, "EX", 1 + number)
        used = (await redis.cli("INFO", "memory"))["used_memory"]
        await redis.cli("CONFIG", "SET", "maxmemory", used - 20_000)
        if keys:
            await redis.cli("DEL", *keys)
        await redis.cli("SET", "one more", "x" * 10_000)
        await redis.cli("CONFIG", "SET", "maxmemory", 0)
        return int((await redis.cli("INFO", "stats"))["evicted_keys"])

    await redis.cli("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    before = int((await redis.cli("INFO", "stats"))["evicted_keys"])
    while await evicted() == before:
        pass  # some of the filler has expired instead


class TestEviction:
    async def test_written_again(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Evicted records are written again by a living node, so that a later one knows them."""
        node = await start_node(redis_server.url, "a")
        session, everywhere = await log_in(node), await log_in(node, "bob")
        await visit(node, "/out/end_session_ws", session)
        await visit(node, "/out/everywhere", everywhere)
        await registry_of(node).close_all_session("x", wait=PATIENCE)
        await settled(node)
        await cluster_of(node).membership.heartbeat_now()
        kinds = ("lineage", "end", "close")
        keys = [key for kind in kinds for key in await redis_server.cli("KEYS", f"*:{kind}:*")]
        assert len(keys) >= 4
        await evict(redis_server, *keys)
        await until(lambda: redis_server.holds("*:lineage:*", 2))
        await until(lambda: redis_server.holds("*:end:identity:*", 1))
        await until(lambda: redis_server.holds("*:close:*", 1))
        late = await start_node(redis_server.url, "late")
        for cookie in (session, everywhere):
            assert await refused(late, cookie) == 4401

    async def test_again_and_again(
        self, redis_server: RedisServer, nodes: Nodes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Evicted keys are written again each time; the log has one line a minute per node."""
        a, _ = nodes
        await registry_of(a).end_session("x", wait=PATIENCE)
        for _ in range(3):
            await evict(redis_server, f'{PREFIX}:end:id:"x"')
            for node in nodes:
                cluster_of(node).membership.heartbeat_soon()
            await until(lambda: redis_server.cli("EXISTS", f'{PREFIX}:end:id:"x"'))
        minutes = 1 + (time.time() - caplog.records[0].created) // 60
        for words in ("has evicted keys", "this node writes them back"):
            lines = [record for record in caplog.records if words in record.message]
            assert 1 <= len(lines) <= len(nodes) * minutes

    async def test_numbers(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node looks up its sockets if the numbers of the orders it missed were evicted."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(a)
            async with socket(b, cookie) as ws:
                await proxy.stop()
                await becomes(b, "degraded")
                await visit(a, "/out/end_session_ws", cookie)
                await settled(a)
                await evict(redis_server, f"{PREFIX}:recent", f"{PREFIX}:floor")
                await proxy.start()
                assert await expect_close(ws) == 4401

    async def test_members(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A report is incomplete without an answer of a node whose entry in Redis was evicted."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            await acquaint(a, b)
            proxy.black_hole()
            await evict(redis_server, f"{PREFIX}:nodes")
            await cluster_of(a).membership.heartbeat_now()
            assert await redis_server.cli("ZCARD", f"{PREFIX}:nodes") == 1
            report = await registry_of(a).end_session("x", wait=0.2)
            assert (report.nodes_expected, report.complete) == (2, False)
