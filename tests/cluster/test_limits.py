"""
Connection limits over all nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

import pytest
from aiohttp import (
    ClientConnectionResetError,
    ClientSession,
    ClientWebSocketResponse,
    WSMsgType,
    WSServerHandshakeError,
    web,
)

from aiohttp_session_ws import REGISTRY_KEY, Limits, renew_session_ws
from aiohttp_session_ws.registry import places
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    Turnstile,
    expect_close,
    until,
)
from tests.support.inspect import connections, opening
from tests.support.node_process import NodeProcess
from tests.support.nodes import (
    acquaint,
    becomes,
    cluster_of,
    connect,
    id_of,
    log_in,
    node_app,
    refused,
    registry_of,
    visit,
)
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer

OnLimit: TypeAlias = Literal["evict_oldest", "refuse"]
Start: TypeAlias = Callable[..., Awaitable[list[Client]]]


@pytest.fixture
def start(aiohttp_client: AiohttpClient, redis_server: RedisServer) -> Start:
    """Return a function that starts nodes with connection limits over all of them."""

    async def begin(number: int = 2, *, on_limit: OnLimit, **options: Any) -> list[Client]:
        names = ("per_session", "per_identity", "scope")
        found = {name: options.pop(name) for name in names if name in options}
        limits = Limits(**{"scope": "cluster", **found}, on_limit=on_limit)
        clients = []
        for name in "abc"[:number]:
            settings = {"timeouts": QUICK, "limits": limits, **options}
            app = node_app(redis_server.url, name, **settings)
            app.router.add_get("/keep", renew_and_keep)
            clients.append(await aiohttp_client(app))
        await acquaint(*clients)
        return clients

    return begin


async def renew_and_keep(request: web.Request) -> web.Response:
    """Renew the session, and keep its sockets."""
    response = web.Response()
    await renew_session_ws(request, response, sockets="keep")
    return response


async def opened(client: Client, cookie: str) -> ClientWebSocketResponse:
    """Open a socket and read its greeting."""
    ws = await connect(client, cookie)
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.TEXT, message
    return ws


async def answer_of(ws: ClientWebSocketResponse) -> str | int:
    """Return what the server echoes, or the code it closes with."""
    with contextlib.suppress(ClientConnectionResetError):
        await ws.send_str("still there?")
    found: str | int = (await ws.receive(timeout=PATIENCE)).data
    return found


async def lives(ws: ClientWebSocketResponse) -> bool:
    """Return whether the server answers."""
    return await answer_of(ws) == "still there?"


def sockets_of(*clients: Client) -> int:
    """Return the total number of sockets that the nodes serve."""
    return sum(len(connections(registry_of(client))) for client in clients)


async def places_in(redis: RedisServer, kind: str = "*") -> int:
    """Return the number of places in Redis."""
    keys = await redis.cli("KEYS", f"{{aiohttp_session_ws}}:places:{kind}:*")
    return sum([await redis.cli("ZCARD", key) for key in keys])


async def settled(redis: RedisServer, number: int, kind: str = "*") -> None:
    """Wait until Redis has this number of places."""

    async def known() -> bool:
        return await places_in(redis, kind) == number

    await until(known)


async def has_place(redis: RedisServer, node: str) -> bool:
    """Return whether Redis has a place of a node."""
    keys = await redis.cli("KEYS", "{aiohttp_session_ws}:places:*")
    places = [place for key in keys for place in await redis.cli("ZRANGE", key, 0, -1)]
    return any(place.startswith(node) for place in places)


class TestEvict:
    async def test_oldest_anywhere(self, start: Start) -> None:
        """An identity's oldest socket on any node is evicted; those of others are not affected."""
        a, b, c = await start(3, on_limit="evict_oldest", per_identity=3)
        ann, bob = await log_in(a), await log_in(a, "bob")
        theirs = [await opened(client, bob) for client in (a, b, c)]
        first, second, third = [await opened(client, ann) for client in (c, a, b)]
        fourth = await opened(a, await log_in(b))

        assert await expect_close(first) == 4429
        fifth = await opened(b, ann)
        assert await expect_close(second) == 4429
        for ws in (*theirs, third, fourth, fifth):
            assert await lives(ws)
        assert sockets_of(a, b, c) == 6

    async def test_session(self, start: Start) -> None:
        """A limit per session counts its sockets on all nodes, separately for each session."""
        a, b = await start(on_limit="evict_oldest", per_session=1)
        one, two = await log_in(a), await log_in(a)
        first, other = await opened(a, one), await opened(a, two)
        second = await opened(b, one)

        assert await expect_close(first) == 4429
        assert await lives(second)
        assert await lives(other)

    async def test_mute(self, start: Start) -> None:
        """An evicted socket that doesn't answer is cut before the new one opens elsewhere."""
        a, b = await start(on_limit="evict_oldest", per_identity=1)
        cookie = await log_in(a)
        peer = await RawPeer.open(a.make_url("/ws"), cookie)
        await peer.frame()
        seen: list[int] = []

        @registry_of(b).on_open
        async def count(details: object) -> None:
            seen.append(sockets_of(a, b))

        ws = await opened(b, cookie)
        assert seen == [1]
        assert await lives(ws)
        assert await peer.closed() == 4429
        peer.close()

    async def test_refiled(self, start: Start, redis_server: RedisServer) -> None:
        """A socket that is kept through a renewal takes its place under the new id."""
        a, b = await start(on_limit="evict_oldest", per_session=1)
        cookie = await log_in(a)
        first = await opened(a, cookie)
        before = await id_of(a, cookie)
        cookie = await visit(b, "/keep", cookie)
        await until(lambda: before not in registry_of(a))
        await settled(redis_server, 1)
        second = await opened(b, cookie)

        assert await expect_close(first) == 4429
        assert await lives(second)

    async def test_proven(self, start: Start, redis_server: RedisServer) -> None:
        """A socket whose client has proven an identity counts for that identity."""
        a, b = await start(on_limit="evict_oldest", per_identity=1)
        ws = await opened(a, await log_in(a, "eve"))
        (connection,) = connections(registry_of(a))
        registry = registry_of(a)
        await registry.prove(connection, "ann", since=registry.now())
        await settled(redis_server, 2)
        _ = await opened(b, await log_in(b))

        assert await expect_close(ws) == 4429

    async def test_by_hand(self, start: Start, redis_server: RedisServer) -> None:
        """An object registered by hand counts, and can be evicted by another node."""
        codes: list[int] = []

        class Thing:
            def close(self, *, code: int, message: bytes) -> None:
                codes.append(code)

        a, b = await start(on_limit="evict_oldest", per_session=1)
        cookie = await log_in(a)
        registry_of(a).register(await id_of(a, cookie), Thing())
        await settled(redis_server, 1)
        _ = await opened(b, cookie)

        assert codes == [4429]


