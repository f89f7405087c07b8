"""
A simulated world: servers, browsers with cookie jars, a thief with copies, administrators, and an
oracle.

A plan is a list of steps, executed in sequence; after each step the world waits until everything
that can happen without time passing has happened. The same plan therefore gives the same world,
and a step can be left out to find whether it mattered.

The module is long because it also sets up each kind of server, storage and cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import Session

from aiohttp_session_ws import (
    DEFAULT_ID_FACTORY,
    DEFAULT_SESSION_KEY,
    Expiry,
    SessionWSRegistry,
)
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.redis.clock import RedisClock
from aiohttp_session_ws.redis.inbound import Inbound

from .app import NUMBER, App, derived_id, id_in_session
from .cluster import SharedRecords, registry_in
from .disks import copy_journal, waiting_for_disks
from .exchange import Exchange, Plan
from .ledger import Ledger
from .oracle import RECOVERY, Browser, Oracle, Violation
from .steps import (
    Back,
    Config,
    Deliver,
    Drain,
    GoOn,
    Leave,
    Order,
    Outage,
    Restart,
    Say,
    SetClock,
    Step,
    Theft,
    Vanish,
    Visit,
    Wait,
)
from .storages import make_storage
from .virtual import run, virtual_loop
from .wire import UPGRADE, Client

BROWSERS = "A", "B"
EXPIRY = Expiry()
RECEIVE = Inbound.receive
MEASURE = RedisClock.measure
PATIENCE = 0.001  # real seconds to wait for messages that Redis publishes
TICK = 0.001  # seconds between two steps


def measure(clock: RedisClock, server: float, sent: float, received: float, ahead: float) -> None:
    """Use the world's clock as the clock of Redis, plus the lead that nodes have reported."""
    MEASURE(clock, time.time() + ahead, sent, received, ahead)


def address_of(node: int) -> str:
    """Return the address by which a node reaches Redis; storages use another."""
    return f"127.0.0.{2 + node}"


