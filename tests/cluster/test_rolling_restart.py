"""
A rolling restart of gunicorn's workers that drain: their clients reconnect gradually.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import (
    ClientError,
    ClientSession,
    ClientWebSocketResponse,
    DummyCookieJar,
    TCPConnector,
    WSMsgType,
)
from yarl import URL

from tests.support import PATIENCE
from tests.support.processes import Process, free_port

CLIENTS = int(os.environ.get("CLIENTS", "2000"))
WINDOW = 4.0  # seconds
TICK = 0.01  # seconds
WORKERS = 4

APP = f"""
import os

import aiohttp_session
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, Timeouts, setup
from aiohttp_session_ws import session_ws, session_ws_middleware


async def echo(request):
    async with session_ws(request) as ws:
        await ws.send_str(str(os.getpid()))
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def application():
    sessions = aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage())
    app = web.Application(middlewares=[sessions, session_ws_middleware])
    setup(app, SessionWSRegistry(timeouts=Timeouts(drain={WINDOW})))
    app.router.add_get("/ws", echo)
    return app
"""


class Page:
    """
    A page that reconnects at once whenever its socket is closed.

    Attributes:
        pids: The workers that have served it, in this order.
        codes: The codes that closed its sockets.
        refused: The largest number of refusals in a row.
        back: The time at which it was served again.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self.pids: list[str] = []
        self.codes: list[int] = []
        self.refused = 0
        self.back: float | None = None

    async def live(self) -> None:
        """Stay connected until cancelled."""
        while True:
            async with await self._connect() as ws:
                self.pids.append(await ws.receive_str(timeout=PATIENCE))
                if self.codes:
                    self.back = time.monotonic()
                message = await ws.receive()
                assert message.type is WSMsgType.CLOSE, message
                self.codes.append(message.data)

    async def _connect(self) -> ClientWebSocketResponse:
        refused = 0
        while True:
            try:
                return await self._session.ws_connect("/ws")
            except ClientError:
                refused += 1
                self.refused = max(self.refused, refused)
                await asyncio.sleep(0.1)


class Stalls:
    """
    Stalls of the event loop on this machine.

    Attributes:
        longest: The longest one, in seconds.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, loop.time() - began - TICK)


@pytest.fixture
async def gunicorn(tmp_path: Path) -> AsyncIterator[tuple[Process, URL]]:
    """Run workers that drain."""
    (tmp_path / "rolling.py").write_text(APP)
    url = URL(f"http://127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(tmp_path), "-b", url.authority]
    command += ["-k", "aiohttp.GunicornWebWorker", "-w", str(WORKERS), "--no-control-socket"]
    command += ["--graceful-timeout", "30", "--timeout", "60", "rolling:application"]
    process = Process("gunicorn", command)
    process.launch()
    try:
        await process.said("Booting worker", times=WORKERS)
        yield process, url
    finally:
        await process.stop()


@pytest.mark.exhaustive
async def test_rolling_restart(gunicorn: tuple[Process, URL]) -> None:
    """No client is refused twice in a row, and no second has more than twice its share of them."""
    process, url = gunicorn
    connector = TCPConnector(limit=0, force_close=True)
    async with ClientSession(url, cookie_jar=DummyCookieJar(), connector=connector) as session:
        pages = [Page(session) for _ in range(CLIENTS)]
        lives = [asyncio.ensure_future(page.live()) for page in pages]
        async with asyncio.timeout(3 * PATIENCE):
            while not all(page.pids for page in pages):
                await asyncio.sleep(0.05)
        old = {page.pids[0] for page in pages}
        stalls = Stalls()
        lives.append(asyncio.ensure_future(stalls.watch()))
        os.kill(process.pid, signal.SIGHUP)  # new workers first, then the old ones go
        async with asyncio.timeout(WINDOW + 2 * PATIENCE):
            while not all(page.back for page in pages):
                await asyncio.sleep(0.05)
        for life in lives:
            life.cancel()
        ends = await asyncio.gather(*lives, return_exceptions=True)

    assert {type(end) for end in ends} == {asyncio.CancelledError}
    assert {code for page in pages for code in page.codes} == {1012}
    assert max(page.refused for page in pages) <= 1
    assert not old & {page.pids[-1] for page in pages}
    back = sorted(page.back for page in pages if page.back is not None)
    most = max(bisect_left(back, at + 1.0) - number for number, at in enumerate(back))
    # Clients that would have connected during a stall connect right after it.
    assert most <= 2 / WINDOW * CLIENTS * (1.0 + stalls.longest)
