"""A Hypothesis state machine: overlapping operations of RPC sessions, in any order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import hypothesis.strategies as st
import pytest
from aiohttp import ClientSession, CookieJar, TCPConnector, WSMsgType, web
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule

from aiohttp_session_ws import SessionWSRegistry, rpc

from ..support.inspect import transport_of
from .support import PATIENCE, QUICK, Server, who

MODES = st.sampled_from(["kill", "killnowait", "skip"])


class Client:
    """One client, with its requests and the answers to them."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.asked: list[tuple[int, int]] = []  # types and numbers of requests
        self.answers: Counter[tuple[int, int]] = Counter()
        self.invocations: list[int] = []
        self.subscriptions: list[int] = []
        self.next = 1
        self.gone = False
        self.left = asyncio.Event()  # GOODBYE was answered
        self.joined = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def say(self, *message: Any) -> None:
        """Send a message, unless the socket is closed."""
        if not self.ws.closed:
            try:
                await self.ws.send_str(json.dumps(message))
            except ConnectionError:
                self.gone = True

    async def ask(self, kind: int, *rest: Any) -> None:
        """Send a request with the next number."""
        self.asked.append((kind, self.next))
        await self.say(kind, self.next, *rest)
        self.next += 1

    async def _read(self) -> None:
        while True:
            message = await self.ws.receive()
            if message.type is not WSMsgType.TEXT:
                self.gone = True
                self.left.set()
                self.joined.set()
                return
            self._hear(json.loads(message.data))

    def _hear(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == 2:
            self.joined.set()
        elif kind == 6:
            self.left.set()
        elif kind == 8:
            self.answers[message[1], message[2]] += 1
        elif kind == 50:
            assert not self.answers[48, message[1]], "something after the answer"
            self.answers[48, message[1]] += not message[2].get("progress", False)
        elif kind in (33, 35, 65, 67):
            self.answers[kind - 1, message[1]] += 1
            if kind == 33:
                self.subscriptions.append(message[2])
        elif kind == 68:
            self.invocations.append(message[1])
        else:
            assert kind in (36, 69), message


class World:
    """The server, with a gate that handlers wait at."""

    def __init__(self) -> None:
        self.inside = 0
        self.gate = asyncio.Event()
        routes = rpc.Routes()

        @routes.route()
        async def wait() -> int:
            await self.gate.wait()
            return 1

        @routes.route()
        async def quick() -> int:
            return 1

        @routes.route()
        async def stream() -> AsyncIterator[int]:
            self.inside += 1
            try:
                yield 1
                await self.gate.wait()
                yield 2
            finally:
                self.inside -= 1

        @routes.route()
        async def ask(session: rpc.Session) -> Any:
            return await session.call("mine")

        @routes.topic("topic.{n}")
        async def topic(n: int) -> AsyncIterator[None]:
            self.inside += 1
            yield
            self.inside -= 1

        self.calls = rpc.Application(limits=rpc.CallLimits(calls=4, waiting=3, subscriptions=3))
        realm = self.calls.default
        realm.add_rpc_routes(routes)
        realm.errors |= {
            rpc.NotRegistered: "x.no",
            rpc.RemoteError: "x.no",
            rpc.SessionGone: "x.no",
        }

        @self.calls.add_session_state_handler
        async def state() -> AsyncIterator[None]:
            self.inside += 1
            yield
            self.inside -= 1

        self.server = Server(self.calls, SessionWSRegistry(identify=who, timeouts=QUICK))

    async def start(self) -> None:
        """Start the server."""
        self.runner = web.AppRunner(self.server.app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.calls.attach(self.server.registry)
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        self.browser = ClientSession(
            connector=TCPConnector(limit=0), cookie_jar=CookieJar(unsafe=True)
        )

    async def connect(self) -> Client:
        """Return a client that has joined."""
        ws = await self.browser.ws_connect(f"{self.url}/rpc", protocols=["wamp.2.json"])
        client = Client(ws)
        await client.say(1, "realm", {})
        await client.joined.wait()
        await client.ask(64, {}, "mine")
        return client


class Sessions(RuleBasedStateMachine):
    """Operations of clients and the server."""

    clients: Bundle[Client] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.all: list[Client] = []
        self.world = self.run(self._start())

    async def _start(self) -> World:
        world = World()
        await world.start()
        async with world.browser.get(f"{world.url}/login"):
            pass
        return world

    def run(self, coro: Any) -> Any:
        """Run a coroutine on the event loop, within a time limit."""

        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coro

        return self.runner.run(bounded())

    @rule(target=clients)
    def connect(self) -> Any:
        """Connect and join."""
        if len(self.all) >= 3:
            return multiple()
        client = self.run(self.world.connect())
        self.all.append(client)
        return client

    @rule(client=clients, name=st.sampled_from(["wait", "quick", "stream", "ask", "nothing"]),
          timeout=st.sampled_from([0, 0, 5]), times=st.integers(1, 4))  # fmt: skip
    def call(self, client: Client, name: str, timeout: int, times: int) -> None:
        """Call a procedure, once or several times."""
        for _ in range(times):
            options = {"receive_progress": True, "timeout": timeout}
            self.run(client.ask(48, options, name))

    @rule(client=clients, back=st.integers(0, 5), mode=MODES)
    def cancel(self, client: Client, back: int, mode: str) -> None:
        """Cancel a request number, whose call may be over or not exist."""
        self.run(client.say(49, max(1, client.next - back), {"mode": mode}))

    @rule(client=clients, fails=st.booleans())
    def answer(self, client: Client, fails: bool) -> None:
        """Answer the oldest invocation of the client, by a result or an error."""
        if client.invocations:
            number = client.invocations.pop(0)
            self.run(client.say(8, 68, number, {}, "x") if fails else client.say(70, number, {}))

    @rule(client=clients, topic=st.integers(0, 4))
    def subscribe(self, client: Client, topic: int) -> None:
        """Subscribe to a topic."""
        self.run(client.ask(32, {}, f"topic.{topic}"))

    @rule(client=clients)
    def unsubscribe(self, client: Client) -> None:
        """Unsubscribe from a topic, or send an unknown number."""
        number = client.subscriptions.pop() if client.subscriptions else 99
        self.run(client.ask(34, number))

    @rule()
    def publish(self) -> None:
        """Publish an event."""
        self.run(self.world.calls.publish("topic.1", [1]))

    @rule()
    def open_gate(self) -> None:
        """Open the gate for the handlers that wait, and close it again."""
        self.world.gate.set()
        self.run(asyncio.sleep(0))
        self.world.gate.clear()

    @rule(turns=st.integers(0, 3))
    def turn(self, turns: int) -> None:
        """Run some iterations of the event loop."""
        for _ in range(turns):
            self.run(asyncio.sleep(0))

    @rule(client=clients)
    def goodbye(self, client: Client) -> None:
        """Send GOODBYE, then HELLO again."""

        async def again() -> None:
            client.left.clear()
            client.joined.clear()
            await client.say(6, {}, "wamp.close.normal")
            if client.gone:
                return
            await client.left.wait()
            client.asked.clear()
            client.answers.clear()
            client.invocations.clear()
            client.subscriptions.clear()
            await client.say(1, "realm", {})
            if not client.gone:
                await client.joined.wait()

        self.run(again())

    @rule(client=clients)
    def vanish(self, client: Client) -> None:
        """Abort the connection without a close frame."""
        transport = transport_of(client.ws)
        if transport is not None:
            transport.abort()
        client.gone = True

    @rule()
    def log_out(self) -> None:
        """End the HTTP session that all clients share, and begin a new one."""

        async def out() -> None:
            async with self.world.browser.get(f"{self.world.url}/logout"):
                pass
            for client in self.all:
                await client.reading
                assert client.gone
            async with self.world.browser.get(f"{self.world.url}/login"):
                pass

        self.run(out())

    def teardown(self) -> None:
        """Check that each request was answered once unless its session ended; nothing is left."""
        self.run(self._end())
        self.runner.close()

    async def _end(self) -> None:
        world = self.world
        world.gate.set()
        for client in self.all:
            while not client.gone and not all(client.answers[one] for one in client.asked):
                while client.invocations:
                    await client.say(70, client.invocations.pop(), {})
                await asyncio.sleep(0)
            assert not [one for one, times in client.answers.items() if times > 1]
            if not client.gone:
                assert set(client.answers) <= set(client.asked)
            await client.ws.close()
            await client.reading
        while world.inside or world.calls.sessions:
            await asyncio.sleep(0)
        await world.browser.close()
        await world.runner.cleanup()
        while [t for t in asyncio.all_tasks() if "session_ws" in str(t.get_coro())]:
            await asyncio.sleep(0)


TestSessions = pytest.mark.exhaustive(Sessions.TestCase)
TestSessions.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
