"""
A stale cookie, however often it is replayed, doesn't increase memory use.

``pytest tests/promise/test_replays.py --replays 1000000`` replays it a million times; the test
prints its measurements.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiohttp_session_ws import REGISTRY_KEY, SessionWSRegistry
from tests.promise.world.wire import UPGRADE, MemoryTransport
from tests.support import COOKIE, make_app, user_of
from tests.support.inspect import quiet, records

WARM_UP = 1_000  # replays, after which caches and logs are full
NOISE = 3_000  # objects that caches of Python and of libraries may add
PAGE = 8 * 2**20  # bytes by which the process may grow: memory that malloc keeps
#: One of them must be without growth: after many other tests malloc may grow at first.
ROUNDS = 3


class Line:
    """An in-memory connection to aiohttp's server, for one request after another."""

    def __init__(self, runner: web.AppRunner) -> None:
        assert runner.server is not None
        protocol = runner.server()
        self._transport = MemoryTransport(protocol, self)
        protocol.connection_made(self._transport)
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self.lost = False

    async def get(self, path: str, cookie: str = "", *headers: tuple[str, str]) -> bytes:
        """Send a request; return the response's head, with a short body."""
        self._buffer, self._answer = b"", asyncio.get_running_loop().create_future()
        lines = [f"GET {path} HTTP/1.1", "Host: here", f"Cookie: {COOKIE}={cookie}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._transport.feed("\r\n".join([*lines, "", ""]).encode())
        return await self._answer

    def receive(self, data: bytes) -> None:
        """Collect a response without a body, or with a short one."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0"
        upgraded = head.startswith(b"HTTP/1.1 101")
        complete = len(body) >= (4 if upgraded else int(length))  # or a close frame
        assert self._answer is not None
        if end and complete and not self._answer.done():
            self._answer.set_result(self._buffer)

    def lose(self) -> None:
        """Record that the server has closed the connection."""
        self.lost = True

    def hang_up(self) -> None:
        """Close the connection."""
        self._transport.lose()


@pytest.fixture
async def runner() -> AsyncIterator[web.AppRunner]:
    """An application with the real middlewares and an encrypted-cookie storage."""
    registry = SessionWSRegistry(identify=user_of)
    app = make_app(registry, EncryptedCookieStorage(b"k" * 32))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    yield runner
    await runner.cleanup()


def cookie_in(head: bytes) -> str:
    """Return the session cookie that a response sets."""
    return head.decode().partition(f"Set-Cookie: {COOKIE}=")[2].partition(";")[0]


async def replay(runner: web.AppRunner, cookies: tuple[str, str], times: int) -> None:
    """Send stale cookies to pages that read, renew and log out, and to a websocket."""
    line = Line(runner)
    for number in range(times):
        cookie = cookies[number % 2]
        if number % 16 == 0:
            handshake = Line(runner)
            assert b" 101 " in await handshake.get("/ws", cookie, *UPGRADE)
            handshake.hang_up()
        path = ("/whoami", "/renew", "/out/end_session_ws", "/out/new_session")[number // 2 % 4]
        await line.get(path, cookie)
        if line.lost:
            line = Line(runner)
    line.hang_up()


def resident() -> int:
    """Return the process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_stale_cookies(
    runner: web.AppRunner, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replayed cookies of a session that was renewed and ended add no records and no objects."""
    registry = runner.app[REGISTRY_KEY]
    line = Line(runner)
    older = cookie_in(await line.get("/enter"))
    newer = cookie_in(await line.get("/renew", older))
    await line.get("/whoami", newer)
    await line.get("/out/end_session_ws", newer)
    cookies = older, newer
    await replay(runner, cookies, WARM_UP)
    await quiet(registry)
    gc.collect()
    kept, objects = records(registry), len(gc.get_objects())

    times = pytestconfig.getoption("--replays")
    for _ in range(ROUNDS):
        size = resident()
        await replay(runner, cookies, times)
        await quiet(registry)
        gc.collect()
        grown, more = resident() - size, len(gc.get_objects()) - objects
        with capsys.disabled():
            sys.stdout.write(
                f"\n{times:,} replays: records {kept} -> {records(registry)}, resident memory"
                f" {size:,} +{grown:,} bytes, objects {objects:,} +{more:,}\n"
            )
        if grown < PAGE:
            break

    assert records(registry) == kept
    assert more < NOISE
    assert grown < PAGE
