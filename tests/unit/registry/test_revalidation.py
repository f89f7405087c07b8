"""
Sockets end in time: when their session is over, gone, or somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp
import aiohttp_session
import pytest
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import Expiry, SessionWSRegistry, expiry
from aiohttp_session_ws.connection import Connection
from aiohttp_session_ws.deadlines import LONGEST, Deadline
from aiohttp_session_ws.expiry import CHECKS
from aiohttp_session_ws.visit import VISIT
from tests.support import (
    COOKIE,
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    GatedStorage,
    RawPeer,
    cookie_of,
    make_app,
    until,
)

MAX_AGE = 3600
EVERY = 300.0  # the default
COOKIE_STORAGES = ["simple", "encrypted", "nacl"]
STORAGES = [*COOKIE_STORAGES, "redis"]

RECONNECT = (4403, "reconnect")
ENDED = (4401, "session ended")
EXPIRED = (4401, "session expired")


class Clocks:
    """The loop's clock and the wall clock, which go when a test says so."""

    def __init__(self) -> None:
        self.loop = float(int(time.monotonic()))  # so that sums are exact
        self.wall = 1_900_000_000.0

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.loop += seconds
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """Stop the wall clock, for us and for aiohttp_session."""
    clocks = Clocks()
    monkeypatch.setattr(time, "time", lambda: clocks.wall)
    return clocks


@pytest.fixture
async def redis(redis_port: int) -> AsyncIterator[Redis]:
    async with Redis(host="127.0.0.1", port=redis_port) as redis:
        yield redis


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> AbstractStorage:
    """Every storage, with sessions that end."""
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


on_server = pytest.mark.parametrize("storage", ["redis"], indirect=True)
in_cookie = pytest.mark.parametrize("storage", COOKIE_STORAGES, indirect=True)


class Faulty(AbstractStorage):
    """A storage that raises when it loads, if a test says so; it counts."""

    def __init__(self, inner: AbstractStorage) -> None:
        super().__init__(max_age=inner.max_age)
        self.inner = inner
        self.error: BaseException | None = None
        self.broken: str | None = None  # a cookie that can't be loaded
        self.loads = 0

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Load, or raise."""
        self.loads += 1
        if self.error is not None:
            raise self.error
        session = await self.inner.load_session(request)
        if self.broken is not None and session.get("user") == self.broken:
            raise KeyError(self.load_cookie(request))
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Save."""
        await self.inner.save_session(request, response, session)


