"""
Several nodes in one process, for tests of how nodes interact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestServer

from aiohttp_session_ws import REGISTRY_KEY
from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.cluster import RedisCluster
from tests.support import PATIENCE, Client, cookie_of, make_app, until, user_of

from .inspect import inspect

T = TypeVar("T")

StartNode: TypeAlias = Callable[..., Awaitable[Client]]
Nodes: TypeAlias = tuple[Client, Client]


def leaky(test: T) -> T:
    """Mark a test of redis-py's RedisCluster, which leaves replaced connections open."""
    for mark in (
        pytest.mark.usefixtures("collected"),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ):
        mark(test)
    return test


def registry_of(client: Client) -> RedisSessionWSRegistry:
    """Return the registry of the app that *client* talks to."""
    assert client.app is not None
    registry = client.app[REGISTRY_KEY]
    assert isinstance(registry, RedisSessionWSRegistry)
    return registry


def cluster_of(client: Client) -> RedisCluster:
    """Return the cluster part of the registry of *client*'s app."""
    cluster = inspect(registry_of(client)).cluster
    assert isinstance(cluster, RedisCluster)
    return cluster


def registry_in(server: TestServer) -> RedisSessionWSRegistry:
    """Return the registry of a server's app."""
    registry = server.app[REGISTRY_KEY]
    assert isinstance(registry, RedisSessionWSRegistry)
    return registry


@contextlib.asynccontextmanager
async def script(url: str, **options: Any) -> AsyncIterator[RedisSessionWSRegistry]:
    """Enter a registry without an application; retry while a busy Redis is too slow."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(PATIENCE):
            while True:
                registry = RedisSessionWSRegistry(url, **options)
                with contextlib.suppress(RedisUnavailable):
                    await stack.enter_async_context(registry)
                    break
        yield registry


def node_app(redis: Any, name: str = "node", **options: Any) -> web.Application:
    """Build the app of a node."""
    options.setdefault("identify", user_of)
    return app_of(RedisSessionWSRegistry(redis, node=name, **options))


def app_of(registry: RedisSessionWSRegistry) -> web.Application:
    """Build the app of a node from a given registry."""
    return make_app(registry)


async def acquaint(*clients: Client) -> None:
    """Make nodes list each other as members, by sending their next heartbeats at once."""
    for client in clients:
        members = cluster_of(client).membership
        members.heartbeat_soon()
        await until(lambda m=members: len(m.members) >= len(clients))  # type: ignore[misc]


async def log_in(client: Client, user: str = "ann") -> str:
    """Log in as a new browser; return its cookie."""
    client.session.cookie_jar.clear()
    async with client.get("/login", params={"user": user}) as response:
        assert response.status == 200
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return cookie


async def visit(client: Client, path: str, cookie: str) -> str:
    """Request a page with a cookie; return the cookie that a browser has afterwards."""
    client.session.cookie_jar.clear()
    async with client.get(path, headers={"Cookie": cookie}, allow_redirects=False) as response:
        assert response.status < 400, await response.text()
        new = response.cookies.get("AIOHTTP_SESSION")
    client.session.cookie_jar.clear()
    return cookie if new is None else f"AIOHTTP_SESSION={new.coded_value}"


async def connect(client: Client, cookie: str) -> ClientWebSocketResponse:
    """Open a socket; retry a refused handshake, as a browser does: Redis may be slow."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(WSServerHandshakeError):
                return await client.ws_connect("/ws", headers={"Cookie": cookie})
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def socket(client: Client, cookie: str) -> AsyncIterator[ClientWebSocketResponse]:
    """Open a socket, and read its first message."""
    async with await connect(client, cookie) as ws:
        await ws.receive_json(timeout=PATIENCE)
        yield ws


async def refused(client: Client, cookie: str) -> int:
    """Open a socket; return the close code that it is refused with."""
    async with await connect(client, cookie) as ws:
        message = await ws.receive(timeout=PATIENCE)
        assert message.type is WSMsgType.CLOSE, message
        return int(message.data)


async def becomes_nobody(client: Client, cookie: str) -> None:
    """Request a page until it is anonymous: a slow Redis may delay the end."""
    async with asyncio.timeout(PATIENCE):
        while True:
            client.session.cookie_jar.clear()
            async with client.get("/whoami", headers={"Cookie": cookie}) as response:
                if (await response.json())["user"] is None:
                    return


async def id_of(client: Client, cookie: str) -> str:
    """Return the session ws id of a cookie."""
    client.session.cookie_jar.clear()
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        return str((await response.json())["id"])


async def settled(*clients: Client) -> None:
    """Wait until Redis has received all entries of the nodes' outboxes."""
    for client in clients:
        assert not await cluster_of(client).outbox.drain(PATIENCE)


async def becomes(client: Client, state: str) -> None:
    """Wait until the state of a node is *state*: connected or degraded."""
    await until(lambda: registry_of(client).state == state)


def nowhere() -> str:
    """Return a URL without a Redis: on port 1, which is never given to another test."""
    return "redis://127.0.0.1:1"
