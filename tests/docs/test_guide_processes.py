"""
The guide's chapter on several processes: its programs, its Redis user, its keys.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from aiohttp_session_ws import Limits
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import PATIENCE, AiohttpClient, Client, expect_close, make_app, until
from tests.support.nodes import (
    StartNode,
    acquaint,
    leaky,
    log_in,
    refused,
    registry_of,
    socket,
)
from tests.support.processes import ROOT, free_port
from tests.support.redis_servers import RedisCluster, RedisServer, SentinelSetup

from .documents import PROCESSES, blocks, run

OPTIONS, SCRIPT, RELAY, MAKERS = PROCESSES
_, COMMANDS, ACL = blocks("docs/guide.rst", python=False)


async def log_out(client: Client, other: Client) -> int:
    """Log out on one node; return the code that closes a socket on the other."""
    await acquaint(client, other)
    cookie = await log_in(client)
    async with socket(other, cookie) as ws:
        registry = registry_of(client)
        report = await registry.end_identity("ann", wait=PATIENCE)
        code = await expect_close(ws)
    assert (report.sockets, report.nodes_answered, report.stored) == (1, 2, True)
    assert await refused(other, cookie) == code
    return code


async def until_heard(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Publish a rate until the other process has received it: it may not have joined yet."""
    async with asyncio.timeout(PATIENCE):
        while b"1.0" not in other["rates"]:
            await one["publish_rate"](b"1.0")
            await asyncio.sleep(0.05)


class TestPrograms:
    async def test_options(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """The program's receiver gets the changes of state when Redis goes and returns."""
        names = run(OPTIONS.replace("redis://localhost:6379/0", redis_server.url))
        registry = names["registry"]
        assert isinstance(registry, RedisSessionWSRegistry)
        async with registry:
            redis_server.kill()
            await until(lambda: registry.state == "degraded")
            await redis_server.restart()
            await until(lambda: len(names["outages"]) == 3)

        assert names["outages"] == ["connected", "degraded", "connected"]
        assert registry.node == "web-1"

    async def test_script(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """The script ends a user's sessions."""
        client = await start_node(redis_server.url)
        cookie = await log_in(client)
        async with socket(client, cookie) as ws:
            done = await run(SCRIPT)["lock_out"](redis_server.url, "ann")

            assert (done, await expect_close(ws)) == (True, 4401)

    async def test_relay(self, redis_server: RedisServer, aiohttp_client: AiohttpClient) -> None:
        """A rate relayed by one process reaches the other, and not its sender."""
        program = RELAY.replace("redis://localhost:6379/0", redis_server.url)
        one, other = run(program), run(program)
        for names in (one, other):
            await aiohttp_client(make_app(names["registry"]))
        await until_heard(one, other)

        assert one["rates"] == []

    async def test_sentinel(self, redis_sentinel: SentinelSetup, start_node: StartNode) -> None:
        """A log-out works with clients of a Sentinel's primary."""
        names = run(MAKERS)
        names["SENTINELS"] = redis_sentinel.addresses
        nodes = [await start_node(names["primary"], name) for name in "ab"]

        assert await log_out(*nodes) == 4401

    @leaky
    async def test_cluster(self, redis_cluster: RedisCluster, start_node: StartNode) -> None:
        """A log-out works with clients of a Redis Cluster, even if one given address is dead."""
        names = run(MAKERS)
        ports = free_port(), redis_cluster.masters[0].port
        names["CLUSTER"] = [("127.0.0.1", port) for port in ports]
        nodes = [await start_node(names["cluster"], name) for name in "ab"]

        assert await log_out(*nodes) == 4401

    def test_commands(self) -> None:
        """The command line accepts the guide's commands, which fail with 3 without Redis."""
        lines = COMMANDS.splitlines()
        environ = os.environ | {"AIOHTTP_SESSION_WS_REDIS": "redis://127.0.0.1:1"}
        codes = [
            subprocess.run(
                [sys.executable, *line.split()[1:]], cwd=ROOT, env=environ, capture_output=True
            ).returncode
            for line in lines[1:]
        ]

        assert lines[0].startswith("export AIOHTTP_SESSION_WS_REDIS=redis://")
        assert codes == [3, 3, 3]


class TestRedis:
    @pytest.fixture
    async def nodes(self, redis_server: RedisServer, start_node: StartNode) -> list[Client]:
        """Start two nodes that log in as the guide's user."""
        await redis_server.cli(*ACL.split())
        url = redis_server.url.replace("//", "//ws:PASSWORD@")
        limits = Limits(per_session=9, scope="cluster")
        return [await start_node(url, name, prefix="shop:ws", limits=limits) for name in "ab"]

    async def test_user(self, nodes: list[Client], redis_server: RedisServer) -> None:
        """The guide's user has all permissions that the nodes need."""
        code = await log_out(*nodes)
        delivery = await registry_of(nodes[0]).broadcast("hello")
        await redis_server.kill_pubsub()
        cookie = await log_in(nodes[0])
        async with socket(nodes[1], cookie) as ws:  # it resubscribes, and reads what it missed
            await registry_of(nodes[0]).end_identity("ann")
            codes = [code, await expect_close(ws)]

        assert (codes, delivery.sockets) == ([4401, 4401], 0)
        denied = {entry["object"] for entry in await redis_server.cli("ACL", "LOG")}
        # Before Redis 7 CLIENT is one command, a dangerous one; redis-py works without it.
        assert denied <= {"client"}

    @pytest.mark.parametrize(
        "command", [["GET", "other"], ["FLUSHALL"], ["KEYS", "*"], ["PUBLISH", "other", "x"]]
    )
    async def test_user_sees_no_more(
        self, nodes: list[Client], redis_server: RedisServer, command: list[Any]
    ) -> None:
        """The guide's user is denied other keys, other channels and dangerous commands."""
        async with redis_server.client(username="ws", password="PASSWORD") as client:
            with pytest.raises(Exception, match=r"permissions|NOPERM"):
                await client.execute_command(*command)  # type: ignore[no-untyped-call]  # theirs

    async def test_keys(self, nodes: list[Client], redis_server: RedisServer) -> None:
        """The guide names all keys and channels that are used."""
        text = (ROOT / "docs/guide.rst").read_text()
        await log_out(*nodes)
        await registry_of(nodes[0]).close_all_identity("ann")
        await registry_of(nodes[0]).close_all_session("x", wait=PATIENCE)
        keys = await redis_server.cli("KEYS", "*")
        channels = await redis_server.cli("PUBSUB", "CHANNELS")
        sorts = {name.removeprefix("{shop:ws}:").split(":")[0] for name in keys}
        spoken = {name.removeprefix("{shop:ws}:").split(":")[0] for name in channels}

        assert {"lineage", "end", "close", "recent", "seq", "nodes", "epoch"} <= sorts
        assert spoken == {"orders", "data", "answers"}
        assert all(re.search(rf"[`}}]:{sort}[:`]", text) for sort in sorts | spoken)
