"""
The ``state`` and the log while Redis answers, but a node can't do all of its work.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.support import expect_close, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    becomes,
    cluster_of,
    log_in,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer

#: The last commands of a connection that redis-py has opened, but not used.
HELLO = ("NULL", "hello", "client", "client|setinfo")


async def cut_unused(redis: RedisServer) -> None:
    """Cut the connections that have not been used yet."""
    async with redis.client() as client:
        for one in await client.client_list(_type="normal"):
            if one["cmd"] in HELLO:
                await client.client_kill_filter(_id=one["id"])


async def take_no_connection(redis: RedisServer, password: str) -> None:
    """Reject new connections without a password; accept all again if it is empty."""
    await redis.cli("CONFIG", "SET", "requirepass", password)
    redis.password = password


class TestHeartbeats:
    async def test_refused_at_start(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A node whose heartbeats are refused starts degraded, and a script does not start."""
        await redis_server.cli("ACL", "SETUSER", "default", "-time")
        a = await start_node(redis_server.url, "a")
        assert registry_of(a).state == "degraded"
        assert "Redis can't be used (heartbeats fail: " in caplog.text
        with pytest.raises(RedisUnavailable, match="heartbeats fail"):
            async with RedisSessionWSRegistry(redis_server.url):
                pass
        await redis_server.cli("ACL", "SETUSER", "default", "+time")
        await becomes(a, "connected")

    async def test_refused_later(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """Heartbeats that are refused later degrade the node, and the reason is logged."""
        a = await start_node(redis_server.url, "a")
        await redis_server.cli("ACL", "SETUSER", "default", "-eval", "-evalsha")
        await becomes(a, "degraded")
        assert "is degraded (heartbeats fail: NoPermissionError" in caplog.text
        await redis_server.cli("ACL", "SETUSER", "default", "+eval", "+evalsha")
        await becomes(a, "connected")

    async def test_writes_paused(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node stays degraded while Redis answers a PING, but no script."""
        a = await start_node(redis_server.url, "a")
        states: list[str] = []

        async def note(state: str) -> None:
            states.append(state)

        registry_of(a).on_state_change.append(note)
        await redis_server.cli("CLIENT", "PAUSE", 60_000, "WRITE")
        await becomes(a, "degraded")
        lines = set()

        def made_anew() -> bool:
            lines.add(cluster_of(a).commands.link.line)
            return len(lines - {None}) > 4

        await until(made_anew)
        await redis_server.cli("CLIENT", "UNPAUSE")
        await becomes(a, "connected")
        await until(lambda: len(states) > 1)
        assert states == ["degraded", "connected"]


class TestConnections:
    async def test_none_for_orders(
        self, redis_server: RedisServer, nodes: Nodes, caplog: Any
    ) -> None:
        """A node that can't record orders is degraded; they are carried out afterwards."""
        a, b = nodes
        cookie = await log_in(b)
        await take_no_connection(redis_server, "secret!")
        cluster_of(a).outbox.link.drop("cut")
        await becomes(a, "degraded")
        line = next(r.message for r in caplog.records if "is degraded" in r.message)
        assert "orders can't be recorded: AuthenticationError" in line
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            assert registry_of(a).stats().outbox
            await take_no_connection(redis_server, "")
            assert await expect_close(ws) == 4401
        await becomes(a, "connected")
        assert "secret!" not in caplog.text

    async def test_none_for_data(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A node that can't send pushes and queries is degraded, and its log says so."""
        a = await start_node(redis_server.url, "a")
        await visit(a, "/out/end_session_ws", await log_in(a))
        await settled(a)
        await take_no_connection(redis_server, "secret!")
        await cut_unused(redis_server)
        await becomes(a, "degraded")
        assert "is degraded (pushes and requests can't be sent: Auth" in caplog.text
        await take_no_connection(redis_server, "")
        await becomes(a, "connected")

    async def test_blip(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A connection that is cut and replaced, like an idle one, does not degrade the node."""
        caplog.set_level(logging.INFO)
        a = await start_node(redis_server.url, "a")
        outbox, before = cluster_of(a).outbox, cluster_of(a).outbox.link.line
        await redis_server.kill_clients()
        await until(lambda: outbox.link.line not in (None, before))
        await visit(a, "/out/end_session_ws", await log_in(a))
        await settled(a)
        assert registry_of(a).state == "connected"
        assert not [r for r in caplog.records if "degraded" in r.message]

    async def test_subscription(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A subscription that breaks and is replaced is logged, but does not degrade the node."""
        a = await start_node(redis_server.url, "a")
        await redis_server.kill_pubsub()
        await until(lambda: caplog.records)
        assert "broke (ConnectionError: Redis closed the connection)" in caplog.text
        assert "subscribing again" in caplog.text
        assert registry_of(a).state == "connected"


class TestCommands:
    """Managed Redis services that lack commands or databases."""

    async def test_no_digests(self, start_node: StartNode) -> None:
        """Scripts are sent as text where EVALSHA is unknown."""
        async with RedisServer("--rename-command", "EVALSHA", "") as redis:
            a, b = await start_node(redis.url, "a"), await start_node(redis.url, "b")
            cookie = await log_in(b)
            async with socket(b, cookie) as ws:
                await visit(a, "/out/end_session_ws", cookie)
                assert await expect_close(ws) == 4401
            assert registry_of(a).state == "connected"

    async def test_no_scripts(self, start_node: StartNode, caplog: Any) -> None:
        """The log names a missing EVAL, and none of its arguments."""
        options = ["--rename-command", "EVALSHA", "", "--rename-command", "EVAL", ""]
        async with RedisServer(*options) as redis:
            a = await start_node(redis.url, "node-SECRET-1")
            assert registry_of(a).state == "degraded"
        line = next(r.message for r in caplog.records if "heartbeats fail" in r.message)
        assert re.search(r"\(heartbeats fail: ResponseError: unknown command .EVAL.\)", line)
        assert "SECRET" not in caplog.text

    async def test_may_not_in_scripts(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """The log contains Redis' own message if a script lacks a permission."""
        await redis_server.cli("ACL", "SETUSER", "default", "-time")
        await start_node(redis_server.url, "a")
        line = next(r.message for r in caplog.records if "heartbeats fail" in r.message)
        assert "can't run this command" in line or "ACL failure in script" in line

    async def test_no_database(self, start_node: StartNode, caplog: Any) -> None:
        """The log says that a database does not exist."""
        async with RedisServer("--databases", "1") as redis:
            await start_node(redis.url.removesuffix("0") + "1", "a")
        assert "Redis can't be used (ResponseError: DB index is out of range)" in caplog.text
