"""
Stateful test: however steps are interleaved, the promise holds in the end.

Browsers open sockets, log out in every way and everywhere, reset, renew, vanish and send stale
cookies; each of these requests may be held while it loads its session, before its upgrade, when
its handler is done, or before its response is sent. When all have been resumed, no socket of an
ended session is open.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, Session, SimpleCookieStorage
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from aiohttp_session_ws import (
    SessionWSRegistry,
    Timeouts,
    end_identity_ws,
    get_session_ws_id,
    renew_session_ws,
)
from aiohttp_session_ws.sessions.context import context_of
from tests.support import COOKIE, PATIENCE, WAYS, RawPeer, Server, make_app, until, user_of
from tests.support.inspect import idle, inspect, opening, quiet

T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def no_old_garbage() -> None:
    """
    Collect the garbage of earlier tests before hypothesis begins.

    A handler that the collector closes while hypothesis parses its own source would log a
    traceback, and CPython 3.11 can't parse inside of that.
    """
    gc.collect()


POINTS = ["", "load", "prepare", "handler", "answer"]
ENDINGS = [f"/out/{way}" for way in WAYS]
RENEWALS = ["/enter", "/reset", "/renew"]
ORDERS = [*ENDINGS, *RENEWALS, "/close", "/everywhere"]
BROWSERS = 3
USERS = ["ann", "bob", "ann"]  # of each browser


class ServerSide(AbstractStorage):
    """Keeps sessions on the server, as RedisStorage does."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, str] = {}

    async def load_session(self, request: web.Request) -> Session:
        key = self.load_cookie(request)
        if key is None or key not in self.kept:
            return Session(None, data=None, new=True)
        return Session(key, data=json.loads(self.kept[key]), new=False)

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: Session
    ) -> None:
        key = session.identity or f"key{len(self.kept)}"
        self.save_cookie(response, "" if session.empty and session.identity else key)
        self.kept[key] = json.dumps(self._get_session_data(session))


@dataclass
class Order:
    """An HTTP request that may have changed its session."""

    number: int
    path: str
    came_with: Any
    user: str | None
    mattered: bool = False  # the session held data or had sockets
    left_with: Any = None


@dataclass
class Held:
    """A request that is held at a point."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    there: asyncio.Event = field(default_factory=asyncio.Event)


async def enter(request: web.Request) -> web.Response:
    """Log in and renew the session, as recommended."""
    (await aiohttp_session.get_session(request))["user"] = request.query["user"]
    response = web.Response()
    await renew_session_ws(request, response)
    return response


async def everywhere(request: web.Request) -> web.Response:
    """Log out everywhere."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