class TestRefuse:
    async def test_elsewhere(self, start: Start, redis_server: RedisServer) -> None:
        """A handshake over the limit gets 4429; a socket that closes elsewhere frees a place."""
        a, b = await start(on_limit="refuse", per_identity=2)
        cookie = await log_in(a)
        first, second = await opened(a, cookie), await opened(b, cookie)

        assert await refused(b, cookie) == 4429
        assert await refused(a, cookie) == 4429
        await first.close()
        await settled(redis_server, 1)
        assert await lives(await opened(b, cookie))
        assert await lives(second)

    async def test_failed_handshake(self, start: Start, redis_server: RedisServer) -> None:
        """A handshake that fails after it took its place gives the place back."""
        a, b = await start(on_limit="refuse", per_identity=1)
        cookie = await log_in(a)

        @registry_of(a).connection_ctx
        async def broken(connection: object) -> Any:
            if connections(registry_of(a)):
                raise ConnectionError("no")
            yield

        ws = await connect(a, cookie)
        assert (await ws.receive(timeout=PATIENCE)).type is WSMsgType.CLOSE
        await settled(redis_server, 0)
        assert await lives(await opened(b, cookie))

    async def test_stopped(self, start: Start) -> None:
        """A node that stops frees the places of its sockets."""
        a, b = await start(on_limit="refuse", per_identity=1)
        cookie = await log_in(a)
        _ = await opened(a, cookie)
        assert await refused(b, cookie) == 4429
        await a.server.close()

        assert await lives(await opened(b, cookie))


@pytest.mark.parametrize("on_limit", ["evict_oldest", "refuse"])
class TestBurst:
    async def test_both_nodes(
        self, start: Start, redis_server: RedisServer, on_limit: OnLimit
    ) -> None:
        """Concurrent handshakes on three nodes fill the limit, and never exceed it."""
        gate = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await gate()
            return True

        clients = await start(3, on_limit=on_limit, per_identity=4, authorize=authorize)
        cookie = await log_in(clients[0])
        most = [0]
        for client in clients:

            @registry_of(client).on_open
            async def count(details: object) -> None:
                most[0] = max(most[0], sockets_of(*clients))

        for client in clients:
            _ = await opened(client, cookie)
        gate.shut = True
        burst = [asyncio.ensure_future(connect(c, cookie)) for _ in range(7) for c in clients]
        await until(lambda: len(gate.waiting) == len(burst))
        gate.let()
        found = await asyncio.gather(*burst)
        first = await asyncio.gather(*(ws.receive(timeout=PATIENCE) for ws in found))
        await settled(redis_server, 4)

        assert most[0] == 4
        assert sockets_of(*clients) == 4
        refusals = [m.data for m in first if m.type is WSMsgType.CLOSE]
        assert {*refusals} <= {4429}
        if on_limit == "refuse":
            assert len(refusals) == len(burst) - 1


