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

from aiohttp_session_ws import Close, Expiry
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.reading import read_record
from aiohttp_session_ws.redis.wire import Ended, Moved, Order, Unit, envelope
from aiohttp_session_ws.redis.writer import Job
from tests.support import PATIENCE, WAYS, AiohttpClient, Client, expect_close, until
from tests.support.nodes import (
    StartNode,
    acquaint,
    app_of,
    becomes_nobody,
    id_of,
    log_in,
    refused,
    registry_of,
    settled,
    socket,
    user_of,
    visit,
)
from tests.support.redis_servers import RedisServer

Nodes = tuple[Client, Client]

MONTH, YEAR = 30 * 86400.0, 365 * 86400.0


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


async def move(registry: RedisSessionWSRegistry, old: Any, new: Any, ttl: float = 60.0) -> None:
    """Record that a session has moved."""
    registry._revocations.move(old, new, ttl)
    registry._store([old], Close(4403))
    assert not await registry._node.writer.drain(PATIENCE)


async def end(registry: RedisSessionWSRegistry) -> None:
    """End a session for as long as is usual here."""
    assert (await registry.end_session("x", wait=PATIENCE)).stored


async def end_identity(registry: RedisSessionWSRegistry) -> None:
    """End an identity for as long as is usual here."""
    assert (await registry.end_identity("x", wait=PATIENCE)).stored


async def move_on(registry: RedisSessionWSRegistry) -> None:
    """Move a session, and remember it for as long as is usual here."""
    await move(registry, "x", "y", registry._ttl())


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
