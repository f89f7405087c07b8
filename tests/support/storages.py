"""
Session storages: those of aiohttp_session, and one whose loads a test can suspend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from .gates import Turnstile

STORAGES = ("simple", "encrypted", "nacl", "redis")  # that need no server but Redis


@asynccontextmanager
async def storage_named(
    name: str, redis_port: Callable[[], int]
) -> AsyncIterator[AbstractStorage]:
    """Create a storage of aiohttp_session; *redis_port* is called only if it needs Redis."""
    if name == "simple":
        yield SimpleCookieStorage()
    elif name == "encrypted":
        yield EncryptedCookieStorage(b"k" * 32)
    elif name == "nacl":
        yield NaClCookieStorage(b"k" * 32)
    else:
        pool = KeepingPool(host="127.0.0.1", port=redis_port())
        async with Redis(connection_pool=pool) as redis:
            yield RedisStorage(redis)
        await pool.close_all()


class ClosedForGood(Connection):
    """A connection that refuses to connect once ``over`` is set."""

    over = False

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect; raise and disconnect if ``over`` is set before or meanwhile."""
        self._expect_more()
        try:
            await super().connect_check_health(*args, **options)
            self._expect_more()
        finally:
            if self.over:
                await self.disconnect(nowait=True)

    def _expect_more(self) -> None:
        if self.over:
            raise RedisConnectionError("the test is over")


class KeepingPool(ConnectionPool):
    """
    A pool that keeps a reference to every connection it has made.

    redis-py loses a connection whose request is cancelled while it connects (by a vanished
    client), and makes another for a request that arrives when all are closed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(connection_class=ClosedForGood, **options)
        self._made: list[Any] = []
        self._ended = False

    def make_connection(self) -> Any:
        """Make a connection, and keep a reference to it."""
        if self._ended:
            raise RedisConnectionError("the test is over")
        self._made.append(super().make_connection())  # type: ignore[no-untyped-call]  # theirs
        return self._made[-1]

    async def close_all(self) -> None:
        """Close all connections ever made, and refuse new ones."""
        self._ended = True
        for connection in self._made:
            connection.over = True
        for connection in self._made:
            await connection.disconnect(nowait=True)


class GatedStorage(AbstractStorage):
    """A storage whose loads wait at a gate."""

    def __init__(self, inner: AbstractStorage) -> None:
        super().__init__()
        self.inner = inner
        self.loading = Turnstile()
        self.loads = 0

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Load, then wait at the gate: the loaded session may be stale by then."""
        self.loads += 1
        session = await self.inner.load_session(request)
        await self.loading()
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Save without waiting."""
        await self.inner.save_session(request, response, session)
