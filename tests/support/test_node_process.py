"""
The node process that other tests run: its pages, its restart and its shutdown.
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
    """A single node, without Redis."""
    async with NodeProcess("a") as node:
        yield node


@pytest.fixture
async def browser(node: NodeProcess) -> AsyncIterator[ClientSession]:
    """A user's browser, logged in."""
    async with ClientSession(node.url, cookie_jar=CookieJar(unsafe=True)) as browser:
        await ask(browser, "/login?user=ann")
        yield browser


async def ask(browser: ClientSession, path: str) -> Any:
    """Request a page; return its JSON."""
    async with browser.get(path) as response:
        assert response.status == 200
        return await response.json(content_type=None)


class TestNode:
    async def test_says_whose(self, browser: ClientSession) -> None:
        """The socket's first message and the page describe the same session."""
        told = await ask(browser, "/whoami")
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()

        assert told["user"] == "ann"
        assert hello == {"socket": hello["socket"], **told}

    async def test_state(self, browser: ClientSession, node: NodeProcess) -> None:
        """The state lists the sockets of running handlers and those of the registry."""
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()
            state = await node.state()

        assert state["served"] == {hello["socket"]: hello["id"]}
        assert state["open"] == {hello["id"]: 1}
        assert (state["node"], state["pid"], state["state"]) == ("a", node.pid, "connected")

    @pytest.mark.parametrize("way", ["/logout", "/logout-everywhere", "/end?id={}", "/renew"])
    async def test_closes(self, browser: ClientSession, way: str) -> None:
        """Its pages close sockets by ending or renewing their session."""
        async with browser.ws_connect("/ws") as ws:
            hello = await ws.receive_json()
            await ask(browser, way.format(hello["id"]))
            message = await ws.receive(timeout=PATIENCE)

        assert message.type is WSMsgType.CLOSE
        assert message.data == (4403 if way == "/renew" else 4401)

    async def test_killed_and_restarted(self, browser: ClientSession, node: NodeProcess) -> None:
        """A killed node sends no close frame; started again, it has the same port."""
        async with browser.ws_connect("/ws") as ws:
            await ws.receive_json()
            node.kill()
            message = await ws.receive(timeout=PATIENCE)
        await node.start()

        assert message.type is not WSMsgType.CLOSE
        assert (await ask(browser, "/whoami"))["user"] == "ann"

    async def test_stopped(self, browser: ClientSession, node: NodeProcess) -> None:
        """On SIGTERM a node closes its sockets with 1001."""
        async with browser.ws_connect("/ws") as ws:
            await ws.receive_json()
            await node.stop()
            message = await ws.receive(timeout=PATIENCE)

        assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)
        assert not node.running
