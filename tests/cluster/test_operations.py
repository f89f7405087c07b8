"""
What operators can see and do over all nodes: statistics, orders, rechecks, handles.
"""

from __future__ import annotations

import aiohttp_session
import pytest
from aiohttp import web

from aiohttp_session_ws import renew_session_ws
from aiohttp_session_ws.redis.outages import Outages
from aiohttp_session_ws.registry import operations
from aiohttp_session_ws.signals import OrderDetails
from aiohttp_session_ws.typing import Identified
from tests.support import PATIENCE, AiohttpClient, Client, expect_close, until, user_of
from tests.support.inspect import connections
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    becomes,
    cluster_of,
    log_in,
    node_app,
    registry_of,
    script,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer


def orders_at(*clients: Client) -> list[OrderDetails]:
    """Record what the ``on_order`` receivers of some nodes are given."""
    told: list[OrderDetails] = []
    for client in clients:

        @registry_of(client).on_order
        async def tell(details: OrderDetails) -> None:
            told.append(details)

    return told


class TestNames:
    async def test_same(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Two nodes of the same name are separate members, and receive each other's orders."""
        nodes = a, b = [await start_node(redis_server.url, "web") for _ in range(2)]
        await acquaint(a, b)
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie) as ws:
            named = await registry_of(a).nodes()
            stats = await registry_of(a).cluster_stats()
            report = await registry_of(a).end_identity("ann", wait=PATIENCE)
            assert await expect_close(ws) == 4401

        assert [node.name for node in named] == ["web", "web"]
        assert [each.open for each in stats] == [1, 1]
        assert (report.sockets, report.nodes_answered, report.complete) == (2, len(nodes), True)


