"""
Revalidation closes sockets whose session is over, gone, or another identity's.
"""

from __future__ import annotations

import contextlib

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws.sessions.context import current_request
from aiohttp_session_ws.sessions.records import LineageRenewed
from tests.support import (
    COOKIE,
    AiohttpClient,
    RawPeer,
    cookie_of,
    make_app,
    until,
)
from tests.support.inspect import inspect, quiet, records

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


class TestRevalidation:
    async def test_nothing_happened(self, start: Start, storage: AbstractStorage) -> None:
        """A living session is checked every five minutes, give or take one; its sockets stay."""
        scene = await start(storage)
        ws = await scene.connect()
        dues = []
        for _ in range(5):
            dues += scene.dues
            await scene.wait(1.2 * EVERY)

        assert await scene.stays(ws)
        assert 0.8 * EVERY <= min(dues) < max(dues) <= 1.2 * EVERY

    async def test_deleted(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """The sockets of a session that was deleted from its storage are closed."""
        scene = await start(redis_storage)
        sockets = [await scene.connect() for _ in range(2)]
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert [await closed(ws) for ws in sockets] == [ENDED] * 2
        assert records(scene.registry) == 0

    async def test_off(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """Without revalidation sockets of a deleted session stay until its time is over."""
        scene = await start(redis_storage, revalidate_every=None)
        ws = await scene.connect()
        await scene.edit(redis, None)
        await scene.wait(MAX_AGE - 20)
        stays = await scene.stays(ws)
        await scene.wait(20)

        assert stays
        assert await closed(ws) == EXPIRED

    @pytest.mark.parametrize("path", ["/out/invalidate", "/out/end_session_ws", "/renew"])
    async def test_ended_elsewhere(
        self, aiohttp_client: AiohttpClient, start: Start, redis_storage: RedisStorage, path: str
    ) -> None:
        """A session that another process ended or renewed without an order loses its sockets."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        other = await aiohttp_client(make_app(None, redis_storage))
        await other.get(path, headers={"Cookie": cookie_of(scene.client)})
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_another_log_in(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """Sockets are closed when the storage has a session with another id under their key."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        await scene.edit(redis, {scene.registry.session_key: "another"})
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_moved(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """A check before a renewal's response has been sent closes with ``reconnect``."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        (connection,) = scene.connections
        core, token = inspect(scene.registry), connection.lineage.token
        await scene.edit(redis, {scene.registry.session_key: "another"})
        core.records.merge(LineageRenewed(token, 1, 0, core.clock.now(), False, True, 60.0))
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == RECONNECT

    async def test_registered_by_hand(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A socket registered by hand ends with its session, and not for lack of an identity."""
        calls = []

        class Thing:
            def close(self) -> None:
                calls.append("close")

        scene = await start(redis_storage, identify=lambda request: "ann")
        ws = await scene.connect()
        (id_,) = scene.registry
        scene.registry.register(id_, Thing())
        await scene.wait(1.2 * EVERY)
        await quiet(scene.registry)
        before = [*calls]
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)
        await closed(ws)
        await until(lambda: not scene.connections)

        assert (before, calls) == ([], ["close"])


class TestIdentity:
    async def test_changed(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """Sockets of a session's former identity are closed; those of its new identity stay.

        The closed ones may reconnect: the session lives.
        """

        async def identify(request: web.Request) -> object:
            return (await aiohttp_session.get_session(request)).get("user")

        scene = await start(redis_storage, identify=identify)
        of_ann = await scene.connect()
        await scene.edit(redis, {"user": "bob"})
        of_bob = await scene.connect()
        await scene.wait(1.2 * EVERY)
        identities = [connection.identity for connection in scene.connections]
        code = await closed(of_ann)

        assert identities[-1] == "bob"
        assert code == RECONNECT
        assert await scene.stays(of_bob)

    @in_cookie
    async def test_changed_in_a_database(self, start: Start, storage: AbstractStorage) -> None:
        """A new result of ``identify`` closes a socket, even if its session is in a cookie."""
        users = ["ann"]
        scene = await start(storage, identify=lambda request: users[-1])
        ws = await scene.connect()
        await scene.wait(1.2 * EVERY)
        stays = await scene.stays(ws)
        users.append("bob")
        await scene.wait(1.2 * EVERY)

        assert stays
        assert await closed(ws) == RECONNECT

    async def test_of_nobody(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A check doesn't call ``identify`` for a session that is gone."""
        asked = []

        async def identify(request: web.Request) -> object:
            asked.append(request.path)
            return (await aiohttp_session.get_session(request)).get("user")

        scene = await start(redis_storage, identify=identify)
        ws = await scene.connect()
        await scene.edit(redis, None)
        asked.clear()
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED
        assert asked == []

    async def test_in_no_request(self, start: Start) -> None:
        """A check calls ``identify`` with a cloned request, and without a current request."""
        seen = []

        def identify(request: web.Request) -> str:
            seen.append((current_request(), request, request.path))
            return "ann"

        scene = await start(SimpleCookieStorage(), identify=identify)
        seen.clear()
        await scene.connect()
        await scene.wait(1.2 * EVERY)

        (visit, request, _), (nothing, clone, path) = seen
        assert visit is not None
        assert nothing is None
        assert clone is not request
        assert path == "/ws"

    async def test_the_session_is_left_alone(
        self, start: Start, redis_storage: RedisStorage
    ) -> None:
        """A check doesn't replace the session that the handler has loaded."""
        scene = await start(redis_storage)
        await scene.connect()
        (connection,) = scene.connections
        assert connection.request is not None
        session = connection.request[aiohttp_session.SESSION_KEY]
        await scene.wait(1.2 * EVERY)

        assert connection.request[aiohttp_session.SESSION_KEY] is session


class TestMinted:
    async def test_stays(self, start: Start, storage: AbstractStorage) -> None:
        """A session that the handshake created is found by the cookie that the handshake set."""
        scene = await start(storage, log_in=False)
        ws = await scene.connect()
        await scene.wait(1.2 * EVERY)
        stays = await scene.stays(ws)
        dues = scene.dues
        await scene.wait(MAX_AGE)

        assert stays
        assert dues[0] <= 1.2 * EVERY
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_never_checked(self, start: Start, storage: AbstractStorage) -> None:
        """A session that the handshake created ends in time, also if it was never checked."""
        scene = await start(storage, log_in=False, revalidate_every=None)
        ws = await scene.connect()
        await scene.wait(MAX_AGE + 1)

        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_not_checked_early(self, start: Start) -> None:
        """A session that the handshake created is first checked after a full interval."""
        scene = await start(SimpleCookieStorage(max_age=MAX_AGE), log_in=False)
        await scene.connect()

        assert scene.dues[0] >= 0.8 * EVERY

    @pytest.mark.parametrize(("looks", "expected"), [(0, RECONNECT), (1, ENDED)])
    async def test_deleted(
        self,
        start: Start,
        redis_storage: RedisStorage,
        redis: Redis,
        looks: int,
        expected: tuple[int, str],
    ) -> None:
        """A deleted session closes with 4401 only if a check has loaded it from the server."""
        scene = await start(redis_storage, log_in=False)
        ws = await scene.connect()
        for _ in range(looks):
            await scene.wait(1.2 * EVERY)
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == expected

    async def test_beside_other_cookies(self, start: Start, storage: AbstractStorage) -> None:
        """A check sends the client's other cookies and headers, even beside odd bytes."""
        seen = []

        def identify(request: web.Request) -> None:
            seen.append((request.cookies.get("theme"), len(request.headers)))

        scene = await start(storage, log_in=False, identify=identify)
        stale = '{"created":1}' if isinstance(storage, SimpleCookieStorage) else "stale"
        cookie = f"theme=dark; {COOKIE}={stale}; odd=\udcff"
        peer = await RawPeer.open(scene.client.make_url("/ws"), cookie)
        with contextlib.closing(peer):
            await peer.frame()
            await scene.wait(1.2 * EVERY)
            still_open = len(scene.connections)

        assert still_open == 1
        assert seen == [seen[0]] * 2
        assert seen[0][0] == "dark"
