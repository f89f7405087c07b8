"""
Redis as in production: with Sentinels, with a replica, as a Cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster as ClusterClient, Sentinel

from aiohttp_session_ws.redis import membership
from aiohttp_session_ws.redis.io import subscriber
from tests.support import PATIENCE, expect_close, until
from tests.support.nodes import (
    StartNode,
    acquaint,
    becomes,
    becomes_nobody,
    cluster_of,
    leaky,
    log_in,
    refused,
    registry_of,
    script,
    settled,
    socket,
    visit,
)
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.redis_servers import MASTER_NAME, RedisCluster, RedisServer, SentinelSetup

PREFIX = "{aiohttp_session_ws}"


class TestSentinel:
    @pytest.fixture
    def make(self, redis_sentinel: SentinelSetup) -> Callable[[], Redis]:
        """Return a callable that makes clients as an application does."""
        addresses = redis_sentinel.addresses
        return lambda: Sentinel(addresses).master_for(MASTER_NAME)  # type: ignore[no-untyped-call]

    @pytest.mark.parametrize("how", ["fail_over", "kill_primary"])
    async def test_fail_over(
        self,
        redis_sentinel: SentinelSetup,
        make: Callable[[], Redis],
        start_node: StartNode,
        how: str,
    ) -> None:
        """Nodes find the new primary after a failover, and no log-out is lost."""
        a = await start_node(make, "a")
        b = await start_node(make, "b")
        before, during, after = [await log_in(a) for _ in range(3)]
        async with (
            socket(b, before) as one,
            socket(b, during) as two,
            socket(b, after) as three,
        ):
            await visit(a, "/out/end_session_ws", before)
            assert await expect_close(one) == 4401
            failing = asyncio.create_task(getattr(redis_sentinel, how)())
            await visit(a, "/out/end_session_ws", during)
            assert await expect_close(two) == 4401
            await failing
            await visit(a, "/out/end_session_ws", after)
            assert await expect_close(three) == 4401
        await settled(a)
        for cookie in (before, during, after):
            assert await refused(b, cookie) == 4401
        await until(lambda: redis_sentinel.primary.holds("*:lineage:*", 3))

    async def test_replica_behind(
        self,
        redis_sentinel: SentinelSetup,
        make: Callable[[], Redis],
        start_node: StartNode,
    ) -> None:
        """Orders that the new primary can't have are written to it by the nodes."""
        a = await start_node(make, "a")
        b = await start_node(make, "b")
        session, everywhere = await log_in(a), await log_in(a, "bob")
        await settled(a)
        replica = redis_sentinel.replica
        async with Proxy(redis_sentinel.primary.port) as proxy:
            await replica.cli("REPLICAOF", "127.0.0.1", proxy.port)

            async def follows() -> bool:
                info = await replica.cli("INFO", "replication")
                return bool(info["master_link_status"] == "up")

            await until(follows)
            proxy.black_hole()
            async with socket(b, session) as one, socket(b, everywhere) as two:
                await visit(a, "/out/end_session_ws", session)
                await visit(a, "/out/everywhere", everywhere)
                assert [await expect_close(ws) for ws in (one, two)] == [4401, 4401]
            await settled(a)
            assert not await replica.cli("KEYS", "*:end:identity:*")
            await redis_sentinel.kill_primary()
        await until(lambda: redis_sentinel.primary.holds("*:end:identity:*", 1))
        c = await start_node(make, "c")
        for client in (a, b, c):
            for cookie in (session, everywhere):
                assert await refused(client, cookie) == 4401

    async def test_first_sentinel_gone(self, start_node: StartNode) -> None:
        """A node connects by another Sentinel when the first one is down."""
        async with SentinelSetup(3) as setup:
            setup.sentinels[0].kill()
            addresses = setup.addresses
            node = await start_node(
                lambda: Sentinel(addresses).master_for(MASTER_NAME)  # type: ignore[no-untyped-call]
            )
            await becomes(node, "connected")


