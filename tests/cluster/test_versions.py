"""
A rolling upgrade: nodes whose messages and records have two versions, side by side.

The other version is this one with another version number in everything that it writes: a package
of its own, which a node imports instead of ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from aiohttp import ClientSession, CookieJar, DummyCookieJar, WSMsgType

import aiohttp_session_ws
from aiohttp_session_ws.redis import messages
from tests.support import PATIENCE, expect_close
from tests.support.node_process import NodeProcess
from tests.support.redis_servers import RedisServer

OTHER = 0


@pytest.fixture(scope="module")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the package of another version; return its folder."""
    folder = tmp_path_factory.mktemp("other")
    package = folder / "aiohttp_session_ws"
    shutil.copytree(Path(aiohttp_session_ws.__file__).parent, package)
    ours = messages.VERSION
    changed = 0
    for path in (package / "redis").rglob("*.py"):
        text = path.read_text()
        for before, after in (
            (f'[{ours},"', f'[{OTHER},"'),
            (f'{{"v":{ours},', f'{{"v":{OTHER},'),
            (f"VERSION: Final = {ours}\n", f"VERSION: Final = {OTHER}\n"),
        ):
            changed += text.count(before)
            text = text.replace(before, after)
        path.write_text(text)
    assert changed > 15
    return folder


async def cookie_of(node: NodeProcess) -> str:
    """Log in on a node; return the cookie."""
    jar = CookieJar(unsafe=True)
    async with ClientSession(node.url, cookie_jar=jar) as client:
        async with client.get("/login", params={"user": "ann"}) as response:
            assert response.status == 200
        return "; ".join(f"{cookie.key}={cookie.coded_value}" for cookie in jar)


async def expect_refused(client: ClientSession, node: NodeProcess, cookie: str) -> None:
    """Open a socket, and check that it is closed before its handler sends anything."""
    async with client.ws_connect(node.url + "/ws", headers={"Cookie": cookie}) as ws:
        message = await ws.receive(timeout=PATIENCE)
        assert message.type is WSMsgType.CLOSE
        assert message.data in (4401, 4403)


@pytest.mark.parametrize("path", ["/logout", "/logout-everywhere"])
@pytest.mark.parametrize("newer_is_told", [True, False])
async def test_order(
    redis_server: RedisServer, other_version: Path, path: str, *, newer_is_told: bool
) -> None:
    """An order of one version closes sockets and refuses stale cookies on nodes of the other."""
    async with (
        NodeProcess("a", redis=redis_server.url) as ours,
        NodeProcess("b", redis=redis_server.url, path=other_version) as theirs,
        ClientSession(cookie_jar=DummyCookieJar()) as client,
    ):
        giver, hearer = (theirs, ours) if newer_is_told else (ours, theirs)
        cookie = await cookie_of(hearer)
        async with client.ws_connect(hearer.url + "/ws", headers={"Cookie": cookie}) as ws:
            await ws.receive_json(timeout=PATIENCE)
            await giver.get(path, cookie)
            assert await expect_close(ws) in (4401, 4403)
        for node in (ours, theirs):
            await expect_refused(client, node, cookie)
            assert (await node.state())["open"] == {}


@pytest.mark.parametrize("newer_asks", [True, False])
async def test_report(redis_server: RedisServer, other_version: Path, *, newer_asks: bool) -> None:
    """A report is incomplete if an answer can't be read."""
    async with (
        NodeProcess("a", redis=redis_server.url) as ours,
        NodeProcess("b", redis=redis_server.url, path=other_version) as theirs,
    ):
        report = await (ours if newer_asks else theirs).get("/end?id=x&wait=1")
        assert (report["complete"], report["stored"]) == (False, True)
