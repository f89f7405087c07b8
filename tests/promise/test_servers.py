"""
Handlers in real server processes: ``web.run_app`` and gunicorn with aiohttp's worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.support import PATIENCE, expect_close
from tests.support.processes import ROOT, free_port

SITE = """
import sys

import aiohttp_session
from aiohttp import web

from aiohttp_session_ws import (
    WebSocket,
    WebSocketView,
    end_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
    websocket_handler,
)


@websocket_handler
async def function(ws: WebSocket) -> None:
    await ws.connect()
    async for message in ws:
        await ws.send(message)


class View(WebSocketView):
    async def on_message(self, message: str | bytes) -> None:
        await self.send(message)


async def plain(request: web.Request) -> web.WebSocketResponse:
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def log_in(request: web.Request) -> web.Response:
    (await aiohttp_session.get_session(request))["user"] = "ann"
    return web.Response()


async def log_out(request: web.Request) -> web.Response:
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def make_app() -> web.Application:
    storage = aiohttp_session.SimpleCookieStorage()
    app = web.Application(
        middlewares=[aiohttp_session.session_middleware(storage), session_ws_middleware]
    )
    setup(app)
    app.router.add_get("/function", function)
    app.router.add_view("/view", View)
    app.router.add_get("/plain", plain)
    app.router.add_get("/in", log_in)
    app.router.add_get("/out", log_out)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]))
"""
PATHS = ("/function", "/view", "/plain")


class Site:
    """A server process."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url

    async def stop(self) -> tuple[int, str]:
        """Ask the server to stop; return its exit code and its last output."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            rest = await self.process.stdout.read()
            return await self.process.wait(), rest.decode()


@pytest.fixture(params=["run_app", "gunicorn", "gunicorn-uvloop"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A server process as in production."""
    (tmp_path / "site_of_test.py").write_text(SITE, "utf-8")
    port = free_port()
    if request.param != "run_app":
        worker = "GunicornWebWorker"
        if request.param == "gunicorn-uvloop":
            pytest.importorskip("uvloop", reason="uvloop isn't installed")
            worker = "GunicornUVLoopWebWorker"
        command = ["-m", "gunicorn", "-k", f"aiohttp.{worker}"]
        command += ["-b", f"127.0.0.1:{port}", "site_of_test:make_app"]
        ready = b"Booting worker"
    else:
        command = ["site_of_test.py", str(port)]
        ready = b"Running on"
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=tmp_path,
        env=env,
        stdout=PIPE,
        stderr=STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while ready not in (line := await process.stdout.readline()):
                assert line, "the server has ended"
        yield Site(process, f"http://127.0.0.1:{port}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_day(site: Site) -> None:
    """Every kind of endpoint talks, closes with its session, and gets 1001 at the shutdown."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(site.url, cookie_jar=jar) as client:
        await client.get("/in")
        sockets = [await client.ws_connect(path) for path in PATHS]
        for ws in sockets:
            await ws.send_str("there?")
            assert await ws.receive_str() == "there?"
        await client.get("/out")
        assert [await expect_close(ws) for ws in sockets] == [4401] * 3

        sockets = [await client.ws_connect(path) for path in PATHS]
        stopping = asyncio.ensure_future(site.stop())
        for ws in sockets:
            message = await ws.receive(timeout=PATIENCE)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
    code, rest = await stopping

    assert code == 0
    # gunicorn's own listener, already closed by uvloop; it happens without this library, too.
    assert "rror" not in rest.replace("Error while closing socket [Errno 9]", "")
