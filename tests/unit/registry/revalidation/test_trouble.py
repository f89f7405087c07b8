"""
Revalidation while the storage fails or is slow, and bounds on concurrent checks.
"""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws.registry import revalidation
from aiohttp_session_ws.registry.revalidation import CHECKS, MAX_BACKOFF
from aiohttp_session_ws.sessions.records import LineageEnded
from tests.support import (
    AiohttpClient,
    GatedStorage,
    cookie_of,
    make_app,
    until,
)
from tests.support.inspect import checks, idle, inspect

from .scene import (
    ENDED,
    EVERY,
    EXPIRED,
    MAX_AGE,
    RECONNECT,
    Faulty,
    Start,
    closed,
)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the package's own log records."""
    return [record for record in caplog.records if record.name == "aiohttp_session_ws"]


class TestTrouble:
    async def test_away_and_back(
        self, start: Start, storage: AbstractStorage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Sockets stay while the storage fails; the failure and its end are logged once each."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        faulty = Faulty(storage)
        scene = await start(faulty)
        sockets = [await scene.connect()]
        await scene.log_in_anew()
        sockets.append(await scene.connect())
        ids = set(scene.registry)
        faulty.error = ConnectionError(f"no {ids}")
        waits = []
        await scene.wait(1.2 * EVERY)
        for _ in range(10):
            waits += [(min(scene.dues), max(scene.dues))]
            await scene.wait(1.2 * MAX_BACKOFF)
        faulty.error = None
        stay = [await scene.stays(ws) for ws in sockets]
        await scene.wait(1.2 * MAX_BACKOFF)
        messages = [(record.levelname, record.getMessage()) for record in ours(caplog)]

        assert stay == [True, True]
        assert [level for level, _ in messages] == ["WARNING", "INFO"]
        assert "ConnectionError" in messages[0][1]
        assert not any(str(id_) in text for id_ in ids for _, text in messages)
        for n, (first, last) in enumerate(waits):
            assert 0.8 * min(60, 2**n) <= first <= last <= 1.2 * min(60, 2**n)

    async def test_ended_meanwhile(self, start: Start, redis_storage: RedisStorage) -> None:
        """Sockets of a session that expired in an outage are closed when the storage is back."""
        faulty = Faulty(redis_storage)
        scene = await start(faulty)
        ws = await scene.connect()
        faulty.error = OSError()
        await scene.wait(MAX_AGE + 1)
        stays = await scene.stays(ws)
        faulty.error = None
        await scene.wait(1.2)

        assert stays
        assert await closed(ws) == EXPIRED

    async def test_one_broken_session(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A session that can't be loaded is logged once, even if others are checked meanwhile."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        faulty = Faulty(SimpleCookieStorage())
        scene = await start(faulty)
        await scene.connect()
        await scene.log_in_anew("eve")
        await scene.connect()
        faulty.broken = "eve"
        for _ in range(30):
            await scene.wait(MAX_BACKOFF)

        assert [record.levelname for record in ours(caplog)] == ["WARNING"]
        assert len(scene.connections) == 2

    async def test_one_broken_session_that_goes(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The outage is over once the failed session is gone and another has been checked."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        faulty = Faulty(SimpleCookieStorage())
        scene = await start(faulty)
        ws = await scene.connect()
        faulty.error = OSError()
        await scene.wait(1.2 * EVERY)
        faulty.error = None
        await ws.close()
        await until(lambda: not scene.connections)
        await scene.connect()
        await scene.wait(1.2 * EVERY)

        assert [record.levelname for record in ours(caplog)] == ["WARNING", "INFO"]

    async def test_frozen(
        self, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A check that gets no answer from the storage is given up after the limit."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated)
        ws = await scene.connect()
        monkeypatch.setattr(revalidation, "CHECK_LIMIT", 0.001)
        gated.loading.shut = True
        await scene.wait(1.2 * EVERY)
        gated.loading.let()

        assert await scene.stays(ws)
        assert 0.8 <= scene.dues[0] <= 1.2
        assert "TimeoutError" in caplog.text

    @pytest.mark.parametrize(
        "error", [web.HTTPBadGateway(), asyncio.CancelledError(), LookupError("no such user")]
    )
    async def test_identify_fails(self, start: Start, error: BaseException) -> None:
        """A check whose ``identify`` fails keeps the socket open, and is retried soon."""
        errors: list[BaseException] = []

        async def identify(request: web.Request) -> str:
            if errors:
                raise errors.pop()
            return "ann"

        scene = await start(SimpleCookieStorage(), identify=identify)
        ws = await scene.connect()
        for _ in range(2):
            errors.append(error)
            await scene.wait(1.2 * EVERY)
            waits = scene.dues
            await scene.wait(1.2)

            assert await scene.stays(ws)
            assert 0.8 <= waits[0] <= 1.2
            assert scene.dues[0] >= 0.8 * EVERY

    @pytest.mark.parametrize("error", [web.HTTPForbidden(), web.HTTPUnauthorized()])
    async def test_identify_refuses(self, start: Start, error: web.HTTPException) -> None:
        """A check whose ``identify`` raises 401 or 403 closes the socket: no identity is left."""
        errors: list[web.HTTPException] = []

        async def identify(request: web.Request) -> str:
            for refusal in errors:
                raise refusal
            return "ann"

        scene = await start(SimpleCookieStorage(), identify=identify)
        ws = await scene.connect()
        errors.append(error)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == RECONNECT

    async def test_ended_by_a_lost_order(self, start: Start) -> None:
        """A check closes sockets of an ended lineage even if the order to close them was lost."""
        scene = await start(SimpleCookieStorage())
        ws = await scene.connect()
        (connection,) = scene.connections
        core = inspect(scene.registry)
        end = LineageEnded(connection.lineage.token, core.clock.end_time(), False, 3600.0)
        core.records.merge(end)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_max_lifetime(self, start: Start) -> None:
        """``max_lifetime`` closes sockets even while their checks wait for a turn."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated, max_lifetime=1000.0)
        ws = await scene.connect()
        me = asyncio.current_task()
        assert me is not None
        checks(scene.registry).update({f"frozen {n}": me for n in range(CHECKS)})
        scene.ring(1.2 * EVERY)
        stays = await scene.stays(ws)
        scene.ring(1000)

        assert stays
        assert await closed(ws) == RECONNECT
        assert gated.loads == 2  # the log-in and the handshake


class TestChecks:
    async def test_once_per_session(self, start: Start, storage: AbstractStorage) -> None:
        """Sockets of one session share their checks, even if they were opened apart."""
        faulty = Faulty(storage)
        scene = await start(faulty)
        for _ in range(5):
            await scene.connect()
            scene.clocks.tick(EVERY / 10)
        before = faulty.loads
        for n in range(1, 11):
            await scene.wait(1.2 * EVERY)
            await scene.wait(0)

            assert faulty.loads == before + n

    async def test_so_many_at_once(self, start: Start) -> None:
        """At most ``CHECKS`` checks run at once; the others wait for a later tick."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated)
        for n in range(CHECKS + 8):
            await scene.log_in_anew(f"user {n}")
            await scene.connect()
        before = gated.loads
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await until(lambda: len(gated.loading.waiting) == CHECKS)
        scene.ring(1)
        at_once = gated.loads - before
        gated.loading.let()
        await scene.wait()

        assert at_once == CHECKS
        assert gated.loads == before + CHECKS + 8
        assert min(scene.dues) > 0

    async def test_closed_meanwhile(self, start: Start, redis_storage: RedisStorage) -> None:
        """A socket that closes during its check leaves no check behind."""
        gated = GatedStorage(redis_storage)
        scene = await start(gated)
        ws = await scene.connect()
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await gated.loading.arrived.wait()
        await ws.close()
        await until(lambda: not scene.connections)
        gated.loading.let()
        await until(lambda: not checks(scene.registry))

    async def test_opened_meanwhile(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A socket is not closed for the result of a check that began before it was opened."""
        gated = GatedStorage(redis_storage)
        scene = await start(gated)
        old = await scene.connect()
        key = cookie_of(scene.client).replace("=", "_")
        record = await redis.get(key) or ""
        await redis.delete(key)
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await gated.loading.arrived.wait()
        gated.loading.shut = False
        await redis.set(key, record)
        new = await scene.connect()
        scene.ring(1.2 * EVERY)  # its own check is due while the other one runs
        gated.loading.let()

        assert await closed(old) == ENDED
        await scene.wait(1)
        assert await scene.stays(new)
        assert scene.dues[0] >= 0.8 * EVERY

    async def test_the_application_ends(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A shutdown during a check leaves no check and no timer, and logs nothing."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated)
        await scene.connect()
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await gated.loading.arrived.wait()
        await scene.client.server.close()

        assert not checks(scene.registry)
        assert idle(scene.registry)
        assert not ours(caplog)

    async def test_the_application_begins_anew(
        self, aiohttp_client: AiohttpClient, start: Start
    ) -> None:
        """A registry that was stopped closes expired sockets in its next application, too."""
        scene = await start(SimpleCookieStorage(max_age=MAX_AGE))
        await scene.connect()
        await scene.client.server.close()
        scene.client = await aiohttp_client(
            make_app(scene.registry, SimpleCookieStorage(max_age=MAX_AGE))
        )
        ws = await scene.connect()
        await scene.wait(MAX_AGE + 1)

        assert await closed(ws) == RECONNECT
