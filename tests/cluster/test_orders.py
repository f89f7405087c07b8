"""
Orders that take effect on the sockets of every node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from aiohttp import web

from aiohttp_session_ws.exceptions import InvalidIdentity, InvalidSessionWSId
from aiohttp_session_ws.redis import inbound
from tests.cluster.conftest import Sites
from tests.promise.site import DEAD, View
from tests.support import PATIENCE, QUICK, WAYS, Turnstile, expect_close, until
from tests.support.inspect import inspect
from tests.support.nodes import (
    Nodes,
    StartNode,
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
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"


class Thing:
    """An object that an application registers by hand."""

    closed = False

    async def close(self, *, code: int, message: bytes) -> None:
        """Record the call."""
        self.closed = True


async def lives(ws: Any) -> None:
    """Check that a socket is open: it echoes."""
    await ws.send_str("still there")
    assert await ws.receive_str(timeout=PATIENCE) == "still there"


class TestLogOut:
    @pytest.mark.parametrize("way", sorted(WAYS))
    async def test_elsewhere(self, nodes: Nodes, way: str) -> None:
        """A log-out closes sockets on another node, and its cookie is refused on both."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            await visit(a, f"/out/{way}", cookie)
            codes = [await expect_close(here), await expect_close(there)]

        assert set(codes) <= {4401, 4403}
        assert await refused(a, cookie) in (4401, 4403)
        assert await refused(b, cookie) in (4401, 4403)

    async def test_http(self, nodes: Nodes) -> None:
        """A request to another node with the stale cookie is anonymous."""
        a, b = nodes
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await becomes_nobody(b, cookie)

    async def test_restarted(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node that starts after a log-out looks it up in Redis."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        b = await start_node(redis_server.url, "b")

        await becomes_nobody(b, cookie)
        c = await start_node(redis_server.url, "c")
        assert await refused(c, cookie) == 4401

    async def test_others_stay(self, nodes: Nodes) -> None:
        """A log-out does not affect the sockets of other sessions."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(b, "bob")
        async with socket(b, ann) as hers, socket(b, bob) as his, socket(a, bob) as other:
            await visit(a, "/out/end_session_ws", ann)
            await expect_close(hers)
            await lives(his)
            await lives(other)

    @pytest.mark.parametrize("out", ["/out/new_session", "/out/del"])
    async def test_before_it_is_answered(self, sites: Sites, out: str) -> None:
        """Other nodes refuse the ended session while the response is still being made."""
        gate = Turnstile()

        @web.middleware
        async def outer(request: web.Request, handler: View) -> web.StreamResponse:
            response = await handler(request)
            if request.path == out:
                await gate()
            return response

        timeouts = replace(QUICK, response=3600.0)
        a, b = await sites(site={"outer": outer}, timeouts=timeouts)
        browser = await a.logged_in()
        stale = browser.cookie
        gate.shut = True
        answer = asyncio.create_task(browser.get(out))

        async def is_refused() -> bool:
            return await b.knock(stale) == DEAD

        await until(is_refused)
        gate.let()
        await answer

    async def test_reports(self, nodes: Nodes) -> None:
        """The report of an order counts the sockets of all nodes, and confirms the record."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie), socket(b, cookie), socket(b, cookie):
            report = await registry_of(a).end_session(await id_of(a, cookie), wait=PATIENCE)

        assert report.sockets == 3
        assert report.nodes_answered == report.nodes_expected == 2
        assert report.complete
        assert report.stored

    async def test_large_ids(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Ids that are large integers keep every digit on all nodes."""
        options: dict[str, Any] = {"id_factory": lambda request: 2**62 + 1}
        a = await start_node(redis_server.url, "a", **options)
        b = await start_node(redis_server.url, "b", **options)
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await registry_of(a).end_session(2**62)
            await lives(ws)
            await registry_of(a).end_session(2**62 + 1)
            assert await expect_close(ws) == 4401


class TestTrouble:
    @pytest.mark.parametrize("order", ["close_all_session", "end_session"])
    async def test_order_that_fails(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        """A single order that fails after its close frames still closes all its sockets."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(a, "bob")
        give, hers_id = getattr(registry_of(a), order), await id_of(a, ann)
        await settled(a)
        heard = registry_of(b).stats().orders_heard
        await give("nobody")  # the next one has the same shape
        await until(lambda: registry_of(b).stats().orders_heard > heard)
        failed = asyncio.Event()

        def fail(*args: Any, **kwargs: Any) -> NoReturn:
            failed.set()
            raise RuntimeError("no memory")

        async with socket(b, ann) as hers, socket(b, bob) as his:
            monkeypatch.setattr(inspect(registry_of(b)).effects, "apply", fail)
            await give(hers_id)
            await failed.wait()
            assert await expect_close(hers) == (4403 if order == "close_all_session" else 4401)
            await lives(his)
            monkeypatch.undo()

    async def test_alone_and_at_once(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A single order that fails before its close frames is logged, and reconciled."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(a, "bob")
        await settled(a)
        heard = registry_of(b).stats().orders_heard
        await registry_of(a).end_identity("nobody")  # the next one has the same shape
        await until(lambda: registry_of(b).stats().orders_heard > heard)
        failed = asyncio.Event()

        def fail(*args: Any) -> NoReturn:
            failed.set()
            raise RuntimeError("no memory")

        async with socket(b, ann) as hers, socket(b, bob) as his:
            monkeypatch.setattr(cluster_of(b).applier, "carry_out_one", fail)
            await registry_of(a).end_identity("ann")
            await failed.wait()
            assert await expect_close(hers) == 4401
            await lives(his)
        assert "an order of another node could not be applied (RuntimeError" in caplog.text

    async def test_others_of_its_message(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An order that fails does not stop others of its message, and is reconciled."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(a, "bob")
        core = inspect(registry_of(b))
        heard = core.announcer.received

        def fail_of_bob(order: Any, *args: Any) -> None:
            if order.changes[0].subject.value == "bob":
                raise RuntimeError("no memory")
            heard(order, *args)

        async with socket(b, ann) as hers, socket(b, bob) as his:
            monkeypatch.setattr(core.announcer, "received", fail_of_bob)
            end_identity = registry_of(a).end_identity
            await asyncio.gather(*map(end_identity, ["x", "y", "bob", "ann"]))  # 2 in one message
            assert [await expect_close(ws) for ws in (hers, his)] == [4401, 4401]

    async def test_fails_half_way(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sockets that a partly failed order left open are closed by reconciliation."""
        a, b = nodes
        ann, bob = await log_in(a), await log_in(a, "bob")
        failed = asyncio.Event()

        def fail(*args: Any, **kwargs: Any) -> NoReturn:
            failed.set()
            raise RuntimeError("no memory")

        async with socket(b, ann) as hers, socket(b, bob) as his:
            monkeypatch.setattr(inspect(registry_of(b)).announcer, "received", fail)
            await registry_of(a).end_identity("ann")
            await failed.wait()
            assert await expect_close(hers) == 4401
            await lives(his)

    async def test_what_a_journal_cannot_hold(
        self, redis_server: RedisServer, start_node: StartNode, tmp_path: Path
    ) -> None:
        """An id or identity that the journal cannot store raises an error."""
        a = await start_node(redis_server.url, "a", journal=tmp_path / "a.db")
        with pytest.raises(InvalidSessionWSId, match="NoneType"):
            await registry_of(a).end_session(("tenant", None))
        with pytest.raises(InvalidIdentity, match="float"):
            await registry_of(a).end_identity(1.5)


class TestMany:
    @pytest.mark.parametrize("order", ["close_all_session", "end_session"])
    async def test_few_concerned(self, nodes: Nodes, order: str) -> None:
        """Of many orders at once, those with sockets here close them; all are counted."""
        a, b = nodes
        ann, bob, eve = [await log_in(a, name) for name in ("ann", "bob", "eve")]
        wanted = {50: await id_of(a, ann), 51: await id_of(a, bob), 300: await id_of(a, ann)}
        give = getattr(registry_of(a), order)
        async with socket(b, ann) as hers, socket(b, bob) as his, socket(b, eve) as other:
            heard = registry_of(b).stats().orders_heard
            await asyncio.gather(*[give(wanted.get(n, f"nobody {n}")) for n in range(400)])
            code = 4403 if order == "close_all_session" else 4401
            assert [await expect_close(hers), await expect_close(his)] == [code, code]
            await lives(other)
        await until(lambda: registry_of(b).stats().orders_heard == heard + 400)

    async def test_many_concerned(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Orders that are carried out in several turns close all their sockets."""
        monkeypatch.setattr(inbound, "FEW", 2)
        monkeypatch.setattr(inbound, "TURN", 0.0)
        a, b = nodes
        cookies = [await log_in(a, f"user{n}") for n in range(8)]
        ids = [await id_of(a, cookie) for cookie in cookies]
        async with AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(socket(b, cookie)) for cookie in cookies]
            many = [f"nobody {n}" for n in range(4)]
            await asyncio.gather(*map(registry_of(a).end_session, [*many, *ids, *many]))
            assert {await expect_close(ws) for ws in sockets} == {4401}

    async def test_missed(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Many missed orders are found by their numbers."""
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b")
        cookie = await log_in(a)
        session_ws_id = await id_of(a, cookie)
        async with socket(b, cookie) as ws:
            numbers = cluster_of(b).numbers
            async with script(redis_server.url) as job:
                many = [f"nobody {n}" for n in range(700)]
                await asyncio.gather(*map(job.end_session, [*many, session_ws_id]))
            assert await expect_close(ws) == 4401
            await until(lambda: numbers.last >= 701 and not numbers.missing)
            numbers.mark_missing(1, numbers.last)
            found = registry_of(b).stats().orders_reconciled
            cluster_of(b).reconciler.missed()
            await until(lambda: not numbers.missing)
            assert registry_of(b).stats().orders_reconciled >= found + 701


class TestRenew:
    async def test_replaced(self, nodes: Nodes) -> None:
        """A renewed session's sockets reconnect on every node with the new cookie only."""
        a, b = nodes
        old = await log_in(a)
        async with socket(b, old) as ws:
            new = await visit(a, "/renew", old)
            assert await expect_close(ws) == 4403
        assert await refused(b, old) == 4403
        async with socket(b, new):
            pass

    async def test_old_id(self, nodes: Nodes) -> None:
        """An end of the former id of a renewed session ends the session."""
        a, b = nodes
        old = await log_in(a)
        old_id = await id_of(a, old)
        new = await visit(a, "/renew", old)
        async with socket(b, new) as ws:
            await registry_of(b).end_session(old_id)
            assert await expect_close(ws) == 4401
        await settled(b)
        assert await refused(a, new) == 4401

    async def test_old_id_elsewhere(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A script ends a session that was renewed twice by the session's first id."""
        a = await start_node(redis_server.url, "a")
        first = await log_in(a)
        first_id = await id_of(a, first)
        second = await visit(a, "/renew", first)
        third = await visit(a, "/renew", second)
        await settled(a)
        await redis_server.cli("DEL", "{aiohttp_session_ws}:recent")
        b = await start_node(redis_server.url, "b")
        async with socket(b, third) as ws:
            async with script(redis_server.url) as job:
                await job.end_session(first_id)
            assert await expect_close(ws) == 4401
        for cookie in (first, second, third):
            assert await refused(b, cookie) == 4401

    async def test_everywhere(self, nodes: Nodes) -> None:
        """A cookie from before a renewal is refused after a log-out everywhere."""
        a, b = nodes
        old = await log_in(a)
        await visit(a, "/renew", old)
        await settled(a)
        await registry_of(b).end_identity("ann")
        await settled(b)
        for client in nodes:
            assert await refused(client, old) in (4401, 4403)  # it was replaced just before

    async def test_escapes_nothing(self, nodes: Nodes) -> None:
        """A renewal during a log-out everywhere does not bring the session back."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            ended = asyncio.create_task(registry_of(b).end_identity("ann"))
            new = await visit(a, "/renew", cookie)
            await ended
            assert await expect_close(ws) in (4401, 4403)
        await settled(a, b)
        assert await refused(b, new) == await refused(a, new) == 4401


class TestClose:
    async def test_reconnect(self, nodes: Nodes) -> None:
        """A close order without an end lets clients reconnect to every node."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            await visit(a, "/close", cookie)
            assert await expect_close(here) == await expect_close(there) == 4403
        async with socket(a, cookie), socket(b, cookie):
            pass

    async def test_not_again(self, nodes: Nodes) -> None:
        """A close order does not close a socket opened after it when a node reconciles."""
        a, b = nodes
        cookie = await log_in(a)
        await registry_of(a).close_all_session(await id_of(a, cookie))
        await settled(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            for client, ws in ((a, here), (b, there)):
                cluster = cluster_of(client)
                cluster.reconciler.check_all_connections()
                cluster.numbers.rewind(0, cluster.numbers.last)
                cluster.reconciler.missed()
                await until(lambda cluster=cluster: not cluster.numbers.missing)  # type: ignore[misc]
                await lives(ws)

    async def test_before_a_node_started(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A close order from before a node started closes nothing there, though it is recorded."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await registry_of(a).close_all_session(await id_of(a, cookie))
        await registry_of(a).close_all_session("room")
        await settled(a)
        await redis_server.cli("DEL", f"{PREFIX}:recent")  # as after ten minutes
        b = await start_node(redis_server.url, "b")
        thing = Thing()
        registry_of(b).register("room", thing)
        cluster, looked = cluster_of(b), asyncio.Event()
        read = cluster.commands.read

        def read_and_tell(keys: Sequence[str]) -> asyncio.Future[list[bytes | None]]:
            answer = read(keys)
            answer.add_done_callback(lambda _: looked.set())
            return answer

        async with socket(b, cookie) as ws:
            monkeypatch.setattr(cluster.commands, "read", read_and_tell)
            cluster.reconciler.check_all_connections()
            await asyncio.wait_for(looked.wait(), PATIENCE)
            await lives(ws)
            assert not thing.closed

    async def test_unheard(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handshake finds an order that its node missed, and is closed with its code."""
        turnstile = Turnstile()

        async def wait(request: Any) -> str:
            if request.path == "/ws":
                await turnstile()
            return "ann"

        monkeypatch.setattr(inbound.Inbound, "receive", lambda self, data: None)
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", identify=wait)
        cookie = await log_in(a)
        id_ = await id_of(b, cookie)  # from now on its handshakes are looked up, its pages not
        turnstile.shut = True
        opening = asyncio.create_task(refused(b, cookie))
        await turnstile.arrived.wait()
        await registry_of(a).close_all_session(id_, close=4000)
        await settled(a)
        turnstile.let()

        assert await opening == 4000

    async def test_unheard_without_identify(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handshake finds an end that its node missed, also without ``identify``."""
        monkeypatch.setattr(inbound.Inbound, "receive", lambda self, data: None)
        a = await start_node(redis_server.url, "a", identify=None)
        b = await start_node(redis_server.url, "b", identify=None)
        cookie = await log_in(a)
        async with socket(b, cookie):
            pass  # from now on its pages are not looked up
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)

        assert await refused(b, cookie) == 4401

    async def test_identity(self, nodes: Nodes) -> None:
        """All sessions of an identity are told to reconnect, and can."""
        a, b = nodes
        one, two = await log_in(a), await log_in(b)
        async with socket(b, one) as first, socket(b, two) as second:
            await registry_of(a).close_all_identity("ann")
            assert await expect_close(first) == await expect_close(second) == 4403
        async with socket(b, one), socket(a, two):
            pass

    async def test_close_code(self, nodes: Nodes) -> None:
        """The close code and reason of an order are used on other nodes, too."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await registry_of(a).close_all_session(
                await id_of(a, cookie), close=4000, reason="moved house"
            )
            message = await ws.receive(timeout=PATIENCE)
        assert (message.data, message.extra) == (4000, "moved house")


class TestIdentity:
    async def test_everywhere(self, nodes: Nodes) -> None:
        """A log-out everywhere ends all sessions on all nodes, those without a socket too."""
        a, b = nodes
        one, two, three = await log_in(a), await log_in(b), await log_in(b)
        bob = await log_in(b, "bob")
        async with socket(a, one) as first, socket(b, two) as second, socket(b, bob) as other:
            await visit(a, "/out/everywhere", one)
            assert await expect_close(first) == await expect_close(second) == 4401
            await lives(other)
        for cookie in (one, two, three):
            assert await refused(b, cookie) == 4401

    async def test_log_in_again(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A log-in after a log-out everywhere is accepted on every node, later ones too."""
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b")
        await visit(a, "/out/everywhere", await log_in(a))
        await settled(a)
        cookie = await log_in(a)
        c = await start_node(redis_server.url, "c")
        for client in (a, b, c):
            async with socket(client, cookie):
                pass

    async def test_restarted(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node that starts after a log-out everywhere finds it in Redis."""
        a = await start_node(redis_server.url, "a")
        one, two = await log_in(a), await log_in(a)
        await visit(a, "/out/everywhere", one)
        await settled(a)
        b = await start_node(redis_server.url, "b")
        assert await refused(b, two) == 4401
        c = await start_node(redis_server.url, "c")
        await becomes_nobody(c, two)

    async def test_no_identify(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node without ``identify`` makes results by identity incomplete, not those by id."""
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", identify=None)
        await until(lambda: bool(cluster_of(b).membership.members))
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: len(cluster_of(a).membership.members) == 2)
        report = await registry_of(a).end_identity("ann", wait=PATIENCE)
        assert not report.complete
        assert not (await registry_of(a).connections(identity="ann")).complete
        assert (await registry_of(a).end_session("x", wait=PATIENCE)).complete