class TestStats:
    async def test_of_all(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """The statistics of a cluster contain the counts of each node."""
        monkeypatch.setattr(operations, "WAIT", PATIENCE)
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie) as ws:
            during = await registry_of(a).cluster_stats()
            await registry_of(a).end_identity("ann", wait=PATIENCE)
            assert await expect_close(ws) == 4401
        await until(lambda: registry_of(b).stats().closes)
        await until(lambda: registry_of(b).stats().orders_heard == 2)
        after = await registry_of(b).cluster_stats()

        assert [(stats.node, stats.open) for stats in during] == [("a", 1), ("b", 1)]
        assert during.complete
        assert after.complete
        assert after.total.closes[("order", 4401)] == 2
        assert [stats.orders_given for stats in after] == [2, 0]  # including that of the log-in
        assert [stats.orders_heard for stats in after] == [0, 2]

    async def test_script(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A script is not one of the nodes in the statistics."""
        async with script(redis_server.url) as job:
            stats = await job.cluster_stats()

        assert [one.node for one in stats] == ["a", "b"]
        assert stats.complete

    async def test_silent(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Statistics are incomplete without an answer of every node."""
        a, _ = nodes
        await redis_server.cli("ZADD", "{aiohttp_session_ws}:nodes", "+inf", "ghost/1")
        await redis_server.cli("INCR", "{aiohttp_session_ws}:members")
        members = cluster_of(a).membership
        members.heartbeat_soon()
        await until(lambda: len(members.members) == 3)
        stats = await registry_of(a).cluster_stats()

        assert [one.node for one in stats] == ["a", "b"]
        assert not stats.complete

    async def test_outage(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An outage and its duration are counted, and the orders that wait for its end."""
        a = await start_node(redis_server.url, "a")
        before = registry_of(a).stats()
        redis_server.kill()
        await becomes(a, "degraded")
        await registry_of(a).end_session("x")
        during = registry_of(a).stats()
        await redis_server.restart()
        await becomes(a, "connected")
        await until(lambda: not registry_of(a).stats().outbox)
        after = registry_of(a).stats()

        assert (before.outages, before.outage_seconds, before.outbox) == (0, 0.0, 0)
        assert (during.outages, during.outbox) == (1, 1)
        assert after.outages == 1
        assert after.outage_seconds > during.outage_seconds
        assert registry_of(a).stats().outage_seconds == after.outage_seconds

    async def test_reconciled(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Orders that a node missed and found later are counted, and passed to ``on_order``."""
        a, b = nodes
        told = orders_at(b)
        await redis_server.kill_pubsub()

        async def reconciles() -> bool:
            await redis_server.kill_pubsub()
            await registry_of(a).end_identity("ann")
            cluster_of(b).membership.heartbeat_soon()
            return any(details.node == "" for details in told)

        await until(reconciles)
        assert registry_of(b).stats().orders_reconciled
        assert all(details.subject == "ann" for details in told)

    def test_outages(self) -> None:
        """The durations of outages add up, and a current one counts up to now."""
        now = [100.0]
        outages = Outages(lambda: now[0])
        outages.begin()
        now[0] += 2
        outages.begin()
        now[0] += 1
        assert outages.end() == 3.0
        now[0] += 50
        assert outages.end() == 0.0
        assert outages.so_far() == (1, 3.0)
        outages.begin()
        now[0] += 4

        assert outages.so_far() == (2, 7.0)


class TestOrders:
    async def test_everywhere(self, nodes: Nodes) -> None:
        """Every node's ``on_order`` is told who gave an order, where, and its effect there."""
        a, b = nodes
        cookie = await log_in(b)
        async with socket(b, cookie) as ws:
            await until(lambda: registry_of(a).stats().orders_heard)  # of the log-in
            told = orders_at(a, b)
            await registry_of(a).end_identity("ann", by="admin:7", wait=PATIENCE)
            assert await expect_close(ws) == 4401
        await until(lambda: len(told) == 2)

        assert told == [
            OrderDetails("end", "identity", "ann", "admin:7", 0, 0, "a"),
            OrderDetails("end", "identity", "ann", "admin:7", 1, 0, "a"),
        ]

    async def test_log_out_elsewhere(self, nodes: Nodes) -> None:
        """An order of a request is passed to ``on_order`` once per node."""
        a, b = nodes
        cookie = await log_in(a)
        await acquaint(a, b)
        await until(lambda: registry_of(b).stats().orders_heard)
        told = orders_at(a, b)
        a.session.cookie_jar.clear()
        await a.get("/out/end_session_ws", headers={"Cookie": cookie})
        await until(lambda: len(told) == 2)

        assert {(details.kind, details.subject_kind) for details in told} == {("end", "id")}
        assert {details.node for details in told} == {"a"}


class TestOneConnection:
    async def test_elsewhere(self, nodes: Nodes) -> None:
        """A socket is closed by its id from another node, and the session's others stay open."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws, socket(a, cookie) as other:
            infos = {info.node: info for info in await registry_of(a).connections()}
            report = await registry_of(a).close_connection(infos["b"].id, wait=PATIENCE)
            assert await expect_close(ws) == 4403
            await other.send_str("still there?")
            assert await other.receive_str(timeout=PATIENCE) == "still there?"

        assert (report.sockets, report.complete) == (1, True)
        assert infos["a"].user_agent.startswith("Python/")

    async def test_gone(self, nodes: Nodes) -> None:
        """All nodes answer an order for a connection that none of them has."""
        report = await registry_of(nodes[0]).close_connection("0123456789ab", wait=PATIENCE)

        assert (report.sockets, report.nodes_answered, report.complete) == (0, 2, True)

    async def test_all_but_one(self, nodes: Nodes) -> None:
        """A session's sockets are closed on all nodes, except for the given one."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as one, socket(b, cookie) as other:
            (connection,) = connections(registry_of(a))
            registry = registry_of(a)
            await registry.close_all_session(connection.session_ws_id, except_=connection)

            assert await expect_close(other) == 4403
            await one.send_str("still there?")
            assert await one.receive_str(timeout=PATIENCE) == "still there?"


class TestRecheck:
    async def test_everywhere(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A recheck closes the sockets of an identity that has lost its rights, on all nodes."""
        refused = False
        options = {"authorize": lambda request: not refused}
        a = await start_node(redis_server.url, "a", **options)
        b = await start_node(redis_server.url, "b", **options)
        await acquaint(a, b)
        cookie = await log_in(a)
        async with socket(a, cookie) as one, socket(b, cookie) as other:
            before = await registry_of(a).recheck("ann", wait=PATIENCE)
            refused = True
            after = await registry_of(a).recheck("ann", wait=PATIENCE)
            codes = [await expect_close(ws) for ws in (one, other)]

        assert (before.sockets, before.complete) == (0, True)
        assert (after.sockets, after.nodes_answered, codes) == (2, 2, [4403, 4403])

    async def test_without_identify(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A node without ``identify`` makes the report of a recheck incomplete."""
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", identify=None)
        await acquaint(a, b)
        report = await registry_of(a).recheck("ann", wait=PATIENCE)

        assert (report.nodes_answered, report.complete) == (2, False)


class TestHandles:
    async def test_elsewhere(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A session that has a socket on another node only is ended by its handle."""
        key = "a secret of this test"
        a = await start_node(redis_server.url, "a", handle_key=key)
        b = await start_node(redis_server.url, "b", handle_key=key)
        await acquaint(a, b)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            (info,) = await registry_of(a).connections()
            handle = registry_of(b).handle(info.session_ws_id)
            report = await registry_of(a).end_session(handle, wait=PATIENCE)

            assert await expect_close(ws) == 4401
        assert handle == registry_of(a).handle(info.session_ws_id)
        assert (report.sockets, report.complete) == (1, True)


class TestRefresh:
    async def test_until(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """A token refreshed on one node extends the lifetime of sockets on another."""

        async def token_of(request: web.Request) -> Identified | None:
            session = await aiohttp_session.get_session(request)
            user = await user_of(request)
            return None if user is None else Identified(user, session.get("until", 2e9))

        async def refresh(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request))["until"] = 3e9
            response = web.Response()
            await renew_session_ws(request, response, sockets="keep")
            return response

        clients = []
        for name in "ab":
            app = node_app(redis_server.url, name, identify=token_of)
            app.router.add_get("/refresh", refresh)
            clients.append(await aiohttp_client(app))
        a, b = clients
        await acquaint(a, b)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            (connection,) = connections(registry_of(b))
            assert connection.until == 2e9
            await visit(a, "/refresh", cookie)
            await until(lambda: connection.until == 3e9)
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
