"""
Session storages for simulated worlds.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web
from aiohttp_session import AbstractStorage, Session, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from tests.support.storages import KeepingPool

Closer: TypeAlias = Callable[[], Awaitable[None]]


class MemoryStorage(AbstractStorage):
    """Keeps sessions on the server, as RedisStorage does."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, str] = {}

    async def load_session(self, request: web.Request) -> Session:
        """Load the session whose key the cookie holds."""
        key = self.load_cookie(request)
        if key is None or key not in self._kept:
            return Session(None, data=None, new=True)
        return Session(key, data=json.loads(self._kept[key]), new=False)

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: Session
    ) -> None:
        """Save the session under its key, or under a new one."""
        known = session.identity is not None
        key = str(session.identity) if known else f"key{len(self._kept)}"
        self.save_cookie(response, "" if session.empty and known else key)
        self._kept[key] = json.dumps(self._get_session_data(session))


async def _nothing() -> None:
    """Close nothing."""


def make_storage(kind: str, redis_port: int | None) -> tuple[AbstractStorage, Closer]:
    """Create a storage of the given kind, and the function that closes it."""
    match kind:
        case "encrypted":
            return EncryptedCookieStorage(b"k" * 32), _nothing
        case "nacl":
            return NaClCookieStorage(b"k" * 32), _nothing
        case "memory":
            return MemoryStorage(), _nothing
        case "redis":
            assert redis_port is not None, "a world with a Redis server needs its port"
            pool = KeepingPool(host="127.0.0.1", port=redis_port)
            return RedisStorage(Redis(connection_pool=pool)), pool.close_all
    return SimpleCookieStorage(), _nothing
