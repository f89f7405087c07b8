"""
Orders that reach the sockets of every node.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web

from aiohttp_session_ws import Close
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.reading import read_record
from aiohttp_session_ws.redis.wire import Moved, Order, Unit
from aiohttp_session_ws.redis.writer import Job
from tests.support import PATIENCE, WAYS, AiohttpClient, Client, expect_close, until, user_of
from tests.support.nodes import (
    Nodes,
    StartNode,
    app_of,
    becomes_nobody,
    id_of,
    log_in,
    refused,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer


async def move(registry: RedisSessionWSRegistry, old: Any, new: Any, ttl: float = 60.0) -> None:
    """Record that a session has moved."""
    registry._revocations.move(old, new, ttl)
    registry._store([old], Close(4403))
    assert not await registry._node.writer.drain(PATIENCE)


class Kept(RedisSessionWSRegistry):
    """Keeps ids in the session under another name, and no time beside them."""

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Return the id."""
        session_ws_id: Hashable | None = (await aiohttp_session.get_session(request)).get("sid")
        return session_ws_id

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Keep the id."""
        (await aiohttp_session.get_session(request))["sid"] = session_ws_id

    async def delete_id(self, request: web.Request) -> None:
        """Forget the id."""
        (await aiohttp_session.get_session(request)).pop("sid", None)


def hold_back(registry: RedisSessionWSRegistry) -> Callable[[], None]:
    """Let orders wait, as if Redis were slow, until what is returned is called."""
    writer = registry._node.writer
    put, held = writer.put, []

    def hold(orders: Sequence[Order], unit: Unit | None = None) -> Job:
        held.append((orders, unit))
        return put(())

    def release() -> None:
        writer.put = put  # type: ignore[method-assign]
        for orders, unit in held:
            _ = put(orders, unit)

    writer.put = hold  # type: ignore[method-assign]
    return release


async def forget_recent(redis_server: RedisServer) -> None:
    """Let nodes that start from now on learn of orders only when they ask about a session."""
    await redis_server.cli("DEL", "aiohttp_session_ws:recent")


class TestLogOut:
    @pytest.mark.parametrize("way", sorted(WAYS))
    async def test_elsewhere(self, nodes: Nodes, way: str) -> None:
        """A log-out on one node closes the sockets of another, and its cookie opens none."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            await visit(a, f"/out/{way}", cookie)
            codes = [await expect_close(here), await expect_close(there)]

        assert codes == ([4403] * 2 if way == "pattern" else [4401] * 2)
        assert await refused(a, cookie) == 4401
        assert await refused(b, cookie) == 4401

    async def test_http(self, nodes: Nodes) -> None:
        """Another node sees nobody behind the stale cookie."""
        a, b = nodes
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await becomes_nobody(b, cookie)

    async def test_restarted(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node that starts after the log-out has never heard of it, and asks."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        b = await start_node(redis_server.url, "b")

        await becomes_nobody(b, cookie)
        c = await start_node(redis_server.url, "c")
        assert await refused(c, cookie) == 4401

    async def test_upgrade(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Nor is a page shown to who pretends to ask for a websocket."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        b = await start_node(redis_server.url, "b")
        headers = {"Cookie": cookie, "Upgrade": "websocket", "Connection": "upgrade"}
        async with asyncio.timeout(PATIENCE):
            while True:
                async with b.get("/whoami", headers=headers) as response:
                    if response.status == 403:
                        break

    async def test_others_stay(self, nodes: Nodes) -> None:
        """Nobody else's sockets are touched."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(b, "bob")
        async with socket(b, ann) as hers, socket(b, bob) as his, socket(a, bob) as other:
            await visit(a, "/out/end_session_ws", ann)
            await expect_close(hers)
            await his.send_str("still there")
            await other.send_str("still there")
            assert await his.receive_str() == await other.receive_str() == "still there"

    async def test_told_once(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """The end of a renewed session is told by who ends it, and by none of those who hear."""
        clients = [await start_node(redis_server.url, name) for name in "abc"]
        a, *others = clients
        old = await log_in(a)
        old_id = await id_of(a, old)
        new = await visit(a, "/renew", old)
        for client in others:
            await until(lambda client=client: registry_of(client)._revocations.get(old_id))  # type: ignore[misc]
        await settled(*clients)
        senders = set()
        async with redis_server.client() as redis, redis.pubsub() as pubsub:
            await pubsub.subscribe("aiohttp_session_ws:orders")
            await visit(a, "/out/end_session_ws", new)
            for client in others:
                await until(
                    lambda client=client: registry_of(client)._revocations.has_ended(old_id)  # type: ignore[misc]
                )
            await settled(*clients)
            await redis.publish("aiohttp_session_ws:orders", "that is all")
            async for message in pubsub.listen():
                if message["data"] == "that is all":
                    break
                if message["type"] == "message":
                    senders.add(json.loads(message["data"])["from"])
        assert senders == {registry_of(a)._node.instance}


class TestRenew:
    async def test_moved(self, nodes: Nodes) -> None:
        """A renewed session's sockets come back everywhere, with the new cookie only."""
        a, b = nodes
        old = await log_in(a)
        async with socket(b, old) as ws:
            new = await visit(a, "/renew", old)
            assert await expect_close(ws) == 4403
        assert await refused(b, old) == 4403
        async with socket(b, new):
            pass

    async def test_family(self, nodes: Nodes) -> None:
        """Who ends an id that was renewed ends what it became, on a node that was told."""
        a, b = nodes
        old = await log_in(a)
        old_id = await id_of(a, old)
        new = await visit(a, "/renew", old)
        async with socket(b, new) as ws:
            await registry_of(b).end_session(old_id)
            assert await expect_close(ws) == 4401
        await settled(b)
        assert await refused(a, new) == 4401

    async def test_family_untold(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Nor does it help that the node which ends it was not there when it was renewed."""
        a = await start_node(redis_server.url, "a")
        first = await log_in(a)
        second = await visit(a, "/renew", first)
        third = await visit(a, "/renew", second)
        first_id = await id_of(a, first)
        await settled(a)
        b = await start_node(redis_server.url, "b")
        async with socket(b, third) as ws:
            async with RedisSessionWSRegistry(redis_server.url) as script:
                await script.end_session(json.loads(json.dumps(first_id)))
            assert await expect_close(ws) == 4401
        for cookie in (first, second, third):
            assert await refused(b, cookie) == 4401

    async def test_only_remembered(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """What only a node remembers, it tells."""
        a, _ = nodes
        old = await log_in(a)
        old_id = await id_of(a, old)
        new = await visit(a, "/renew", old)
        new_id = await id_of(a, new)
        await settled(a)
        await redis_server.cli("DEL", f'aiohttp_session_ws:rev:"{old_id}"')
        async with RedisSessionWSRegistry(redis_server.url) as script:
            await script.end_session(old_id)
        async with asyncio.timeout(PATIENCE):
            while not await redis_server.cli("EXISTS", f'aiohttp_session_ws:rev:"{new_id}"'):
                await asyncio.sleep(0.01)

    async def test_two_successors(self, redis_server: RedisServer) -> None:
        """Of two moves at once neither is forgotten."""
        url = redis_server.url
        async with RedisSessionWSRegistry(url) as a, RedisSessionWSRegistry(url) as b:
            for registry, successor in ((a, "y"), (b, "z")):
                registry._revocations.move("x", successor, 60)
                registry._store(["x"], Close(4403))
                await registry._node.writer.drain(10)
            await b.end_session("x", wait=10)
            await b._node.writer.drain(10)
            async with redis_server.client() as client:
                records = await client.mget([f'aiohttp_session_ws:rev:"{id_}"' for id_ in "xyz"])
        assert [json.loads(str(record))["do"] for record in records] == ["end"] * 3

    async def test_large(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Ids that are large numbers are the same to the last digit when moves add up."""
        numbers = itertools.count(2**62 + 1)
        a = await start_node(redis_server.url, "a", id_factory=lambda request: next(numbers))
        old = await log_in(a)
        new = await visit(a, "/renew", old)
        old_id, new_id, other_id = 2**62 + 1, 2**62 + 2, next(numbers)
        await settled(a)
        async with RedisSessionWSRegistry(redis_server.url) as script:
            await move(script, old_id, other_id)
        text = await redis_server.cli("GET", f"aiohttp_session_ws:rev:{old_id}")
        record = read_record(text)
        assert isinstance(record, Moved)
        assert record.session_ws_id == old_id
        assert set(record.to) == {new_id, other_id}
        b = await start_node(redis_server.url, "b")
        async with socket(a, new) as here, socket(b, new) as there:
            assert await refused(b, old) == 4403
            for ws in (here, there):
                await ws.send_str("still there")
                assert await ws.receive_str() == "still there"

    async def test_overtaken(self, redis_server: RedisServer) -> None:
        """An id that is moved where it has ended by now takes its successor along."""
        url, old = redis_server.url, "half a pair \ud800"
        async with RedisSessionWSRegistry(url) as a, RedisSessionWSRegistry(url) as b:
            await a.end_session(old, wait=10)
            await move(b, old, "y")
            assert b._revocations.has_ended("y")
            await b._node.writer.drain(10)
            assert await redis_server.cli("EXISTS", 'aiohttp_session_ws:rev:"y"')


class TestClose:
    async def test_reconnect(self, nodes: Nodes) -> None:
        """Who is told to come back can, on every node."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            await visit(a, "/close", cookie)
            assert await expect_close(here) == await expect_close(there) == 4403
        async with socket(a, cookie), socket(b, cookie):
            pass

    async def test_once(self, nodes: Nodes) -> None:
        """An order that is told twice closes once."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(b, cookie) as ws:
            await registry_of(a).close_all_session(id_)
            await expect_close(ws)
        node = registry_of(a)._node
        (order,) = [order for order in node.memory.since(60) if order.op == "set"]
        async with socket(b, cookie) as ws:
            _ = node.writer.put([order], Unit((order,), Close(4403)))
            await settled(a)
            registry_of(b)._node.missed.set()
            await registry_of(a).broadcast("after it")
            assert await ws.receive_str() == "after it"

    async def test_reconcile(self, nodes: Nodes) -> None:
        """One that came before a socket opened doesn't close it when a node looks again."""
        a, b = nodes
        cookie = await log_in(a)
        await registry_of(a).close_all_session(await id_of(a, cookie))
        await settled(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            for client, ws in ((a, here), (b, there)):
                await registry_of(client)._learning.reconcile()
                await ws.send_str("still there")
                assert await ws.receive_str() == "still there"

    async def test_late_record(self, nodes: Nodes) -> None:
        """Nor one that was given here, and that Redis took when the socket was open again."""
        a, _ = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        release = hold_back(registry_of(a))
        await registry_of(a).close_all_session(id_)
        async with socket(a, cookie) as ws:
            release()
            await settled(a)
            await registry_of(a)._learning.reconcile()
            await ws.send_str("still there")
            assert await ws.receive_str() == "still there"

    async def test_identity(self, nodes: Nodes) -> None:
        """All sessions of an identity are told to come back, and can."""
        a, b = nodes
        one, two = await log_in(a), await log_in(b)
        async with socket(b, one) as first, socket(b, two) as second:
            await registry_of(a).close_all_identity("ann")
            assert await expect_close(first) == await expect_close(second) == 4403
        async with socket(b, one), socket(a, two):
            pass


class TestIdentity:
    async def test_everywhere(self, nodes: Nodes) -> None:
        """Log out everywhere: all sessions on all nodes, those without a socket too."""
        a, b = nodes
        one, two, three = await log_in(a), await log_in(b), await log_in(b)
        bob = await log_in(b, "bob")
        async with socket(a, one) as first, socket(b, two) as second, socket(b, bob) as other:
            await visit(a, "/out/everywhere", one)
            assert await expect_close(first) == await expect_close(second) == 4401
            await other.send_str("still there")
            assert await other.receive_str() == "still there"
        for cookie in (one, two, three):
            assert await refused(b, cookie) == 4401

    async def test_log_in_again(
        self, redis_server: RedisServer, start_node: StartNode, nodes: Nodes
    ) -> None:
        """Who logs in after that is let in, on every node, and on one that starts then."""
        a, b = nodes
        await visit(a, "/out/everywhere", await log_in(a))
        await settled(a)
        for client in nodes:
            await until(lambda client=client: registry_of(client)._identities.get("ann"))  # type: ignore[misc]
            cookie = await log_in(client)
            async with socket(a, cookie), socket(b, cookie):
                pass
            c = await start_node(redis_server.url, "c")
            registry_of(c)._identities._records.clear()  # as if it hadn't caught up yet
            async with socket(c, cookie):
                pass

    async def test_left_out(self, nodes: Nodes) -> None:
        """The session that is left out lives on, on every node."""
        a, b = nodes
        one, two = await log_in(a), await log_in(b)
        mine = await id_of(a, one)
        async with socket(b, one) as ws, socket(b, two) as other:
            await registry_of(a).end_identity("ann", except_session=mine)
            assert await expect_close(other) == 4401
            await ws.send_str("still there")
            assert await ws.receive_str() == "still there"
        assert await refused(b, two) == 4401
        async with socket(a, one):
            pass

    async def test_restarted(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node that starts later knows it from Redis."""
        a = await start_node(redis_server.url, "a")
        one, two = await log_in(a), await log_in(a)
        await visit(a, "/out/everywhere", one)
        await settled(a)
        b = await start_node(redis_server.url, "b")
        assert await refused(b, two) == 4401
        c = await start_node(redis_server.url, "c")
        await becomes_nobody(c, two)

    async def test_later_wins(self, redis_server: RedisServer) -> None:
        """An earlier end that Redis takes later changes nothing, and its node learns that."""
        url = redis_server.url
        async with RedisSessionWSRegistry(url) as a, RedisSessionWSRegistry(url) as b:
            release = hold_back(a)
            await a.end_identity("ann", except_session="x")
            first = a._identities.get("ann")
            assert first is not None
            await until(lambda: b._identities.now() > first.before)
            await b.end_identity("ann", wait=10)
            release()
            await a._node.writer.drain(10)
            record = a._identities.get("ann")
            assert record is not None
            assert not record.left_out
            text = await redis_server.cli("GET", 'aiohttp_session_ws:identity:"ann"')
            assert json.loads(text)["out"] == []

    async def test_no_stamp(
        self, redis_server: RedisServer, aiohttp_client: AiohttpClient
    ) -> None:
        """Who logs in again is let in, though nothing may tell how old the session is."""

        async def start(name: str) -> Client:
            client = await aiohttp_client(
                app_of(Kept(redis_server.url, node=name, identify=user_of))
            )
            client.session.cookie_jar.clear()
            return client

        a = await start("a")
        await visit(a, "/out/everywhere", await log_in(a))
        await settled(a)
        cookie = await log_in(a)
        await settled(a)
        await forget_recent(redis_server)
        b = await start("b")
        for client in (a, b):
            async with socket(client, cookie) as ws:
                await registry_of(client)._learning.reconcile()
                await ws.send_str("still there")
                assert await ws.receive_str() == "still there"

    @pytest.mark.parametrize("where", ["here", "there"])
    async def test_wrong_clock(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        """A socket whose session seems to be from the future is closed as well."""
        a, b = nodes
        with monkeypatch.context() as patch:
            later = time.time() + 300
            patch.setattr(registry_of(a)._identities, "time", lambda: later)
            cookie = await log_in(a)
        async with socket(a if where == "here" else b, cookie) as ws:
            await registry_of(a).end_identity("ann")
            assert await expect_close(ws) == 4401
