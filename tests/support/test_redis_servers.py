"""
The Redis servers that other tests run: each method does what it promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster as ClusterClient
from redis.exceptions import ConnectionError as NoConnection, TimeoutError as TooLate

from tests.support.redis_servers import MASTER_NAME, RedisCluster, RedisServer, SentinelSetup


class TestRedisServer:
    async def test_restart_with_data(self, redis_server: RedisServer) -> None:
        """Data that was written before a kill -9 is there after a restart."""
        await redis_server.cli("SET", "key", "value")
        await redis_server.restart()

        assert await redis_server.cli("GET", "key") == "value"

    async def test_restart_without_data(self, redis_server: RedisServer) -> None:
        """A restart can delete the data."""
        await redis_server.cli("SET", "key", "value")
        await redis_server.restart(keep_data=False)

        assert await redis_server.cli("GET", "key") is None

    async def test_killed(self, redis_server: RedisServer) -> None:
        """A killed server refuses connections."""
        redis_server.kill()

        assert not redis_server.running
        with pytest.raises(NoConnection):
            await redis_server.cli("PING")

    async def test_frozen(self, redis_server: RedisServer) -> None:
        """A frozen server accepts connections and doesn't reply, until it is thawed."""
        redis_server.freeze()
        async with redis_server.client(socket_timeout=0.1) as client:
            with pytest.raises(TooLate):
                await client.get("key")
        redis_server.thaw()

        assert await redis_server.cli("PING") in ("PONG", True)

    async def test_kill_pubsub(self, redis_server: RedisServer) -> None:
        """Connections of subscribers are closed."""
        async with redis_server.client() as client, client.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            assert await pubsub.get_message(timeout=5)

            assert await redis_server.kill_pubsub() == 1

    async def test_password_and_unix_socket(self) -> None:
        """A server can require a password, and listens on a Unix socket too."""
        async with RedisServer(password="secret") as server, Redis.from_url(server.unix_url) as r:
            assert await r.set("key", "value")
            assert await server.cli("GET", "key") == "value"

    async def test_no_leftovers(self) -> None:
        """Process and folder are removed, also if the block raises."""
        with pytest.raises(ZeroDivisionError):
            async with RedisServer() as server:
                raise ZeroDivisionError

        assert not server.running
        assert not server.folder.exists()


class TestRedisCluster:
    async def test_works(self, redis_cluster: RedisCluster) -> None:
        """The cluster serves keys of all slots, also after a master was killed and restarted."""
        async with ClusterClient.from_url(redis_cluster.url) as client:
            for number in range(20):
                await client.set(f"key{number}", number)
        victim = redis_cluster.masters[1]
        victim.kill()
        await redis_cluster.restart(victim)

        async with ClusterClient.from_url(redis_cluster.url) as client:
            values = await client.mget_nonatomic([f"key{number}" for number in range(20)])
        assert values == [str(number).encode() for number in range(20)]


@pytest.mark.parametrize("how", [SentinelSetup.fail_over, SentinelSetup.kill_primary])
class TestSentinel:
    async def test_fail_over(
        self, redis_sentinel: SentinelSetup, how: Callable[[SentinelSetup], Any]
    ) -> None:
        """The replica takes over, and the sentinel returns its address."""
        first = redis_sentinel.primary
        await how(redis_sentinel)

        found = await redis_sentinel.sentinels[0].cli(
            "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME
        )
        assert int(found[1]) == redis_sentinel.primary.port != first.port
        assert await redis_sentinel.primary.cli("SET", "key", "value")
