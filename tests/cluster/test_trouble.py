"""
Redis in trouble: it refuses writes, is slow, loses subscriptions, or has unreadable data.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError
from aiohttp.test_utils import TestServer
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from aiohttp_session_ws import Expiry, Timeouts
from aiohttp_session_ws.redis import RedisSessionWSRegistry, recent, unrecorded
from aiohttp_session_ws.redis.clock import RedisClock
from aiohttp_session_ws.redis.requests import Requests
from aiohttp_session_ws.sessions.journal_file import JournalFile
from tests.support import PATIENCE, Client, Stopwatch, expect_close, until
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
    nowhere,
    refused,
    registry_in,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.people import outcome
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"


async def refuse_writes(redis: RedisServer, how: str) -> None:
    """Make a Redis refuse writes, but answer reads."""
    if how == "OOM":
        await redis.cli("CONFIG", "SET", "maxmemory", "1")
    elif how == "NOREPLICAS":
        await redis.cli("CONFIG", "SET", "min-replicas-to-write", "1")
    elif how == "READONLY":
        await redis.cli("REPLICAOF", "127.0.0.1", free_port())
    else:
        await redis.cli("CONFIG", "SET", "appendonly", "no")
        await redis.cli("CONFIG", "SET", "save", "1 1")
        (redis.folder / "dump.rdb").mkdir()
        (redis.folder / "dump.rdb" / "in the way").touch()
        await redis.cli("BGSAVE")

        async def failed() -> bool:
            info = await redis.cli("INFO", "persistence")
            return bool(info["rdb_last_bgsave_status"] != "ok")

        await until(failed)


async def take_writes(redis: RedisServer, how: str) -> None:
    """Make it accept writes again."""
    if how == "OOM":
        await redis.cli("CONFIG", "SET", "maxmemory", "0")
    elif how == "NOREPLICAS":
        await redis.cli("CONFIG", "SET", "min-replicas-to-write", "0")
    elif how == "READONLY":
        await redis.cli("REPLICAOF", "NO", "ONE")
    else:
        await redis.cli("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")


class TestWritesRefused:
    @pytest.mark.parametrize("how", ["OOM", "MISCONF", "NOREPLICAS", "READONLY"])
    async def test_orders(
        self, redis_server: RedisServer, nodes: Nodes, caplog: Any, how: str
    ) -> None:
        """Orders close sockets on all nodes though Redis refuses writes; records follow later."""
        a, b = nodes
        states: list[str] = []

        async def note(state: str) -> None:
            states.append(state)

        for client in nodes:
            registry_of(client).on_state_change.append(note)
        cookies = [await log_in(a, f"user {n}") for n in range(5)]
        await settled(a)
        await refuse_writes(redis_server, how)
        for cookie in cookies:
            async with socket(b, cookie) as ws:
                await visit(a, "/out/end_session_ws", cookie)
                assert await expect_close(ws) == 4401
            assert await refused(b, cookie) == 4401

        async def reported() -> bool:
            report = await registry_of(a).end_session("somebody", wait=0.5)
            assert not report.stored
            return report.complete

        await until(reported)
        assert len(cluster_of(a).outbox) <= 3 * (len(cookies) + 1)
        lines = [record for record in caplog.records if how in record.message]
        minutes = 1 + (time.time() - lines[0].created) // 60
        assert len(lines) <= len(nodes) * minutes
        await take_writes(redis_server, how)
        await settled(a)
        c = RedisSessionWSRegistry(redis_server.url)
        async with c:
            pass
        for cookie in cookies:
            assert await refused(a, cookie) == 4401
        assert await redis_server.cli("EXISTS", f'{PREFIX}:end:id:"somebody"')
        assert states == []

    async def test_ping(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A PING that Redis refuses because its disk is full counts as an answer."""

        async def subscriptions() -> list[dict[str, str]]:
            async with redis_server.client() as client:
                found: list[dict[str, str]] = await client.client_list(_type="pubsub")
                return found

        async def pinged() -> bool:
            return all(one["cmd"] == "ping" for one in await subscriptions())

        before = {one["id"] for one in await subscriptions()}
        await refuse_writes(redis_server, "MISCONF")
        await until(pinged)
        for client in nodes:  # it receives these answers after those to the PINGs
            assert (await registry_of(client).count()).complete
            assert (await registry_of(client).end_session("x", wait=2.0)).complete
        assert {one["id"] for one in await subscriptions()} == before
        await take_writes(redis_server, "MISCONF")

    @pytest.mark.parametrize("fails", [0, 2], ids=["asks", "asks again"])
    async def test_newcomer(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        fails: int,
    ) -> None:
        """A node that starts while Redis refuses writes learns the orders refused before."""
        publish, left = Requests.publish, [False] * fails

        async def some_are_lost(*args: Any) -> bool:
            return left.pop() if left and "unrecorded" in str(args) else await publish(*args)

        monkeypatch.setattr(Requests, "publish", some_are_lost)
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a, "user")
        await settled(a)
        await refuse_writes(redis_server, "OOM")
        await visit(a, "/out/end_session_ws", cookie)
        b = await start_node(redis_server.url, "b")
        await becomes_nobody(b, cookie)
        assert await refused(b, cookie) == 4401
        assert not left

    async def test_newcomer_unheard(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A node that missed a new node's query answers it after it has reconnected."""
        cut = False

        def make() -> Redis:
            if cut:
                raise RedisConnectionError("cut")
            return Redis.from_url(redis_server.url)

        a = await start_node(make, "a")
        cookie = await log_in(a, "user")
        await settled(a)
        await refuse_writes(redis_server, "OOM")
        await visit(a, "/out/end_session_ws", cookie)
        await until(lambda: cluster_of(a).outbox.refused)
        cut = True
        await redis_server.kill_pubsub()
        await becomes(a, "degraded")
        async with redis_server.client(socket_timeout=PATIENCE) as client, client.pubsub() as all_:
            await all_.subscribe(f"{PREFIX}:data")
            b = await start_node(redis_server.url, "b")
            async for message in all_.listen():
                if "unrecorded" in str(message["data"]):
                    break
        cut = False
        await becomes_nobody(b, cookie)

    async def test_members(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Nodes that start or stop while Redis refuses writes are known to the others."""
        cut = False

        def make() -> Redis:
            if cut:
                raise RedisConnectionError("cut")
            return Redis.from_url(redis_server.url)

        async def expects(client: Client, number: int) -> None:
            await until(lambda: len(cluster_of(client).membership.members) == number)

        a = await start_node(redis_server.url, "a")
        old = await start_node(redis_server.url, "old")
        await acquaint(a, old)
        await refuse_writes(redis_server, "NOREPLICAS")
        b = await start_node(make, "b")
        await expects(a, 3)
        await expects(b, 2)  # without itself
        await old.close()
        await expects(a, 2)
        assert (await registry_of(a).count()).complete  # despite the outdated list in Redis
        c = await start_node(redis_server.url, "c")
        await expects(a, 3)
        await expects(c, 3)  # with "old", which Redis still lists
        assert (await registry_of(a).count()).complete
        cut = True
        await redis_server.kill_pubsub()
        await becomes(b, "degraded")
        assert not (await registry_of(a).count()).complete
        cut = False
        await becomes(b, "connected")
        await b.close()
        await c.close()
        await take_writes(redis_server, "NOREPLICAS")
        await expects(a, 1)
        assert (await registry_of(a).count()).complete


class TestSubscriptions:
    async def test_no_storm(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A short break of pub/sub causes no write-back, and does not delay a new order."""
        a, b = nodes
        cookie = await log_in(a)
        await asyncio.gather(*[registry_of(a).end_session(f"session {n}") for n in range(3000)])
        await settled(a)
        last = int(await redis_server.cli("GET", f"{PREFIX}:seq"))
        await until(lambda: cluster_of(b).numbers.last >= last)
        async with socket(b, cookie) as ws:
            await redis_server.kill_pubsub()
            watch = Stopwatch()
            await registry_of(a).end_session(await id_of(a, cookie))
            assert await expect_close(ws) == 4401
            assert watch.stop() < 2
        await until(lambda: not cluster_of(b).numbers.missing)
        assert int(await redis_server.cli("GET", f"{PREFIX}:seq")) <= last + 5

    async def test_everything_is_heard(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """Orders given while subscriptions break are known to the other node afterwards."""
        a, b = nodes
        for n in range(600):
            await registry_of(a).end_session(f"session {n}")
            if n % 150 == 75:
                await redis_server.kill_pubsub()
        await settled(a)
        records = cluster_of(b).node.records
        await until(lambda: sum(1 for _ in records) >= 600)


class TestSlow:
    async def test_round_trips(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Handshakes wait for a slow Redis, and succeed."""
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(proxy.url(), "a")
            await becomes(a, "connected")
            cookies = [await log_in(a, f"user {n}") for n in range(20)]
            proxy.delay = 0.15
            statuses = await asyncio.gather(*[_opens(a, cookie) for cookie in cookies * 5])
            assert statuses == [101] * 100
            assert registry_of(a).state == "connected"

    async def test_far_away(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node connects to, and uses, a Redis that is half a second per round trip away."""
        async with Proxy(redis_server.port) as proxy:
            proxy.delay = 0.25
            a = await start_node(proxy.url(), "a")
            await becomes(a, "connected")
            report = await registry_of(a).end_session("x", wait=PATIENCE)
            assert report.stored

    async def test_stall(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A stall of Redis shorter than a second refuses no handshake."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        redis_server.freeze()
        opening = [asyncio.create_task(_opens(a, cookie)) for _ in range(50)]
        await asyncio.sleep(0.4)
        redis_server.thaw()
        assert await asyncio.gather(*opening) == [101] * 50
        assert registry_of(a).state == "connected"


async def _opens(client: Any, cookie: str) -> int:
    """Open a socket once; return the status."""
    headers = {
        "Cookie": cookie,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with client.get("/ws", headers=headers) as response:
        return int(response.status)


class TestClock:
    @pytest.mark.parametrize("skew", [-600.0, 20.0, 600.0])
    async def test_start_in_outage(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        skew: float,
    ) -> None:
        """A node that starts during an outage with a wrong clock ends the right sessions."""
        a = await start_node(redis_server.url, "a")
        one, two = await log_in(a), await log_in(a)
        async with socket(a, one) as ws:
            redis_server.kill()
            clock = RedisClock(wall=lambda: time.time() + skew)
            monkeypatch.setattr("aiohttp_session_ws.redis.cluster.RedisClock", lambda: clock)
            b = await start_node(redis_server.url, "b")
            await registry_of(b).end_identity("ann")
            await redis_server.start()
            assert await expect_close(ws) == 4401
        for client in (a, b):
            await becomes(client, "connected")
            assert await refused(client, two) == 4401
        for client in (a, b):
            new = await log_in(client)
            async with socket(a, new), socket(b, new):
                pass

    async def test_journal_of_such_a_node(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """A journal written with a wrong clock does not prevent ends of later sessions."""
        b = await start_node(redis_server.url, "b")
        redis_server.kill()
        clock = RedisClock(wall=lambda: time.time() + 600.0)
        monkeypatch.setattr("aiohttp_session_ws.redis.cluster.RedisClock", lambda: clock)
        before = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        await registry_of(before).end_session("x")
        await before.close()
        monkeypatch.undo()
        await redis_server.start()
        a = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        for client in (a, b):
            await becomes(client, "connected")
        cookie = await log_in(a)
        session_ws_id, renewed = await id_of(a, cookie), await visit(a, "/renew", cookie)
        async with socket(a, renewed) as ws:
            await registry_of(b).end_session(session_ws_id)
            assert await expect_close(ws) == 4401
        assert await refused(b, renewed) == 4401

    @pytest.mark.parametrize("skew", [-600.0, 600.0])
    async def test_journal_of_an_end_without_time(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        skew: float,
    ) -> None:
        """A journaled end without a known time ends earlier sessions, and no later ones."""
        b = await start_node(redis_server.url, "b")
        old = await log_in(b)
        redis_server.kill()
        clock = RedisClock(wall=lambda: time.time() + skew)
        monkeypatch.setattr("aiohttp_session_ws.redis.cluster.RedisClock", lambda: clock)
        before = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        await registry_of(before).end_identity("ann")
        await before.close()
        monkeypatch.undo()
        await redis_server.start()
        a = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        for client in (a, b):
            await becomes(client, "connected")
        key = '{aiohttp_session_ws}:end:identity:"ann"'
        await until(lambda: redis_server.cli("EXISTS", key))
        for client in (a, b):
            assert await refused(client, old) == 4401
        new = await log_in(a)
        await a.close()
        a = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        await becomes(a, "connected")
        async with socket(a, new), socket(b, new):
            pass

    async def test_journal_read_late(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """A journal that is readable only later ends earlier sessions on all nodes."""
        b = await start_node(redis_server.url, "b")
        old = await log_in(b)
        redis_server.kill()
        before = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        await registry_of(before).end_identity("ann")
        await before.close()
        await redis_server.start()
        works, load = threading.Event(), JournalFile.load

        def load_late(self: JournalFile) -> Any:
            if works.is_set():
                return load(self)
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(JournalFile, "load", load_late)
        a = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        for client in (a, b):
            await until(lambda c=client: cluster_of(c).connected)  # type: ignore[misc]
        tasks = asyncio.all_tasks  # one of them writes the records loaded from a journal by then
        await until(lambda: not any("settings" in task.get_name() for task in tasks()))
        new = await log_in(a)
        async with socket(a, new), socket(b, old) as ws:
            works.set()
            assert await expect_close(ws) == 4401
        for client in (a, b):
            assert await refused(client, old) == 4401
            async with socket(client, new):
                pass

    async def test_log_in_during_outage(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A log-in during an outage, on a node without a clock, stays valid afterwards."""
        redis_server.kill()
        b = await start_node(redis_server.url, "b")
        cookie = await log_in(b)
        await redis_server.start()
        await becomes(b, "connected")
        async with socket(b, cookie):
            pass

    async def test_lost_renewal(self, start_node: StartNode) -> None:
        """A cookie stays valid if its renewal's response is lost while the clock is unknown."""
        expiry = Expiry(renewal_grace=0.05)
        a = await start_node(nowhere(), "a", on_outage="accept", expiry=expiry)
        cookie = await log_in(a)
        assert await visit(a, "/renew", cookie) != cookie

        async def serves() -> bool:
            return await outcome(a, cookie) == "ann"

        await until(serves)
        assert await visit(a, "/renew", cookie) != cookie  # what it changes is saved


class TestReports:
    async def test_frozen_node(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node stays expected to answer for long after its last heartbeat."""
        a = await start_node(redis_server.url, "a")
        late = time.time() - 1000
        await redis_server.cli("ZADD", f"{PREFIX}:nodes", late, "frozen/1")
        await redis_server.cli("INCR", f"{PREFIX}:members")
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: len(cluster_of(a).membership.members) == 2)
        report = await registry_of(a).end_session("x", wait=0.1)
        assert (report.nodes_expected, report.nodes_answered) == (2, 1)
        assert not report.complete
        assert not (await registry_of(a).count()).complete

    async def test_not_published(self, start_node: StartNode) -> None:
        """The report on an order that can't be published is neither complete nor stored."""
        a = await start_node(nowhere(), "a")
        report = await registry_of(a).end_session("x", wait=0.1)
        assert not report.complete
        assert not report.stored


class TestUnreadable:
    @pytest.mark.parametrize(
        "message", ['0:0\n{"v":9}', '{"v":9}', '0:0\n{"v":1,"from":"c/1"}\n[9]\n[[],[]]']
    )
    async def test_message(
        self, redis_server: RedisServer, nodes: Nodes, caplog: Any, message: str
    ) -> None:
        """An unreadable message causes a look-up at once, and is not logged each time."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(b, cookie) as ws:
            await settled(a)
            record = f'[9,"over","{id_}"]'
            await redis_server.cli("SET", f'{PREFIX}:end:id:"{id_}"', record)
            for _ in range(100):
                await redis_server.cli("PUBLISH", f"{PREFIX}:orders", message)
            assert await expect_close(ws) == 4403
        lines = [record for record in caplog.records if "can't be read" in record.message]
        assert len(lines) <= 4  # two kinds, on two nodes
        assert any("on our channel" in record.message for record in lines)
        assert await refused(b, cookie) == 4403

    async def test_numbered(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """An unreadable message with a number causes a look-up of the record with that number."""
        a, b = nodes
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(b, cookie) as ws:
            await settled(a)
            key = f'{PREFIX}:end:id:"{id_}"'
            await redis_server.cli("SET", key, "[9]")
            number = await redis_server.cli("INCR", f"{PREFIX}:seq")
            await redis_server.cli("ZADD", f"{PREFIX}:recent", number, key)
            await redis_server.cli("PUBLISH", f"{PREFIX}:orders", f'{number}:1\n{{"v":9}}')
            assert await expect_close(ws) == 4403

    async def test_foreign_values(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A foreign value under one of our keys does not prevent orders."""
        a, b = nodes
        for key in ("recent", "marks", "nodes"):
            await redis_server.cli("DEL", f"{PREFIX}:{key}")
            await redis_server.cli("SET", f"{PREFIX}:{key}", "foreign")
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        await redis_server.cli("RPUSH", f'{PREFIX}:end:id:"{id_}"', "foreign")
        async with socket(b, cookie) as ws:
            report = await registry_of(a).end_session(id_, wait=PATIENCE)
            assert await expect_close(ws) == 4401
        assert report.stored
        await settled(a)
        assert await refused(a, cookie) == await refused(b, cookie) == 4401

    @pytest.mark.parametrize("key", ["seq", "floor", "members", "ttl"])
    async def test_foreign_numbers(
        self, redis_server: RedisServer, nodes: Nodes, key: str
    ) -> None:
        """A foreign value in place of a number does not prevent orders."""
        a, b = nodes
        await redis_server.cli("SET", f"{PREFIX}:{key}", "foreign")
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(b, cookie) as ws:
            report = await registry_of(a).end_session(id_, wait=PATIENCE)
            assert await expect_close(ws) == 4401
        assert (report.stored, report.complete) == (True, True)
        cluster_of(b).reconciler.unreadable(1, 1)
        await until(lambda: not cluster_of(b).numbers.missing)
        assert not len(cluster_of(a).outbox)


class TestLog:
    async def test_handshakes(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """Handshakes that can't be checked are logged once a minute, not one by one."""
        a, _ = nodes
        cookie = await log_in(a)
        await redis_server.cli("ACL", "SETUSER", "default", "-mget")
        began = time.time()
        for _ in range(5):
            with pytest.raises(WSServerHandshakeError) as refusal:
                await a.ws_connect("/ws", headers={"Cookie": cookie})
            assert refusal.value.status == 503
        lines = [record.message for record in caplog.records if "be checked" in record.message]
        assert 1 <= len(lines) <= 1 + (time.time() - began) // 60
        assert "NoPermissionError" in lines[0]

    async def test_permissions(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """The log does not claim that orders are published if scripts are not permitted."""
        a, b = nodes
        cookie = await log_in(a)
        await settled(a)
        await redis_server.cli("ACL", "SETUSER", "default", "-eval", "-evalsha")
        async with socket(b, cookie) as ws:
            await registry_of(a).end_session(await id_of(a, cookie))
            await until(lambda: "permissions" in caplog.text)
            assert "published" not in caplog.text
            await redis_server.cli("ACL", "SETUSER", "default", "+eval", "+evalsha")
            assert await expect_close(ws) == 4401

    async def test_code_word(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """An error of Redis is logged with its code word, and not again for each order."""
        a, _ = nodes
        await refuse_writes(redis_server, "OOM")
        for n in range(5):
            await registry_of(a).end_session(f"session {n}", wait=0.05)
        lines = [record.message for record in caplog.records if "OOM" in record.message]
        assert len(lines) == 1
        await take_writes(redis_server, "OOM")

    async def test_eviction(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A Redis that may evict records causes a warning."""
        await redis_server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await start_node(redis_server.url, "a")
        await until(lambda: "noeviction" in caplog.text)
        assert "allkeys-lru" in caplog.text

    async def test_secrets(self, redis_server: RedisServer, nodes: Nodes, caplog: Any) -> None:
        """The log contains no id."""
        caplog.set_level(logging.DEBUG, logger="aiohttp_session_ws")
        a, _ = nodes
        await refuse_writes(redis_server, "OOM")
        await registry_of(a).end_session("the secret id", wait=0.1)
        await take_writes(redis_server, "OOM")
        await settled(a)
        assert "the secret id" not in caplog.text


class TestWrongCallable:
    @pytest.mark.parametrize(
        "make", [lambda: object(), lambda loop: None, asyncio.sleep], ids=["kind", "args", "coro"]
    )
    async def test_at_start(self, make: Any) -> None:
        """A callable of the wrong kind is an error at the start, not an outage."""
        server = TestServer(node_app(make, "a"))
        with pytest.raises(Exception, match=re.escape("redis= is a callable")):
            await server.start_server()
        await server.close()


class TestGone:
    async def test_rolling_restart(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """Orders that Redis refuses to record survive restarts of nodes, as long as one runs."""
        timeouts = Timeouts(outbox=0.1)
        a = await start_node(redis_server.url, "a", timeouts=timeouts)
        cookies = [await log_in(a, f"user {n}") for n in range(3)]
        renewed = await visit(a, "/renew", cookies[2])
        await settled(a)
        await refuse_writes(redis_server, "MISCONF")
        await visit(a, "/out/end_session_ws", cookies[0])
        await registry_of(a).end_session(await id_of(a, cookies[1]))
        await registry_of(a).end_session(await id_of(a, renewed))
        for _ in range(2):
            b = await start_node(redis_server.url, "b", timeouts=timeouts)
            await until(lambda a=a: len(cluster_of(a).membership.members) > 1)  # type: ignore[misc]
            await a.close()
            a = b
        for cookie in cookies:
            await becomes_nobody(a, cookie)
        assert "lost" not in caplog.text
        await take_writes(redis_server, "MISCONF")
        await settled(a)
        await a.close()
        c = await start_node(redis_server.url, "c")
        for cookie in (*cookies, renewed):
            assert await refused(c, cookie) == 4401

    @pytest.mark.parametrize("hours", [0, 2])
    async def test_refused_and_killed(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        hours: int,
    ) -> None:
        """Orders of a killed node that Redis refused to record are recorded by other nodes."""
        if hours:  # the messages are dropped as after an hour
            monkeypatch.setattr(recent, "KEPT", -1.0)
            monkeypatch.setattr(unrecorded, "KEPT", -1.0)
        b = await start_node(redis_server.url, "b")
        async with Proxy(redis_server.port) as proxy:
            server = TestServer(node_app(proxy.url(), "a", timeouts=Timeouts(outbox=0.1)))
            await server.start_server()
            await refuse_writes(redis_server, "OOM")
            await registry_in(server).end_session("x")
            await until(lambda: cluster_of(b).unrecorded.since < math.inf)
            await proxy.stop()
            await server.close()
        await take_writes(redis_server, "OOM")
        cluster_of(b).membership.heartbeat_soon()
        await until(lambda: redis_server.cli("EXISTS", f'{PREFIX}:end:id:"x"'))
