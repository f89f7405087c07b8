"""
Records in Redis, and the reports on orders.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import Expiry
from aiohttp_session_ws.redis import RedisSessionWSRegistry, membership
from aiohttp_session_ws.redis.membership import Membership
from tests.support import (
    PATIENCE,
    AiohttpClient,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import inspect
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    becomes_nobody,
    cluster_of,
    id_of,
    log_in,
    refused,
    registry_of,
    script,
    settled,
    socket,
    visit,
)
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"
MONTH, YEAR = 30 * 86400.0, 365 * 86400.0
HUGE = "1" + "0" * 400


class TestReport:
    async def test_wait(self, nodes: Nodes) -> None:
        """A report that was waited for covers all nodes."""
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
        """A report that was not waited for covers this node only."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie) as there:
            report = await registry_of(a).end_session(await id_of(a, cookie))
            await expect_close(there)
        assert (report.sockets, report.nodes_expected, report.nodes_answered) == (1, 1, 1)

    async def test_silent(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A node that does not answer makes the report incomplete, without an error."""
        a, b = nodes
        await redis_server.cli("ZADD", "{aiohttp_session_ws}:nodes", "+inf", "ghost/1")
        await redis_server.cli("INCR", "{aiohttp_session_ws}:members")
        await acquaint(a)
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: len(cluster_of(a).membership.members) == 3)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            report = await registry_of(a).end_session(await id_of(a, cookie), wait=0.5)
            await expect_close(ws)
        assert (report.nodes_expected, report.nodes_answered) == (3, 2)
        assert report.sockets == 1
        assert not report.complete
        assert report.stored

    async def test_joined(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node that joined since the last heartbeat is expected to answer, too."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            known = frozenset({cluster_of(a).instance})
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(b)
            await acquaint(a, b)
            cluster_of(a).membership.members = known  # as if no heartbeat had come between
            async with socket(b, cookie) as ws:
                report = await registry_of(a).end_session(await id_of(a, cookie), wait=20)
                await expect_close(ws)
            proxy.black_hole()
            silent = await registry_of(a).end_session("x", wait=0.5)

        assert (report.sockets, report.nodes_expected, report.complete) == (1, 2, True)
        assert (silent.nodes_expected, silent.complete) == (2, False)

    async def test_lost_data(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A silent node is still expected to answer after Redis has lost its data."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            await acquaint(a, b)
            proxy.black_hole()
            await redis_server.cli("FLUSHALL")
            cluster_of(a).membership.heartbeat_soon()
            await until(lambda: "Redis has lost data" in caplog.text)
            report = await registry_of(a).end_session("x", wait=0.5)
            assert (report.nodes_expected, report.complete) == (2, False)
            proxy.heal()
            await acquaint(a, b)
            assert (await registry_of(a).end_session("x", wait=PATIENCE)).complete

    async def test_joined_and_lost_data(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        caplog: Any,
    ) -> None:
        """A silent node that joined since the last heartbeat is expected even after a loss."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            await acquaint(a)
            monkeypatch.setattr(membership, "PULSE", 1000.0)
            cluster_of(a).membership.heartbeat_soon()
            c = await start_node(proxy.url(), "c")
            await until(lambda: cluster_of(c).instance in cluster_of(a).membership.members)
            proxy.black_hole()
            await redis_server.cli("FLUSHALL")
            cluster_of(a).membership.heartbeat_soon()
            await until(lambda: "Redis has lost data" in caplog.text)
            report = await registry_of(a).end_session("x", wait=0.5)
            proxy.heal()

        assert (report.nodes_expected, report.complete) == (2, False)

    async def test_joined_meanwhile(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node that reports its start is not removed by an older list of members."""
        a = await start_node(redis_server.url, "a")
        members, listed, seen = cluster_of(a).membership, Membership.listed, asyncio.Event()

        async def late(self: Membership) -> frozenset[str]:
            found = await listed(self)
            if not seen.is_set():
                self.add_listed("c/1")
                seen.set()
            return found

        monkeypatch.setattr(Membership, "listed", late)
        await redis_server.cli("INCR", f"{PREFIX}:members")
        members.heartbeat_soon()
        await seen.wait()

        assert members.members == {cluster_of(a).instance, "c/1"}

    async def test_another_version(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A node that joined after a loss of data is found, even if the list seems old."""
        a, b = await start_node(redis_server.url, "a"), await start_node(redis_server.url, "b")
        await acquaint(a, b)
        version = await redis_server.cli("GET", f"{PREFIX}:members")
        await redis_server.cli("FLUSHALL")
        await redis_server.cli("SET", f"{PREFIX}:members", int(version) - 1)
        await redis_server.cli("ZADD", f"{PREFIX}:nodes", "+inf", "c/1")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: "c/1" in cluster_of(a).membership.members)
        assert len(cluster_of(a).membership.members) == 3

    async def test_script(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A script can end sessions without being one of the nodes."""
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
    @pytest.mark.parametrize(
        ("method", "key"), [("end_session", "id"), ("end_identity", "identity")]
    )
    async def test_ttl(self, redis_server: RedisServer, method: str, key: str) -> None:
        """A script with a shorter TTL does not shorten the TTL of a record."""
        for days, ttl in ((YEAR, YEAR), (MONTH, YEAR), (MONTH, YEAR), (2 * YEAR, 2 * YEAR)):
            expiry = Expiry(revocation_ttl=days)
            async with script(redis_server.url, expiry=expiry) as registry:
                assert (await getattr(registry, method)("x", wait=PATIENCE)).stored
            left = await redis_server.cli("TTL", f'{PREFIX}:end:{key}:"x"')
            assert ttl - 3600 < left < ttl + 3600

    async def test_of_all_storages(
        self, redis_server: RedisServer, start_node: StartNode, aiohttp_client: AiohttpClient
    ) -> None:
        """A node that has seen no session keeps ends for as long as the longest storage needs."""
        registry = RedisSessionWSRegistry(redis_server.url, node="a", identify=user_of)
        storage = SimpleCookieStorage(max_age=int(YEAR))
        a = await aiohttp_client(make_app(registry, storage))
        await log_in(a)
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: redis_server.holds(f"{PREFIX}:ttl", 1))
        b = await start_node(redis_server.url, "b")
        await registry_of(b).end_identity("b")
        await settled(b)
        async with script(redis_server.url) as job:
            assert (await job.end_identity("c", wait=PATIENCE)).stored
        for whose in "bc":
            assert await redis_server.cli("TTL", f'{PREFIX}:end:identity:"{whose}"') > YEAR

    async def test_of_all_storages_in_an_outage(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ends ordered in an outage, or right at its end, get the TTL of the longest storage."""
        await redis_server.cli("SET", f"{PREFIX}:ttl", int(YEAR))
        redis_server.kill()
        node = await start_node(redis_server.url)
        cluster, gate = cluster_of(node), asyncio.Event()
        listed = cluster.membership.listed

        async def late() -> frozenset[str]:
            await gate.wait()
            return await listed()

        monkeypatch.setattr(cluster.membership, "listed", late)
        await registry_of(node).end_session("x")
        await registry_of(node).end_identity("ann")
        await redis_server.start()
        await until(lambda: cluster.clock.known)
        await registry_of(node).end_session("y")
        await settled(node)
        gate.set()
        for key in ('id:"x"', 'identity:"ann"', 'id:"y"'):
            assert await redis_server.cli("TTL", f"{PREFIX}:end:{key}") > YEAR - 3600

    @pytest.mark.parametrize(
        ("method", "kind"), [("end_session", "lineage"), ("end_identity", "end:identity")]
    )
    async def test_met(
        self, redis_server: RedisServer, start_node: StartNode, method: str, kind: str
    ) -> None:
        """A stale cookie restarts the TTL of its end, in Redis too."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        async with socket(a, cookie):
            whose = "ann" if kind == "end:identity" else await id_of(a, cookie)
            await getattr(registry_of(a), method)(whose, wait=PATIENCE)
        keys = await redis_server.cli("KEYS", f"{PREFIX}:{kind}:*")
        (key,) = [key for key in keys if "renewed" not in await redis_server.cli("GET", key)]
        await redis_server.cli("EXPIRE", key, 1000)
        b = await start_node(redis_server.url, "b")
        await becomes_nobody(b, cookie)

        async def is_kept() -> bool:
            return bool(await redis_server.cli("TTL", key) > 1000)

        await until(is_kept)

    async def test_renewal_met(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A request restarts the TTL of a renewal's record, so that old cookies stay invalid."""
        a = await start_node(redis_server.url, "a")
        cookie = await visit(a, "/renew", await log_in(a))
        await visit(a, "/whoami", cookie)
        await settled(a)
        keys = await redis_server.cli("KEYS", f"{PREFIX}:lineage:*")
        for key in keys:
            await redis_server.cli("EXPIRE", key, 1000)
        b = await start_node(redis_server.url, "b")
        await visit(b, "/whoami", cookie)

        async def is_kept() -> bool:
            return max([int(await redis_server.cli("TTL", key)) for key in keys]) > 1000

        await until(is_kept)

    async def test_for_ever(self, redis_server: RedisServer) -> None:
        """Ends may have a TTL longer than Redis can count."""
        expiry = Expiry(revocation_ttl=sys.maxsize)
        async with script(redis_server.url, expiry=expiry) as registry:
            assert (await registry.end_session("x", wait=PATIENCE)).stored

    async def test_for_ever_and_again(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A TTL longer than Redis can count also works for a renewed session, ended twice."""
        expiry = Expiry(revocation_ttl=sys.maxsize)
        a = await start_node(redis_server.url, "a", expiry=expiry)
        cookie = await visit(a, "/renew", await log_in(a))
        id_ = await id_of(a, cookie)
        await settled(a)
        async with script(redis_server.url, expiry=expiry) as job:
            for _ in range(2):
                assert (await job.end_session(id_, wait=PATIENCE)).stored
        assert await refused(a, cookie) == 4401

    async def test_one_slot(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """All keys have the same hash tag, and so the same slot of a Redis Cluster."""
        a, _ = nodes
        await visit(a, "/out/everywhere", await visit(a, "/renew", await log_in(a)))
        await registry_of(a).close_all_session("x", wait=PATIENCE)
        keys = await redis_server.cli("KEYS", "*")
        assert len(keys) > 8
        assert all(key.startswith(PREFIX + ":") for key in keys)

    async def test_never_without_lineage(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A log-out makes a fixed number of records, however often its cookie is presented."""
        a, b = nodes
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        for _ in range(3):
            await refused(a, cookie)
            await visit(b, "/whoami", cookie)
        await cluster_of(a).outbox.drain(PATIENCE)
        await cluster_of(b).outbox.drain(PATIENCE)
        first = len(await redis_server.cli("KEYS", f"{PREFIX}:lineage:*"))
        for _ in range(20):
            await refused(a, cookie)
            await visit(b, "/whoami", cookie)
        await cluster_of(a).outbox.drain(PATIENCE)
        await cluster_of(b).outbox.drain(PATIENCE)
        assert len(await redis_server.cli("KEYS", f"{PREFIX}:lineage:*")) <= first


class TestIds:
    @pytest.mark.parametrize("id_", [object(), 1.5 + 2j, frozenset("a"), b"bytes"])
    async def test_refused(self, redis_server: RedisServer, id_: Any) -> None:
        """A value that is not JSON raises a TypeError naming its type, and records nothing."""
        async with script(redis_server.url) as registry:
            for call in (registry.end_session, registry.close_all_session, registry.end_identity):
                with pytest.raises(TypeError, match=type(id_).__name__):
                    await call(id_)
            assert not len(inspect(registry).records)

    async def test_again(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An id that is reused is not locked: a session that begins later lives."""
        a = await start_node(redis_server.url, "a", id_factory=lambda request: "always the same")
        b = await start_node(redis_server.url, "b", id_factory=lambda request: "always the same")
        cookie = await log_in(a)
        await registry_of(a).end_session("always the same", wait=PATIENCE)
        assert await refused(b, cookie) == 4401
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie):
            pass

    async def test_tuple(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An id may be a tuple; ids that are equal here are equal on other nodes."""
        a = await start_node(redis_server.url, "a", id_factory=lambda request: ("t", 1))
        b = await start_node(redis_server.url, "b")
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await registry_of(a).end_session(("t", True))
            assert await expect_close(ws) == 4401

    async def test_surrogate(self, redis_server: RedisServer) -> None:
        """An order for an id that contains a lone surrogate is recorded."""
        async with script(redis_server.url) as registry:
            for id_ in ("x\ud800", "y\udfff", "z"):
                assert (await registry.end_session(id_, wait=PATIENCE)).stored


def orders(*lines: str) -> str:
    """Return a message with these orders."""
    return "\n".join(["0:0", '{"v":1,"from":"x"}', *lines])


class TestForeign:
    @pytest.mark.parametrize(
        "message",
        [
            "not ours",
            "1:1",
            "0:0\nnot JSON",
            "0:0\n[]",
            '0:0\n{"v":1}',
            '0:0\n{"v":99,"from":"x"}',
            orders('[[[1,"ended"]],[]]'),
            orders('[[[2,"ended",1,0,9,0,"x"]],[]]'),
            orders('[[[1,"improved","x"]],[]]'),
            orders("[]"),
            orders('[[],[],0,[Infinity,""],null,null]'),
            orders(f'[[[1,"ended",{HUGE},0,9,0,"x"]],[]]'),
            orders('[[[1,"before",NaN,9,["identity","x"]]],[]]'),
            orders('[[[1,"before",1,9,["id",[[{}]]]]],[]]'),
            orders(f'[[[1,"before",1,9,["id",{"[" * 300}1{"]" * 300}]]],[]]'),
            orders("[" * 100_000),
        ],
    )
    async def test_message(self, redis_server: RedisServer, nodes: Nodes, message: str) -> None:
        """A foreign or malformed message does not stop a node."""
        a, b = nodes
        cookie = await log_in(a)
        answers = f"answers:{cluster_of(b).instance}"
        for channel in ("orders", "data", answers):
            await redis_server.cli("PUBLISH", f"{PREFIX}:{channel}", message)
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401
        assert registry_of(b).state == "connected"

    @pytest.mark.parametrize(
        "text",
        [
            '{"v":1,"from":"\\ud800","q":"1","do":"count"}\n',
            '{"v":1,"from":"x","q":"1","do":[],"age":1}\n',
            '{"v":1,"from":"x","q":"1","do":"push","of":["id",Infinity],"text":true}\n',
        ],
    )
    async def test_questions(self, redis_server: RedisServer, nodes: Nodes, text: str) -> None:
        """A malformed query does not stop a node."""
        a, b = nodes
        await redis_server.cli("PUBLISH", f"{PREFIX}:data", text)
        assert (await registry_of(a).count()).complete
        assert (await registry_of(b).count()).complete

    async def test_readable_rest(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """One unreadable order does not prevent the others of its message."""
        a, b = nodes
        cookie = await log_in(a)
        subject = json.dumps(["id", await id_of(a, cookie)])
        end = f'[[[1,"before",4e9,60,{subject}]],[],0,[4000,"over"],null,null]'
        async with socket(b, cookie) as ws:
            message = orders('[[[7,"improved"]],[]]', end)
            await redis_server.cli("PUBLISH", f"{PREFIX}:orders", message)
            assert await expect_close(ws) == 4000

    async def test_record(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """A handshake whose record can't be read is refused, and that is logged."""
        a, _ = nodes
        cookie = await log_in(a)
        key = f'{PREFIX}:end:id:"{await id_of(a, cookie)}"'
        await redis_server.cli("SET", key, "whatever")
        assert await refused(a, cookie) == 4403
        assert "can't be read" in caplog.text
