"""
Redis away, lost subscriptions, lost data: no log-out is lost.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp.test_utils import TestServer
from aiohttp_session import SimpleCookieStorage
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aiohttp_session_ws import Expiry, NotSetUp, Timeouts, end_session_ws
from aiohttp_session_ws._logging import fingerprint
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.exceptions import RedisUnavailable
from aiohttp_session_ws.redis import RedisSessionWSRegistry, membership
from aiohttp_session_ws.redis.cluster import RedisCluster
from aiohttp_session_ws.redis.io import subscriber
from aiohttp_session_ws.redis.io.scripts import HEARTBEAT
from tests.support import (
    PATIENCE,
    AiohttpClient,
    Client,
    GatedStorage,
    Turnstile,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import inspect
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
    nowhere,
    refused,
    registry_in,
    registry_of,
    settled,
    socket,
    visit,
)
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer


async def unavailable(client: Client, cookie: str) -> None:
    """Check that a handshake gets a 503 with ``Retry-After``."""
    with pytest.raises(WSServerHandshakeError) as caught:
        await client.ws_connect("/ws", headers={"Cookie": cookie})
    assert caught.value.status == 503
    assert caught.value.headers is not None
    assert caught.value.headers["Retry-After"] == "1"


def kept(id_: str) -> list[TrackedConnection]:
    """Return the connection objects of a session that are in memory."""
    gc.collect()
    objects = gc.get_objects()
    return [o for o in objects if type(o) is TrackedConnection and o.session_ws_id == id_]


class TestStart:
    async def test_without_redis(self, start_node: StartNode, caplog: Any) -> None:
        """An application starts without its Redis, serves pages and refuses sockets."""
        a = await start_node(nowhere(), "a")
        assert registry_of(a).state == "degraded"
        cookie = await log_in(a)
        await unavailable(a, cookie)
        assert "starts without it" in caplog.text

    async def test_later(self, start_node: StartNode) -> None:
        """A node connects when Redis becomes available, and reports its changes of state."""
        port = free_port()
        a = await start_node(f"redis://127.0.0.1:{port}", "a")
        states: list[str] = []

        async def note(state: str) -> None:
            states.append(state)

        registry_of(a).on_state_change.append(note)
        async with RedisServer(port=port):
            await becomes(a, "connected")
            cookie = await log_in(a)
            async with socket(a, cookie):
                pass
            await until(lambda: states == ["connected"])
        await becomes(a, "degraded")
        await until(lambda: states == ["connected", "degraded"])

    @pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://:pw@host:x/"])
    def test_wrong_url(self, url: str) -> None:
        """An invalid URL raises at once, without its password in the message."""
        with pytest.raises(ValueError, match="redis://") as caught:
            RedisSessionWSRegistry(url)
        assert "pw" not in str(caught.value)

    @pytest.mark.parametrize("wrong", [None, 6379, b"redis://localhost"])
    def test_wrong_type(self, wrong: Any) -> None:
        """An argument that is neither a URL nor a callable raises TypeError."""
        with pytest.raises(TypeError, match="callable"):
            RedisSessionWSRegistry(wrong)

    def test_wrong_policy(self) -> None:
        """An unknown ``on_outage`` raises ValueError."""
        with pytest.raises(ValueError, match="refuse"):
            RedisSessionWSRegistry(nowhere(), on_outage="hope")  # type: ignore[arg-type]

    async def test_wrong_password(self, start_node: StartNode, caplog: Any) -> None:
        """A wrong password is logged as such, without the password."""
        async with RedisServer(password="right") as server:
            await start_node(server.url.replace("right", "secret!"), "a")
            assert "AuthenticationError" in caplog.text
            assert "secret!" not in caplog.text

    async def test_silent(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A Redis that accepts connections but does not answer is logged as a timeout."""
        redis_server.freeze()
        await start_node(redis_server.url, "a")
        line = next(r.message for r in caplog.records if "starts without it" in r.message)
        assert "(no answer within" in line or "(TimeoutError" in line
        redis_server.thaw()

    async def test_script(self) -> None:
        """A script raises ``RedisUnavailable`` when it starts without Redis."""
        with pytest.raises(RedisUnavailable, match="is it running"):
            async with RedisSessionWSRegistry(nowhere()):
                pass

    async def test_may_not_subscribe(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A node that has no permission to subscribe logs that."""
        await redis_server.cli("ACL", "SETUSER", "default", "resetchannels")
        a = await start_node(redis_server.url, "a")
        assert registry_of(a).state == "degraded"
        assert "subscribing to orders fails: NoPermissionError" in caplog.text
        assert "channel" in caplog.text

    async def test_may_not_subscribe_any_more(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """A node that loses the permission logs that, not the reason of an earlier break."""
        a = await start_node(redis_server.url, "a")
        commands = cluster_of(a).commands
        before = commands.link.line
        await redis_server.kill_clients()
        await until(lambda: commands.link.line not in (None, before))
        await commands.read(["x"])
        await redis_server.cli("ACL", "SETUSER", "default", "resetchannels")
        await redis_server.kill_pubsub()
        await becomes(a, "degraded")
        assert "is degraded (subscribing to orders fails: NoPermissionError" in caplog.text

    async def test_cancelled(self, redis_server: RedisServer) -> None:
        """A start that is cancelled leaves no task behind, and can be retried."""
        before = asyncio.all_tasks()
        registry = RedisSessionWSRegistry(redis_server.url)
        redis_server.freeze()
        starting = asyncio.create_task(registry.__aenter__())
        await until(lambda: len(asyncio.all_tasks()) > len(before) + 3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until(lambda: asyncio.all_tasks() <= before)
        redis_server.thaw()
        async with registry:
            assert (await registry.end_session("x", wait=PATIENCE)).stored

    async def test_two_apps(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A registry that is in use rejects a second application, and keeps working."""
        a = await start_node(redis_server.url, "a")
        app = app_of(registry_of(a))
        app.freeze()
        with pytest.raises(NotSetUp, match="in use"):
            await app.startup()
        async with socket(a, await log_in(a)) as ws:
            await registry_of(a).broadcast("still there")
            assert await ws.receive_str() == "still there"
        assert registry_of(a).state == "connected"

    async def test_entered_twice(self, redis_server: RedisServer) -> None:
        """A registry that a script has entered rejects a second entry, and keeps working."""
        async with RedisSessionWSRegistry(redis_server.url) as registry:
            with pytest.raises(NotSetUp, match="in use"):
                await registry.__aenter__()
            assert (await registry.end_session("x", wait=PATIENCE)).stored

    async def test_log_once(self, start_node: StartNode, caplog: Any) -> None:
        """An outage is not logged for each failed command."""
        caplog.set_level(logging.WARNING)
        a = await start_node(nowhere(), "a")
        commands = cluster_of(a).commands
        for _ in range(20):
            with pytest.raises(RedisUnavailable):
                await commands.read(["x"])
        assert len(caplog.records) < 5


class TestAway:
    async def test_log(
        self, redis_server: RedisServer, start_node: StartNode, caplog: Any
    ) -> None:
        """The begin of an outage, with its reason, and its end are logged as warnings."""
        caplog.set_level(logging.INFO)
        a = await start_node(redis_server.url, "a")
        redis_server.kill()
        await becomes(a, "degraded")
        await redis_server.start()
        await becomes(a, "connected")

        lines = [record for record in caplog.records if "the websocket registry" in record.message]
        assert [record.levelname for record in lines] == ["INFO", "WARNING", "WARNING"]
        assert "ConnectionError" in lines[1].message
        assert "on_outage=" in lines[1].message
        assert "is connected, was degraded for" in lines[2].message

    async def test_log_out(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A log-out without Redis takes effect here at once, on others when Redis is back."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            redis_server.kill()
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(here) == 4401
            await redis_server.start()
            assert await expect_close(there) == 4401
        await becomes(b, "connected")
        assert await refused(b, cookie) == 4401

    async def test_stored(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """The report says whether Redis has recorded the order."""
        a, b = nodes
        redis_server.kill()
        assert not (await registry_of(a).end_session("x", wait=0.1)).stored
        await becomes(b, "degraded")
        await redis_server.start()
        await becomes(a, "connected")
        await becomes(b, "connected")
        assert (await registry_of(a).end_session("y", wait=PATIENCE)).stored

    async def test_frozen(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A Redis that does not answer delays no log-out; handshakes get a 503."""
        a, b = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as here, socket(b, cookie) as there:
            redis_server.freeze()
            await visit(a, "/out/end_session_ws", cookie)
            assert await expect_close(here) == 4401
            await unavailable(b, cookie)
            await unavailable(b, cookie)
            redis_server.thaw()
            assert await expect_close(there) == 4401

    async def test_patient_client(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A read times out, even with an application's client that has no timeout."""
        a = await start_node(lambda: Redis.from_url(redis_server.url, socket_timeout=None), "a")
        commands = cluster_of(a).commands
        await commands.read(["x"])
        redis_server.freeze()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RedisUnavailable):
                await commands.read(["x"])
        redis_server.thaw()

    async def test_refuse(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """With "refuse" open sockets stay, new ones get a 503, and pages are served."""
        a, _ = nodes
        cookie = await log_in(a)
        async with socket(a, cookie) as ws:
            redis_server.kill()
            await becomes(a, "degraded")
            await unavailable(a, cookie)
            await ws.send_str("still there")
            assert await ws.receive_str() == "still there"
            await log_in(a)
            await redis_server.start()
            await becomes(a, "connected")
            async with socket(a, cookie):
                pass

    async def test_accept(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """With "accept" sockets open; those of ended sessions close when Redis is back."""
        a = await start_node(redis_server.url, "a", on_outage="accept")
        b = await start_node(redis_server.url, "b", on_outage="accept")
        ann, bob = await log_in(a), await log_in(b, "bob")
        redis_server.kill()
        await becomes(a, "degraded")
        await becomes(b, "degraded")
        await visit(a, "/out/end_session_ws", ann)
        async with socket(b, ann) as stale, socket(b, bob) as living:
            await redis_server.start()
            assert await expect_close(stale) == 4401
            await living.send_str("still there")
            assert await living.receive_str() == "still there"

    async def test_accept_those_that_go(self, start_node: StartNode) -> None:
        """A socket that closes during an outage leaves no object in memory."""
        node = await start_node(nowhere(), "a", on_outage="accept")
        cookie = await log_in(node)
        id_ = await id_of(node, cookie)
        async with socket(node, cookie):
            assert kept(id_)

        await until(lambda: not kept(id_))

    async def test_accept_while_busy(
        self, redis_server: RedisServer, start_node: StartNode
    ) -> None:
        """A socket accepted while Redis is busy is closed afterwards if its session has ended."""
        a = await start_node(redis_server.url, "a")
        cookie = await log_in(a)
        await visit(a, "/out/end_session_ws", cookie)
        await settled(a)
        await redis_server.cli("DEL", "{aiohttp_session_ws}:recent")  # as after ten minutes
        b = await start_node(redis_server.url, "b", on_outage="accept")
        numbers = cluster_of(b).numbers
        await until(lambda: numbers.last and not numbers.missing)
        await redis_server.cli("CONFIG", "SET", "lua-time-limit", "1")
        busy = asyncio.create_task(redis_server.cli("EVAL", "while true do end", 0))

        async def is_busy() -> bool:
            try:
                await redis_server.cli("GET", "x")
            except ResponseError as exc:
                return "BUSY" in str(exc)
            return False

        await until(is_busy)
        async with socket(b, cookie) as ws:
            assert cluster_of(b).commands.available
            await redis_server.cli("SCRIPT", "KILL")
            with pytest.raises(ResponseError):
                await busy
            assert await expect_close(ws) == 4401

    async def test_shut_down(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """An application that shuts down waits until Redis has recorded its orders."""
        server = TestServer(node_app(redis_server.url, "a"))
        await server.start_server()
        redis_server.freeze()
        registry = registry_in(server)
        await registry.end_session("x")
        closing = asyncio.create_task(server.close())
        await until(lambda: inspect(registry).drainer.refuses)
        redis_server.thaw()
        await closing
        assert await redis_server.cli("EXISTS", '{aiohttp_session_ws}:end:id:"x"')

    async def test_lost(self, caplog: Any) -> None:
        """Orders that Redis has not recorded at shutdown are logged by fingerprint."""
        server = TestServer(node_app(nowhere(), "a", timeouts=Timeouts(outbox=0.1)))
        await server.start_server()
        registry = registry_in(server)
        await registry.end_session("x")
        await registry.end_session("x")
        await server.close()
        assert " 2 orders were lost" in caplog.text
        assert caplog.text.count(f"id {fingerprint('x')}") == 1

    @pytest.mark.parametrize("how", ["refused", "frozen"])
    async def test_lost_on_its_way(
        self, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        """Orders in flight that Redis refused, or has not answered, are logged at shutdown."""
        server = TestServer(node_app(redis_server.url, "a", timeouts=Timeouts(outbox=0.1)))
        await server.start_server()
        registry = registry_in(server)
        await registry.end_session("before", wait=PATIENCE)
        if how == "refused":
            await redis_server.cli("CONFIG", "SET", "maxmemory", "1")
        else:
            redis_server.freeze()
        await registry.end_session("x")
        await server.close()
        redis_server.thaw()
        assert " 1 orders were lost" in caplog.text
        assert f"id {fingerprint('x')}" in caplog.text


class TestHandshake:
    @pytest.mark.parametrize("where", ["identify", "authorize"])
    @pytest.mark.parametrize(
        ("path", "code"), [("/out/end_session_ws", 4401), ("/renew", 4403), ("/close", 4403)]
    )
    async def test_in_flight(
        self, redis_server: RedisServer, start_node: StartNode, where: str, path: str, code: int
    ) -> None:
        """A handshake is refused if an order of another node arrives during it."""
        turnstile = Turnstile()

        async def wait(request: Any) -> str:
            if request.path == "/ws":
                await turnstile()
            return "ann"

        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", **{where: wait})
        cookie = await log_in(a)
        turnstile.shut = True
        opening = asyncio.create_task(refused(b, cookie))
        await turnstile.arrived.wait()
        await visit(a, path, cookie)
        await settled(a)
        last = int(await redis_server.cli("GET", "{aiohttp_session_ws}:seq"))
        await until(lambda: cluster_of(b).numbers.last >= last)
        turnstile.let()
        assert await opening == code

    @pytest.mark.parametrize("where", ["identify", "authorize"])
    async def test_deaf(
        self, redis_server: RedisServer, start_node: StartNode, where: str
    ) -> None:
        """A handshake is refused by an order that its node missed after the first check."""
        turnstile = Turnstile()

        async def wait(request: Any) -> str:
            await turnstile()
            return "ann"

        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            b = await start_node(proxy.url(), "b", **{where: wait})
            cookie = await log_in(a)
            turnstile.shut = True
            opening = asyncio.create_task(refused(b, cookie))
            await turnstile.arrived.wait()
            await proxy.stop()
            await becomes(b, "degraded")
            await visit(a, "/close", cookie)
            await settled(a)
            await proxy.start()
            await becomes(b, "connected")
            turnstile.let()
            assert await opening == 4403

    async def test_only_deaf(
        self, redis_server: RedisServer, start_node: StartNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node without a subscription asks Redis right before it opens a socket."""
        turnstile = Turnstile()

        async def wait(request: Any) -> bool:
            await turnstile()
            return True

        async def refuse(client: Any, prefix: str) -> Any:
            raise TimeoutError("timed out")

        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", authorize=wait)
        cookie = await log_in(a)
        turnstile.shut = True
        opening = asyncio.create_task(refused(b, cookie))
        await turnstile.arrived.wait()
        monkeypatch.setattr(subscriber, "connect", refuse)
        await redis_server.kill_pubsub()
        await becomes(b, "degraded")
        await visit(a, "/close", cookie)
        await settled(a)
        turnstile.let()

        assert await opening == 4403

    @pytest.mark.parametrize("fails", [False, True])
    async def test_heard_again(
        self,
        redis_server: RedisServer,
        start_node: StartNode,
        monkeypatch: pytest.MonkeyPatch,
        fails: bool,
    ) -> None:
        """A resubscribed node asks Redis until a heartbeat has succeeded."""
        turnstile, beats = Turnstile(), asyncio.Queue[None]()

        async def wait(request: Any) -> bool:
            await turnstile()
            return True

        async def refuse(client: Any, prefix: str) -> Any:
            raise TimeoutError("timed out")

        def fail(script: Any, *args: Any, **how: Any) -> asyncio.Future[Any]:
            if script is not HEARTBEAT or not cluster.health.receives_orders:
                return run_script(script, *args, **how)
            answer = asyncio.get_running_loop().create_future()
            if fails:
                answer.set_exception(RedisUnavailable("away, for a moment"))
            beats.put_nowait(None)
            return answer

        monkeypatch.setattr(membership, "ON_ITS_WAY", 3600.0)
        a = await start_node(redis_server.url, "a")
        b = await start_node(redis_server.url, "b", authorize=wait)
        cluster, cookie = cluster_of(b), await log_in(a)
        run_script = cluster.commands.run_script
        turnstile.shut = True
        opening = asyncio.create_task(refused(b, cookie))
        await turnstile.arrived.wait()
        with monkeypatch.context() as deaf:
            deaf.setattr(subscriber, "connect", refuse)
            await redis_server.kill_pubsub()
            await becomes(b, "degraded")
            await visit(a, "/close", cookie)
            await settled(a)
            monkeypatch.setattr(cluster.commands, "run_script", fail)
        for _ in range(1 + fails):
            await asyncio.wait_for(beats.get(), PATIENCE)
        turnstile.let()

        assert await opening == 4403

    async def test_deaf_while_loading(
        self, redis_server: RedisServer, start_node: StartNode, aiohttp_client: AiohttpClient
    ) -> None:
        """A handshake is refused by an order that was missed while its session was loaded."""
        storage = GatedStorage(SimpleCookieStorage())
        async with Proxy(redis_server.port) as proxy:
            a = await start_node(redis_server.url, "a")
            registry = RedisSessionWSRegistry(proxy.url(), node="b")
            b = await aiohttp_client(make_app(registry, storage))
            cookie = await log_in(a)
            storage.loading.shut = True
            opening = asyncio.create_task(refused(b, cookie))
            await storage.loading.arrived.wait()
            await proxy.stop()
            await becomes(b, "degraded")
            await visit(a, "/close", cookie)
            await settled(a)
            await proxy.start()
            await becomes(b, "connected")
            storage.loading.let()
            assert await opening == 4403
            async with socket(b, cookie):
                pass

    async def test_round_trips(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A handshake reads records from Redis once."""
        a, _ = nodes
        cookie = await log_in(a)
        await visit(a, "/whoami", cookie)
        cluster = cluster_of(a)
        await until(lambda: not cluster.numbers.missing)
        before = await mgets(redis_server)
        async with socket(a, cookie):
            pass
        assert await mgets(redis_server) - before == 1


async def mgets(redis_server: RedisServer) -> int:
    """Return how many times records were read from Redis."""
    stats = await redis_server.cli("INFO", "commandstats")
    return int(stats.get("cmdstat_mget", {}).get("calls", 0))


class TestUnknownTime:
    async def test_log_out(
        self, redis_server: RedisServer, aiohttp_client: AiohttpClient, start_node: StartNode
    ) -> None:
        """A log-out that began before the clock was known ends its session all the same."""
        async with Proxy(redis_server.port) as proxy:
            await proxy.stop()
            app = node_app(proxy.url(), "a", expiry=Expiry(renewal_grace=1e-6))

            async def out(request: web.Request) -> web.Response:
                response = web.Response()
                await end_session_ws(request, response)
                await proxy.start()
                await until(lambda: cluster_of(client).clock.known)
                session = await aiohttp_session.new_session(request)
                session["user"] = "bob"
                return response

            app.router.add_get("/out/late", out)
            client = await aiohttp_client(app)
            assert not cluster_of(client).clock.known
            cookie = await log_in(client)
            await visit(client, "/out/late", cookie)
            await becomes(client, "connected")
            assert await refused(client, cookie) == 4401

    async def test_a_single_order(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A single order from before the clock was known does not end a later log-in."""
        redis_server.kill()
        a = await start_node(redis_server.url, "a")
        await registry_of(a).end_identity("ann")
        await redis_server.start()
        await settled(a)
        b = await start_node(redis_server.url, "b")
        async with socket(b, await log_in(b)) as ws:
            await ws.send_str("still there")
            assert await ws.receive_str(timeout=PATIENCE) == "still there"


class TestConnections:
    async def test_unix(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A node connects to Redis over a Unix socket."""
        a = await start_node(redis_server.unix_url, "a")
        assert registry_of(a).state == "connected"

    async def test_tls(self, redis_server: RedisServer, start_node: StartNode, tls: Any) -> None:
        """A node connects to Redis over TLS."""
        async with Proxy(redis_server.port, tls=tls) as proxy:
            url = proxy.url("rediss") + "?ssl_cert_reqs=none&ssl_check_hostname=false"
            a = await start_node(url, "a")
            b = await start_node(redis_server.url, "b")
            cookie = await log_in(a)
            async with socket(a, cookie) as ws:
                await visit(b, "/out/end_session_ws", cookie)
                assert await expect_close(ws) == 4401

    async def test_all_closed(self, redis_server: RedisServer) -> None:
        """A registry closes all its connections, those of a callable's clients too."""
        made: list[Redis] = []

        def make() -> Redis:
            made.append(Redis.from_url(redis_server.url))
            return made[-1]

        async with redis_server.client() as observer:
            before = len(await observer.client_list())
            async with RedisSessionWSRegistry(make) as registry:
                await registry.end_session("x", wait=PATIENCE)
                assert len(await observer.client_list()) >= before + 3

            async def all_closed() -> bool:
                return len(await observer.client_list()) <= before

            await until(all_closed)
        assert len(made) >= 3

    async def test_restart(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """A registry can be started again after it was stopped."""
        registry = RedisSessionWSRegistry(redis_server.url)
        for _ in range(2):
            async with registry:
                assert registry.state == "connected"
                await registry.end_session("x", wait=PATIENCE)
            assert str(registry.state) == "degraded"

    async def test_prefixes(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Registries with different prefixes do not receive each other's orders."""
        a = await start_node(redis_server.url, "a", prefix="one")
        b = await start_node(redis_server.url, "b", prefix="two")
        cookie = await log_in(a)
        async with socket(b, cookie) as ws:
            await visit(a, "/out/end_session_ws", cookie)
            await settled(a)
            await registry_of(b).broadcast("mine")
            assert await ws.receive_str() == "mine"

    async def test_databases(self, redis_server: RedisServer, start_node: StartNode) -> None:
        """Registries on different databases do not receive each other's orders or pushes."""
        zero, one = (f"redis://127.0.0.1:{redis_server.port}/{db}" for db in (0, 1))
        a = await start_node(zero, "a")
        b, c = await start_node(one, "b"), await start_node(one, "c")
        ann, bob = await log_in(b), await log_in(b, "bob")
        async with socket(b, ann) as hers, socket(b, bob) as his:
            await registry_of(a).broadcast("for others")
            assert (await registry_of(a).end_identity("ann", wait=PATIENCE)).stored
            await registry_of(c).end_identity("bob")
            assert await expect_close(his) == 4401
            await registry_of(c).broadcast("mine")
            assert await hers.receive_str() == "mine"
        async with socket(b, ann):
            pass

    async def test_members(self, redis_server: RedisServer, nodes: Nodes) -> None:
        """A node that shuts down is no longer a member."""
        a, _ = nodes
        server = TestServer(node_app(redis_server.url, "c"))
        await server.start_server()
        members = cluster_of(a).membership
        await acquaint(a)
        members.heartbeat_soon()
        await until(lambda: len(members.members) == 3)
        await server.close()
        members.heartbeat_soon()
        await until(lambda: len(members.members) == 2)

    async def test_last_heartbeat(self, redis_server: RedisServer) -> None:
        """A heartbeat after its leave does not list a node again."""
        server = TestServer(node_app(redis_server.url, "a"))
        await server.start_server()
        cluster = inspect(registry_in(server)).cluster
        assert isinstance(cluster, RedisCluster)
        await cluster.membership.leave()
        await cluster.membership.heartbeat_now()
        listed = await redis_server.cli("EXISTS", "{aiohttp_session_ws}:nodes")
        await server.close()
        assert not listed