class World:
    """A server, a log of what its sessions went through, and the clients."""

    def __init__(self, storage: AbstractStorage, *, handler_cancellation: bool) -> None:
        timeouts = Timeouts(close=0.2, handler_grace=0.1, response=0.05)
        self.registry = SessionWSRegistry(identify=user_of, timeouts=timeouts)
        self.orders: list[Order] = []
        self.held: dict[str, Held] = {}
        self.cookies: list[dict[str, str]] = [{} for _ in range(BROWSERS)]
        self.seen: list[str] = []
        self.users: dict[Any, str] = {}  # by id
        self.peers: dict[RawPeer, tuple[str, int]] = {}  # opened sockets: id and number
        self.gone: set[RawPeer] = set()  # clients that disconnected
        self.running: list[asyncio.Task[None]] = []
        self.numbers = 0
        load = storage.load_session

        async def held_load(request: web.Request) -> Session:
            session = await load(request)
            await self.pass_point(request, "load")
            return session

        storage.load_session = held_load  # type: ignore[method-assign]  # to hold it up
        app = make_app(self.registry, storage, self.inside)
        app.router.add_get("/enter", enter)
        app.router.add_get("/everywhere", everywhere)
        app.middlewares.insert(0, self.outside)
        app.on_response_prepare.append(self.on_prepare)
        self.server = Server(app, handler_cancellation=handler_cancellation)

    async def pass_point(self, request: web.Request, point: str) -> None:
        """Hold the request if it is to be held at this point."""
        held = self.held.get(request.query.get("n", ""))
        if held is not None and request.query.get("hold") == point and not held.go.is_set():
            held.there.set()
            await held.go.wait()

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if isinstance(response, web.WebSocketResponse):
            await self.pass_point(request, "prepare")

    @web.middleware
    async def outside(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        await self.pass_point(request, "answer")
        return response

    @web.middleware
    async def inside(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/ws":
            return await handler(request)
        context = context_of(request)
        assert context is not None
        others = inspect(self.registry).keys.holds_data(context.content or {})
        user = await user_of(request)
        order = Order(int(request.query["n"]), request.path, context.session_ws_id, user)
        # A request with an ended session is given an empty one, and ends only that.
        own = not context.fresh or request.path == "/out/end_session_ws"
        order.mattered = others or (own and self.has_sockets(order.came_with))
        if order.path == "/everywhere" and user is not None:
            self.end_user(order, user)
        try:
            return await handler(request)
        finally:
            order.left_with = await get_session_ws_id(request)
            self.orders.append(order)
            if (user := await user_of(request)) is not None:
                self.users[order.left_with] = user
            await self.pass_point(request, "handler")
            # Most requests are settled now: nothing runs between this and the middleware.
            if request.path not in ("/out/end_session_ws", "/everywhere"):
                order.mattered = others or (own and self.has_sockets(order.came_with))

    def end_user(self, order: Order, user: str) -> None:
        """Record that all sessions of a user end now."""
        for id_ in [id_ for id_, name in self.users.items() if name == user]:
            self.orders.append(Order(order.number, order.path, id_, user, mattered=True))

    def has_sockets(self, id_: Any) -> bool:
        """Return whether a session has open sockets or handshakes."""
        manager = inspect(self.registry).connections
        return bool(manager.open.of(id_) or manager.opening.of(id_))

    def ended(self, *, everywhere: bool) -> set[Any]:
        """Return the ids that have ended: all ids that a session ever had end together.

        With *everywhere*, those include the ids of sessions that ended everywhere.
        """
        known = [order for order in self.orders if order.came_with and order.mattered]
        endings = [*ENDINGS, "/everywhere"] if everywhere else ENDINGS
        ended = {order.came_with for order in known if order.path in endings}
        # A visitor's log-in is a lineage of its own, whatever becomes of the visitor's.
        renewals = [
            order
            for order in known
            if order.path in RENEWALS and not (order.path == "/enter" and order.user is None)
        ]
        moves = [{order.came_with, order.left_with} for order in renewals]
        while more := [move for move in moves if move & ended and move - ended]:
            ended.update(*more)
        return ended

    def begin(self, point: str) -> tuple[str, Held]:
        self.numbers += 1
        number = str(self.numbers)
        self.held[number] = held = Held()
        if not point:
            held.go.set()
            held.there.set()
        return f"n={number}&hold={point}", held

    async def visit(self, browser: int, path: str, point: str) -> None:
        """Send a request; return when it is answered or held."""
        query, held = self.begin(point)
        query += f"&user={USERS[browser]}"
        task = asyncio.ensure_future(self.fetch(browser, f"{path}?{query}"))
        await self.settled(task, held)

    async def settled(self, task: asyncio.Task[None], held: Held) -> None:
        there = asyncio.ensure_future(held.there.wait())
        self.running.append(task)
        waits = {task} if held.go.is_set() else {task, there}
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        there.cancel()

    async def fetch(self, browser: int, path: str) -> None:
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(cookies=None, cookie_jar=jar) as session:
            cookies = dict(self.cookies[browser])
            try:
                async with session.get(
                    self.server.make_url(path), cookies=cookies, allow_redirects=False
                ) as response:
                    for name, morsel in response.cookies.items():
                        self.cookies[browser][name] = morsel.value
                        self.seen.append(morsel.value)
            except aiohttp.ClientError:
                return

    async def connect(self, cookie: str, point: str) -> None:
        """Open a socket; return when it is open, closed, or held."""
        query, held = self.begin(point)
        url = self.server.make_url(f"/ws?{query}")
        peer = await RawPeer.connect(url, f"{COOKIE}={cookie}" if cookie else "")
        await self.settled(asyncio.ensure_future(self.hello(peer, self.numbers)), held)

    async def hello(self, peer: RawPeer, number: int) -> None:
        head = await peer.read_head()
        frame = await peer.frame() if head.startswith(b"HTTP/1.1 101") else None
        if frame is not None and frame[0] == 1:
            self.peers[peer] = json.loads(frame[1])[0], number
        else:
            peer.close()

    async def let_all_go(self) -> None:
        for held in self.held.values():
            held.go.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self.running)
        await quiet(self.registry)

    async def is_open(self, peer: RawPeer) -> bool:
        """Return whether the server still answers."""
        try:
            await peer.say(1, b"ping")
            return await peer.frame() == (1, b"ping")
        except ConnectionError:
            return False


class SessionsAndSockets(RuleBasedStateMachine):
    """The rules, run in the machine's own event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.over = False

    def run_(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coro)

    @initialize(server_side=st.booleans(), handler_cancellation=st.booleans())
    def start(self, *, server_side: bool, handler_cancellation: bool) -> None:
        """Start a server, and log every browser in."""

        async def start() -> None:
            storage = ServerSide() if server_side else SimpleCookieStorage()
            self.world = World(storage, handler_cancellation=handler_cancellation)
            await self.world.server.start_server()
            for browser in range(BROWSERS):
                await self.world.visit(browser, "/enter", "")

        self.run_(start())

    # One rule rather than three: hypothesis may leave a whole rule out of an example.
    @precondition(lambda self: not self.over)
    @rule(
        browser=st.integers(0, BROWSERS - 1),
        path=st.sampled_from(["/ws"] * 6 + ["stale"] * 2 + ORDERS + ["/whoami"]),
        point=st.sampled_from(POINTS),
        data=st.data(),
    )
    def step(self, browser: int, path: str, point: str, data: st.DataObject) -> None:
        """A page opens a websocket or sends a request, or a stale cookie is sent."""
        world = self.world
        if path == "stale":
            self.run_(world.connect(data.draw(st.sampled_from(world.seen)), point))
        elif path == "/ws":
            self.run_(world.connect(world.cookies[browser].get(COOKIE, ""), point))
        else:
            self.run_(world.visit(browser, path, point))

    @precondition(lambda self: not self.over and self.world.peers)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """A client disconnects without a close frame."""
        peer = list(self.world.peers)[data.draw(st.integers(0, len(self.world.peers) - 1))]
        if peer not in self.world.gone:
            self.world.gone.add(peer)
            peer.vanish()

    @precondition(lambda self: not self.over and self.world.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        """A held request resumes."""
        number = data.draw(st.sampled_from(sorted(self.world.held)))

        async def go() -> None:
            self.world.held[number].go.set()
            await asyncio.sleep(0)

        self.run_(go())

    @precondition(lambda self: not self.over)
    @rule(now=st.integers(0, 9))
    def shut_down(self, now: int) -> None:
        """The server occasionally shuts down while requests are held."""
        if now:
            return
        self.over = True

        async def stop() -> None:
            stopping = asyncio.ensure_future(self.world.server.close())
            await until(lambda: inspect(self.world.registry).drainer.refuses)
            await self.world.let_all_go()
            await stopping

        self.run_(stop())
        self.run_(self.nothing_is_left())

    @precondition(lambda self: self.over)
    @rule()
    def rest(self) -> None:
        """Nothing happens after the shutdown."""

    async def promise(self) -> None:
        world = self.world
        await world.let_all_go()
        ended = world.ended(everywhere=False)
        mattered = [order for order in world.orders if order.came_with and order.mattered]
        ended |= {order.came_with for order in mattered if order.path == "/everywhere"}

        assert not ended & set(world.registry)
        for peer, (id_, _) in world.peers.items():
            if peer not in world.gone and id_ in ended:
                assert not await world.is_open(peer)
        await self.stale_cookies_open_nothing(ended)

    async def stale_cookies_open_nothing(self, ended: set[Any]) -> None:
        before = set(self.world.peers)
        for cookie in set(self.world.seen):
            await self.world.connect(cookie, "")
        for peer in set(self.world.peers) - before:
            assert self.world.peers[peer][0] not in ended

    async def nothing_is_left(self) -> None:
        registry = self.world.registry
        for peer in self.world.peers:
            if peer not in self.world.gone:
                await peer.closed()
                peer.close()
        assert not len(registry)
        assert not opening(registry)
        assert idle(registry)

    def teardown(self) -> None:
        """Resume all requests, check the promise, and stop; leave no garbage."""
        with self.runner:
            if not self.over and hasattr(self, "world"):
                try:
                    self.run_(self.promise())
                finally:
                    self.run_(self.world.server.close())
                self.run_(self.nothing_is_left())


TestSessionsAndSockets = pytest.mark.exhaustive(SessionsAndSockets.TestCase)
TestSessionsAndSockets.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