class TestTrouble:
    @pytest.mark.parametrize("on_limit", ["evict_oldest", "refuse"])
    async def test_redis_away(
        self, start: Start, redis_server: RedisServer, on_limit: OnLimit
    ) -> None:
        """Without Redis each node counts its own sockets; the excess is closed afterwards."""
        a, b = await start(on_limit=on_limit, per_identity=2, on_outage="accept")
        cookie = await log_in(a)
        one = await opened(a, cookie)
        redis_server.kill()
        for client in (a, b):
            await becomes(client, "degraded")
        others = [await opened(client, cookie) for client in (a, b, b)]
        if on_limit == "refuse":
            assert await refused(b, cookie) == 4429
        assert sockets_of(a, b) == 4
        await redis_server.restart()

        await until(lambda: sockets_of(a, b) == 2)
        if on_limit == "evict_oldest":
            assert await expect_close(one) == 4429
        else:
            assert await lives(one)
        # Any of the others: they opened closer together than the nodes' clocks are exact.
        told = [await answer_of(ws) for ws in others]
        gone = 1 if on_limit == "evict_oldest" else 2
        assert sorted(told, key=str) == [4429] * gone + ["still there?"] * (3 - gone)

    async def test_lost_data(self, start: Start, redis_server: RedisServer) -> None:
        """All places are reported again after Redis has lost its data."""
        a, b = await start(on_limit="refuse", per_identity=2)
        cookie = await log_in(a)
        _ = await opened(a, cookie), await opened(b, cookie)
        await redis_server.restart(keep_data=False)
        for client in (a, b):
            await becomes(client, "connected")
        await settled(redis_server, 2)

        assert await refused(b, cookie) == 4429

    async def test_refused_write(
        self,
        start: Start,
        redis_server: RedisServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Places that Redis refuses are reported again; until then each node counts its own."""
        monkeypatch.setattr(places, "RETRY", 0.05)
        a, b = await start(on_limit="evict_oldest", per_identity=1)
        cookie = await log_in(a)
        await redis_server.cli("CONFIG", "SET", "maxmemory", "1")
        first, second = await opened(a, cookie), await opened(b, cookie)
        assert "counts its own sockets" in caplog.text
        await redis_server.cli("CONFIG", "SET", "maxmemory", "0")

        assert await expect_close(first) == 4429
        assert await lives(second)

    async def test_stopped_meanwhile(
        self, start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stopped node does not retry its reports to a Redis that is away."""
        monkeypatch.setattr(places, "RETRY", 0.01)
        (a,) = await start(1, on_limit="refuse", per_identity=1)
        _ = await opened(a, await log_in(a))
        redis_server.kill()
        await becomes(a, "degraded")
        await a.server.close()
        told = asyncio.Event()

        async def report_places(*args: Any, **kwargs: Any) -> None:
            told.set()

        monkeypatch.setattr(cluster_of(a), "report_places", report_places)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(told.wait(), 10 * places.RETRY)

    async def test_missed(self, start: Start, redis_server: RedisServer) -> None:
        """A node that missed a request to evict finds its socket when it subscribes again."""
        a, b = await start(on_limit="evict_oldest", per_identity=1)
        cookie = await log_in(a)
        first = await opened(a, cookie)
        held: list[bytes] = []
        requests = cluster_of(a).queries
        hear = requests.receive

        async def deaf(data: bytes) -> None:
            held.append(data)

        requests.receive = deaf  # type: ignore[method-assign]  # that's the loss
        second = await opened(b, cookie)
        requests.receive = hear  # type: ignore[method-assign]
        await redis_server.kill_pubsub()

        assert await expect_close(first) == 4429
        assert await lives(second)

    @pytest.mark.parametrize("how", ["cut", "client gone"])
    async def test_lost_answer(
        self, start: Start, aiohttp_client: AiohttpClient, redis_server: RedisServer, how: str
    ) -> None:
        """
        A socket counts until it is gone, even if its node missed the request to evict it.

        Redis has admitted the handshake, and the connection breaks before the reply arrives, or
        the client has hung up by then.
        """
        gate = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await gate()
            return True

        (a,) = await start(1, on_limit="evict_oldest", per_identity=1)
        limits = Limits(per_identity=1, scope="cluster")
        async with Proxy(redis_server.port) as proxy:
            options = {"limits": limits, "timeouts": QUICK, "authorize": authorize}
            b = await aiohttp_client(node_app(proxy.url(), "b", **options))
            await acquaint(a, b)
            cookie = await log_in(a)
            first = await opened(a, cookie)
            gate.shut = True
            peer = await RawPeer.connect(b.make_url("/ws"), cookie)
            await until(lambda: gate.waiting)
            proxy.black_hole(up=False)
            gate.let()
            await until(lambda: has_place(redis_server, cluster_of(b).instance))
            if how == "cut":
                proxy.cut()
                proxy.heal()
            else:
                peer.vanish()
                await until(lambda: not opening(registry_of(b)))
                proxy.heal()
                await settled(redis_server, 1)
                assert await lives(first)
                _ = await opened(b, cookie)

            assert await expect_close(first) == 4429
            await until(lambda: sockets_of(a, b) == 1)  # it counts until its handler ends
            await settled(redis_server, 1)
            peer.close()


class TestReports:
    async def test_now_and_then(
        self, start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Places that were deleted in Redis are restored by the next full report."""
        monkeypatch.setattr(places, "REPORT", 0.05)
        (a,) = await start(1, on_limit="refuse", per_session=1, per_identity=2)
        _ = await opened(a, await log_in(a))
        await settled(redis_server, 2)
        for key in await redis_server.cli("KEYS", "*:places:*"):
            await redis_server.cli("DEL", key)

        await settled(redis_server, 2)

    async def test_long_silence(
        self, start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node that was silent for long enough to count as dead reports all places again."""
        (a,) = await start(1, on_limit="refuse", per_identity=1)
        _ = await opened(a, await log_in(a))
        await settled(redis_server, 1)
        for key in await redis_server.cli("KEYS", "*:places:*"):
            await redis_server.cli("DEL", key)
        monkeypatch.setattr("aiohttp_session_ws.redis.cluster.HEARTBEAT_TTL", 0.0)
        cluster_of(a).membership.heartbeat_soon()

        await settled(redis_server, 1)


class TestCrash:
    """A node that is killed while it has sockets."""

    async def forget(self, redis: RedisServer, name: str) -> None:
        """Make the last heartbeat of a node so old that the node counts as dead."""
        nodes = "{aiohttp_session_ws}:nodes"
        (dead,) = [n for n in await redis.cli("ZRANGE", nodes, 0, -1) if n.startswith(name + "/")]
        await redis.cli("ZADD", nodes, "1", dead)

    async def test_refuse(self, start: Start, redis_server: RedisServer) -> None:
        """Places of a killed node cause a 503 at first, and are free when it counts as dead."""
        (a,) = await start(1, on_limit="refuse", per_identity=1)
        cookie = await log_in(a)
        options = ("--storage", "simple", "--per-identity", "1", "--on-limit", "refuse")
        async with (
            NodeProcess("z", *options, redis=redis_server.url) as node,
            ClientSession() as browser,
        ):
            ws = await browser.ws_connect(f"{node.url}/ws", headers={"Cookie": cookie})
            await ws.receive(timeout=PATIENCE)
            assert await refused(a, cookie) == 4429
            node.kill()
            with pytest.raises(WSServerHandshakeError) as caught:
                await a.ws_connect("/ws", headers={"Cookie": cookie})
            assert caught.value.status == 503
            await self.forget(redis_server, "z")

            assert await lives(await opened(a, cookie))
            await ws.close()
        assert await places_in(redis_server) == 1

    async def test_evict(self, start: Start, redis_server: RedisServer) -> None:
        """A killed node whose socket is to be evicted does not block new handshakes for ever."""
        (a,) = await start(1, on_limit="evict_oldest", per_identity=1)
        cookie = await log_in(a)
        options = ("--storage", "simple", "--per-identity", "1")
        async with (
            NodeProcess("z", *options, redis=redis_server.url) as node,
            ClientSession() as browser,
        ):
            ws = await browser.ws_connect(f"{node.url}/ws", headers={"Cookie": cookie})
            await ws.receive(timeout=PATIENCE)
            node.kill()
            first = await opened(a, cookie)
            second = await opened(a, cookie)

            assert await expect_close(first) == 4429
            assert await lives(second)


class TestScope:
    async def test_process(self, start: Start, redis_server: RedisServer) -> None:
        """With the scope "process" each node counts its own sockets, without Redis."""
        a, b = await start(on_limit="refuse", per_session=1, scope="process")
        cookie = await log_in(a)
        _ = await opened(a, cookie), await opened(b, cookie)

        assert await refused(a, cookie) == 4429
        assert await places_in(redis_server) == 0

    async def test_no_limit(self, start: Start, redis_server: RedisServer) -> None:
        """Without a limit no place is recorded in Redis, even with the scope "cluster"."""
        a, b = await start(on_limit="refuse")
        for client in (a, b):
            assert client.app is not None
            assert client.app[REGISTRY_KEY]
        cookie = await log_in(a)
        _ = await opened(a, cookie), await opened(b, cookie)

        assert await places_in(redis_server) == 0
