"""
Session storages: those of aiohttp_session, and ones that misbehave.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from .gates import Turnstile

STORAGES = ("simple", "encrypted", "nacl", "redis")  # that run without more servers


@asynccontextmanager
async def storage_named(
    name: str, redis_port: Callable[[], int]
) -> AsyncIterator[AbstractStorage]:
    """Make a storage of aiohttp_session; the Redis is asked for only by the one that needs it."""
    if name == "simple":
        yield SimpleCookieStorage()
    elif name == "encrypted":
        yield EncryptedCookieStorage(b"k" * 32)
    elif name == "nacl":
        yield NaClCookieStorage(b"k" * 32)
    else:
        async with Redis(host="127.0.0.1", port=redis_port()) as redis:
            yield RedisStorage(redis)


class GatedStorage(AbstractStorage):
    """A storage that can be held up while it loads."""

    def __init__(self, inner: AbstractStorage) -> None:
        super().__init__()
        self.inner = inner
        self.loading = Turnstile()
        self.loads = 0

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Load, then wait: what was loaded may be old by then."""
        self.loads += 1
        session = await self.inner.load_session(request)
        await self.loading()
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Save at once."""
        await self.inner.save_session(request, response, session)
