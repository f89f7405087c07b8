"""
Expiry of sessions when the wall clock jumps: no socket is closed too early or stays for good.
"""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage

from aiohttp_session_ws.registry.revalidation import MAX_BACKOFF
from tests.support import Turnstile, until
from tests.support.inspect import checks

from .scene import (
    EXPIRED,
    MAX_AGE,
    RECONNECT,
    Faulty,
    Start,
    closed,
)


class TestClocks:
    async def test_forward(self, start: Start, storage: AbstractStorage) -> None:
        """After the wall clock jumped ahead, sockets of expired sessions are closed soon."""
        scene = await start(storage, revalidate_every=None)
        ws = await scene.connect()
        scene.clocks.wall += 8 * 3600
        scene.ring(MAX_BACKOFF)
        await scene.wait(1)

        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @pytest.mark.parametrize("seconds", [MAX_AGE - 10 - MAX_BACKOFF, 8 * 3600])
    async def test_forward_during_a_check(
        self, start: Start, storage: AbstractStorage, seconds: float
    ) -> None:
        """A session that expires during its own check is closed by the next one."""
        gate = Turnstile()

        async def identify(request: web.Request) -> str:
            await gate()
            return "ann"

        scene = await start(storage, identify=identify, revalidate_every=None)
        ws = await scene.connect()
        gate.shut = True
        scene.clocks.wall += 2
        scene.ring(MAX_BACKOFF)
        scene.ring(1)
        await until(gate.arrived.is_set)
        scene.clocks.wall += seconds
        scene.ring()
        gate.let()
        await until(lambda: not checks(scene.registry))
        dues = scene.dues
        await scene.wait(1)

        assert max(dues) <= 0
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @pytest.mark.parametrize("storage", ["simple", "nacl", "redis"], indirect=True)
    async def test_backward(self, start: Start, storage: AbstractStorage) -> None:
        """A wall clock that is set back prolongs a session, and its open socket equally."""
        scene = await start(storage, revalidate_every=None)
        ws = await scene.connect()
        scene.clocks.wall -= 7200
        scene.ring(MAX_BACKOFF)
        await scene.wait(1)
        dues = scene.dues
        await scene.wait(dues[0] - 1)
        stays = await scene.stays(ws)
        await scene.wait(1)

        assert dues == [pytest.approx(MAX_AGE + 7200 - 70)]
        assert stays
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @pytest.mark.parametrize("storage", ["encrypted"], indirect=True)
    async def test_backward_with_a_stamp(self, start: Start, storage: AbstractStorage) -> None:
        """A socket is told to reconnect if its storage rejects a cookie from the future."""
        scene = await start(storage)
        ws = await scene.connect()
        scene.clocks.wall -= 7200
        scene.ring(MAX_BACKOFF)
        await scene.wait(1)

        assert await closed(ws) == RECONNECT

    async def test_a_little(self, start: Start) -> None:
        """A wall clock that jumps by less than a second causes no check."""
        faulty = Faulty(SimpleCookieStorage(max_age=MAX_AGE))
        scene = await start(faulty)
        await scene.connect()
        before = faulty.loads
        scene.clocks.wall += 0.9
        scene.ring(MAX_BACKOFF)
        await scene.wait(1)

        assert faulty.loads == before