@dataclass
class Scene:
    """An application, a client of it that has logged in, and the clocks."""

    client: Client
    registry: SessionWSRegistry
    clocks: Clocks
    sockets: list[aiohttp.ClientWebSocketResponse] = field(default_factory=list)

    @property
    def checker(self) -> expiry.Checker:
        """What is tested."""
        return self.registry._checker

    @property
    def connections(self) -> list[Connection]:
        """The open ones, in the order of their opening."""
        return sorted(self.registry._sockets.open, key=lambda c: c.opened_at or 0.0)

    @property
    def dues(self) -> list[float]:
        """In how many seconds each is looked at."""
        found = [connection.deadline for connection in self.connections]
        return [deadline.due - self.clocks.loop for deadline in found if deadline is not None]

    async def connect(self) -> aiohttp.ClientWebSocketResponse:
        """Open a socket."""
        count = len(self.connections)
        ws = await self.client.ws_connect("/ws")
        self.sockets.append(ws)
        await ws.receive(timeout=PATIENCE)
        await until(lambda: len(self.connections) > count)
        return ws

    async def log_in_anew(self, user: str = "bob") -> None:
        """Take another session."""
        self.client.session.cookie_jar.clear()
        await self.client.get("/login", params={"user": user})
        self.clocks.tick(10)

    def ring(self, seconds: float = 0.0) -> None:
        """Let time pass, and have the checker look at the clock."""
        self.clocks.tick(seconds)
        self.checker._alarm.ring()

    async def wait(self, seconds: float = 0.0) -> None:
        """Let time pass, and all that is due by then be checked."""
        self.ring(seconds)
        deadlines, clocks = self.checker._deadlines, self.clocks
        await until(lambda: not self.checker._running and not deadlines.first <= clocks.loop)

    async def stays(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Tell whether nobody has begun to close a socket."""
        await ws.send_str("still there?")
        message = await ws.receive(timeout=PATIENCE)
        return message.type is WSMsgType.TEXT

    async def edit(self, redis: Redis, data: dict[str, Any] | None) -> None:
        """Change what is kept on the server, as another process might; or delete it."""
        key = cookie_of(self.client).replace("=", "_")
        if data is None:
            await redis.delete(key)
            return
        record = json.loads(await redis.get(key) or "")
        record["session"].update(data)
        await redis.set(key, json.dumps(record))


async def closed(ws: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    """Return the code and the reason that a socket is closed with."""
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.CLOSE, message
    return message.data, message.extra or ""


Start: TypeAlias = Callable[..., Awaitable[Scene]]


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what we have logged."""
    return [record for record in caplog.records if record.name == "aiohttp_session_ws"]


@pytest.fixture
async def start(aiohttp_client: AiohttpClient, clocks: Clocks) -> AsyncIterator[Start]:
    """Set the scene; all that is open is closed in the end."""
    scenes: list[Scene] = []

    async def begin(
        storage: AbstractStorage,
        *extra: Any,
        log_in: bool = True,
        identify: Any = None,
        **options: Any,
    ) -> Scene:
        registry = SessionWSRegistry(identify=identify, expiry=Expiry(**options), timeouts=QUICK)
        registry._checker._alarm.clock = lambda: clocks.loop
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


class TestExpiry:
    @pytest.mark.parametrize("every", [None, EVERY])
    async def test_a_silent_subscriber(
        self, start: Start, storage: AbstractStorage, every: float | None
    ) -> None:
        """It is closed at the first second at which its session is expired."""
        scene = await start(storage, revalidate_every=every)
        ws = await scene.connect()
        for n in range(5000):
            other = Connection(f"other {n}", None)
            other.deadline = Deadline(scene.checker._deadlines, other)
            due = scene.clocks.loop + random.uniform(0, 2 * MAX_AGE)
            scene.checker._deadlines.put(other.deadline, due)
        await scene.wait(MAX_AGE - 10)
        before = await scene.stays(ws)
        await scene.wait(0.5)
        almost = await scene.stays(ws)
        await scene.wait(0.5)

        assert before
        assert almost
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_seen_shortly_before(self, start: Start, storage: AbstractStorage) -> None:
        """A check right before the end doesn't put it off."""
        scene = await start(storage, revalidate_every=0.1)
        ws = await scene.connect()
        await scene.wait(MAX_AGE - 9.25)
        dues = scene.dues
        await scene.wait(0.25)

        assert dues == [0.25]
        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @on_server
    async def test_renewed_on_the_server(self, start: Start, storage: AbstractStorage) -> None:
        """A session that was used meanwhile stays, until it isn't used any more."""
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
        """One that is gone before the time that it got anew has not expired."""
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
        """Nor has one whose key another session has got meanwhile."""
        scene = await start(redis_storage, revalidate_every=None)
        ws = await scene.connect()
        await scene.client.get("/login")
        await scene.edit(redis, {scene.registry.session_key: "another"})
        await scene.wait(MAX_AGE)

        assert await closed(ws) == ENDED

    @in_cookie
    async def test_renewed_in_the_cookie(self, start: Start, storage: AbstractStorage) -> None:
        """A cookie that was renewed meanwhile can't be seen: the client is to show it."""
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
        """The socket that came last, with the newest cookie, speaks for all."""
        scene = await start(storage, revalidate_every=None)
        old = await scene.connect()
        await scene.wait(2000)
        await scene.client.get("/login")
        new = await scene.connect()
        await scene.wait(2000)

        assert await scene.stays(old)
        assert await scene.stays(new)

    async def test_nothing_to_watch(self, start: Start) -> None:
        """A session without end costs nothing, if nobody wants it to be looked at."""
        scene = await start(SimpleCookieStorage(), revalidate_every=None)
        await scene.connect()
        scene.registry.register("by hand", web.WebSocketResponse())

        assert [connection.deadline for connection in scene.connections] == [None, None]
        assert scene.checker._alarm._timer is None

    async def test_touched_by_the_handshake(self, start: Start, storage: AbstractStorage) -> None:
        """A change of the session that isn't saved, as with any websocket, gives no time."""

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

    async def test_one_that_outlives_its_time(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the registry finds the id elsewhere the session's end is not the socket's."""

        async def get_id(self: object, request: web.Request) -> Hashable:
            await aiohttp_session.get_session(request)
            return "ann"

        monkeypatch.setattr(SessionWSRegistry, "get_id", get_id)
        scene = await start(SimpleCookieStorage(max_age=MAX_AGE))
        await scene.connect()
        await scene.wait(MAX_AGE)

        assert 0.8 * EVERY <= scene.dues[0] <= 1.2 * EVERY

    async def test_max_lifetime(self, start: Start, storage: AbstractStorage) -> None:
        """It is absolute: each socket lives so long, whatever its session does."""
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


class TestRevalidation:
    async def test_nothing_happened(self, start: Start, storage: AbstractStorage) -> None:
        """Every five minutes, give or take one, a session is found alive and stays."""
        scene = await start(storage)
        ws = await scene.connect()
        dues = []
        for _ in range(5):
            dues += scene.dues
            await scene.wait(1.2 * EVERY)

        assert await scene.stays(ws)
        assert 0.8 * EVERY <= min(dues) < max(dues) <= 1.2 * EVERY

    async def test_deleted(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """A session that is gone from its storage takes its sockets along."""
        scene = await start(redis_storage)
        sockets = [await scene.connect() for _ in range(2)]
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert [await closed(ws) for ws in sockets] == [ENDED] * 2
        assert len(scene.registry._revocations) == 0

    async def test_off(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """Without revalidation nobody looks before the session's time is over."""
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
        """What another process did to a session is seen, though it has told nobody."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        other = await aiohttp_client(make_app(None, redis_storage))
        await other.get(path, headers={"Cookie": cookie_of(scene.client)})
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_another_log_in(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """Another id under the same key is another session."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        await scene.edit(redis, {scene.registry.session_key: "another"})
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_moved(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """A renewal whose order still waits for its answer lets the sockets come back."""
        scene = await start(redis_storage)
        ws = await scene.connect()
        (id_,) = scene.registry
        await scene.edit(redis, {scene.registry.session_key: "another"})
        scene.registry._revocations.move(id_, "another", 60.0)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == RECONNECT

    async def test_registered_by_hand(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """What belongs to a session ends with it, but no identity is asked of it."""
        calls = []

        class Thing:
            def close(self) -> None:
                calls.append("close")

        scene = await start(redis_storage, identify=lambda request: "ann")
        ws = await scene.connect()
        (id_,) = scene.registry
        scene.registry.register(id_, Thing())
        await scene.wait(1.2 * EVERY)
        await until(lambda: not scene.registry._sockets._tasks)
        before = [*calls]
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)
        await closed(ws)
        await until(lambda: not scene.connections)

        assert (before, calls) == ([], ["close"])


class TestIdentity:
    async def test_changed(self, start: Start, redis_storage: RedisStorage, redis: Redis) -> None:
        """A session that belongs to somebody else now keeps the sockets of that one only.

        The others may come back: the session lives.
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
        """identify() may ask anybody."""
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
        """It isn't asked for once the session is gone, when it may not find a user."""

        async def identify(request: web.Request) -> object:
            return (await aiohttp_session.get_session(request))["user"]

        scene = await start(redis_storage, identify=identify)
        ws = await scene.connect()
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_in_no_request(self, start: Start) -> None:
        """A check runs in a context of its own, with a request of its own."""
        seen = []

        def identify(request: web.Request) -> str:
            seen.append((VISIT.get(), request, request.path))
            return "ann"

        scene = await start(SimpleCookieStorage(), identify=identify)
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
        """The handler keeps the session that it has loaded."""
        scene = await start(redis_storage)
        await scene.connect()
        (connection,) = scene.connections
        assert connection.request is not None
        session = connection.request[aiohttp_session.SESSION_KEY]
        await scene.wait(1.2 * EVERY)

        assert connection.request[aiohttp_session.SESSION_KEY] is session


class TestMinted:
    async def test_stays(self, start: Start, storage: AbstractStorage) -> None:
        """A session that came to be on the handshake is found by the cookie it was given."""
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
        """The first check may show where it was kept."""
        scene = await start(storage, log_in=False, revalidate_every=None)
        ws = await scene.connect()
        await scene.wait(MAX_AGE + 1)

        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    async def test_not_checked_early(self, start: Start) -> None:
        """It is as new as it looks."""
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
        """Whether it is kept on the server is known when it has been loaded from there."""
        scene = await start(redis_storage, log_in=False)
        ws = await scene.connect()
        for _ in range(looks):
            await scene.wait(1.2 * EVERY)
        await scene.edit(redis, None)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == expected

    async def test_beside_other_cookies(self, start: Start, storage: AbstractStorage) -> None:
        """What else the client has sent is kept, an old cookie and odd bytes too."""
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


class TestTrouble:
    async def test_away_and_back(
        self, start: Start, storage: AbstractStorage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Sockets stay as long as the storage is away; the log says so, once for all."""
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
            await scene.wait(1.2 * LONGEST)
        faulty.error = None
        stay = [await scene.stays(ws) for ws in sockets]
        await scene.wait(1.2 * LONGEST)
        messages = [(record.levelname, record.getMessage()) for record in ours(caplog)]

        assert stay == [True, True]
        assert [level for level, _ in messages] == ["WARNING", "INFO"]
        assert "ConnectionError" in messages[0][1]
        assert not any(str(id_) in text for id_ in ids for _, text in messages)
        for n, (first, last) in enumerate(waits):
            assert 0.8 * min(60, 2**n) <= first <= last <= 1.2 * min(60, 2**n)

    async def test_ended_meanwhile(self, start: Start, redis_storage: RedisStorage) -> None:
        """The sockets of a session that is over are closed when the storage is back."""
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
        """It is told of once, not each time that others can be checked."""
        caplog.set_level(logging.INFO, "aiohttp_session_ws")
        faulty = Faulty(SimpleCookieStorage())
        scene = await start(faulty)
        await scene.connect()
        await scene.log_in_anew("eve")
        await scene.connect()
        faulty.broken = "eve"
        for _ in range(30):
            await scene.wait(LONGEST)

        assert [record.levelname for record in ours(caplog)] == ["WARNING"]
        assert len(scene.connections) == 2

    async def test_one_broken_session_that_goes(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When it is gone and others could be checked, the trouble is over."""
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
        """A storage that doesn't answer is not waited for longer than the limit."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated)
        ws = await scene.connect()
        monkeypatch.setattr(expiry, "CHECK_LIMIT", 0.001)
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
        """Whatever it raises is no answer."""
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
        """One that refuses has answered: the session is nobody's."""
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
        """A check sees that the id was revoked, whatever became of the order to close."""
        scene = await start(SimpleCookieStorage())
        ws = await scene.connect()
        (connection,) = scene.connections
        scene.registry._revocations.end(connection.session_ws_id, 3600.0)
        await scene.wait(1.2 * EVERY)

        assert await closed(ws) == ENDED

    async def test_max_lifetime(self, start: Start) -> None:
        """It ends even those that wait for their turn with a frozen storage."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated, max_lifetime=1000.0)
        ws = await scene.connect()
        scene.checker._running.update(f"frozen {n}" for n in range(CHECKS))
        scene.ring(1.2 * EVERY)
        stays = await scene.stays(ws)
        scene.ring(1000)

        assert stays
        assert await closed(ws) == RECONNECT
        assert gated.loads == 2  # the log-in and the handshake


class TestChecks:
    async def test_once_per_session(self, start: Start, storage: AbstractStorage) -> None:
        """Sockets of one session are checked together, however they came."""
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
        """Checks are bounded in number; the others wait in the heap."""
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
        waiting = len(scene.checker._deadlines)
        wakes = scene.checker._alarm._at - scene.clocks.loop
        at_once = gated.loads - before
        gated.loading.let()
        await until(lambda: gated.loads == before + CHECKS + 8)
        await scene.wait()

        assert (at_once, waiting, wakes) == (CHECKS, 8, LONGEST)
        assert len(scene.checker._deadlines) == CHECKS + 8

    async def test_closed_meanwhile(self, start: Start, redis_storage: RedisStorage) -> None:
        """A socket that goes while it is checked leaves nothing behind."""
        gated = GatedStorage(redis_storage)
        scene = await start(gated)
        ws = await scene.connect()
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await gated.loading.arrived.wait()
        await ws.close()
        await until(lambda: not scene.connections)
        gated.loading.let()
        await until(lambda: not scene.checker._running)

        assert not scene.checker._deadlines

    async def test_closed_before(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """Nor does one that is gone when its check begins."""
        scene = await start(SimpleCookieStorage())
        await scene.connect()
        (connection,) = scene.connections
        scene.ring(1.2 * EVERY)
        await scene.registry._sockets.let_go(connection)
        await until(lambda: not scene.checker._running and not scene.registry._sockets._tasks)

        assert not scene.checker._deadlines
        assert not ours(caplog)

    async def test_opened_meanwhile(
        self, start: Start, redis_storage: RedisStorage, redis: Redis
    ) -> None:
        """A socket is not closed for what was seen before it came."""
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
        """Nothing is left of checks, timers and deadlines, and nothing is said."""
        gated = GatedStorage(SimpleCookieStorage())
        scene = await start(gated)
        await scene.connect()
        gated.loading.shut = True
        scene.ring(1.2 * EVERY)
        await gated.loading.arrived.wait()
        await scene.client.server.close()
        checker = scene.checker

        assert checker._alarm._timer is None
        assert not checker._deadlines
        assert not checker._running
        assert not ours(caplog)

    async def test_the_application_begins_anew(
        self, aiohttp_client: AiohttpClient, start: Start
    ) -> None:
        """A registry that has been stopped watches again in the next application."""
        scene = await start(SimpleCookieStorage(max_age=MAX_AGE))
        await scene.connect()
        await scene.client.server.close()
        scene.client = await aiohttp_client(
            make_app(scene.registry, SimpleCookieStorage(max_age=MAX_AGE))
        )
        ws = await scene.connect()
        await scene.wait(MAX_AGE + 1)

        assert await closed(ws) == RECONNECT


class TestClocks:
    async def test_forward(self, start: Start, storage: AbstractStorage) -> None:
        """After a night of sleep, sessions that are over end soon."""
        scene = await start(storage, revalidate_every=None)
        ws = await scene.connect()
        scene.clocks.wall += 8 * 3600
        scene.ring(LONGEST)
        await scene.wait(1)

        assert await closed(ws) == (EXPIRED if isinstance(storage, RedisStorage) else RECONNECT)

    @pytest.mark.parametrize("storage", ["simple", "nacl", "redis"], indirect=True)
    async def test_backward(self, start: Start, storage: AbstractStorage) -> None:
        """If the clock is set back sessions live longer, and so do their sockets."""
        scene = await start(storage, revalidate_every=None)
        ws = await scene.connect()
        scene.clocks.wall -= 7200
        scene.ring(LONGEST)
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
        """Unless the storage doesn't take a cookie from the future."""
        scene = await start(storage)
        ws = await scene.connect()
        scene.clocks.wall -= 7200
        scene.ring(LONGEST)
        await scene.wait(1)

        assert await closed(ws) == RECONNECT

    async def test_a_little(self, start: Start) -> None:
        """Clocks that agree well enough cause no checks."""
        faulty = Faulty(SimpleCookieStorage(max_age=MAX_AGE))
        scene = await start(faulty)
        await scene.connect()
        before = faulty.loads
        scene.clocks.wall += 0.9
        scene.ring(LONGEST)
        await scene.wait(1)

        assert faulty.loads == before

    async def test_the_timer(self, start: Start) -> None:
        """It never sleeps for more than a minute, as long as there is a socket."""
        scene = await start(SimpleCookieStorage())
        ws = await scene.connect()
        first = scene.checker._alarm._at - scene.clocks.loop
        await scene.wait(LONGEST)
        second = scene.checker._alarm._at - scene.clocks.loop
        await ws.close()
        await until(lambda: not scene.connections)
        scene.ring(LONGEST)

        assert (first, second) == (LONGEST, LONGEST)
        assert scene.checker._alarm._timer is None
