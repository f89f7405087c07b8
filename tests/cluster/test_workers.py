"""
The README's recipe for several workers: one log-out closes the sockets of all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar, DummyCookieJar, TCPConnector
from yarl import URL

from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.cluster import RedisCluster
from aiohttp_session_ws.results import Nodes
from tests.docs.documents import PROGRAM, RECIPE, WORKERS
from tests.support import PATIENCE, expect_close
from tests.support.inspect import inspect
from tests.support.processes import Process, free_port
from tests.support.redis_servers import RedisServer

NUMBER = 4


class Gunicorn(Process):
    """
    The README's commands, run in a folder with its programs.

    Args:
        folder: The folder.
        redis: The URL of its Redis.
    """

    def __init__(self, folder: Path, redis: str) -> None:
        self.url = URL(f"http://127.0.0.1:{free_port()}")
        (folder / "app.py").write_text(PROGRAM)
        (folder / "workers.py").write_text(WORKERS)
        script = RECIPE.replace("redis://localhost", shlex.quote(redis))
        # Replaces the shell, to receive our signals; with the gunicorn that is installed here.
        here = f"exec {shlex.quote(sys.executable)} -m gunicorn -b {self.url.authority}"
        script = script.replace("\ngunicorn", f"\n{here}")
        assert here in script
        home = shlex.quote(str(folder))  # where it puts its control socket
        super().__init__("gunicorn", ["bash", "-ec", f"cd {home}\nexport HOME={home}\n{script}"])


@pytest.fixture
async def gunicorn(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Gunicorn]:
    """Run four workers."""
    process = Gunicorn(tmp_path, redis_server.url)
    process.launch()
    try:
        yield process
    finally:
        await process.stop()


@pytest.fixture
async def operator(
    gunicorn: Gunicorn, redis_server: RedisServer
) -> AsyncIterator[RedisSessionWSRegistry]:
    """Return a registry that can query all workers."""
    async with RedisSessionWSRegistry(redis_server.url) as operator:
        yield operator


def hurry(registry: RedisSessionWSRegistry) -> None:
    """Send a node's heartbeat now, so that it learns of other nodes."""
    cluster = inspect(registry).cluster
    assert isinstance(cluster, RedisCluster)
    cluster.membership.heartbeat_soon()


async def all_with(operator: RedisSessionWSRegistry, sockets: int) -> Nodes:
    """Wait until all workers are known, with this number of open sockets; return them."""
    async with asyncio.timeout(PATIENCE):
        while True:
            nodes = await operator.nodes()
            if len(nodes) == NUMBER and sum(node.sockets for node in nodes) == sockets:
                return nodes
            await asyncio.sleep(0.05)


def frozen(pid: int) -> bool:
    """Return whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def alone(pid: int, pids: list[int]) -> Iterator[None]:
    """Stop all workers but one, so that this one accepts the connections."""
    others = [other for other in pids if other != pid]
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
        while not all(map(frozen, others)):  # a signal takes effect when its process runs
            time.sleep(0.001)
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
async def test_recipe(gunicorn: Gunicorn, operator: RedisSessionWSRegistry) -> None:
    """One log-out closes the sockets of all workers, and every worker refuses the cookie."""
    pids = [int(node.name.rpartition(":")[2]) for node in await all_with(operator, 0)]
    codes = []
    # A connection that is kept alive would lead to the same worker again.
    browser = ClientSession(
        gunicorn.url, cookie_jar=CookieJar(unsafe=True), connector=TCPConnector(force_close=True)
    )
    async with browser:
        await browser.post("/log-in?name=ann")
        cookie = browser.cookie_jar.filter_cookies(gunicorn.url).output(header="", sep=";")
        sockets = []
        for pid in pids:
            with alone(pid, pids):
                sockets += [await browser.ws_connect("/ws") for _ in range(2)]
        nodes = await all_with(operator, len(sockets))
        async with browser.post("/log-out") as response:
            assert response.status == 200
        closed = [await expect_close(ws) for ws in sockets]
    async with ClientSession(gunicorn.url, cookie_jar=DummyCookieJar()) as thief:
        for pid in pids:
            with alone(pid, pids):
                ws = await thief.ws_connect("/ws", headers={"Cookie": cookie.strip()})
                codes.append(await expect_close(ws))

    assert [node.sockets for node in nodes] == [2] * NUMBER
    assert (closed, codes) == ([4401] * 2 * NUMBER, [4401] * NUMBER)
    assert len(set(pids)) == NUMBER


SITE = """\
import aiohttp_session
from aiohttp import web

from aiohttp_session_ws import session_ws, session_ws_middleware, setup


async def converse(request):
    async with session_ws(request) as ws:
        await ws.receive()
    return ws


async def site():
    sessions = aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage())
    app = web.Application(middlewares=[sessions, session_ws_middleware])
    setup(app)
    app.router.add_get("/ws", converse)
    return app
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize(
    ("number", "options", "settings"),
    [(2, "-w 2", ""), (2, "", "workers = 2"), (1, "--workers=1", "workers = 2")],
)
async def test_workers_without_redis(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    options: str,
    settings: str,
) -> None:
    """More than one worker without Redis causes a warning, however gunicorn was configured."""
    if number == 1:
        monkeypatch.setenv("WEB_CONCURRENCY", "4")  # which the options override
    (tmp_path / "site_of_workers.py").write_text(SITE)
    (tmp_path / "gunicorn.conf.py").write_text(settings)
    url = URL(f"http://127.0.0.1:{free_port()}")
    command = f"-k aiohttp.GunicornWebWorker -b {url.authority} {options} site_of_workers:site"
    home = shlex.quote(str(tmp_path))
    script = f"cd {home}; HOME={home} exec {shlex.quote(sys.executable)} -m gunicorn {command}"
    process = Process("gunicorn", ["bash", "-ec", script])
    process.launch()
    try:
        await process.said("Booting worker", times=number)
        booted = [line for line in process.lines if "Booting worker" in line]
        pids = [int(line.rpartition(" ")[2]) for line in booted]
        async with ClientSession(url, connector=TCPConnector(force_close=True)) as browser:
            for pid in pids:
                with alone(pid, pids):
                    await (await browser.ws_connect("/ws")).close()
    finally:
        await process.stop()

    assert len(pids) == number
    assert any("without Redis" in line for line in process.lines) is (number > 1)