class World:
    """The servers and clients of one plan; see the module."""

    def __init__(self, config: Config, redis_port: int | None = None) -> None:
        self.config = config
        self.trace: list[str] = []
        self._redis_port = redis_port
        self._storage, self._close_storage = make_storage(config.storage, redis_port)
        self._counter = self._restarts = 0
        self._old: list[App] = []
        self._folder = tempfile.TemporaryDirectory() if config.journal else None
        self._journal = Path(self._folder.name) / "0.db" if self._folder else None
        self._messages = 0
        self._faults = contextlib.ExitStack()
        self._running: list[asyncio.Task[Any]] = []
        ledger = Ledger(
            identify=config.identify,
            labels=config.labels,
            on_server=config.on_server,
            asks_for_time=config.cluster == "redis",
            id_of=id_in_session,
            derive=derived_id if config.ids == "derived" else None,
            log=self.log,
        )
        self.oracle = Oracle(ledger, config.nodes)
        self.apps: list[App] = []
        self.shared = SharedRecords() if config.cluster == "memory" else None
        self._prefix = f"world {secrets.token_hex(8)}"

    @property
    def ledger(self) -> Ledger:
        """The record of all log-ins."""
        return self.oracle.ledger

    @property
    def exchanges(self) -> list[Exchange]:
        """All requests so far."""
        return self.oracle.ledger.exchanges

    def log(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{virtual_loop().clock.elapsed:9.3f}  {line}")

    # Start and stop

    async def __aenter__(self) -> World:
        virtual_loop().set_exception_handler(self._on_loop_error)
        if self.config.cluster == "redis":
            virtual_loop().virtual_selector.patience = PATIENCE
            self._faults.enter_context(mock.patch.object(RedisClock, "measure", measure))
            lossy = mock.patch.object(
                Inbound, "receive", lambda node, data: self._hear(node, data)
            )
            self._faults.enter_context(lossy)
        if self.config.journal:
            self._faults.enter_context(waiting_for_disks(virtual_loop()))
        for _ in range(self.config.nodes):
            await self._add_app()
        if self.config.legacy:
            for browser in BROWSERS:
                await self._give_legacy(self.browser(browser))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        # A task that still queries the storage would reconnect after the storage is closed.
        await asyncio.gather(*running, return_exceptions=True)
        for node in range(self.config.nodes):
            virtual_loop().reach(address_of(node))
        for app in self.apps:
            await app.runner.cleanup()
        for app in [*self.apps, *self._old]:
            app.forget()
        await self._close_storage()
        if self._folder is not None:
            self._folder.cleanup()
        self._faults.close()
        self.oracle.sockets.clear()
        self.exchanges.clear()

    def _on_loop_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.oracle.blame("error", f"{context.get('message')} {context.get('exception')!r}")

    async def _add_app(self) -> None:
        app = self._make_app()
        if self.apps:
            app.copies = self.apps[0].copies
        self.apps.append(app)
        await app.runner.setup()

    def _make_app(self) -> App:
        app: App
        options: dict[str, Any] = {"id_factory": self._make_id, "expiry": EXPIRY}
        if self.config.ids == "unique":
            options["id_factory"] = DEFAULT_ID_FACTORY
        if self.config.identify:
            options["identify"] = lambda request: app.identify(request)
        if self.config.labels:
            options["labels"] = lambda request: app.labels(request)
        options["authorize"] = lambda request: app.authorize(request)
        name = f"node {len(self.apps)}"
        if self.shared is not None:
            registry = registry_in(self.shared, name, **options)
        elif self.config.nodes > 1:
            url = f"redis://{address_of(len(self.apps))}:{self._redis_port}"
            options |= {"prefix": self._prefix, "node": name}
            registry = RedisSessionWSRegistry(url, **options)
        else:
            registry = SessionWSRegistry(journal=self._journal, **options)
        app = App(
            registry,
            self._storage,
            self.oracle,
            handler_cancellation=self.config.cancels,
        )
        return app

    async def _restart(self, *, kill: bool) -> None:
        """Stop or kill the server, and start another with its journal."""
        if self._journal is None:
            return
        old, self._restarts = self.apps[0], self._restarts + 1
        self.log("the server is killed" if kill else "the server stops")
        if kill:  # later writes of the killed server don't reach the copied files
            self._journal = copy_journal(self._journal, self._restarts)
        for socket in self.oracle.sockets:
            socket.left = True
        for ex in self.exchanges:
            if not ex.over and not ex.done:
                ex.killed = True
                if kill:
                    ex.client.vanish()
                    ex.give_up()
        await old.runner.cleanup()
        for ex in self.exchanges:
            if ex.killed:
                ex.give_up()
        self.oracle.drained.clear()
        new = self._make_app()
        new.copies = old.copies
        for ex in self.exchanges:
            new.know(ex)
        self.apps[0] = new
        self._old.append(old)
        await new.runner.setup()
        self.log("a server starts")

    def _hear(self, node: Inbound, data: bytes) -> Awaitable[None] | None:
        """Drop every third published message."""
        self._messages += 1
        return RECEIVE(node, data) if self._messages % 3 else None

    async def _make_id(self, request: web.Request) -> str:
        """Derive an id from the user."""
        ex = self.apps[0].exchange_of(request)
        await ex.pass_gate("id_factory")
        return derived_id((await aiohttp_session.get_session(request)).get("user"))

    async def _give_legacy(self, browser: Browser) -> None:
        """Give a browser a session from before the installation."""
        login = self.ledger.add("ann", None)
        login.at -= 50.0
        content: dict[str, Any] = {"user": "ann", "tok": login.token}
        if self.config.legacy == "1.1.1":
            content[DEFAULT_SESSION_KEY] = f"old-{browser.name}"
            login.ids.add(f"old-{browser.name}")
            self.ledger.ids[f"old-{browser.name}"] = None
        storage = self._storage
        data = {"session": content, "created": int(virtual_loop().clock.time()) - 50}
        session = Session(None, data=data, new=False)  # type: ignore[arg-type]  # it's one
        response = web.Response()
        await storage.save_session(make_mocked_request("GET", "/"), response, session)
        browser.jar = response.cookies[storage.cookie_name].coded_value
        browser.expects = login.token
        self.apps[0].keep_copy(browser.jar)

    # Steps

    async def visit(
        self, name: str, action: str, *pauses: str, cookie: str | None = "jar", **plan: Any
    ) -> Exchange:
        """Send a request; return when it is over, or held at the first of *pauses*.

        Args:
            name: The browser.
            action: The action of the request.
            pauses: The gates at which the request is held, until :meth:`finish`.
            cookie: The cookie to send, if not the browser's own.
            plan: Further fields of the plan.
        """
        jar = self.browser(name).jar if cookie == "jar" else cookie
        ex = self.send(name, Plan(action, pauses=pauses, **plan), jar)
        await self.settle()
        return ex

    async def finish(self, *exchanges: Exchange) -> None:
        """Resume held requests until they are over."""
        for ex in exchanges:
            while not ex.over:
                assert ex.let_go() is not None, f"{ex} waits for something else"
                await self.settle()

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        await self.do(Wait(seconds))

    def ids(self) -> list[str]:
        """Return the ids of all sessions in which a log-in was ever saved, oldest first."""
        return [str(session_ws_id) for session_ws_id in self.ledger.ids]

    def browser(self, name: str) -> Browser:
        """Return the browser called *name*; create it if necessary."""
        return self.oracle.browsers.setdefault(name, Browser(name))

    async def play(self, steps: Sequence[Step]) -> list[Violation]:
        """Execute all steps, then present every cookie that ever existed."""
        for step in steps:
            await self.do(step)
            if self.oracle.violations:
                return self.oracle.violations
        await self.end()
        return self.oracle.violations

    async def do(self, step: Step) -> None:
        """Execute one step, and wait for everything that happens without time passing."""
        match step:
            case Visit(name, plan):
                self.send(name, plan, self.browser(name).jar)
            case Theft(which, plan):
                copies = self.apps[0].copies
                if copies:
                    self.send("thief", plan, copies[which % len(copies)])
            case GoOn(which):
                self._go_on(which)
            case Vanish(which):
                self._vanish(which)
            case Leave(which):
                self._leave(which)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case SetClock(seconds):
                virtual_loop().clock.wall_offset += seconds
                self.ledger.set_clock(seconds)
                self.log(f"the wall clock is set by {seconds} s")
            case Deliver(which):
                if self.shared is not None and self.shared.messages:
                    self.shared.deliver(which % len(self.shared.messages))
            case Order():
                self._order(step)
            case Say(which, user):
                self._say(which, user)
            case Drain(node, window):
                self.log(f"node {node} is drained over {window} s")
                self.oracle.drain(node, window)
                draining = self.apps[node].registry.drain(window)
                self._running.append(asyncio.ensure_future(draining))
            case Restart(kill):
                await self._restart(kill=kill)
            case Outage(node, silent):
                self.log(f"node {node} can't reach Redis")
                self.oracle.cut_off(node)
                virtual_loop().lose(address_of(node), silent=silent)
            case Back(node):
                self._back(node)
        await asyncio.sleep(TICK)
        await self.settle()

    def send(self, name: str, plan: Plan, cookie: str | None) -> Exchange:
        """Send a request."""
        self._counter += 1
        browser = self.browser(name)
        ex = Exchange(self._counter, name, plan, cookie, self.ledger.now(), browser.expects)
        app = self.apps[plan.node % len(self.apps)]
        app.know(ex)
        self.apps[0].know(ex)
        self.exchanges.append(ex)
        headers = [(NUMBER, str(ex.number))]
        if cookie is not None:
            headers.append(("Cookie", f"AIOHTTP_SESSION={cookie}"))
        if plan.shakes_hands:
            headers += UPGRADE
        self.log(f"{name}#{ex.number}: {plan}")
        assert app.runner.server is not None
        ex.client = Client(app.runner.server, plan.path, headers)
        return ex

    def _go_on(self, which: int) -> None:
        held = [ex for ex in self.exchanges if ex.held]
        if held:
            ex = held[which % len(held)]
            self.log(f"{ex}: goes on from {ex.let_go()}")

    def _vanish(self, which: int) -> None:
        under_way = [ex for ex in self.exchanges if not ex.over and not ex.client.answered]
        if under_way:
            ex = under_way[which % len(under_way)]
            self.log(f"{ex}: its client has gone")
            ex.client.vanish()

    def _leave(self, which: int) -> None:
        sockets = [s for s in self.oracle.sockets if s.exchange.client.closed is None]
        if sockets:
            socket = sockets[which % len(sockets)]
            self.log(f"{socket.exchange}: its page is left")
            socket.left = True
            socket.exchange.client.leave()

    def _say(self, which: int, user: str) -> None:
        open_ = [s for s in self.oracle.sockets if s.exchange.client.closed is None]
        proving = [s.exchange for s in open_ if s.exchange.plan.action == "prove"]
        if proving:
            ex = proving[which % len(proving)]
            self.log(f"{ex}: its client says {user!r}")
            ex.client.say(user)

    def _back(self, node: int) -> None:
        self.log(f"node {node} can reach Redis again")
        self.oracle.back(node)
        virtual_loop().reach(address_of(node))

    def _order(self, order: Order) -> None:
        registry = self.apps[order.node % len(self.apps)].registry
        subject: Hashable = order.user
        if order.what == "end_label":
            self.log(f"an administrator: end_label({order.device}) on node {order.node}")
            ending = registry.end_label("device", order.device)
            self._running.append(asyncio.ensure_future(ending))
            self.ledger.end_label(order.device, order.node)
            return
        if order.what.endswith("session"):
            if not (ids := self.ids()):
                return
            subject = order.subject or ids[order.which % len(ids)]
        self.log(f"an administrator: {order.what}({subject}) on node {order.node}")
        call: Callable[[Hashable], Awaitable[Any]] = getattr(registry, order.what)
        self._running.append(asyncio.ensure_future(call(subject)))
        if order.what == "end_session":
            self.ledger.end_id(subject, order.node)
        elif order.what == "end_identity":
            self.ledger.end_identity(str(subject), order.node)
        else:
            self.ledger.told_to_close(subject)

    async def settle(self) -> None:
        """Wait until nothing more happens without time passing; judge the result."""
        moved = True
        while moved:
            await virtual_loop().quiet()
            moved = False
            for ex in self.exchanges:
                if not ex.over:
                    moved |= self._follow(ex)
        self.oracle.check_sockets()

    def _follow(self, ex: Exchange) -> bool:
        """Update the state of a request; return whether it changed."""
        gates = [gate for gate in ex.held if gate != "delivery"]
        opened = ex.client.hello is not None
        if ex.killed and not ex.done and not gates and ex.left_server:
            ex.done = ex.over = True
            ex.done_at = self.ledger.now()
            self.log(f"{ex}: nobody answers any more")
            return True
        if not ex.done and not gates and (ex.left_server or opened) and ex.client.answered:
            self.oracle.done(ex)
            return True
        if ex.done and not ex.hold_delivery():
            ex.over = True
            arrived = ex.client.status is not None and not ex.plan.lost
            if arrived and ex.presenter != "thief":
                raw = ex.client.set_cookie
                cookie = None if raw in (None, "", '""') else raw
                self.oracle.deliver(ex, cookie, has_cookie=raw is not None)
            return True
        return False

    # The end

    async def end(self) -> None:
        """Resume all requests until they are over, then present every cookie that ever existed."""
        self.log("-- the end --")
        for cut in self.oracle.cuts:
            if cut.ended == math.inf:
                self._back(cut.node)
        for _ in range(1000):
            if all(ex.over for ex in self.exchanges):
                break
            for ex in self.exchanges:
                ex.pauses.clear()
                ex.let_go()
            await asyncio.sleep(0.05)
            await self.settle()
        for ex in self.exchanges:
            if not ex.over:
                self.oracle.blame("stuck", f"{ex} at {list(ex.held)}")
        if self.shared is not None:
            self.shared.reconcile()
        await asyncio.sleep(12.0)  # several heartbeats
        if self.oracle.cuts:
            await asyncio.sleep(RECOVERY)
        self.oracle.reconciled = True
        await self.settle()
        await self._present_everything("open", "read")
        await asyncio.sleep(40.0)
        await self._present_everything("read", "open")

    async def _present_everything(self, *actions: str) -> None:
        """Send each browser's cookie, and every copied cookie as the thief."""
        for action in actions:
            for name in BROWSERS:
                self.send(name, Plan(action), self.browser(name).jar)
                await self.settle()
        for cookie in list(self.apps[0].copies):
            for action in actions:
                if self.oracle.violations:
                    return
                self.send("thief", Plan(action), cookie)
                await self.settle()


def play(
    config: Config, steps: Sequence[Step], redis_port: int | None = None
) -> tuple[list[Violation], list[str]]:
    """Run one world; return the violations and the trace."""

    async def main() -> tuple[list[Violation], list[str]]:
        async with World(config, redis_port) as world:
            return list(await world.play(steps)), world.trace

    return run(main)