class Pair:
    """
    A primary and its replica without Sentinels; the test decides which one is the primary.

    Attributes:
        first: The primary at first.
        second: Its replica.
        named: The server that new clients connect to.
    """

    def __init__(self, first: RedisServer, second: RedisServer) -> None:
        self.first = self.named = first
        self.second = second

    def make(self) -> Redis:
        """Make a client as an application does that knows only a host name."""
        return Redis(port=self.named.port)

    async def follow(self, replica: RedisServer, port: int) -> None:
        """Make a server the replica of another, and wait until it has the same data."""
        await replica.cli("REPLICAOF", "127.0.0.1", port)

        async def follows() -> bool:
            info = await replica.cli("INFO", "replication")
            return bool(info["master_link_status"] == "up")

        await until(follows)

    async def same(self) -> bool:
        """Return whether both have counted the same orders."""
        first, second = [await s.cli("GET", f"{PREFIX}:seq") for s in (self.first, self.second)]
        return bool(first == second)


class TestSwapped:
    @pytest.fixture
    async def pair(self) -> AsyncIterator[Pair]:
        """Return a pair whose second server follows the first."""
        async with RedisServer() as first, RedisServer() as second:
            pair = Pair(first, second)
            await pair.follow(second, first.port)
            yield pair

    async def test_demoted(self, pair: Pair, start_node: StartNode) -> None:
        """A node leaves a primary that became a replica, although no connection breaks."""
        a = await start_node(pair.make, "a")
        b = await start_node(pair.make, "b")
        one, two = [await log_in(a) for _ in range(2)]
        await settled(a, b)
        async with socket(b, one) as ws, Proxy(pair.second.port) as proxy:
            await pair.second.cli("REPLICAOF", "NO", "ONE")
            pair.named = pair.second
            await pair.follow(pair.first, proxy.port)
            proxy.black_hole()
            c = await start_node(pair.make, "c")
            for cookie in (one, two):
                await visit(c, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401
            assert await refused(b, two) == 4401

    async def test_forth_and_back(self, pair: Pair, start_node: StartNode) -> None:
        """A node writes lost orders again to a server that was a replica in between."""
        first, second = pair.first, pair.second
        async with Proxy(first.port) as way, Proxy(first.port) as between:
            await pair.follow(second, between.port)
            node = await start_node(way.url(), "a")
            cookie = await log_in(node)
            between.black_hole()
            await visit(node, "/out/end_session_ws", cookie)  # the second doesn't get it
            await settled(node)
            await cluster_of(node).membership.heartbeat_now()
            way.black_hole()
            await second.cli("REPLICAOF", "NO", "ONE")
            async with script(second.url) as other:
                for number in range(10):
                    await other.end_session(f"meanwhile {number}")
                await until(lambda: second.holds("*:end:id:*", 10))
            await pair.follow(first, second.port)
            await until(pair.same)
            await first.cli("REPLICAOF", "NO", "ONE")
            way.heal()
            await until(lambda: first.holds("*:lineage:*", 1))
            await until(lambda: cluster_of(node).reconciler.found >= 10)
        late = await start_node(first.url, "late")
        assert await refused(late, cookie) == 4401

    async def test_missed_before(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Orders missed right before Redis was a replica for a moment are found."""

        async def refuse(client: Any, prefix: str) -> Any:
            raise TimeoutError("timed out")

        monkeypatch.setattr(membership, "ON_ITS_WAY", 3600.0)
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b")
        cookie = await log_in(a)
        await settled(a, b)
        monkeypatch.setattr(subscriber, "connect", refuse)
        await redis_server.kill_pubsub()
        await becomes(b, "degraded")
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await cluster_of(b).membership.heartbeat_now()
        await redis_server.cli("REPLICAOF", "127.0.0.1", free_port())
        await redis_server.cli("REPLICAOF", "NO", "ONE")
        await cluster_of(b).membership.heartbeat_now()
        await until(lambda: cluster_of(b).reconciler.found)
        redis_server.kill()
        await becomes_nobody(b, cookie)

    @pytest.mark.parametrize("how", ["kill_clients", "kill_pubsub"])
    async def test_together(
        self, pair: Pair, start_node: StartNode, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        """All connections of a node move to another server once some of them have."""
        node = await start_node(pair.make, "a")
        await becomes(node, "connected")
        await pair.second.cli("REPLICAOF", "NO", "ONE")
        pair.named = pair.second
        await getattr(pair.first, how)()
        async with script(pair.second.url) as other:

            async def left() -> bool:
                """Give an order there; return whether only this query is connected here."""
                _ = await other.end_session("there")
                info = await pair.first.cli("INFO", "clients")
                return int(info["connected_clients"]) == 1

            await until(left)
        await registry_of(node).end_session("here")
        await until(lambda: pair.second.holds("*:end:id:*", 2))
        lines = [record for record in caplog.records if "has lost data" in record.message]
        assert not lines or len(lines) <= 1 + (time.time() - lines[0].created) // 60


@leaky
class TestCluster:
    @pytest.fixture
    def make(self, redis_cluster: RedisCluster) -> Callable[[], ClusterClient]:
        """Return a callable that makes clients as an application does."""
        return lambda: ClusterClient.from_url(redis_cluster.url)

    async def test_orders(self, make: Callable[[], ClusterClient], start_node: StartNode) -> None:
        """Orders, queries, pushes and reports work with a Redis Cluster."""
        a = await start_node(make, "a")
        b = await start_node(make, "b")
        await acquaint(a, b)
        out, moved, closed = [await log_in(a) for _ in range(3)]
        everywhere = await log_in(a, "bob")
        async with (
            socket(b, out) as one,
            socket(b, moved) as two,
            socket(b, closed) as three,
            socket(b, everywhere) as four,
        ):
            await visit(a, "/out/end_session_ws", out)
            await visit(a, "/renew", moved)
            await visit(a, "/close", closed)
            await visit(a, "/out/everywhere", everywhere)
            codes = [await expect_close(ws) for ws in (one, two, three, four)]
        assert codes == [4401, 4403, 4403, 4401]
        await settled(a)
        c = await start_node(make, "c")
        codes = [await refused(c, cookie) for cookie in (out, moved, everywhere)]
        assert codes == [4401, 4403, 4401]
        async with socket(c, closed) as ws:
            await acquaint(a, b, c)
            assert await registry_of(a).count() == 1
            delivery = await registry_of(a).broadcast("to all", wait=PATIENCE)
            assert await ws.receive_str() == "to all"
            assert delivery.complete
            report = await registry_of(a).end_identity("ann", wait=PATIENCE)
            assert await expect_close(ws) == 4401
        assert report.sockets == 1
        assert report.complete

    @pytest.mark.parametrize("ours", [True, False])
    async def test_master_killed(
        self,
        redis_cluster: RedisCluster,
        make: Callable[[], ClusterClient],
        start_node: StartNode,
        *,
        ours: bool,
    ) -> None:
        """No log-out is lost when a master, with our keys or not, is killed and returns."""
        a = await start_node(make, "a")
        b = await start_node(make, "b")
        cookies = [await log_in(a) for _ in range(9)]
        holding = [await server.holds("*:seq", 1) for server in redis_cluster.masters]
        assert sum(holding) == 1
        killed = redis_cluster.masters[holding.index(ours)]
        for cookie in cookies[:3]:
            async with socket(b, cookie) as ws:
                await visit(a, "/out/end_session_ws", cookie)
                assert await expect_close(ws) == 4401
        opened = []
        for cookie in cookies[3:]:
            context = socket(b, cookie)
            opened.append((context, await context.__aenter__()))
        killed.kill()
        for cookie in cookies[3:]:
            await visit(a, "/out/end_session_ws", cookie)
        await redis_cluster.restart(killed)
        for context, ws in opened:
            assert await expect_close(ws) == 4401
            await context.__aexit__(None, None, None)
        await settled(a)
        for cookie in cookies:
            assert await refused(b, cookie) == 4401
