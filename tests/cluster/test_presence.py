"""
Presence over all nodes: the first and the last socket of each identity.
"""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from aiohttp_session_ws import REGISTRY_KEY
from aiohttp_session_ws.registry import presence
from aiohttp_session_ws.signals import PresenceDetails
from tests.support import PATIENCE, AiohttpClient, Client, until
from tests.support.node_process import NodeProcess
from tests.support.nodes import acquaint, cluster_of, log_in, node_app, socket
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the intervals of presence."""
    monkeypatch.setattr(presence, "SCAN_EVERY", 0.01)
    monkeypatch.setattr(presence, "LINGER", 0.05)
    monkeypatch.setattr(presence, "CHECK_EVERY", 0.1)


class Told(list[tuple[str, object, str, bool]]):
    """The calls of a node's ``on_first`` and ``on_last``."""

    async def come(self, details: PresenceDetails) -> None:
        """Record a first socket."""
        self.append(("first", details.identity, details.node, details.news))

    async def gone(self, details: PresenceDetails) -> None:
        """Record a last socket."""
        self.append(("last", details.identity, details.node, details.news))


def living_to(client: Client) -> list[frozenset[str] | None]:
    """Record the results of a node's checks of which others are alive."""
    cluster, looks = cluster_of(client), list[frozenset[str] | None]()
    living = cluster.living

    async def look() -> frozenset[str] | None:
        looks.append(await living())
        return looks[-1]

    cluster.living = look  # type: ignore[method-assign]  # it only listens
    return looks


async def start(
    aiohttp_client: AiohttpClient, redis: RedisServer | str, name: str
) -> tuple[Client, Told]:
    """Start a node that records its presence signals."""
    told = Told()
    app = node_app(redis if isinstance(redis, str) else redis.url, name)
    app[REGISTRY_KEY].on_first.append(told.come)
    app[REGISTRY_KEY].on_last.append(told.gone)
    client = await aiohttp_client(app)
    client.session.cookie_jar.clear()
    return client, told


class TestPresence:
    async def test_everywhere(
        self, aiohttp_client: AiohttpClient, redis_server: RedisServer
    ) -> None:
        """Every node gets one signal for the first socket on any node, and one for the last."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        b, at_b = await start(aiohttp_client, redis_server, "b")
        await acquaint(a, b)
        cookie = await log_in(a)
        async with socket(a, cookie):
            await until(lambda: at_a and at_b)
            async with socket(b, cookie):
                pass
        await until(lambda: len(at_a) == len(at_b) == 2)

        for told in (at_a, at_b):
            assert [(what, who) for what, who, _, _ in told] == [("first", "ann"), ("last", "ann")]
        assert at_a[0] == ("first", "ann", "a", True)
        assert at_b[0][2] == "a"

    async def test_later(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """A node that starts later is told who is present, and that this is no news."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        async with socket(a, await log_in(a)):
            await until(lambda: at_a)
            _, at_b = await start(aiohttp_client, redis_server, "b")
            await until(lambda: at_b)

        assert at_b[0] == ("first", "ann", "a", False)

    async def test_crash(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """The identities of a node without heartbeats count as gone."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        b, at_b = await start(aiohttp_client, redis_server, "b")
        await acquaint(a, b)
        async with socket(b, await log_in(b)):
            await until(lambda: at_a and at_b)
            name = cluster_of(b).instance
            await redis_server.cli("ZADD", "{aiohttp_session_ws}:nodes", "1", name)
            await until(lambda: len(at_a) == 2)

        assert at_a[1] == ("last", "ann", "b", True)

    async def test_killed(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """The identities of a killed node count as gone once it was silent for long enough."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        cookie = await log_in(a)
        options = ("--storage", "simple", "--presence")
        async with (
            NodeProcess("z", *options, redis=redis_server.url) as node,
            ClientSession() as browser,
        ):
            ws = await browser.ws_connect(f"{node.url}/ws", headers={"Cookie": cookie})
            await ws.receive(timeout=PATIENCE)
            await until(lambda: at_a)
            node.kill()
            nodes = "{aiohttp_session_ws}:nodes"
            names = await redis_server.cli("ZRANGE", nodes, 0, -1)
            (dead,) = [name for name in names if name.startswith("z/")]
            await redis_server.cli("ZADD", nodes, "1", dead)
            await until(lambda: len(at_a) == 2)
            await ws.close()

        assert [told[:3] for told in at_a] == [("first", "ann", "z"), ("last", "ann", "z")]

    async def test_stopped(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """The identities of a node that stops count as gone."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        b, at_b = await start(aiohttp_client, redis_server, "b")
        await acquaint(a, b)
        async with socket(b, await log_in(b)):
            await until(lambda: at_a and at_b)
            await b.server.close()
        await until(lambda: len(at_a) == 2)

        assert at_a[1][:3] == ("last", "ann", "b")

    async def test_outage(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """No identity counts as gone during an outage of Redis."""
        a, at_a = await start(aiohttp_client, redis_server, "a")
        b, at_b = await start(aiohttp_client, redis_server, "b")
        await acquaint(a, b)
        async with socket(b, await log_in(b)):
            await until(lambda: at_a and at_b)
            redis_server.kill()
            await until(lambda: not cluster_of(a).connected)
            await redis_server.restart()
            await until(lambda: cluster_of(a).connected and cluster_of(b).connected)
            during = [*at_a]
        await until(lambda: len(at_a) >= 2)

        assert [what for what, *_ in during] == ["first"]

    async def test_late_after_an_outage(
        self,
        aiohttp_client: AiohttpClient,
        redis_server: RedisServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Identities of a node that reconnects later than others do not count as gone."""
        monkeypatch.setattr(presence, "RECONNECT_TIME", PATIENCE)
        a, at_a = await start(aiohttp_client, redis_server.url, "a")
        async with Proxy(redis_server.port) as proxy:
            b, at_b = await start(aiohttp_client, proxy.url(), "b")
            await acquaint(a, b)
            name, looks = cluster_of(b).instance, living_to(a)
            async with socket(b, await log_in(b)):
                await until(lambda: at_a and at_b)
                redis_server.kill()
                await until(lambda: looks[-1:] == [None])
                await proxy.stop()
                await redis_server.restart()
                await redis_server.cli("ZADD", "{aiohttp_session_ws}:nodes", "1", name)
                await until(lambda: looks[-2:] == [frozenset(), frozenset()])
                during = [*at_a]
                await proxy.start()
                await until(lambda: looks[-2:] == [frozenset({name}), frozenset({name})])
            await until(lambda: len(at_a) >= 2)

        assert [what for what, *_ in during] == ["first"]
        assert [what for what, *_ in at_a] == ["first", "last"]
