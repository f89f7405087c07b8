"""
Concurrent requests and orders on several nodes, and operations that are cancelled halfway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import aiohttp_session
import pytest
from aiohttp import web

from aiohttp_session_ws import end_other_sessions_ws
from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis import RedisSessionWSRegistry, apply, lookup, outbound
from aiohttp_session_ws.redis.clock import RedisClock
from aiohttp_session_ws.redis.io import subscriber, wire
from aiohttp_session_ws.redis.io.scripts import END_OTHERS, Script
from aiohttp_session_ws.signals import OrderDetails
from tests.cluster.conftest import Sites
from tests.promise.site import AGAIN, DEAD, Site
from tests.support import PATIENCE, QUICK, AiohttpClient, Client, Turnstile, expect_close, until
from tests.support.nodes import (
    Nodes,
    StartNode,
    acquaint,
    app_of,
    becomes,
    cluster_of,
    id_of,
    log_in,
    node_app,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.redis_servers import RedisServer

PREFIX = "{aiohttp_session_ws}"


async def who(client: Client, cookie: str) -> str | None:
    """Return the user that a page shows for a cookie."""
    async with client.get("/whoami", headers={"Cookie": cookie}) as response:
        user: str | None = (await response.json())["user"]
        return user


async def is_nobody(client: Client, cookie: str) -> bool:
    """Return whether a page is anonymous for a cookie."""
    return await who(client, cookie) is None


def doubt(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a node's clock an error of 0.15 s, as behind a slow network."""
    clock = cluster_of(client).clock
    now = clock.monotonic()
    clock.measure(clock.now(), now - 0.15, now + 0.15, 1e-9)
    monkeypatch.setattr(clock, "measure", lambda *_: None)


