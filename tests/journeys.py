"""
Count the files that a handshake, a log-out and an order from another node pass through.

A small app runs in this process, by the public API only, while ``sys.setprofile`` records each
call of a function of the package: the function's file, and the file of the nearest caller in
the package. Each pair of files counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import aiohttp
import aiohttp_session
from aiohttp import web
from aiohttp.typedefs import Handler

import aiohttp_session_ws
from aiohttp_session_ws import (
    SessionWSRegistry,
    end_session_ws,
    get_session_ws_id,
    session_ws,
    session_ws_middleware,
    setup,
)

_HOST: Final = "127.0.0.1"
_ROOT: Final = f"{Path(aiohttp_session_ws.__file__).parent}/"
_TIMEOUT: Final = 20.0  # seconds
#: The program of the other node, in a process of its own: only this process is measured.
_ORDER: Final = """
import asyncio, sys
from aiohttp_session_ws.redis import RedisSessionWSRegistry

async def main():
    async with RedisSessionWSRegistry(sys.argv[1]) as registry:
        await registry.end_session(sys.argv[2], wait=2.0)

asyncio.run(main())
"""


class Journey:
    """
    The files and the calls between files that the profiler recorded.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.calls: set[tuple[str, str]] = set()

    def note(self, frame: FrameType, event: str, arg: object) -> None:
        """
        Record a call, if it is of a function of the package.
        """
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(_ROOT):
            return
        self.files.add(path)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(_ROOT):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != path:
            self.calls.add((caller.f_code.co_filename, path))

    def __str__(self) -> str:
        return f"{len(self.calls)}, {len(self.files)}"


@contextlib.contextmanager
def _noting(journey: Journey) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(journey.note)
    try:
        yield
    finally:
        sys.setprofile(before)


async def _identify(request: web.Request) -> str | None:
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


async def _log_in(request: web.Request) -> web.Response:
    (await aiohttp_session.get_session(request))["user"] = "me"
    return web.Response(text=str(await get_session_ws_id(request)))


async def _converse(request: web.Request) -> web.StreamResponse:
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def _log_out(request: web.Request) -> web.Response:
    response = web.Response()
    await end_session_ws(request, response)
    return response


@contextlib.asynccontextmanager
async def _client(
    registry: SessionWSRegistry, left: asyncio.Event | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """
    Serve an app, and enter a client of it; set *left* when the handler of a websocket has left.
    """

    @web.middleware
    async def outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        finally:
            if left is not None and request.path == "/ws":
                left.set()

    app = web.Application(middlewares=[outermost])
    aiohttp_session.setup(app, aiohttp_session.SimpleCookieStorage())
    app.middlewares.append(session_ws_middleware)
    setup(app, registry)
    app.router.add_get("/in", _log_in)
    app.router.add_get("/ws", _converse)
    app.router.add_get("/out", _log_out)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, _HOST, 0).start()
        host, port = runner.addresses[0][:2]
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(f"http://{host}:{port}", cookie_jar=jar) as client:
            yield client
    finally:
        await runner.cleanup()


async def _visit(client: aiohttp.ClientSession) -> str:
    """
    Log in, and return the session's id after that.
    """
    for _ in range(2):
        async with client.get("/in") as response:
            session_ws_id = await response.text()
    return session_ws_id


async def _open(client: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
    """
    Open a socket, and wait until its handler runs.
    """
    ws = await client.ws_connect("/ws")
    await ws.send_str("hello")
    await ws.receive_str(timeout=_TIMEOUT)
    return ws


async def _expect_close(ws: aiohttp.ClientWebSocketResponse) -> None:
    message = await ws.receive(timeout=_TIMEOUT)
    assert message.type is aiohttp.WSMsgType.CLOSE, message


async def _alone() -> dict[str, Journey]:
    handshake, log_out, left = Journey(), Journey(), asyncio.Event()
    async with _client(SessionWSRegistry(identify=_identify), left) as client:
        await _visit(client)
        with _noting(handshake):
            ws = await _open(client)
        with _noting(log_out):
            async with client.get("/out") as response:
                await response.text()
            await _expect_close(ws)
            # The handler's last steps count too.
            await ws.close()
            async with asyncio.timeout(_TIMEOUT):
                await left.wait()
    return {"a handshake": handshake, "a log-out": log_out}


async def _from_another_node(redis: str) -> Journey:
    from aiohttp_session_ws.redis import RedisSessionWSRegistry

    journey = Journey()
    async with _client(RedisSessionWSRegistry(redis, identify=_identify)) as client:
        session_ws_id = await _visit(client)
        ws = await _open(client)
        with _noting(journey):
            other = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _ORDER, redis, session_ws_id), cwd=Path(_ROOT).parent
            )
            await _expect_close(ws)
            assert await other.wait() == 0
    return journey


@contextlib.contextmanager
def _redis() -> Iterator[str | None]:
    """
    Run a Redis server, if one is installed; yield its URL.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        yield None
        return
    with socket.socket() as sock:
        sock.bind((_HOST, 0))
        port = str(sock.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", port, "--bind", _HOST, "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert any(b"eady to accept" in line for line in server.stdout), "no Redis server"
            yield f"redis://{_HOST}:{port}"
        finally:
            server.terminate()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


def figures() -> dict[str, str]:
    """
    Return, for each journey, the numbers of distinct calls between files and of files.
    """
    journeys = asyncio.run(_alone())
    with _redis() as redis:
        if redis is not None:
            journeys["an order from another node"] = asyncio.run(_from_another_node(redis))
    return {f"{name}: calls, files": str(journey) for name, journey in journeys.items()}
