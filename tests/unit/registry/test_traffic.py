"""
Rate limits of handshakes and messages, and sessions that messages keep alive.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

from aiohttp_session_ws import (
    Expiry,
    Limits,
    SessionWSRegistry,
    WebSocket,
    session_stream,
    websocket_handler,
)
from aiohttp_session_ws.connections.metered import MeteredWebSocket, Rate
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, quiet


class TestRate:
    @pytest.mark.parametrize(
        ("per_second", "at_once", "pause"),
        [(1, 1, 1.0), (5, 5, 0.2), (0.5, 1, 2.0), (2.5, 2, 0.4)],
    )
    def test_rate(self, per_second: float, at_once: int, pause: float) -> None:
        """A rate allows a burst, then an even flow, for each key; refusals don't count."""
        now = [1000.0]
        rate = Rate(per_second, lambda: now[0])
        assert [rate.allows("a") for _ in range(at_once + 2)] == [True] * at_once + [False] * 2

        allowed = 0
        for _ in range(1000):
            now[0] += pause / 10
            allowed += rate.allows("a")
        assert allowed == pytest.approx(100, abs=1)
        assert rate.allows("b")


class TestHandshakes:
    @pytest.fixture
    def registry(self) -> SessionWSRegistry:
        return SessionWSRegistry(limits=Limits(handshakes_per_second=2), timeouts=QUICK)

    async def connect(self, client: Client, cookie: str) -> int:
        """Connect and disconnect; return the status of the handshake."""
        try:
            async with client.ws_connect("/ws", headers={"Cookie": cookie}):
                return 101
        except WSServerHandshakeError as exc:
            return exc.status

    async def test_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session that connects too often gets 429; another one may connect."""
        client = await aiohttp_client(make_app(registry))
        cookies = []
        for _ in range(2):
            client.session.cookie_jar.clear()
            await client.get("/login")
            cookies.append(cookie_of(client))
        client.session.cookie_jar.clear()
        statuses = [await self.connect(client, cookies[0]) for _ in range(3)]

        assert statuses == [101, 101, 429]
        assert await self.connect(client, cookies[1]) == 101
        assert registry.stats().refusals == {"rate": 1}

    async def test_stream(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session that opens streams too often gets 429."""

        async def events(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                await response.prepare(request)
            return response

        app = make_app(registry)
        app.router.add_get("/events", events)
        client = await aiohttp_client(app)
        await client.get("/login")
        responses = [await client.get("/events") for _ in range(3)]

        assert [response.status for response in responses] == [200, 200, 429]
        assert responses[2].headers["Retry-After"] == "1"


class TestMessages:
    @pytest.fixture
    def registry(self) -> SessionWSRegistry:
        return SessionWSRegistry(limits=Limits(messages_per_second=3), timeouts=QUICK)

    async def test_too_many(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The socket that exceeds the limit is closed; the message in excess isn't delivered."""
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            for n in range(4):
                await ws.send_str(str(n))
            echoed = [(await ws.receive(timeout=PATIENCE)) for _ in range(4)]

        assert [message.data for message in echoed] == ["0", "1", "2", 1008]
        assert echoed[3].extra == "too many messages"
        await until(lambda: registry.stats().closes)
        assert registry.stats().closes == {("order", 1008): 1}

    async def test_over_all_sockets(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """All sockets of a session share a limit; only the one that exceeds it is closed."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            for ws in (one, other):
                await ws.receive(timeout=PATIENCE)
            for _ in range(3):
                await one.send_str("x")
                await one.receive(timeout=PATIENCE)
            await other.send_str("x")

            assert await expect_close(other) == 1008
            assert not one.closed
            await until(lambda: len(connections(registry)) == 1)

    async def test_stubborn_handler(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A handler that doesn't end after its socket is closed for the limit is cancelled."""
        cancelled = asyncio.Event()

        @websocket_handler
        async def stubborn(ws: WebSocket) -> None:
            await ws.connect()
            try:
                while await ws.recv() is not None:
                    pass
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        app = make_app(registry)
        app.router.add_get("/stubborn", stubborn)
        client = await aiohttp_client(app)
        async with client.ws_connect("/stubborn") as ws:
            for n in range(5):
                await ws.send_str(str(n))
            assert await expect_close(ws) == 1008
            async with asyncio.timeout(PATIENCE):
                await cancelled.wait()

    async def test_not_metered(self, aiohttp_client: AiohttpClient) -> None:
        """Without a limit messages are not metered."""
        registry = SessionWSRegistry(timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            (connection,) = connections(registry)

            assert not isinstance(connection.ws, MeteredWebSocket)

    async def test_gone(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The message callback of a socket is replaced when its connection closes."""
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            (connection,) = connections(registry)
            during = connection.ws.on_message
            await connection.close()

        assert connection.ws.on_message is not during


class Log(SimpleCookieStorage):
    """A storage that counts its saves."""

    saved = 0

    async def save_session(self, *args: Any) -> None:
        """Count the call, and save."""
        self.saved += 1
        await super().save_session(*args)


class TestKeepAlive:
    @pytest.fixture
    def registry(self) -> SessionWSRegistry:
        return SessionWSRegistry(identify=user_of, expiry=Expiry(keep_alive=60.0), timeouts=QUICK)

    @pytest.fixture
    async def redis(self, redis_port: int) -> Any:
        async with Redis(host="127.0.0.1", port=redis_port) as redis:
            yield redis

    @pytest.fixture
    async def client(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, redis: Redis
    ) -> Client:
        """A client whose session is kept in Redis."""
        client = await aiohttp_client(make_app(registry, RedisStorage(redis, max_age=3600)))
        await client.get("/login")
        return client

    async def age(self, client: Client, redis: Redis) -> str:
        """Shorten the session's time in Redis to 100 seconds; return its key."""
        key = cookie_of(client).replace("=", "_")
        await redis.expire(key, 100)
        return key

    async def say(self, ws: Any, registry: SessionWSRegistry) -> None:
        """Send a message, and wait until its effects are complete."""
        await ws.send_str("x")
        assert (await ws.receive(timeout=PATIENCE)).type is WSMsgType.TEXT
        await quiet(registry)

    async def test_kept(self, client: Client, registry: SessionWSRegistry, redis: Redis) -> None:
        """A message restarts the session's time in the storage, but not every message does."""
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            key = await self.age(client, redis)
            await self.say(ws, registry)
            kept = await redis.ttl(key)
            await self.age(client, redis)
            await self.say(ws, registry)
            again = await redis.ttl(key)

        assert (kept > 3000, again <= 100) == (True, True)
        assert b'"user": "ann"' in (await redis.get(key) or b"")

    async def test_ended_wins(
        self, client: Client, registry: SessionWSRegistry, redis: Redis, monkeypatch: Any
    ) -> None:
        """A log-out during the save is not undone: no user is left in the storage."""
        save = RedisStorage.save_session
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            key = await self.age(client, redis)
            ended = False

            async def slowly(storage: Any, *args: Any) -> None:
                nonlocal ended
                if not ended:
                    ended = True
                    await registry.end_identity("ann")
                await save(storage, *args)

            monkeypatch.setattr(RedisStorage, "save_session", slowly)
            await ws.send_str("x")
            await ws.receive(timeout=PATIENCE)
            assert await expect_close(ws) == 4401
            await quiet(registry)

        assert b"ann" not in (await redis.get(key) or b"")

    @pytest.mark.parametrize("before", [False, True])
    async def test_renewed_meanwhile(
        self, client: Client, registry: SessionWSRegistry, monkeypatch: Any, before: bool
    ) -> None:
        """A renewal during the save logs nobody out, even if the save overwrites it."""
        if before:  # the session has a record already
            await client.get("/renew")
        save, gate = RedisStorage.save_session, Turnstile()
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            slow = True

            async def slowly(storage: Any, *args: Any) -> None:
                nonlocal slow
                if slow:
                    slow = False
                    await gate()
                await save(storage, *args)

            monkeypatch.setattr(RedisStorage, "save_session", slowly)
            gate.shut = True
            await ws.send_str("x")
            await gate.arrived.wait()
            await client.get("/renew")
            gate.let()
            assert await expect_close(ws) == 4403
            await quiet(registry)

        async with client.ws_connect("/ws") as ws:
            assert "ann" in (await ws.receive_str(timeout=PATIENCE))

    async def test_somebody_logs_in_meanwhile(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        redis: Redis,
        monkeypatch: Any,
    ) -> None:
        """A log-in under the same key, which ends the older session, survives that end."""

        async def log_in_anew(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            session.invalidate()
            session["user"] = "bob"
            return web.Response()

        app = make_app(registry, RedisStorage(redis, max_age=3600))
        app.router.add_get("/login/anew", log_in_anew)
        client = await aiohttp_client(app)
        await client.get("/login")
        save, gate = RedisStorage.save_session, Turnstile()
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            slow = True

            async def slowly(storage: Any, *args: Any) -> None:
                nonlocal slow
                first, slow = slow, False
                await save(storage, *args)
                if first:
                    await gate()

            monkeypatch.setattr(RedisStorage, "save_session", slowly)
            gate.shut = True
            await ws.send_str("x")
            await gate.arrived.wait()
            await client.get("/login/anew")
            gate.let()
            assert await expect_close(ws) == 4403
            await quiet(registry)

        assert (await (await client.get("/whoami")).json())["user"] == "bob"

    async def test_gone(self, client: Client, registry: SessionWSRegistry, redis: Redis) -> None:
        """A session that was deleted from the storage isn't saved again."""
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            key = await self.age(client, redis)
            await redis.delete(key)
            await self.say(ws, registry)

        assert await redis.get(key) is None

    async def test_in_cookie(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session in a cookie can't be kept alive by messages, and isn't saved."""
        storage = Log()
        client = await aiohttp_client(make_app(registry, storage))
        await client.get("/login")
        saved = storage.saved
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            await self.say(ws, registry)

        assert storage.saved == saved

    async def test_storage_fails(
        self,
        client: Client,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """An error of the storage is logged without its message."""

        async def fail(*args: object) -> None:
            raise OSError("secret")

        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            monkeypatch.setattr(RedisStorage, "load_session", fail)
            await self.say(ws, registry)

        assert "could not be kept alive: OSError" in caplog.text
        assert "secret" not in caplog.text

    async def test_off(self, aiohttp_client: AiohttpClient, redis: Redis) -> None:
        """By default a message doesn't restart the session's time."""
        registry = SessionWSRegistry(timeouts=QUICK)
        storage: AbstractStorage = RedisStorage(redis, max_age=3600)
        client = await aiohttp_client(make_app(registry, storage))
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            key = await self.age(client, redis)
            await self.say(ws, registry)

        assert await redis.ttl(key) <= 100
