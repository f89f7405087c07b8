"""
Fixtures for tests of expiry and revalidation.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import Expiry, SessionWSRegistry
from aiohttp_session_ws.connections import manager
from aiohttp_session_ws.registry import revalidation
from tests.support import (
    QUICK,
    AiohttpClient,
    make_app,
)

from .scene import MAX_AGE, STORAGES, Clocks, Scene, Start


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Stop the wall clock, aiohttp_session's too, and the clock that schedules checks."""
    clocks = Clocks()
    monkeypatch.setattr(time, "time", clocks.time)
    for module in (manager, revalidation):
        monkeypatch.setattr(module, "time", clocks)
    return clocks


@pytest.fixture
async def redis(redis_port: int) -> AsyncIterator[Redis]:
    async with Redis(host="127.0.0.1", port=redis_port) as redis:
        yield redis


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> AbstractStorage:
    """Return each storage in turn; its sessions expire after :data:`MAX_AGE` seconds."""
    if request.param == "simple":
        return SimpleCookieStorage(max_age=MAX_AGE)
    if request.param == "encrypted":
        return EncryptedCookieStorage(b"k" * 32, max_age=MAX_AGE)
    if request.param == "nacl":
        return NaClCookieStorage(b"k" * 32, max_age=MAX_AGE)
    return RedisStorage(request.getfixturevalue("redis"), max_age=MAX_AGE)


@pytest.fixture
def redis_storage(redis: Redis) -> RedisStorage:
    return RedisStorage(redis, max_age=MAX_AGE)


@pytest.fixture
async def start(aiohttp_client: AiohttpClient, clocks: Clocks) -> AsyncIterator[Start]:
    """Return a function that starts an application; close its sockets after the test."""
    scenes: list[Scene] = []

    async def begin(
        storage: AbstractStorage,
        *extra: Any,
        log_in: bool = True,
        identify: Any = None,
        kind: type[SessionWSRegistry] = SessionWSRegistry,
        **options: Any,
    ) -> Scene:
        registry = kind(identify=identify, expiry=Expiry(**options), timeouts=QUICK)
        client = await aiohttp_client(make_app(registry, storage, *extra))
        scenes.append(Scene(client, registry, clocks))
        if log_in:
            await client.get("/login")
            clocks.tick(10)
        return scenes[-1]

    yield begin
    for scene in scenes:
        for ws in scene.sockets:
            await ws.close()