class TestClocks:
    """Nodes measure the clock of Redis with an error."""

    async def test_right_after_a_log_in(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log-out everywhere on another node ends a session that has just begun."""
        a, b = nodes
        await acquaint(a, b)
        doubt(b, monkeypatch)
        _, cookie = await log_in(b), await log_in(b, "bob")
        async with socket(b, cookie) as ws:
            await registry_of(a).end_identity("bob")
            assert await expect_close(ws) == 4401

    @pytest.mark.parametrize("how", ["a row", "one of such", "in full"])
    async def test_log_in_right_after(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """A log-in right after another node's log-out everywhere arrived is not ended by it."""
        a, b = nodes
        await acquaint(a, b)
        doubt(a, monkeypatch)
        if how == "one of such":
            await registry_of(a).end_identity("the first")
        cookie = await log_in(b)
        async with socket(b, cookie) as ws:
            by = "somebody" if how == "in full" else None
            await registry_of(a).end_identity("ann", by=by)
            assert await expect_close(ws) == 4401
        cookie = await log_in(b)
        async with socket(b, cookie) as ws:
            await ws.send_str("there")
            assert await ws.receive_str() == "there"


async def heard_all(redis: RedisServer, *clients: Client) -> None:
    """Wait until nodes have received all that Redis has recorded."""
    await settled(*clients)
    last = int(await redis.cli("GET", f"{PREFIX}:seq") or 0)
    for client in clients:
        await until(lambda client=client: cluster_of(client).numbers.last >= last)  # type: ignore[misc]


async def is_past(given: float, client: Client) -> None:
    """Wait until a time is past by a node's clock, even with its error."""
    clock = cluster_of(client).clock
    await until(lambda: clock.now() > given + 2 * clock.error)


class OfUser(RedisSessionWSRegistry):
    """A registry whose ids are the users."""

    async def get_id(self, request: web.Request) -> Hashable | None:
        """Return the user."""
        user: str | None = (await aiohttp_session.get_session(request)).get("user")
        return user

    async def set_id(self, request: web.Request, session_ws_id: Hashable) -> None:
        """Store nothing."""

    async def delete_id(self, request: web.Request) -> None:
        """Remove nothing."""


class LateWire(wire.Wire):
    """A connection whose messages can be held back by a test."""

    late = False
    waiting: ClassVar[list[tuple[LateWire, bytes]]] = []

    def data_received(self, data: bytes) -> None:
        """Process data now, or when it is released."""
        if self.late:
            self.waiting.append((self, data))
        else:
            super().data_received(data)

    @classmethod
    def release(cls, *, lose: bool = False) -> None:
        """Process the data that was held back, unless it is lost."""
        cls.late, waiting = False, cls.waiting[:]
        cls.waiting.clear()
        for late, data in waiting:
            if not lose:
                late.data_received(data)


@pytest.fixture
def late_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test hold back the messages to nodes that start from now on."""
    monkeypatch.setattr(subscriber, "Wire", LateWire)
    monkeypatch.setattr(LateWire, "late", False)
    monkeypatch.setattr(LateWire, "waiting", [])


class TestReconnected:
    """A client reconnects while the order that closed its sockets is in transit."""

    @pytest.mark.parametrize("how", ["a row", "one of such", "reported", "found by its number"])
    async def test_order_comes_late(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        late_wires: None,
        how: str,
    ) -> None:
        """A late close order closes only the sockets that were open when it was given."""
        a, b = await start_node(redis_server.url, "a"), await start_node(redis_server.url, "b")
        await acquaint(a, b)
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        if how == "one of such":
            await registry_of(a).close_all_session("the first", wait=0)
        await heard_all(redis_server, a, b)
        async with socket(b, cookie) as before:
            LateWire.late = True
            ids = ["x", "y", id_, "z"] if how == "a row" else [id_]
            wait = 0.01 if how == "reported" else 0.0
            await asyncio.gather(*[registry_of(a).close_all_session(i, wait=wait) for i in ids])
            await settled(a)
            await is_past(cluster_of(a).clock.order_time(), b)
            async with socket(b, cookie) as after:
                LateWire.release(lose=how == "found by its number")
                cluster_of(b).membership.heartbeat_soon()
                assert await expect_close(before) == 4403
                await after.send_str("still there")
                assert await after.receive_str() == "still there"

    @pytest.mark.parametrize("how", ["a row", "one of such", "reported"])
    async def test_end_comes_late(
        self,
        redis_server: RedisServer,
        aiohttp_client: AiohttpClient,
        late_wires: None,
        how: str,
    ) -> None:
        """A late end of a shared id does not end a session that began after it."""
        a, b = [
            await aiohttp_client(app_of(OfUser(redis_server.url, node=name, timeouts=QUICK)))
            for name in ("a", "b")
        ]
        await acquaint(a, b)
        old = await log_in(a)
        if how == "one of such":
            await registry_of(a).end_session("the first")
        await heard_all(redis_server, a, b)
        async with socket(b, old) as before:
            LateWire.late = True
            ids = ["x", "y", "ann", "z"] if how == "a row" else ["ann"]
            wait = 0.01 if how == "reported" else 0.0
            await asyncio.gather(*[registry_of(a).end_session(i, wait=wait) for i in ids])
            await settled(a)
            await is_past(cluster_of(a).clock.order_time(), b)
            new = await log_in(b)
            async with socket(b, new) as after:
                LateWire.release()
                assert await expect_close(before) == 4401
                await after.send_str("still there")
                assert await after.receive_str() == "still there"

    @pytest.mark.parametrize("how", ["a row", "one of such", "reported"])
    async def test_order_comes_twice(
        self,
        redis_server: RedisServer,
        nodes: Nodes,
        monkeypatch: pytest.MonkeyPatch,
        how: str,
    ) -> None:
        """An order published again, since Redis refused it, is applied and announced once."""
        a, b = nodes
        # As if the time were unknown: then only the numbers of orders distinguish them.
        monkeypatch.setattr(RedisClock, "latest", lambda clock, at: clock.monotonic())
        told: list[OrderDetails] = []
        await acquaint(a, b)
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        if how == "one of such":
            await registry_of(a).close_all_session("the first")
        await heard_all(redis_server, a, b)

        @registry_of(b).on_order
        async def tell(details: OrderDetails) -> None:
            told.append(details)

        async with socket(b, cookie) as ws:
            await redis_server.cli("CONFIG", "SET", "maxmemory", "1")
            ids = ["x", "y", id_, "z"] if how == "a row" else [id_]
            wait = 0.01 if how == "reported" else 0.0
            await asyncio.gather(*[registry_of(a).close_all_session(i, wait=wait) for i in ids])
            assert await expect_close(ws) == 4403
        async with socket(b, cookie) as ws:
            await redis_server.cli("CONFIG", "SET", "maxmemory", "0")
            await settled(a)
            await registry_of(a).end_session("the last", wait=PATIENCE)
            await until(lambda: any(details.subject == "the last" for details in told))
            await ws.send_str("still there")
            assert await ws.receive_str() == "still there"
            async with socket(b, cookie):  # Redis has the order, which was applied here
                pass
        assert sorted(str(each.subject) for each in told) == sorted([*ids, "the last"])


class TestPages:
    """Requests with the cookie of an ended session, on a node that has not received the end."""

    @pytest.fixture
    async def stale(self, redis_server: RedisServer, start_node: StartNode) -> str:
        """Return the cookie; nodes that start from now on learn of the end only from a look-up."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await redis_server.cli("DEL", f"{PREFIX}:recent")
        return cookie

    @pytest.fixture
    async def fresh(
        self, stale: str, redis_server: RedisServer, aiohttp_client: AiohttpClient
    ) -> Client:
        """Return such a node, whose handlers are cancelled when their clients disconnect."""
        app = node_app(redis_server.url, "fresh")
        client = await aiohttp_client(app, handler_cancellation=True)
        client.session.cookie_jar.clear()
        return client

    @pytest.fixture
    def asking(self, fresh: Client, monkeypatch: pytest.MonkeyPatch) -> Turnstile:
        """Return a turnstile that can hold the node's reads from Redis."""
        commands, turnstile = cluster_of(fresh).commands, Turnstile()
        read = commands.read

        async def held(keys: Sequence[str]) -> Any:
            await turnstile()
            return await read(keys)

        monkeypatch.setattr(commands, "read", lambda keys: asyncio.ensure_future(held(keys)))
        return turnstile

    async def test_bounded(self, fresh: Client, stale: str, asking: Turnstile) -> None:
        """A page waits for Redis only briefly; a late answer takes effect for later pages."""
        asking.shut = True
        async with asyncio.timeout(PATIENCE):
            assert await who(fresh, stale) == "ann"
        asking.let()
        await until(lambda: is_nobody(fresh, stale))

    async def test_gone(
        self,
        fresh: Client,
        stale: str,
        asking: Turnstile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The session is still looked up for the next request if the first client disconnects."""
        monkeypatch.setattr(lookup, "PATIENCE", PATIENCE)
        asking.shut = True
        first = asyncio.create_task(who(fresh, stale))
        await asking.arrived.wait()
        first.cancel()
        asking.let()
        await until(lambda: is_nobody(fresh, stale))

    async def test_at_the_same_time(
        self, fresh: Client, stale: str, asking: Turnstile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page that arrives during a look-up of its session waits for the answer, too."""
        monkeypatch.setattr(lookup, "PATIENCE", PATIENCE)
        asking.shut = True
        first = asyncio.create_task(who(fresh, stale))
        await asking.arrived.wait()
        other = asyncio.create_task(who(fresh, stale))
        await until(lambda: other.done() or len(asking.waiting) == 2)
        asking.let()
        assert [await first, await other] == [None, None]

    async def test_once(self, fresh: Client, redis_server: RedisServer) -> None:
        """A living session is looked up once, however many pages it requests."""
        cookie = await log_in(fresh)
        await who(fresh, cookie)
        numbers = cluster_of(fresh).numbers  # it first reads the orders before its start
        await until(lambda: numbers.last > 0 and not numbers.missing)
        before = await reads(redis_server)
        for _ in range(10):
            assert await who(fresh, cookie) == "ann"
        assert await reads(redis_server) == before


async def reads(redis_server: RedisServer) -> int:
    """Return how many times records were read from Redis."""
    stats = await redis_server.cli("INFO", "commandstats")
    return int(stats.get("cmdstat_mget", {}).get("calls", 0))


async def is_refused(site: Site, cookie: str) -> bool:
    """Return whether a handshake is refused because its session has ended."""
    return await site.knock(cookie) == DEAD


async def out_elsewhere(request: web.Request) -> web.Response:
    """Log out everywhere else; answer whether that was done."""
    response = web.Response()
    response.text = str(await end_other_sessions_ws(request, response))
    return response


class TestOthers:
    """Log-out everywhere else."""

    @pytest.fixture
    async def two(
        self, redis_server: RedisServer, aiohttp_client: AiohttpClient
    ) -> tuple[Client, Client]:
        """Start two nodes with a page for it."""
        found = []
        for name in "ab":
            app = node_app(redis_server.url, name)
            app.router.add_get("/elsewhere", out_elsewhere)
            client = await aiohttp_client(app)
            client.session.cookie_jar.clear()
            found.append(client)
        await acquaint(*found)
        return found[0], found[1]

    async def test_spares_itself(self, two: tuple[Client, Client]) -> None:
        """The session gets a new cookie; its old cookie and the other sessions are over."""
        a, b = two
        mine, other = await log_in(a), await log_in(b)
        async with socket(b, other) as ws:
            new = await visit(a, "/elsewhere", mine)
            assert await expect_close(ws) == 4401
        await settled(a)
        for client in two:
            assert await who(client, new) == "ann"
            assert await who(client, other) is None
            assert await who(client, mine) is None

    async def test_while_it_is_handled(
        self, sites: Sites, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Handshakes are refused at once, also elsewhere; sockets close after the response."""
        monkeypatch.setattr(apply, "CLOSE_AFTER", PATIENCE)
        timeouts = replace(QUICK, response=PATIENCE)
        a, b = await sites({"/elsewhere": out_elsewhere}, timeouts=timeouts)
        browser, other = await a.logged_in(), await b.logged_in()
        mine, theirs = await (await b.browser(browser.cookie)).open(), await other.open()
        async with a.held(browser, "/elsewhere"):
            await until(partial(is_refused, b, other.cookie))
            assert await mine.lives()
            assert await theirs.lives()
        assert (await mine.code(), await theirs.code()) == (AGAIN, DEAD)

    @pytest.mark.parametrize("by", ["handshake", "request"])
    async def test_found_before_it_is_heard(
        self, late_wires: None, sites: Sites, monkeypatch: pytest.MonkeyPatch, by: str
    ) -> None:
        """Sockets wait for the response even if their node finds the end in Redis first."""
        monkeypatch.setattr(apply, "CLOSE_AFTER", PATIENCE)
        timeouts = replace(QUICK, response=PATIENCE)
        a, b = await sites({"/elsewhere": out_elsewhere}, timeouts=timeouts)
        browser, other = await a.logged_in(), await b.logged_in()
        mine = await (await b.browser(browser.cookie)).open()
        if by == "handshake":
            await other.open()  # from now on its requests are not looked up
        LateWire.late = True
        async with a.held(browser, "/elsewhere"):
            await until(partial(is_refused, b, other.cookie))
            assert await mine.lives()
            LateWire.release()
            assert await mine.lives()
        assert await mine.code() == AGAIN

    async def test_lost(self, redis_server: RedisServer, two: tuple[Client, Client]) -> None:
        """Lost records of a log-out elsewhere are written again by the node that handled it."""
        a, b = two
        await visit(a, "/elsewhere", await log_in(a))
        cluster_of(b).write_back.lost = lambda **_: None  # type: ignore[method-assign]
        key = '{aiohttp_session_ws}:end:identity:"ann"'
        assert await redis_server.cli("DEL", key)
        cluster_of(a).write_back.lost()
        await until(lambda: redis_server.cli("EXISTS", key))

    async def test_two_at_once(self, two: tuple[Client, Client]) -> None:
        """Of two sessions that end each other concurrently, at most one survives."""
        a, b = two
        one, other = await log_in(a), await log_in(b)
        first, second = await asyncio.gather(
            visit(a, "/elsewhere", one), visit(b, "/elsewhere", other)
        )
        await settled(a, b)
        for client in two:
            users = [await who(client, first), await who(client, second)]
            assert users.count("ann") <= 1

    async def test_ended_unheard(
        self, two: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session that has ended, without its node having received that, can't end others."""
        a, b = two
        one, other = await log_in(a), await log_in(a)
        id_ = await id_of(b, one)
        monkeypatch.setattr(cluster_of(b).applier, "carry_out_soon", lambda order: None)
        async with socket(a, other) as ws:
            await registry_of(a).end_session(id_)
            await settled(a)
            async with b.get("/elsewhere", headers={"Cookie": one}) as response:
                assert await response.text() == "False"
            await ws.send_str("still there")
            assert await ws.receive_str(timeout=PATIENCE) == "still there"

    async def test_away(self, redis_server: RedisServer, two: tuple[Client, Client]) -> None:
        """A log-out elsewhere without Redis is refused, and ends nothing, then or later."""
        a, _ = two
        await visit(a, "/elsewhere", await log_in(a, "bob"))  # Redis knows the script
        mine, other = await log_in(a), await log_in(a)
        await visit(a, "/whoami", mine)
        redis_server.freeze()
        async with a.get("/elsewhere", headers={"Cookie": mine}) as response:
            assert await response.text() == "False"
        redis_server.thaw()
        assert await who(a, other) == "ann"
        await becomes(a, "connected")
        assert not await redis_server.cli("EXISTS", '{aiohttp_session_ws}:end:identity:"ann"')

    async def test_answer_lost(
        self, two: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An end that Redis has recorded takes effect here, even if its reply was lost."""
        monkeypatch.setattr(apply, "CLOSE_AFTER", 0.0)
        a, _ = two
        mine, other = await log_in(a), await log_in(a)
        commands = cluster_of(a).commands
        run = commands.run_script

        def lose_answer(script: Script, *args: Any, **options: Any) -> asyncio.Future[Any]:
            answer = run(script, *args, **options)
            if script is not END_OTHERS:
                return answer
            lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            broke = RedisUnavailable("the connection broke")
            answer.add_done_callback(lambda _: lost.set_exception(broke))
            return lost

        monkeypatch.setattr(commands, "run_script", lose_answer)
        async with socket(a, other) as ws:
            async with a.get("/elsewhere", headers={"Cookie": mine}) as response:
                assert await response.text() == "False"
            assert await expect_close(ws) == 4401
        for client in two:
            assert await who(client, other) is None


class TestLeaks:
    async def test_closing(self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        """No request is left of an order that is cancelled while its sockets close."""
        monkeypatch.setattr(outbound, "FORGOTTEN", 0.0)
        a, _ = nodes
        requests = cluster_of(a).requests
        cookie = await log_in(a)
        id_ = await id_of(a, cookie)
        async with socket(a, cookie):  # the client answers no close frame while it does not read
            order = asyncio.create_task(registry_of(a).end_session(id_, wait=0.01))
            await until(lambda: len(requests))
            order.cancel()
            await asyncio.wait({order})
        await until(lambda: not len(requests))

    async def test_waiting(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """No request is left of an order that is cancelled while it waits for other nodes."""
        a, _ = nodes
        requests = cluster_of(a).requests
        await redis_server.cli("ZADD", f"{PREFIX}:nodes", "+inf", "ghost/1")
        await redis_server.cli("INCR", f"{PREFIX}:members")
        await acquaint(a)
        cluster_of(a).membership.heartbeat_soon()
        await until(lambda: len(cluster_of(a).membership.members) == 3)
        order = asyncio.create_task(registry_of(a).end_session("x", wait=PATIENCE))
        await until(lambda: len(requests))
        order.cancel()
        await asyncio.wait({order})
        assert order.cancelled()
        assert not len(requests)


class TestRenewals:
    async def test_ended_while_renewed(self, nodes: Nodes) -> None:
        """A session that is ended by id while another node renews it is over."""
        a, b = nodes
        for _ in range(20):
            cookie = await log_in(a)
            id_ = await id_of(a, cookie)
            async with socket(b, cookie) as ws:
                ended = asyncio.create_task(registry_of(b).end_session(id_))
                new = await visit(a, "/renew", cookie)
                await ended
                assert await expect_close(ws) in (4401, 4403)
            await settled(a, b)
            for client in nodes:
                await until(partial(is_nobody, client, new))
