"""
Open sockets are closed when their sessions expire.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws.connections.manager import SOON
from tests.support.inspect import inspect

from .scene import (
    ENDED,
    EVERY,
    EXPIRED,
    MAX_AGE,
    RECONNECT,
    Start,
    closed,
    in_cookie,
)

on_server = pytest.mark.parametrize("storage", ["redis"], indirect=True)


class TestExpiry:
    @pytest.mark.parametrize("every", [None, EVERY])
    async def test_a_silent_subscriber(
        self, start: Start, storage: AbstractStorage, every: float | None
    ) -> None:
        """A socket without traffic is closed in the first second after its session's expiry."""
        scene = await start(storage, revalidate_every=every)
        ws = await scene.connect()
        await scene.wait(MAX_AGE - 10)
        before = await scene.stays(ws)
        await scene.wait(0.5)
        almost = await scene.stays(ws)
        await scene.wait(0.5)

        assert before
        assert almost
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_soon(self, start: Start, storage: AbstractStorage) -> None:
        """A socket whose session is about to expire when it opens is checked in each tick."""
        scene = await start(storage, revalidate_every=None)
        await scene.connect()
        await scene.wait(MAX_AGE - 14)
        await scene.connect()
        (due, _), late = scene.dues, scene.connections[1]

        assert 0 < due < SOON
        assert late in inspect(scene.registry).connections.checked_each_tick

    async def test_seen_shortly_before(self, start: Start, storage: AbstractStorage) -> None:
        """A check shortly before a session expires doesn't postpone its expiry."""
        scene = await start(storage, revalidate_every=0.1)
        ws = await scene.connect()
        await scene.wait(MAX_AGE - 9.25)
        dues = scene.dues
        await scene.wait(0.25)

        assert dues == [pytest.approx(0.25)]
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @on_server
    async def test_renewed_on_the_server(self, start: Start, storage: AbstractStorage) -> None:
        """A session that was renewed on the server keeps its socket until its new expiry."""
        scene = await start(storage, revalidate_every=None)
        ws = await scene.connect()
        await scene.wait(2000)
        await scene.client.get("/login")
        await scene.wait(2000)
        stays = await scene.stays(ws)
        dues = scene.dues
        await scene.wait(1601)

        assert stays
        assert dues == [pytest.approx(1601)]
        assert await closed(ws) == EXPIRED

    async def test_renewed_and_ended(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A renewed session that is deleted before its new expiry has ended, not expired."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        await scene.wait(2000)
        await scene.client.get("/login")
        await scene.wait(2000)
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_replaced_and_over(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A session whose storage key holds another session has ended, not expired."""
        scene = await start(redis_storage, revalidate_every=None)
        ws = await scene.connect()
        await scene.client.get("/login")
        await scene.edit(redis, {scene.registry.session_key: "another"})
        await scene.wait(MAX_AGE)

        assert await closed(ws) == ENDED

    @in_cookie
    async def test_renewed_in_the_cookie(self, start: Start, storage: AbstractStorage) -> None:
        """A socket is told to reconnect when its cookie expires; a renewed cookie is accepted."""
        scene = await start(storage)
        ws = await scene.connect()
        await scene.wait(2000)
        await scene.client.get("/login")
        await scene.wait(2000)
        code = await closed(ws)
        again = await scene.connect()

        assert code == RECONNECT
        assert await scene.stays(again)

    async def test_two_cookies_of_one_session(
        self, start: Start, storage: AbstractStorage
    ) -> None:
        """All sockets of a session expire by the newest cookie that a handshake has shown."""
        scene = await start(storage, revalidate_every=None)
        old = await scene.connect()
        await scene.wait(2000)
        await scene.client.get("/login")
        new = await scene.connect()
        await scene.wait(2000)

        assert await scene.stays(old)
        assert await scene.stays(new)

    async def test_nothing_to_watch(self, start: Start) -> None:
        """A session without an expiry is never checked if ``revalidate_every`` is ``None``."""
        scene = await start(SimpleCookieStorage(), revalidate_every=None)
        await scene.connect()
        scene.registry.register("by hand", web.WebSocketResponse())

        assert scene.dues == [math.inf, math.inf]

    async def test_touched_by_the_handshake(self, start: Start, storage: AbstractStorage) -> None:
        """A change of the session in a handshake isn't saved, and doesn't postpone the expiry."""

        @web.middleware
        async def sliding(request: web.Request, handler: Handler) -> web.StreamResponse:
            session = await aiohttp_session.get_session(request)
            session["seen"] = time.time()
            return await handler(request)

        scene = await start(storage, sliding, revalidate_every=None)
        scene.clocks.tick(MAX_AGE - 12)
        ws = await scene.connect()
        await scene.wait(1)
        dues = scene.dues
        await scene.wait(2)

        assert dues == [pytest.approx(2)]
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_one_that_outlives_its_time(self, start: Start) -> None:
        """A socket whose id isn't from the session outlives it, with periodic checks."""

        class Derived(SessionWSRegistry):
            async def get_id(self, request: web.Request) -> Hashable:
                await aiohttp_session.get_session(request)
                return "ann"

        scene = await start(SimpleCookieStorage(max_age=MAX_AGE), kind=Derived)
        await scene.connect()
        await scene.wait(MAX_AGE)

        assert 0.8 * EVERY <= scene.dues[0] <= 1.2 * EVERY

    async def test_max_lifetime(self, start: Start, storage: AbstractStorage) -> None:
        """``max_lifetime`` counts from each socket's opening, and requests don't extend it."""
        scene = await start(storage, revalidate_every=None, max_lifetime=2000.0)
        ws = await scene.connect()
        await scene.wait(1000)
        await scene.client.get("/login")
        late = await scene.connect()
        connection = scene.connections[-1]
        assert connection.opened_at is not None
        connection.opened_at += 1000  # the loop's own clock has not moved
        stays = await scene.stays(ws)
        await scene.wait(1500)
        code = await closed(ws)

        assert stays
        assert code == RECONNECT
        assert await scene.stays(late)
