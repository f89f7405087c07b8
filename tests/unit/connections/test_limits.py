"""
Limits on the number of sockets, also for simultaneous handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal

import pytest
from aiohttp import (
    ClientConnectionResetError,
    ClientWebSocketResponse,
    WSMsgType,
    WSServerHandshakeError,
    web,
)
from hypothesis import HealthCheck, given, settings, strategies as st

from aiohttp_session_ws import Limits, SessionWSRegistry, Timeouts
from aiohttp_session_ws._tasks import BackgroundTasks
from aiohttp_session_ws.close_codes import NORMAL
from aiohttp_session_ws.connections.connection import State, TrackedConnection
from aiohttp_session_ws.connections.limits import make_room
from aiohttp_session_ws.connections.manager import ConnectionManager
from aiohttp_session_ws.options import PushQueue
from aiohttp_session_ws.signals import OpenDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, is_closing, opening


def make(limits: Limits, **options: Any) -> SessionWSRegistry:
    """Return a registry whose identities are users."""
    return SessionWSRegistry(identify=user_of, limits=limits, timeouts=QUICK, **options)


async def connect(client: Client, cookie: str) -> ClientWebSocketResponse:
    """Open a socket, and receive the first message of its handler."""
    ws = await client.ws_connect("/ws", headers={"Cookie": cookie})
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.TEXT, message
    return ws


async def log_in(client: Client, user: str = "ann") -> str:
    """Return the cookie of a new session."""
    client.session.cookie_jar.clear()
    await client.get("/login", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return cookie


async def is_open(ws: ClientWebSocketResponse) -> bool:
    """Return whether the server still answers."""
    with contextlib.suppress(ClientConnectionResetError):
        await ws.send_str("still there?")
        return (await ws.receive(timeout=PATIENCE)).type is WSMsgType.TEXT
    return False


class TestEvict:
    async def test_per_session(self, aiohttp_client: AiohttpClient) -> None:
        """A session over its limit loses its oldest socket; each session has its own limit."""
        client = await aiohttp_client(make_app(make(Limits(per_session=2))))
        ann, bob = await log_in(client), await log_in(client, "bob")
        theirs = await connect(client, bob)
        first, second = await connect(client, ann), await connect(client, ann)
        third = await connect(client, ann)

        assert await expect_close(first) == 4429
        fourth = await connect(client, ann)
        assert await expect_close(second) == 4429
        for ws in (theirs, third, fourth):
            assert await is_open(ws)

    async def test_per_identity(self, aiohttp_client: AiohttpClient) -> None:
        """A user over the limit loses the oldest socket of any session; anonymous users don't."""
        client = await aiohttp_client(make_app(make(Limits(per_identity=2))))
        one, two, bob = await log_in(client), await log_in(client), await log_in(client, "bob")
        theirs = await connect(client, bob)
        first, second = await connect(client, one), await connect(client, two)
        third = await connect(client, two)

        assert await expect_close(first) == 4429
        await client.get("/whoami")
        nobody = [await connect(client, cookie_of(client)) for _ in range(3)]
        for ws in (theirs, second, third, *nobody):
            assert await is_open(ws)

    async def test_both(self, aiohttp_client: AiohttpClient) -> None:
        """A socket evicted for its session's limit makes room in its identity's limit, too."""
        registry = make(Limits(per_session=1, per_identity=2))
        client = await aiohttp_client(make_app(registry))
        one, two = await log_in(client), await log_in(client)
        first, second = await connect(client, one), await connect(client, two)
        third = await connect(client, two)

        assert await expect_close(second) == 4429
        assert await is_open(first)
        assert await is_open(third)

    async def test_cluster_of_one(self, aiohttp_client: AiohttpClient) -> None:
        """A limit of the cluster applies to this node if there is no other."""
        client = await aiohttp_client(make_app(make(Limits(per_identity=1, scope="cluster"))))
        ann = await log_in(client)
        first, second = await connect(client, ann), await connect(client, ann)

        assert await expect_close(first) == 4429
        assert await is_open(second)

    async def test_mute(self, aiohttp_client: AiohttpClient) -> None:
        """An evicted client that doesn't answer is disconnected before the new socket opens."""
        registry = make(Limits(per_session=1))
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        peer = await RawPeer.open(client.make_url("/ws"), ann)
        await peer.frame()
        opened: list[int] = []

        @registry.on_open
        async def count(details: OpenDetails) -> None:
            opened.append(await registry.count())

        ws = await connect(client, ann)
        assert opened == [1]
        assert await is_open(ws)
        assert await peer.closed() == 4429
        peer.close()

    async def test_unauthorized(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that is not authorized evicts no socket."""
        allow = [True]
        registry = make(Limits(per_session=1), authorize=lambda request: allow[0])
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        ws = await connect(client, ann)
        allow[0] = False
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect("/ws", headers={"Cookie": ann})

        assert await is_open(ws)

    async def test_by_hand(self, aiohttp_client: AiohttpClient) -> None:
        """An object registered by hand counts, and is evicted like a socket."""
        codes: list[int] = []

        class Thing:
            def close(self, *, code: int, message: bytes) -> None:
                codes.append(code)

        registry = make(Limits(per_session=1))
        client = await aiohttp_client(make_app(registry))
        cookie = await log_in(client)
        id_ = (await (await client.get("/whoami", headers={"Cookie": cookie})).json())["id"]
        registry.register(id_, Thing())
        await connect(client, cookie)

        assert codes == [4429]

    async def test_by_hand_later(self, aiohttp_client: AiohttpClient) -> None:
        """An object is as old as its registration: sockets opened before it are evicted first."""
        codes: list[int] = []

        class Thing:
            def close(self, *, code: int, message: bytes) -> None:
                codes.append(code)

        registry = make(Limits(per_session=2))
        client = await aiohttp_client(make_app(registry))
        cookie = await log_in(client)
        id_ = (await (await client.get("/whoami", headers={"Cookie": cookie})).json())["id"]
        oldest = await connect(client, cookie)
        registry.register(id_, Thing())
        await connect(client, cookie)

        assert await expect_close(oldest) == 4429
        assert codes == []

    async def test_already_refused(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that an order has rejected evicts no socket."""
        authorizing = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await authorizing()
            return True

        registry = make(Limits(per_identity=1), authorize=authorize)
        client = await aiohttp_client(make_app(registry))
        one, two = await log_in(client), await log_in(client)
        ws = await connect(client, one)
        authorizing.shut = True
        refused = asyncio.ensure_future(client.ws_connect("/ws", headers={"Cookie": two}))
        await authorizing.arrived.wait()
        (connection,) = opening(registry)
        await registry.end_session(connection.session_ws_id)
        authorizing.let()

        assert await expect_close(await refused) == 4401
        assert await is_open(ws)

    async def test_just_ordered_to_close(self, aiohttp_client: AiohttpClient) -> None:
        """A socket whose close was just ordered isn't evicted; the new socket is opened."""
        authorizing = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await authorizing()
            return True

        registry = make(Limits(per_identity=1), authorize=authorize)
        client = await aiohttp_client(make_app(registry))
        one, two = await log_in(client), await log_in(client)
        ws = await connect(client, one)
        (connection,) = connections(registry)
        authorizing.shut = True
        waiting = asyncio.ensure_future(client.ws_connect("/ws", headers={"Cookie": two}))
        await authorizing.arrived.wait()
        closing = asyncio.ensure_future(registry.close_all_session(connection.session_ws_id))
        authorizing.let()

        assert await is_open(await waiting)
        assert await expect_close(ws) == 4403
        await closing

    async def test_in_flight(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake that waits for a place may be evicted as the oldest."""
        registry = make(Limits(per_session=1))
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        peer = await RawPeer.open(client.make_url("/ws"), ann)  # mute: its place is freed late
        await until(lambda: connections(registry))
        waiting = asyncio.ensure_future(client.ws_connect("/ws", headers={"Cookie": ann}))
        await until(lambda: opening(registry))
        last = await connect(client, ann)

        assert await expect_close(await waiting) == 4429
        assert await is_open(last)
        assert await peer.closed() == 4429
        peer.close()


class TestRefuse:
    @pytest.mark.parametrize("limit", ["per_session", "per_identity"])
    async def test_refuse(self, aiohttp_client: AiohttpClient, limit: str) -> None:
        """A socket over the limit is closed with 4429; a place that is left is free again."""
        options: dict[str, Any] = {limit: 2, "on_limit": "refuse"}
        registry = make(Limits(**options))
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        first, second = await connect(client, ann), await connect(client, ann)
        refused = await client.ws_connect("/ws", headers={"Cookie": ann})

        assert await expect_close(refused) == 4429
        assert await is_open(first)
        assert await is_open(second)
        await first.close()
        await until(lambda: len(connections(registry)) == 1)
        assert await is_open(await connect(client, ann))


class TestTotal:
    @pytest.mark.parametrize("on_limit", ["evict_oldest", "refuse"])
    async def test_total(
        self, aiohttp_client: AiohttpClient, on_limit: Literal["evict_oldest", "refuse"]
    ) -> None:
        """A handshake over the total limit gets 503 and Retry-After."""
        client = await aiohttp_client(make_app(make(Limits(total=2, on_limit=on_limit))))
        sockets = [await connect(client, await log_in(client)) for _ in range(2)]
        cookie = await log_in(client)
        with pytest.raises(WSServerHandshakeError) as caught:
            await client.ws_connect("/ws", headers={"Cookie": cookie})

        assert caught.value.status == 503
        assert caught.value.headers is not None
        assert int(caught.value.headers["Retry-After"]) >= 1
        for ws in sockets:
            assert await is_open(ws)


@pytest.mark.parametrize("on_limit", ["evict_oldest", "refuse"])
class TestBurst:
    async def test_session(
        self, aiohttp_client: AiohttpClient, on_limit: Literal["evict_oldest", "refuse"]
    ) -> None:
        """Of many simultaneous handshakes as many are admitted as the limit allows."""
        authorizing = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await authorizing()
            return True

        limits = Limits(per_session=3, on_limit=on_limit)
        registry = make(limits, authorize=authorize)
        most = [0]

        @registry.on_open
        async def count(details: OpenDetails) -> None:
            most[0] = max(most[0], len(registry[details.session_ws_id]))

        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        for _ in range(2):
            await connect(client, ann)
        authorizing.shut = True
        burst = [
            asyncio.ensure_future(client.ws_connect("/ws", headers={"Cookie": ann}))
            for _ in range(20)
        ]
        await until(lambda: len(authorizing.waiting) == 20)
        authorizing.let()
        sockets = await asyncio.gather(*burst)
        first = await asyncio.gather(*(ws.receive(timeout=PATIENCE) for ws in sockets))
        await until(lambda: not opening(registry))

        assert most[0] == 3
        assert await registry.count() == 3
        refused = [m for m in first if m.type is WSMsgType.CLOSE]
        assert {m.data for m in refused} <= {4429}
        if on_limit == "refuse":
            assert len(refused) == 19

    async def test_total(
        self, aiohttp_client: AiohttpClient, on_limit: Literal["evict_oldest", "refuse"]
    ) -> None:
        """The total limit counts handshakes in progress."""
        authorizing = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await authorizing()
            return True

        registry = make(Limits(total=5, on_limit=on_limit), authorize=authorize)
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        authorizing.shut = True
        burst = [
            asyncio.ensure_future(client.ws_connect("/ws", headers={"Cookie": ann}))
            for _ in range(20)
        ]
        await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
        await until(lambda: sum(task.done() for task in burst) == 15)
        authorizing.let()
        results = await asyncio.gather(*burst, return_exceptions=True)

        refused = [r for r in results if isinstance(r, WSServerHandshakeError)]
        assert len(refused) == 15
        assert {r.status for r in refused} == {503}
        await until(lambda: len(connections(registry)) == 5)


class TestOptions:
    def test_whose(self) -> None:
        """A limit for each identity needs ``identify=``."""
        with pytest.raises(ValueError, match="identify="):
            SessionWSRegistry(limits=Limits(per_identity=1))

    async def test_none(self, aiohttp_client: AiohttpClient) -> None:
        """There is no limit unless one is set."""
        registry = SessionWSRegistry(timeouts=Timeouts(close=0.2, handler_grace=0.1))
        client = await aiohttp_client(make_app(registry))
        ann = await log_in(client)
        sockets = [await connect(client, ann) for _ in range(30)]

        for ws in sockets:
            assert await is_open(ws)


class Thing:
    """An object whose close() takes one event loop iteration."""

    async def close(self) -> None:
        """Close."""
        await asyncio.sleep(0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "go", "refuse", "turn"]),
        st.integers(0, 2),  # whose session
        st.integers(0, 1),  # whose identity
    ),
    max_size=40,
)


def manager_with(timeouts: Timeouts) -> ConnectionManager:
    """Return a manager whose caller is no handler, and whose removed connections call no hook."""
    return ConnectionManager(timeouts, PushQueue(), BackgroundTasks(), lambda: None)


class TestMakeRoom:
    async def test_one_place_at_a_time(self) -> None:
        """Two handshakes that wait are admitted one after the other, as places become free."""
        limits, sockets = Limits(per_session=2), manager_with(Timeouts(close=PATIENCE))
        leaving = [asyncio.Event(), asyncio.Event()]

        class Slow:
            def __init__(self, gone: asyncio.Event) -> None:
                self.close = gone.wait

        old = [
            TrackedConnection("s", Slow(gone), started=1.0 + n) for n, gone in enumerate(leaving)
        ]
        for connection in old:
            sockets.add_handshake(connection)
            sockets.open_connection(connection)
        new = [TrackedConnection("s", Thing(), started=3.0 + n) for n in range(2)]
        entered: list[int] = []

        async def come(n: int) -> None:
            sockets.add_handshake(new[n])
            await make_room(limits, sockets, new[n])
            entered.append(n)

        tasks = [asyncio.ensure_future(come(n)) for n in range(2)]
        await until(lambda: all(is_closing(connection) for connection in old))
        leaving[0].set()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(10):
            await asyncio.sleep(0)
        assert entered == [0]
        leaving[1].set()
        await asyncio.gather(*tasks)
        assert entered == [0, 1]
        await sockets.stop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=steps, per_session=st.integers(1, 3), per_identity=st.integers(1, 4))
    def test_never_more(
        self, steps: list[tuple[str, int, int]], per_session: int, per_identity: int
    ) -> None:
        """The limits hold, and the oldest are evicted, whatever connects and leaves meanwhile."""
        asyncio.run(self._run(steps, per_session, per_identity))

    async def _run(
        self, steps: list[tuple[str, int, int]], per_session: int, per_identity: int
    ) -> None:
        limits = Limits(per_session=per_session, per_identity=per_identity)
        sockets = manager_with(QUICK)
        everybody: list[TrackedConnection] = []

        def check() -> None:
            for index, limit in ((sockets.open, per_session), (sockets.identities, per_identity)):
                for key in index.keys():  # noqa: SIM118  an index is no mapping
                    there = [c for c in index.of(key) if c.opened_at is not None and not c.removed]
                    assert len(there) <= limit
                    going = [c.started for c in everybody if _is(c, key) and _evicted(c)]
                    staying = [c.started for c in index.of(key) if _has_place(c)]
                    if index is sockets.open and per_identity >= 3 * per_session:
                        assert not going or not staying or max(going) < min(staying)

        async def come(connection: TrackedConnection, identity: int) -> None:
            sockets.add_handshake(connection)
            sockets.file_identity(connection, f"user {identity}")
            await make_room(limits, sockets, connection)
            if connection.rejected_with is not None:
                sockets.discard_handshake(connection)
                return
            sockets.open_connection(connection)
            check()

        tasks: list[asyncio.Task[None]] = []
        for number, (what, session, identity) in enumerate(steps):
            if what == "come":
                connection = TrackedConnection(
                    f"session {session}", Thing(), None, None, float(number)
                )
                everybody.append(connection)
                tasks.append(asyncio.ensure_future(come(connection, identity)))
            elif what == "go":
                for connection in sockets.open.of(f"session {session}")[:1]:
                    _ = sockets.start_close(connection, connection.close_order or NORMAL)
            elif what == "refuse":
                for connection in sockets.opening.of(f"session {session}")[:1]:
                    connection.reject(NORMAL)
            await asyncio.sleep(0)
            check()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks)
        check()
        assert sockets.opening.size == 0
        await sockets.stop()


def _is(connection: TrackedConnection, key: object) -> bool:
    return key in (connection.session_ws_id, connection.identity)


def _evicted(connection: TrackedConnection) -> bool:
    return connection.rejected_with is not None and connection.rejected_with.code == 4429


def _has_place(connection: TrackedConnection) -> bool:
    return connection.state is State.OPEN and connection.close_order is None
