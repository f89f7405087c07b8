"""
Reconciliation of orders that a node missed, and write-back of records that Redis lost.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from redis.asyncio import Redis

from aiohttp_session_ws import renew_session_ws
from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis import inbound, membership, recent, reconcile, write_back
from aiohttp_session_ws.redis.clock import RedisClock
from aiohttp_session_ws.redis.cluster import RedisCluster
from aiohttp_session_ws.redis.io import subscriber, wire
from aiohttp_session_ws.redis.io.commands import Commands
from aiohttp_session_ws.redis.io.scripts import FIND, HEARTBEAT, Script
from aiohttp_session_ws.redis.messages import encode_record
from aiohttp_session_ws.sessions.records import SubjectEnded
from aiohttp_session_ws.signals import OrderDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    expect_close,
    until,
)
from tests.support.inspect import inspect
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    becomes,
    becomes_nobody,
    cluster_of,
    id_of,
    log_in,
    node_app,
    refused,
    registry_in,
    registry_of,
    script,
    settled,
    socket,
    visit,
)
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"


async def recorded(redis: RedisServer, id_: str) -> None:
    """Wait until Redis has the end of an id."""
    await until(lambda: redis.cli("EXISTS", f'{PREFIX}:end:id:"{id_}"'))


async def ends_numbered(redis: RedisServer) -> bool:
    """Return whether Redis has the end of a lineage, listed with a number."""
    numbered = await redis.cli("ZRANGE", f"{PREFIX}:recent", 0, -1)
    for key in await redis.cli("KEYS", f"{PREFIX}:lineage:*"):
        if '"ended"' in await redis.cli("GET", key):
            return any(key in keys for keys in numbered)
    return False


async def record_unheard(redis: RedisServer, client: Client, cookie: str) -> None:
    """Record the end of a session as if its message and its number had been lost."""
    now = inspect(registry_of(client)).clock.now()
    ended = SubjectEnded(Subject("id", await id_of(client, cookie)), now, ttl=60.0)
    key, _, text = encode_record(ended)
    await redis.cli("SET", f"{PREFIX}:{key}", text)


def fail_at_times(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every second read fail."""
    read, asked = commands.read, itertools.count()

    def read_or_fail(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
        if next(asked) % 2 == 0:
            return read(keys)
        failed: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        failed.set_exception(RedisUnavailable("away, for a moment"))
        return failed

    monkeypatch.setattr(commands, "read", read_or_fail)


class TestDeaf:
    """A node that is cut off from a Redis that the others can reach."""

    async def test_missed(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node finds the ends, renewals and close orders that it missed."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            ends, moves, closes = await log_in(a), await log_in(a), await log_in(a)
            async with socket(b, ends) as one, socket(b, moves) as two, socket(b, closes) as three:
                await proxy.stop()
                await becomes(b, "degraded")
                await visit(a, "/out/end_session_ws", ends)
                await visit(a, "/renew", moves)
                await visit(a, "/close", closes)
                await settled(a)
                await proxy.start()
                codes = [await expect_close(ws) for ws in (one, two, three)]
            assert codes == [4401, 4403, 4403]
            await becomes(b, "connected")
            async with socket(b, closes):
                pass

    async def test_identities(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node finds the orders by id and by identity that it missed."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            mine, other, bob = await log_in(a), await log_in(a), await log_in(a, "bob")
            my_id = await id_of(a, mine)
            async with socket(b, mine) as one, socket(b, other) as two, socket(b, bob) as three:
                await proxy.stop()
                await becomes(b, "degraded")
                await registry_of(a).end_session(my_id)
                await registry_of(a).close_all_identity("bob")
                await settled(a)
                await proxy.start()
                assert [await expect_close(one), await expect_close(three)] == [4401, 4403]
                await two.send_str("still there")
                assert await two.receive_str() == "still there"

    @pytest.mark.parametrize("both", [False, True], ids=["the renewal", "the log-out too"])
    async def test_by_hand(
        self, redis_server: RedisServer, aiohttp_client: AiohttpClient, both: bool
    ) -> None:
        """An object registered by hand ends with its session, even after a missed renewal."""
        closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Thing:
            def close(self, *, code: int, message: bytes) -> None:
                closed.set_result(code)

        async def keep(request: web.Request) -> web.Response:
            response = web.Response()
            await renew_session_ws(request, response, sockets="keep")
            return response

        async with Proxy(redis_server.port) as proxy:
            app = node_app(redis_server.url, "a", timeouts=QUICK)
            app.router.add_get("/keep", keep)
            a = await aiohttp_client(app)
            b = await aiohttp_client(node_app(proxy.url(), "b", timeouts=QUICK))
            cookie = await log_in(a)
            registry_of(b).register(await id_of(a, cookie), Thing())
            async with socket(b, cookie) as ws:
                await proxy.stop()
                await becomes(b, "degraded")
                cookie = await visit(a, "/keep", cookie)
                if both:
                    await visit(a, "/out/end_session_ws", cookie)
                await settled(a)
                await proxy.start()
                assert await expect_close(ws) == (4401 if both else 4403)
            if not both:
                assert not closed.done()
                await visit(a, "/out/end_session_ws", cookie)
            assert await asyncio.wait_for(closed, PATIENCE) == 4401

    async def test_logged_in_since(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A log-in after a log-out everywhere is not ended by it when a node catches up."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b", on_outage="accept")
            old = await log_in(a)
            async with socket(b, old) as before:
                await proxy.stop()
                await becomes(b, "degraded")
                await visit(a, "/out/everywhere", old)
                new = await log_in(a)
                await settled(a)
                async with socket(b, new) as after:
                    await proxy.start()
                    assert await expect_close(before) == 4401
                    await after.send_str("still there")
                    assert await after.receive_str() == "still there"

    async def test_black_hole(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A connection that is dead, but not closed, is detected."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(a)
            async with socket(b, cookie) as ws:
                proxy.black_hole()
                await becomes(b, "degraded")
                await visit(a, "/out/end_session_ws", cookie)
                await settled(a)
                proxy.heal()
                assert await expect_close(ws) == 4401

    async def test_pages(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """After an outage a node looks up sessions again that it had looked up before."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(b)
            await visit(b, "/whoami", cookie)
            await proxy.stop()
            await becomes(b, "degraded")
            await visit(a, "/out/end_session_ws", cookie)
            await settled(a)
            await redis_server.cli("DEL", "{aiohttp_session_ws}:recent")  # so it must look it up
            await proxy.start()
            await becomes_nobody(b, cookie)

    async def test_only_pubsub(
        self, redis_server: RedisServer, nodes: Nodes, monkeypatch: Any
    ) -> None:
        """A subscription that keeps failing is retried with a delay, and then recovers."""
        a, b = nodes
        cookie = await log_in(a)
        failing, real = [0], wire.connect

        async def connect(client: Any, prefix: str) -> Any:
            if failing[0]:
                failing[0] += 1
                raise TimeoutError("timed out")
            return await real(client, prefix)

        monkeypatch.setattr(subscriber, "connect", connect)
        failing[0] = 1
        await redis_server.kill_pubsub()
        await becomes(b, "degraded")
        await until(lambda: failing[0] >= 10)
        assert failing[0] < 1000
        async with Redis.from_url(redis_server.url) as redis:
            assert await redis.ping()
        failing[0] = 0
        await becomes(b, "connected")
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(ws) == 4401

    async def test_heartbeat_fails(
        self, redis_server: RedisServer, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Missed orders are read after the first heartbeat that succeeds."""
        a, b = nodes
        cluster, failed = cluster_of(b), asyncio.Event()
        run_script = cluster.commands.run_script

        async def refuse(client: Any, prefix: str) -> Any:
            raise TimeoutError("timed out")

        def fail_once(script: Script, *args: Any, **how: Any) -> asyncio.Future[Any]:
            if script is not HEARTBEAT or not cluster.health.receives_orders or failed.is_set():
                return run_script(script, *args, **how)
            failed.set()
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(RedisUnavailable("away, for a moment"))
            return answer

        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            monkeypatch.setattr(membership, "ON_ITS_WAY", 3600.0)
            with monkeypatch.context() as deaf:
                deaf.setattr(subscriber, "connect", refuse)
                await redis_server.kill_pubsub()
                await becomes(b, "degraded")
                await visit(a, "/out/end_session_ws", cookie)
                await settled(a)
                monkeypatch.setattr(cluster.commands, "run_script", fail_once)
            assert await expect_close(ws) == 4401
        assert failed.is_set()

    async def test_silent(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: Any
    ) -> None:
        """A subscription that is dead, but not closed, is detected and replaced."""
        silent = [False]

        class Silent(wire.Wire):
            dead = False

            def data_received(self, data: bytes) -> None:
                self.dead = self.dead or silent[0]
                if not self.dead:
                    super().data_received(data)

        monkeypatch.setattr(subscriber, "Wire", Silent)
        b = await start_node(redis_server.url, "b")
        await becomes(b, "connected")
        silent[0] = True
        await becomes(b, "degraded")
        assert cluster_of(b).commands.available
        silent[0] = False
        await becomes(b, "connected")

    async def test_kill_pubsub(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """No log-out is lost when subscriptions are cut."""
        a, b = nodes
        for _ in range(5):
            cookie = await log_in(a)
            async with socket(b, cookie) as ws:
                await redis_server.kill_pubsub()
                await visit(a, "/out/end_session_ws", cookie)
                assert await expect_close(ws) == 4401

    @pytest.mark.parametrize(("path", "code"), [("/out/end_session_ws", 4401), ("/close", 4403)])
    async def test_trimmed_meanwhile(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        path: str,
        code: int,
    ) -> None:
        """An order is found even if its number is dropped just before it would be read."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(a)
            commands = cluster_of(b).commands
            run, finding = commands.run_script, list[asyncio.Task[Any]]()

            async def trim_and_find(*args: Any) -> Any:
                last = await redis_server.cli("GET", f"{PREFIX}:seq")
                await redis_server.cli("ZREMRANGEBYSCORE", f"{PREFIX}:recent", 0, last)
                await redis_server.cli("SET", f"{PREFIX}:floor", last)
                return await run(*args)

            def run_late(script: Script, *args: Any, **options: Any) -> asyncio.Future[Any]:
                if script is not FIND:
                    return run(script, *args, **options)
                finding.append(asyncio.create_task(trim_and_find(script, *args)))
                return finding[-1]

            async with socket(b, cookie) as ws:
                await proxy.stop()
                await becomes(b, "degraded")
                await visit(a, path, cookie)
                await settled(a)
                monkeypatch.setattr(commands, "run_script", run_late)
                await proxy.start()
                assert await expect_close(ws) == code
            assert finding

    @pytest.mark.parametrize("error", [RedisUnavailable("away"), ValueError("a bug")], ids=str)
    async def test_look_that_fails(
        self,
        redis_server: RedisServer,
        nodes: Nodes,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        """A look-up of all connections that fails is retried."""
        _, b = nodes
        cookie = await log_in(b)
        read, failed = cluster_of(b).commands.read, asyncio.Event()

        def fail_once(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
            if failed.is_set():
                return read(keys)
            failed.set()
            raise error

        async with socket(b, cookie) as ws:
            await record_unheard(redis_server, b, cookie)
            monkeypatch.setattr(cluster_of(b).commands, "read", fail_once)
            cluster_of(b).reconciler.check_all_connections()
            assert await expect_close(ws) == 4401

    async def test_round(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All connections are looked up periodically, without any sign of a missed order."""
        monkeypatch.setattr(reconcile, "ROUND", 0.1)
        node = await start_node(redis_server.url, "a")
        cookie = await log_in(node)
        async with socket(node, cookie) as ws:
            await record_unheard(redis_server, node, cookie)
            assert await expect_close(ws) == 4401

    async def test_cut_in_a_message(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        tls: ssl.SSLContext,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A received message is carried out completely, even if the connection breaks."""
        monkeypatch.setattr(inbound, "TURN", -1.0)  # yield to other tasks after each order
        async with Proxy(redis_server.port, tls=tls) as proxy:
            url = proxy.url("rediss") + "?ssl_cert_reqs=none&ssl_check_hostname=false"
            a = await start_node(redis_server.url, "a")
            b = await start_node(url, "b")
            cookie = await log_in(a)
            others = [f"session {number}" for number in range(400)]
            cut = asyncio.Event()

            async def cut_in_the_middle(details: OrderDetails) -> None:
                if details.subject == others[200]:
                    assert proxy.cut(reset=True)
                    cut.set()

            registry_of(b).on_order.append(cut_in_the_middle)
            async with socket(b, cookie) as ws:
                ids = [*others, await id_of(a, cookie)]
                await asyncio.gather(*map(registry_of(a).end_session, ids))
                await asyncio.wait_for(cut.wait(), PATIENCE)
                assert await expect_close(ws) == 4401


class TestLostData:
    async def test_written_back(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Recent orders are written again after Redis has lost its data."""
        a, b = nodes
        cookie, other = await log_in(a), await log_in(a, "bob")
        await visit(a, "/out/end_session_ws", cookie)
        await visit(a, "/out/everywhere", other)
        await settled(a)
        await redis_server.restart(keep_data=False)
        await becomes(a, "connected")
        await becomes(b, "connected")
        await until(lambda: redis_server.holds("*:lineage:*", 2))
        await until(lambda: redis_server.cli("EXISTS", f'{PREFIX}:end:identity:"bob"'))

    @pytest.mark.parametrize(("keep_data", "late"), [(False, False), (True, False), (True, True)])
    async def test_told_on(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        keep_data: bool,
        late: bool,
    ) -> None:
        """A node that learned of an order from Redis writes it again when its giver has gone."""
        if late:  # as if Redis was away for minutes
            monkeypatch.setattr(recent, "AGAIN_KEPT", -1.0)
            monkeypatch.setattr(membership, "LATELY", -1.0)
        key = f'{PREFIX}:end:id:"x"'
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        registry = registry_in(first)
        await registry.end_session("x", wait=PATIENCE)
        second = await start_node(redis_server.url, "second")
        await until(lambda: cluster_of(second).reconciler.found)
        await first.close()
        await redis_server.cli("DEL", key)  # as if it came in the last second before a crash
        await redis_server.restart(keep_data=keep_data)
        await becomes(second, "connected")
        await until(lambda: redis_server.cli("EXISTS", key))

    @pytest.mark.parametrize("everything", [False, True])
    async def test_cut_short(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        everything: bool,
    ) -> None:
        """Each record is written again in the end, even if the write-back is often restarted."""
        monkeypatch.setattr(recent, "AGAIN_KEPT", -1.0)  # so that no message is kept
        monkeypatch.setattr(write_back, "AT_ONCE", 1)
        monkeypatch.setattr(write_back, "PAUSE", 0.0)
        monkeypatch.setattr(write_back, "STEPS", (0.01, 0.01))
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        names = [f"x{number}" for number in range(12)]
        for name in names:
            await registry_in(first).end_session(name, wait=PATIENCE)
        cluster = cluster_of(await start_node(redis_server.url, "second"))
        await until(lambda: cluster.reconciler.found >= len(names))
        await first.close()
        read, count = cluster.commands.read, 0

        def cut(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
            nonlocal count
            count += 1
            if count % 3:
                return read(keys)
            cluster.write_back.lost(everything=everything)
            failed: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
            failed.set_exception(RedisUnavailable("cut"))
            return failed

        monkeypatch.setattr(cluster.commands, "read", cut)
        await redis_server.cli("DEL", *[f'{PREFIX}:end:id:"{name}"' for name in names])
        cluster.write_back.lost(everything=True)
        cluster.write_back.lost(everything=everything)
        for name in names:
            await recorded(redis_server, name)

    async def test_again_and_again(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Repeated write-backs restore every record, and remember no more messages."""
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b")
        for number in range(20):
            await registry_of(a).end_session(f"x{number}", wait=PATIENCE)
        for _ in range(3):
            await redis_server.cli("FLUSHALL")
            for client in (a, b):
                cluster_of(client).membership.heartbeat_soon()
            for number in range(20):
                await recorded(redis_server, f"x{number}")
            await settled(a, b)
        for client in (a, b):
            await until(lambda client=client: not cluster_of(client).numbers.missing)  # type: ignore[misc]
            assert len(cluster_of(client).recent) == 20

    async def test_of_one_who_died(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: Any
    ) -> None:
        """The first step covers the orders of all other nodes: one may have just died."""
        monkeypatch.setattr(write_back, "STEPS", (0.01, 3600.0))
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        second = await start_node(redis_server.url, "second")
        await registry_in(first).end_session("x", wait=PATIENCE)
        await until(lambda: len(cluster_of(second).recent))
        name = inspect(registry_in(first)).cluster.instance
        await first.close()
        await redis_server.cli("FLUSHALL")
        await redis_server.cli("ZADD", f"{PREFIX}:nodes", "+inf", name)  # as if just killed
        cluster_of(second).membership.heartbeat_soon()
        await recorded(redis_server, "x")

    @pytest.mark.parametrize("reported", [False, True])
    async def test_close_order_of_one_who_died(
        self, redis_server: RedisServer, start_node: StartNode, reported: bool
    ) -> None:
        """The close orders of a script that has exited are written again."""
        cluster = cluster_of(await start_node(redis_server.url, "node"))
        async with script(redis_server.url) as other:
            await other.close_all_session("x", wait=PATIENCE if reported else 0.0)
        await until(lambda: len(cluster.recent))
        await redis_server.cli("FLUSHALL")
        cluster.membership.heartbeat_soon()
        await until(lambda: redis_server.cli("EXISTS", f'{PREFIX}:close:id:"x"'))

    async def test_shares_of_others(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: Any
    ) -> None:
        """Records assigned to nodes that have died, or do not know them, are written again."""
        monkeypatch.setattr(write_back, "FEW", 0)
        monkeypatch.setattr(write_back, "STEPS", (0.01, 0.01))
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        second = await start_node(redis_server.url, "second")
        for number in range(20):
            await registry_in(first).end_session(f"x{number}", wait=PATIENCE)
        await until(lambda: len(cluster_of(second).recent) >= 20)
        await first.close()
        lose = "redis.call('FLUSHALL') for i = 1, 20 do redis.call('ZADD', KEYS[1], 'inf', i) end"
        await redis_server.cli("EVAL", lose, 1, f"{PREFIX}:nodes")
        cluster_of(second).membership.heartbeat_soon()
        for number in range(20):
            await recorded(redis_server, f"x{number}")

    async def test_looked_up(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node writes again also the records that it only looked up."""
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        async with TestClient(first) as client:
            cookie = await log_in(client)
            id_ = await id_of(client, cookie)
            await registry_in(first).end_session(id_, wait=PATIENCE)
        await redis_server.cli("DEL", f"{PREFIX}:recent")  # as after ten minutes
        second = await start_node(redis_server.url, "second")
        assert await refused(second, cookie) == 4401
        assert not len(cluster_of(second).recent)
        await first.close()
        await redis_server.cli("FLUSHALL")
        cluster_of(second).membership.heartbeat_soon()
        await recorded(redis_server, id_)

    async def test_met_meanwhile(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end that is lost right after it was read gets a number again."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await redis_server.cli("DEL", f"{PREFIX}:recent")  # as if no node had received it
        b = await start_node(redis_server.url, "b")
        commands = cluster_of(b).commands
        read, losing = commands.read, list[asyncio.Task[None]]()

        def lose_then_answer(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
            answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()

            async def lose() -> None:
                values = await read(keys)
                await redis_server.cli("FLUSHALL")
                answer.set_result(values)

            monkeypatch.undo()
            losing.append(asyncio.create_task(lose()))
            return answer

        monkeypatch.setattr(commands, "read", lose_then_answer)
        await becomes_nobody(b, cookie)
        await settled(b)
        for node in (a, b):
            cluster_of(node).membership.heartbeat_soon()
        await until(lambda: ends_numbered(redis_server))

    @pytest.mark.parametrize("kind", ["end", "close"])
    async def test_stopped(
        self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """A node that stops writes what Redis has just lost: others may not know it."""
        if kind == "end":  # as if it was long ago; a close order is forgotten by then
            monkeypatch.setattr(recent, "KEPT", -1.0)
        first = TestServer(node_app(redis_server.url, "first"))
        await first.start_server()
        cluster = inspect(registry_in(first)).cluster
        assert isinstance(cluster, RedisCluster)
        async with script(redis_server.url) as other:
            order = {"end": other.end_session, "close": other.close_all_session}[kind]
            await order("x", wait=PATIENCE)
            await order("y", wait=PATIENCE)
        await until(lambda: cluster.numbers.last >= 2)
        await redis_server.cli("FLUSHALL")
        await first.close()
        for id_ in ("x", "y"):
            assert await redis_server.cli("EXISTS", f'{PREFIX}:{kind}:id:"{id_}"')

    async def test_older_state(
        self, redis_server: RedisServer, start_node: StartNode, tmp_path: Path
    ) -> None:
        """Numbers that Redis reuses after it was restored to an older state are read again."""
        async with Proxy(redis_server.port) as proxy:
            node = await start_node(proxy.url(), "node")
            cluster = cluster_of(node)
            copy = tmp_path / "copy"
            async with script(redis_server.url) as other:
                for number in range(5):
                    await other.end_session(f"before {number}", wait=PATIENCE)
                cluster.membership.heartbeat_soon()
                await until(lambda: redis_server.cli("ZSCORE", f"{PREFIX}:marks", 5))
                redis_server.copy_data(copy)
                for number in range(10):
                    await other.end_session(f"forgotten {number}", wait=PATIENCE)
                cluster.membership.heartbeat_soon()
                await until(lambda: redis_server.cli("ZSCORE", f"{PREFIX}:marks", 15))
            await proxy.stop()
            await becomes(node, "degraded")
            redis_server.kill()
            redis_server.go_back_to(copy)
            await redis_server.start()
            async with script(redis_server.url) as other:
                for number in range(12):
                    await other.end_session(f"anew {number}")
                await until(lambda: redis_server.holds("*:end:id:*anew*", 12))
            assert await redis_server.cli("GET", f"{PREFIX}:seq") == "17"
            await proxy.start()
            await becomes(node, "connected")
            await until(lambda: redis_server.holds("*:end:id:*", 27))
            await until(lambda: cluster.reconciler.found >= 12)
            await redis_server.cli("FLUSHALL")
            cluster.membership.heartbeat_soon()
            await until(lambda: redis_server.holds("*:end:id:*", 27))

    async def test_much_older_state(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """All records are compared with a Redis restored to a state older than recent orders."""
        monkeypatch.setattr(recent, "KEPT", 0.0)
        async with Proxy(redis_server.port) as proxy:
            node = await start_node(proxy.url(), "node")
            cluster = cluster_of(node)
            copy = tmp_path / "copy"
            redis_server.copy_data(copy)
            async with script(redis_server.url) as other:
                for number in range(5):
                    await other.end_session(f"forgotten {number}", wait=PATIENCE)
            await cluster.membership.heartbeat_now()
            await proxy.stop()
            await becomes(node, "degraded")
            redis_server.kill()
            redis_server.go_back_to(copy)
            await redis_server.start()
            async with script(redis_server.url) as other:
                for number in range(7):
                    await other.end_session(f"anew {number}")
            await proxy.start()
            await until(lambda: redis_server.holds("*:end:id:*", 12))

    async def test_counted_before(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server's number is not taken as read after a restart with a lower count."""
        monkeypatch.setattr(membership, "ON_ITS_WAY", 3600.0)
        node = await start_node(redis_server.url, "node")
        await becomes(node, "connected")
        loop, cluster, noticed = asyncio.get_running_loop(), cluster_of(node), asyncio.Event()
        call_later, later = loop.call_later, list[Callable[[], object]]()

        def note_later(delay: float, act: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:
            if delay == membership.ON_ITS_WAY:
                later.append(partial(act, *args))
            return call_later(delay, act, *args, **options)

        monkeypatch.setattr(loop, "call_later", note_later)
        await cluster.membership.heartbeat_now()  # so that nothing else is detected
        await redis_server.cli("SET", f"{PREFIX}:seq", 5)
        await cluster.membership.heartbeat_now()
        assert later
        monkeypatch.setattr(cluster.write_back, "lost", lambda **_: noticed.set())
        await redis_server.cli("DEL", f"{PREFIX}:seq")
        await redis_server.restart()
        await asyncio.wait_for(noticed.wait(), PATIENCE)
        for act in later:
            act()
        assert cluster.numbers.last == 0

    async def test_close_order_missed(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A close order that is written again takes effect on a node that missed it."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b")
            cookie = await log_in(a)
            await acquaint(a, b)
            lost: list[dict[str, bool]] = []
            write_back_of_a, commands = cluster_of(a).write_back, cluster_of(b).commands
            write_again, read = write_back_of_a.lost, commands.read
            looked = asyncio.Event()

            def read_and_tell(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
                answer = read(keys)
                if any(key.startswith("close:") for key in keys):
                    answer.add_done_callback(lambda _: looked.set())
                return answer

            async with socket(b, cookie) as ws:
                await proxy.stop()
                await becomes(b, "degraded")
                await visit(a, "/close", cookie)
                await settled(a)
                monkeypatch.setattr(write_back_of_a, "lost", lambda **kind: lost.append(kind))
                monkeypatch.setattr(commands, "read", read_and_tell)
                await redis_server.cli("FLUSHALL")
                await proxy.start()
                await becomes(b, "connected")
                await asyncio.wait_for(looked.wait(), PATIENCE)
                write_again(everything=True)
                assert await expect_close(ws) == 4403

    @pytest.mark.parametrize("kind", ["close", "end"])
    async def test_older_order(self, redis_server: RedisServer, nodes: Nodes, kind: str) -> None:
        """The later of two orders is written again if Redis has the earlier one."""
        a, _ = nodes
        key = f'{PREFIX}:{kind}:identity:"x"'
        order = {"close": registry_of(a).close_all_identity, "end": registry_of(a).end_identity}
        await order[kind]("x", wait=PATIENCE)
        earlier = await redis_server.cli("GET", key)
        await order[kind]("x", wait=PATIENCE)
        later = await redis_server.cli("GET", key)
        await redis_server.cli("SET", key, earlier)
        cluster_of(a).write_back.lost()

        async def is_later() -> bool:
            return bool(await redis_server.cli("GET", key) == later)

        await until(is_later)

    async def test_unnoticed(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A loss without a broken connection is detected by the missing heartbeat."""
        a, _ = nodes
        await registry_of(a).end_session("x", wait=PATIENCE)
        await redis_server.cli("FLUSHALL")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: redis_server.cli("EXISTS", f'{PREFIX}:end:id:"x"'))

    async def test_clock_set_forward(
        self,
        redis_server: RedisServer,
        nodes: Nodes,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Records that expired because Redis' clock was set forward are written again."""
        a, _ = nodes
        cookie, other = await log_in(a), await log_in(a, "bob")
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        measure = RedisClock.measure

        def measure_ahead(
            clock: RedisClock, server: float, sent: float, received: float, ahead: float = 0.0
        ) -> None:
            measure(clock, server + 3e7, sent, received, ahead)

        monkeypatch.setattr(RedisClock, "measure", measure_ahead)
        await redis_server.cli("DEL", *await redis_server.cli("KEYS", f"{PREFIX}:lineage:*"))
        await redis_server.cli("DEL", f"{PREFIX}:recent")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: redis_server.holds(f"{PREFIX}:lineage:*", 1))
        for client in (*nodes, await start_node(redis_server.url, "c")):
            await becomes(client, "connected")
            assert await refused(client, cookie) == 4401
            async with socket(client, other):
                pass

    async def test_ttl(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Every record has a TTL; only bookkeeping keys have none."""
        a, _ = nodes
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await visit(a, "/out/everywhere", await log_in(a, "bob"))
        await registry_of(a).close_all_session("x", wait=PATIENCE)
        await settled(a)
        keys = await redis_server.cli("KEYS", "*")
        ttls = {key: await redis_server.cli("TTL", key) for key in keys}
        kept = {key.partition(":")[2] for key, ttl in ttls.items() if ttl <= 0}
        assert len(ttls) >= 8
        assert kept <= {"nodes", "members", "epoch", "seq", "recent", "marks", "floor", "clock"}

    async def test_many(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Many orders are written again, each about once, and do not delay a new one."""
        a, _ = nodes
        await asyncio.gather(*[registry_of(a).end_session(f"session {n}") for n in range(2000)])
        await settled(a)
        await redis_server.cli("FLUSHALL")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: redis_server.cli("EXISTS", f"{PREFIX}:seq"))
        began = asyncio.get_running_loop().time()
        assert (await registry_of(a).end_session("the last", wait=PATIENCE)).complete
        assert asyncio.get_running_loop().time() - began < 2
        await until(lambda: redis_server.holds("*:end:id:*", 2001))
        assert int(await redis_server.cli("GET", f"{PREFIX}:seq")) < 2500

    async def test_away_now_and_then(
        self, redis_server: RedisServer, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All records are written again, even though every second read fails."""
        monkeypatch.setattr(write_back, "AT_ONCE", 50)
        monkeypatch.setattr(write_back, "PAUSE", 0.0)
        a, _ = nodes
        await asyncio.gather(*[registry_of(a).end_session(f"session {n}") for n in range(400)])
        await settled(a)
        for node in nodes:
            fail_at_times(cluster_of(node).commands, monkeypatch)
        await redis_server.cli("FLUSHALL")
        await until(lambda: redis_server.holds("*:end:id:*", 400))

    async def test_nothing_lost(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Nothing is written to a Redis that restarts with its data."""
        a, b = nodes
        for n in range(100):
            await registry_of(a).end_session(f"session {n}")
        await settled(a)
        last = int(await redis_server.cli("GET", f"{PREFIX}:seq"))
        await redis_server.restart()
        await becomes(a, "connected")
        await becomes(b, "connected")
        assert int(await redis_server.cli("GET", f"{PREFIX}:seq")) == last
