"""
What is kept in Redis, and what reports say of it.
"""

from __future__ import annotations

from typing import Any

import pytest

from aiohttp_session_ws import Close, Expiry
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.wire import Ended, Moved, envelope
from tests.support import PATIENCE, expect_close, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    id_of,
    log_in,
    refused,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer

MONTH, YEAR = 30 * 86400.0, 365 * 86400.0


async def end(registry: RedisSessionWSRegistry) -> None:
    """End a session for as long as is usual here."""
    assert (await registry.end_session("x", wait=PATIENCE)).stored


async def move(registry: RedisSessionWSRegistry, old: Any, new: Any, ttl: float = 60.0) -> None:
    """Record that a session has moved."""
    registry._revocations.move(old, new, ttl)
    registry._store([old], Close(4403))
    assert not await registry._node.writer.drain(PATIENCE)


async def end_identity(registry: RedisSessionWSRegistry) -> None:
    """End an identity for as long as is usual here."""
    assert (await registry.end_identity("x", wait=PATIENCE)).stored


async def move_on(registry: RedisSessionWSRegistry) -> None:
    """Move a session, and remember it for as long as is usual here."""
    await move(registry, "x", "y", registry._ttl())


class TestReport:
    async def test_wait(self, nodes: Nodes) -> None:
        """Who waits is told what all nodes did."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(a, cookie), socket(b, cookie), socket(b, cookie):
            report = await registry_of(a).end_session(id_, wait=20)
        assert (report.sockets, report.aborted) == (3, 0)
        assert (report.nodes_expected, report.nodes_answered) == (2, 2)
        assert report.complete
        assert report.stored

    async def test_not_waiting(self, nodes: Nodes) -> None:
        """Who doesn't is told what this node did."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie) as there:
            report = await registry_of(a).end_session(await id_of(a, cookie))
            await expect_close(there)
        assert (report.sockets, report.nodes_expected, report.nodes_answered) == (1, 1, 1)

    async def test_silent(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A node that doesn't answer makes the report incomplete, and raises nothing."""
        a, b = nodes
        await redis_server.cli("ZADD", "aiohttp_session_ws:nodes", "+inf", "ghost/1")
        await acquaint(a)
        await until(lambda: len(registry_of(a)._node.members) == 3)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            report = await registry_of(a).end_session(await id_of(a, cookie), wait=0.5)
            await expect_close(ws)
        assert (report.nodes_expected, report.nodes_answered) == (3, 2)
        assert report.sockets == 1
        assert not report.complete
        assert report.stored

    async def test_script(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A script ends sessions of an application, without being one of its nodes."""
        a, b = nodes
        cookie = await log_in(a)
        async with (
            socket(b, cookie) as ws,
            RedisSessionWSRegistry(redis_server.url) as script,
        ):
            report = await script.end_identity("ann", wait=20)
            assert await expect_close(ws) == 4401
        assert (report.sockets, report.stored, report.complete) == (1, True, True)


class TestRecords:
    async def test_surrogate(self, redis_server: RedisServer) -> None:
        """An id that is left out may be half a pair of surrogates, which stops nothing."""
        async with RedisSessionWSRegistry(redis_server.url) as registry:
            for left_out in (None, "x\ud800", "y\udfff"):
                report = await registry.end_identity("ann", except_session=left_out, wait=PATIENCE)
                assert report.stored
            assert (await registry.end_session("z", wait=PATIENCE)).stored

    @pytest.mark.parametrize("order", [end, move_on, end_identity])
    async def test_ttl(self, redis_server: RedisServer, order: Any) -> None:
        """Who remembers for a shorter time, a script perhaps, shortens nobody else's."""
        url = redis_server.url
        for days, ttl in ((YEAR, YEAR), (MONTH, YEAR), (2 * YEAR, 2 * YEAR)):
            expiry = Expiry(revocation_ttl=days)
            async with RedisSessionWSRegistry(url, expiry=expiry) as registry:
                await order(registry)
            key = "identity" if order is end_identity else "rev"
            left = await redis_server.cli("TTL", f'aiohttp_session_ws:{key}:"x"')
            assert ttl - 3600 < left < ttl + 3600


class TestIds:
    @pytest.mark.parametrize("id_", [object(), 1.5 + 2j, frozenset("a"), b"bytes"])
    async def test_refused(self, redis_server: RedisServer, id_: Any) -> None:
        """What can't be JSON is refused by a TypeError that names it; nothing has happened."""
        async with RedisSessionWSRegistry(redis_server.url) as registry:
            for call in (registry.end_session, registry.close_all_session, registry.end_identity):
                with pytest.raises(TypeError, match=type(id_).__name__):
                    await call(id_)
            assert not registry._revocations
            assert not registry._identities
            assert not len(registry._node.writer)

    async def test_lifted(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An id that is made again is alive again, on every node."""
        a = await start_node(redis_server.url, "a", id_factory=lambda request: "always the same")
        b = await start_node(redis_server.url, "b", id_factory=lambda request: "always the same")
        cookie = await log_in(a)
        await registry_of(a).end_session("always the same", wait=20)
        assert await refused(b, cookie) == 4401
        cookie = await log_in(a)
        await settled(a)
        await until(lambda: not registry_of(b)._revocations.has_ended("always the same"))
        async with socket(b, cookie):
            pass

    async def test_tuple(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An id may be a tuple; what is equal here is equal there."""
        a = await start_node(redis_server.url, "a", id_factory=lambda request: ("t", 1))
        b = await start_node(redis_server.url, "b")
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await registry_of(a).end_session(("t", True))
            assert await expect_close(ws) == 4401


class TestForeign:
    @pytest.mark.parametrize(
        "message",
        [
            "not JSON",
            "[]",
            '{"v": 1}',
            '{"v": 99, "from": "x", "units": []}',
            '{"v": 1, "from": "x", "units": [{"orders": [{"v": 1, "do": "end"}]}]}',
            '{"v": 1, "from": "x", "units": [{"orders": [], "code": 7}]}',
            "[" * 100_000,
        ],
    )
    async def test_message(
        self, redis_server: RedisServer, nodes: Nodes, caplog: Any, message: str
    ) -> None:
        """What isn't ours is logged, and the node goes on."""
        a, b = nodes
        cookie = await log_in(a)
        for channel in ("orders", "data", f"answers:{registry_of(b)._node.instance}"):
            await redis_server.cli("PUBLISH", f"aiohttp_session_ws:{channel}", message)
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401
        if '"v": 99' not in message:
            assert "isn't ours" in caplog.text

    async def test_unknown_order(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """An order of another version, or of a kind that is not known, is passed over."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        known = Ended(id_, 0.0, 60.0).text()
        orders = [known.replace('"v":1', '"v":2'), known.replace("end", "improve")]
        unit = f'{{"orders":[{",".join(orders)}]}}'
        async with socket(b, cookie) as ws:
            message = envelope("x", [unit])
            await redis_server.cli("PUBLISH", "aiohttp_session_ws:orders", message)
            await registry_of(a).broadcast("after it")
            assert await ws.receive_str() == "after it"

    async def test_record(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """A revocation that can't be read was put there for a reason."""
        a, _ = nodes
        cookie = await log_in(a)
        key = f'aiohttp_session_ws:rev:"{await id_of(a, cookie)}"'
        await redis_server.cli("SET", key, "whatever")
        assert await refused(a, cookie) == 4401
        assert "can't be read" in caplog.text

    async def test_wrong_type(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A key of another type is in nobody's way."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        await redis_server.cli("RPUSH", f'aiohttp_session_ws:rev:"{id_}"', "foreign")
        await registry_of(a).end_session(id_, wait=20)
        assert await refused(b, cookie) == 4401

    async def test_endless(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A circle of moves is followed for a while, and the answer comes."""
        a, _ = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        for one, two in ((id_, "x"), ("x", "y"), ("y", id_)):
            text = Moved(one, (two,), 0.0, 60.0).text()
            await redis_server.cli("SET", f'aiohttp_session_ws:rev:"{one}"', text)
        assert await refused(a, cookie) == 4403
