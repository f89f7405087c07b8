"""
Queries about the sockets of all nodes, and pushes to them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, setup
from aiohttp_session_ws.redis import RedisSessionWSRegistry, cluster, queries
from aiohttp_session_ws.redis.io import line, wire
from aiohttp_session_ws.results import Count, Delivery, NodeInfo
from tests.support import PATIENCE, expect_close, until
from tests.support.inspect import inspect
from tests.support.nodes import (
    Nodes,
    acquaint,
    cluster_of,
    id_of,
    log_in,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer


class TestLooking:
    async def test_connections(self, nodes: Nodes) -> None:
        """A query returns the open sockets of all nodes, with their nodes."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(b, "bob")
        anns = await id_of(a, ann)
        async with socket(a, ann), socket(b, ann), socket(b, bob):
            everything = await registry_of(a).connections()
            of_ann = await registry_of(b).connections(identity="ann")
            of_session = await registry_of(a).connections(session=anns)
            of_nobody = await registry_of(a).connections(identity=None)
        assert [(info.node, info.identity) for info in everything] == [
            ("a", "ann"),
            ("b", "ann"),
            ("b", "bob"),
        ]
        assert {info.session_ws_id for info in of_ann} == {anns}
        assert len(of_ann) == len(of_session) == 2
        assert len({info.id for info in everything}) == 3
        assert everything.complete
        assert of_nobody == ()

    async def test_newer_node(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unknown fields of a newer node are ignored; missing ones make the result incomplete."""
        a, b = nodes
        requests = cluster_of(b).requests
        answer, lacking = requests.answer, set[str]()

        def changed(info: dict[str, Any]) -> dict[str, Any]:
            return {key: info[key] for key in info if key not in lacking} | {"new": 7}

        def answer_as_newer(asker: str, number: str, channel: str, body: dict[str, Any]) -> bool:
            if "infos" in body:
                body["infos"] = [changed(info) for info in body["infos"]]
            if "node" in body:
                body["node"] = changed(body["node"])
            return answer(asker, number, channel, {**body, "new": 7})

        monkeypatch.setattr(requests, "answer", answer_as_newer)
        async with socket(b, await log_in(b)):
            found, there = await registry_of(a).connections(), await registry_of(a).nodes()
            lacking |= {"path", "sockets"}
            less, fewer = await registry_of(a).connections(), await registry_of(a).nodes()
        assert [(info.node, info.identity) for info in found] == [("b", "ann")]
        assert [(node.name, node.sockets) for node in there] == [("a", 0), ("b", 1)]
        assert (found.complete, there.complete) == (True, True)
        assert (less, [node.name for node in fewer]) == ((), ["a"])
        assert (less.complete, fewer.complete) == (False, False)

    async def test_newer_question(self, nodes: Nodes) -> None:
        """An unknown query has an incomplete result."""
        a, _ = nodes
        await acquaint(*nodes)
        assert (await cluster_of(a).ask("stats", {}, PATIENCE)).complete
        assert not (await cluster_of(a).ask("what none of us knows", {}, PATIENCE)).complete

    async def test_many(self, nodes: Nodes) -> None:
        """More sockets than fit into one message are returned in several."""
        a, b = nodes
        for n in range(1234):
            await noted(registry_of(b), n)
        found = await registry_of(a).connections()
        assert len(found) == 1234
        assert found.complete

    async def test_part_lost(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """A result is incomplete if one of its messages is dropped."""
        a, b = nodes
        monkeypatch.setattr(queries, "PART", 1)
        for n in range(3):
            await noted(registry_of(b), n)
        requests, room = cluster_of(b).requests, iter([True, False, True])
        answer = requests.answer
        monkeypatch.setattr(requests, "answer", lambda *args: next(room) and answer(*args))
        found = await registry_of(a).connections()
        assert len(found) == 1
        assert not found.complete

    async def test_count(self, nodes: Nodes) -> None:
        """A count includes the sockets of all nodes."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie), socket(b, cookie):
            count = await registry_of(a).count()
        assert count == 3
        assert count.complete

    async def test_nodes(self, nodes: Nodes) -> None:
        """A query for nodes returns each with its figures."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie), socket(b, cookie):
            found = await registry_of(a).nodes()
        assert found.complete
        assert list(found) == [NodeInfo("a", 0, 0, 0), NodeInfo("b", 2, 1, 0)]

    async def test_script(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A script can query and push to all nodes, and is not one of them."""
        a, _ = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), RedisSessionWSRegistry(redis_server.url) as script:
            assert await script.count() == 1
            assert [node.name for node in await script.nodes()] == ["a", "b"]
            (info,) = await script.connections()
            assert info.path == "/ws"
            delivery = await script.broadcast("x", wait=PATIENCE)
        assert delivery == Delivery(1, 2, complete=True)

    async def test_at_once(
        self, redis_server: RedisServer, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A script starts only when it can send queries, so its first one is answered."""
        opened, may_open = itertools.count(), asyncio.Event()

        async def connect(*args: Any) -> Any:
            if next(opened) == 2:  # after those for commands and orders
                await may_open.wait()
            return await wire.connect(*args)

        monkeypatch.setattr(line, "connect", connect)
        monkeypatch.setattr(cluster, "REPLY_TIMEOUT", PATIENCE)
        script = RedisSessionWSRegistry(redis_server.url)
        parts: Any = inspect(script).cluster
        starting = asyncio.create_task(script.__aenter__())
        await until(lambda: hasattr(parts, "health") and "can't be sent" in parts.why)
        may_open.set()
        await starting
        try:
            found = await script.nodes()
        finally:
            await script.__aexit__(None, None, None)
        assert [node.name for node in found] == ["a", "b"]
        assert found.complete

    async def test_silent(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A node that does not answer makes results incomplete."""
        a, _ = nodes
        await redis_server.cli("ZADD", "{aiohttp_session_ws}:nodes", "+inf", "ghost/1")
        await redis_server.cli("INCR", "{aiohttp_session_ws}:members")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: len(cluster_of(a).membership.members) == 3)
        registry = registry_of(a)
        found = await asyncio.gather(
            registry.connections(),
            registry.count(),
            registry.nodes(),
            registry.broadcast("x", wait=0.5),
        )
        assert not any(answer.complete for answer in found)

    async def test_away(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Without Redis local sockets are counted and pushed to, and the result is incomplete."""
        a, _ = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as ws:
            redis_server.kill()
            await until(lambda: not cluster_of(a).commands.available)
            count = await registry_of(a).count()
            delivery = await registry_of(a).broadcast("still")
            assert await ws.receive_str() == "still"
        assert count == 1
        assert not count.complete
        assert delivery == Delivery(1, 1, complete=False)

    async def test_one_process(self) -> None:
        """The registry of one process returns the same type of count, always complete."""
        app = web.Application()
        registry = setup(app, SessionWSRegistry())
        app.freeze()
        await app.startup()
        count = await registry.count()
        await app.cleanup()
        assert isinstance(count, Count)
        assert count.complete


async def noted(registry: RedisSessionWSRegistry, n: int) -> None:
    """Register an object by hand."""

    class Closable:
        async def close(self) -> None:
            pass

    registry.register(f"session {n}", Closable())


async def published(redis_server: RedisServer) -> int:
    """Return how many messages were published."""
    stats = await redis_server.cli("INFO", "commandstats")
    return int(stats["cmdstat_publish"]["calls"])


class TestPushing:
    @pytest.mark.parametrize("data", ["text \N{SNOWMAN}\n", b"\x00bytes\n\xff", bytearray(b"a")])
    async def test_everywhere(self, nodes: Nodes, data: Any) -> None:
        """A push reaches the addressed sockets of all nodes, and no others."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(b, "bob")
        registry = registry_of(a)
        async with socket(a, ann) as one, socket(b, ann) as two, socket(b, bob) as three:
            session = await registry.send_session(await id_of(a, ann), data, wait=PATIENCE)
            identity = await registry.send_identity("ann", data, wait=PATIENCE)
            everybody = await registry.broadcast(data, wait=PATIENCE)
            got = [(await ws.receive()).data for ws in (one, one, one, two, two, two, three)]
        expected = data if isinstance(data, str) else bytes(data)
        assert got == [expected] * 7
        assert session == identity == Delivery(2, 2, complete=True)
        assert everybody == Delivery(3, 2, complete=True)

    async def test_json(self, nodes: Nodes) -> None:
        """A push of JSON reaches the sockets of other nodes."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await registry_of(a).send_identity_json("ann", {"a": 1})
            assert await ws.receive_json() == {"a": 1}

    async def test_order(self, nodes: Nodes) -> None:
        """Pushes arrive in the order of the calls."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            pushes = [registry_of(a).broadcast(str(n), wait=PATIENCE) for n in range(300)]
            deliveries = await asyncio.gather(*pushes)
            got = [await ws.receive_str() for _ in range(300)]
        assert got == [str(n) for n in range(300)]
        # A busy Redis may answer after its client's timeout: then a delivery is incomplete.
        assert any(delivery.complete for delivery in deliveries)

    async def test_no_answer(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A push costs one message unless its answers are waited for."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await settled(a)
            before = await published(redis_server)
            delivery = await registry_of(a).broadcast("x")
            assert await ws.receive_str() == "x"
            assert await published(redis_server) == before + 1
        assert delivery == Delivery(0, 1, complete=False)

    async def test_too_much(self, nodes: Nodes) -> None:
        """A push that is too large to be queued is not sent, and its delivery is incomplete."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            delivery = await registry_of(a).broadcast(b"x" * (17 << 20))
            assert delivery == Delivery(0, 1, complete=False)
            await registry_of(a).broadcast("small")
            assert await ws.receive_str() == "small"

    @pytest.mark.parametrize(
        "head",
        [
            {"do": "push", "of": ["session"], "text": True},
            {"do": "push", "of": ["identity", ["a", {}]], "text": True},
            {"do": "push", "of": 7, "text": True},
            {"do": "push"},
            {"do": "relay"},
            {"do": "connections", "of": {}},
            {"do": "dance"},
            {"do": ["count"]},
        ],
    )
    async def test_foreign(self, redis_server: RedisServer, nodes: Nodes, head: Any) -> None:
        """A malformed query does not stop a node: later pushes arrive and are answered."""
        a, b = nodes
        for payload in (b"", b"\xff\xfe"):
            message = json.dumps({"v": 1, "from": "x", "q": "1"} | head).encode() + b"\n" + payload
            await redis_server.cli("PUBLISH", "{aiohttp_session_ws}:data", message)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            assert (await registry_of(a).broadcast("after it", wait=PATIENCE)).complete
            assert await ws.receive_str() == "after it"


class TestFlood:
    async def test_order(self, nodes: Nodes) -> None:
        """An order takes effect during a flood of pushes, not after it."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(b, "bob")
        over = asyncio.Event()

        async def flood() -> None:
            while not over.is_set():
                await asyncio.gather(
                    *[registry_of(a).send_identity("nobody", "x" * 1000) for _ in range(200)]
                )
                await asyncio.sleep(0)

        async with socket(b, ann) as ws, socket(b, bob):
            flooding = asyncio.create_task(flood())
            await visit(a, "/out/end_session_ws", ann)
            assert await expect_close(ws) == 4401
            over.set()
            async with asyncio.timeout(PATIENCE):
                await flooding

    async def test_two_connections(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Each node has two subscribed connections, so that orders have one of their own."""
        async with redis_server.client() as observer:
            subscribed = [
                int(client["sub"]) for client in await observer.client_list() if int(client["sub"])
            ]
        assert subscribed == [2, 2, 2, 2]
        await acquaint(*nodes)
