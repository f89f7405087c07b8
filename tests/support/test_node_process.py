"""
The node that other tests run as a process: its views, its word, its death.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, CookieJar, WSMsgType

from tests.support import PATIENCE
from tests.support.node_process import NodeProcess


@pytest.fixture
async def node() -> AsyncIterator[NodeProcess]:
    """A node that knows no other."""
    async with NodeProcess("a") as node:
        yield node


@pytest.fixture
async def browser(node: NodeProcess) -> AsyncIterator[ClientSession]:
    """A user's browser, logged in."""
    async with ClientSession(node.url, cookie_jar=CookieJar(unsafe=True)) as browser:
        await ask(browser, "/login?user=ann")
        yield browser


async def ask(browser: ClientSession, path: str) -> Any:
    """Visit a page; return what it says."""
    async with browser.get(path) as response:
        assert response.status == 200
        return await response.json(content_type=None)


class TestNode:
    async def test_says_whose(self, browser: ClientSession) -> None:
        """The socket's first word and the page say whose session it is."""
        told = await ask(browser, "/whoami")
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()

        assert told["user"] == "ann"
        assert hello == {"socket": hello["socket"], **told}

    async def test_state(self, browser: ClientSession, node: NodeProcess) -> None:
        """It lists its sockets: those that handlers have, and those of the registry."""
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()
            state = await node.state()

        assert state["served"] == {hello["socket"]: hello["id"]}
        assert state["open"] == {hello["id"]: 1}
        assert (state["node"], state["pid"], state["state"]) == ("a", node.pid, "connected")

    @pytest.mark.parametrize("way", ["/logout", "/logout-everywhere", "/end?id={}", "/renew"])
    async def test_closes(self, browser: ClientSession, way: str) -> None:
        """Its pages end sessions, or give them another id."""
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()
            await ask(browser, way.format(hello["id"]))
            message = await ws.receive(timeout=PATIENCE)

        assert message.type is WSMsgType.CLOSE
        assert message.data == (4403 if way == "/renew" else 4401)

    async def test_killed_and_restarted(self, browser: ClientSession, node: NodeProcess) -> None:
        """Killed, it leaves its sockets to the peers; started, it is where it was."""
        async with browser.ws_connect("/ws") as ws:
            await ws.receive_json()
            node.kill()
            message = await ws.receive(timeout=PATIENCE)
        await node.start()

        assert message.type is not WSMsgType.CLOSE
        assert (await ask(browser, "/whoami"))["user"] == "ann"

    async def test_stopped(self, browser: ClientSession, node: NodeProcess) -> None:
        """Told to stop, it says good-bye to its sockets."""
        async with browser.ws_connect("/ws") as ws:
            await ws.receive_json()
            await node.stop()
            message = await ws.receive(timeout=PATIENCE)

        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        assert not node.running
