"""
The proxy that makes connections to Redis fail: each method does what it promises.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoConnection, TimeoutError as TooLate

from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer


@pytest.fixture
async def proxy(redis_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of Redis."""
    async with Proxy(redis_port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Redis]:
    """A client that is connected through the proxy, with a short timeout and no retries."""
    retry = Retry(NoBackoff(), 0)
    async with Redis.from_url(proxy.url(), socket_timeout=0.2, retry=retry) as client:
        assert await client.ping()
        yield client


class TestProxy:
    async def test_passes(self, proxy: Proxy, client: Redis) -> None:
        """Data is forwarded in both directions, and counted."""
        await client.set("key", b"x" * 100_000)

        assert await client.get("key") == b"x" * 100_000
        assert (proxy.connections, proxy.open) == (1, 1)
        assert proxy.bytes_up > 100_000 < proxy.bytes_down

    @pytest.mark.parametrize(("up", "down"), [(True, True), (True, False), (False, True)])
    async def test_black_hole(self, proxy: Proxy, client: Redis, up: bool, down: bool) -> None:
        """A black hole accepts and keeps connections without replies, until it is healed."""
        proxy.black_hole(up=up, down=down)
        with pytest.raises(TooLate):
            await client.ping()
        with pytest.raises(TooLate):
            await client.ping()
        assert proxy.connections == 2
        proxy.heal()

        async with Redis.from_url(proxy.url()) as patient:
            assert await patient.ping()

    async def test_late(self, proxy: Proxy, client: Redis, redis_server: RedisServer) -> None:
        """If only replies are blocked, the server still executes a command."""
        before = proxy.bytes_up
        proxy.black_hole(up=False)
        with pytest.raises(TooLate):
            await client.set("late", "done")

        async with Redis(port=proxy._target[1]) as direct:
            assert await direct.get("late") == b"done"
        assert proxy.bytes_up > before

    async def test_cut(self, proxy: Proxy, client: Redis) -> None:
        """A client notices that its connection was cut, and the next one works."""
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("channel")
            assert await pubsub.get_message(timeout=5)
            assert proxy.cut() == proxy.connections
            with pytest.raises(NoConnection):
                await pubsub.get_message(timeout=5)

        assert await client.ping()

    async def test_refuse(self, proxy: Proxy, client: Redis) -> None:
        """A stopped proxy refuses connections; started again, it has the same port."""
        await proxy.stop()
        with pytest.raises(NoConnection):
            await client.ping()
        await proxy.start()

        assert await client.ping()

    async def test_delay(self, proxy: Proxy, client: Redis) -> None:
        """A delay applies to both directions."""
        proxy.delay = 0.05
        start = time.monotonic()
        await client.ping()

        assert time.monotonic() - start >= 0.1

    async def test_tears(self, proxy: Proxy, client: Redis, redis_server: RedisServer) -> None:
        """Half of a write arrives at the server, and then the connection breaks."""
        await client.ping()
        proxy.tears = True
        before = proxy.bytes_up
        with pytest.raises(NoConnection):
            await client.set("torn", "x" * 100)
        assert 50 < proxy.bytes_up - before < 100
        proxy.heal()

        assert not await client.exists("torn")

    async def test_tls(self, redis_port: int, tls: ssl.SSLContext) -> None:
        """With TLS, the proxy makes any server available at a ``rediss://`` URL."""
        async with Proxy(redis_port, tls=tls) as proxy:
            url = proxy.url("rediss") + "?ssl_cert_reqs=none"
            async with Redis.from_url(url) as client:
                assert await client.ping()
