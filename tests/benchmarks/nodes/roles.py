"""
What the processes are: nodes with the package, and what stands beside them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp_session
from aiohttp import web
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from redis.asyncio import Redis

from aiohttp_session_ws import SessionWSRegistry, session_ws, session_ws_middleware, setup
from aiohttp_session_ws.redis import RedisSessionWSRegistry

from ..server import HOST, SECRET
from .child import Work

CHANNEL: Final = "bare"  # what bare processes publish to
PAUSE: Final = 0.005  # seconds before each order


class Clock(Work):
    """
    Work that does something again and again, while the parent waits for what comes of it.

    Both ends read the clock that the processes of a machine share.
    """

    def __init__(self) -> None:
        self._began: asyncio.Task[list[float]] | None = None

    async def _timed(self, keys: list[str]) -> list[float]:
        began = []
        for key in keys:
            await asyncio.sleep(PAUSE)
            began.append(time.monotonic())
            await self.act(key)
        return began

    async def act(self, key: str) -> None:
        """
        Do it.
        """
        raise NotImplementedError

    def begin(self, keys: list[str]) -> None:
        """
        Do it soon, once for each key.
        """
        self._began = asyncio.create_task(self._timed(keys))

    async def began(self) -> list[float]:
        """
        Return when each was begun.
        """
        assert self._began is not None
        return await self._began


class Node(Clock):
    """
    A node, which serves sockets and orders.
    """

    def __init__(self, registry: SessionWSRegistry, port: int) -> None:
        super().__init__()
        self.registry = registry
        self._port = port

    def port(self) -> int:
        """
        Return where it listens.
        """
        return self._port

    def sockets(self) -> int:
        """
        Return how many are open.
        """
        return self.registry._sockets.open.size

    def heard(self) -> int:
        """
        Return how many sessions are known to have ended.
        """
        return len(self.registry._revocations)

    async def act(self, key: str) -> None:
        """
        Close the sockets of a session.
        """
        await self.registry.close_all_session(key)


class Bare(Clock):
    """
    Redis alone: what is published is written to a socket, or counted.
    """

    def __init__(self, redis: Redis, port: int) -> None:
        super().__init__()
        self._port = port
        self._redis = redis
        self.open: dict[str, web.WebSocketResponse] = {}
        self._orders = 0

    def port(self) -> int:
        """
        Return where it listens.
        """
        return self._port

    def sockets(self) -> int:
        """
        Return how many are open.
        """
        return len(self.open)

    def heard(self) -> int:
        """
        Return how many orders were heard.
        """
        return self._orders

    async def act(self, key: str) -> None:
        """
        Publish.
        """
        await self._redis.publish(CHANNEL, key)

    async def listen(self, channel: str, ready: asyncio.Event) -> None:
        """
        Hear what is published, for ever.
        """
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            while True:
                message = await pubsub.get_message(timeout=1.0)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    ready.set()
                elif channel == CHANNEL:
                    key = message["data"].decode()
                    await self.open[key].send_str(key)
                else:
                    self._orders += len(json.loads(message["data"])["units"])


async def _stay(request: web.Request) -> web.StreamResponse:
    async with session_ws(request) as ws:
        await ws.receive()
    return ws


@asynccontextmanager
async def _served(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    yield runner.addresses[0][1]  # the process is killed


@asynccontextmanager
async def node(url: str | None) -> AsyncIterator[Node]:
    """
    Be a node; without a URL one that knows no other.
    """
    registry = SessionWSRegistry() if url is None else RedisSessionWSRegistry(url)
    app = web.Application()
    aiohttp_session.setup(app, EncryptedCookieStorage(SECRET))
    app.middlewares.append(session_ws_middleware)
    app.router.add_get("/ws", _stay)
    setup(app, registry)
    async with _served(app) as port:
        yield Node(registry, port)


@asynccontextmanager
async def bare(url: str, channel: str = CHANNEL) -> AsyncIterator[Bare]:
    """
    Be a server of websockets that writes to one what is published for it.
    """

    async def serve(request: web.Request) -> web.StreamResponse:
        session: Any = await aiohttp_session.get_session(request)
        ws = web.WebSocketResponse(heartbeat=30.0)
        await ws.prepare(request)
        work.open[session["aiohttp_session_ws_id"]] = ws
        await ws.receive()
        return ws

    app = web.Application()
    aiohttp_session.setup(app, EncryptedCookieStorage(SECRET))
    app.router.add_get("/ws", serve)
    async with _served(app) as port, Redis.from_url(url) as redis:
        work = Bare(redis, port)
        ready = asyncio.Event()
        task = asyncio.create_task(work.listen(channel, ready))
        await ready.wait()
        yield work
        task.cancel()
