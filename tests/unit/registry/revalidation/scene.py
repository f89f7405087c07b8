"""
An application whose clocks go when a test says so, and storages whose sessions end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import aiohttp
import aiohttp_session
import pytest
from aiohttp import WSMsgType, web
from aiohttp_session import AbstractStorage
from redis.asyncio import Redis

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws.connections.connection import TrackedConnection
from tests.support import (
    PATIENCE,
    Client,
    cookie_of,
    until,
)
from tests.support.inspect import checks, connections, tick

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
        """Advance the clocks."""
        self.loop += seconds
        self.wall += seconds

    def monotonic(self) -> float:
        """Stand in for the function of that name."""
        return self.loop

    def time(self) -> float:
        """Stand in for the function of that name."""
        return self.wall


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
    def connections(self) -> list[TrackedConnection]:
        """The open ones, in the order of their opening."""
        return connections(self.registry)

    @property
    def dues(self) -> list[float]:
        """In how many seconds each is looked at."""
        return [connection.check_at - self.clocks.loop for connection in self.connections]

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
        """Advance the clocks, and have the registry compare them."""
        self.clocks.tick(seconds)
        tick(self.registry)

    async def wait(self, seconds: float = 0.0) -> None:
        """Advance the clocks, and check all connections that are due by then."""
        self.ring(seconds)
        await until(self._all_checked)

    def _all_checked(self) -> bool:
        if checks(self.registry):
            return False
        if not any(due <= 0 for due in self.dues):
            return True
        tick(self.registry)
        return False

    async def stays(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Return whether a socket is not being closed."""
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
