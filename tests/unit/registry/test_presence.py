"""
Presence: the first and last socket of an identity on one node, and agreement of fake nodes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws._tasks import BackgroundTasks
from aiohttp_session_ws.registry import presence
from aiohttp_session_ws.registry.questions import Answers
from aiohttp_session_ws.signals import PresenceDetails, Signals
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    cookie_of,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, idle


class Watched(SessionWSRegistry):
    """A registry that records the ``on_first`` and ``on_last`` signals."""

    def __init__(self) -> None:
        super().__init__(identify=user_of, timeouts=QUICK)
        self.told: list[tuple[str, object]] = []

        @self.on_first
        async def come(details: PresenceDetails) -> None:
            self.told.append(("first", details.identity))

        @self.on_last
        async def gone(details: PresenceDetails) -> None:
            self.told.append(("last", details.identity))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan for presence changes every 10 ms, and let identities linger for 50 ms only."""
    monkeypatch.setattr(presence, "SCAN_EVERY", 0.01)
    monkeypatch.setattr(presence, "LINGER", 0.05)


async def browser(client: Client, user: str) -> dict[str, str]:
    """Log in as a new browser."""
    client.session.cookie_jar.clear()
    await client.get("/login", params={"user": user})
    cookie = cookie_of(client)
    client.session.cookie_jar.clear()
    return {"Cookie": cookie}


@pytest.mark.usefixtures("quick")
class TestPresence:
    async def test_first_and_last(self, aiohttp_client: AiohttpClient) -> None:
        """``on_first`` and ``on_last`` come for the first and last socket over all sessions."""
        registry = Watched()
        client = await aiohttp_client(make_app(registry))
        first, second = await browser(client, "ann"), await browser(client, "ann")
        async with client.ws_connect("/ws", headers=first):
            await until(lambda: registry.told)
            async with client.ws_connect("/ws", headers=second):
                await until(lambda: len(connections(registry)) == 2)
            await until(lambda: len(connections(registry)) == 1)
            await asyncio.sleep(0.1)  # longer than LINGER
            during = [*registry.told]
        await until(lambda: len(registry.told) == 2)

        assert during == [("first", "ann")]
        assert registry.told == [("first", "ann"), ("last", "ann")]

    async def test_anonymous(self, aiohttp_client: AiohttpClient) -> None:
        """An anonymous socket is not reported as present."""
        registry = Watched()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws"):
            ann = await browser(client, "ann")
            async with client.ws_connect("/ws", headers=ann):
                await until(lambda: registry.told)

        assert registry.told[0] == ("first", "ann")

    async def test_proven(self, aiohttp_client: AiohttpClient) -> None:
        """A proven identity is reported as present, and as gone once it is disproven."""
        registry = Watched()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws"):
            await until(lambda: connections(registry))
            (connection,) = connections(registry)
            await registry.prove(connection, "bob", since=registry.now())
            await until(lambda: registry.told == [("first", "bob")])
            registry.disprove(connection)
            await until(lambda: registry.told == [("first", "bob"), ("last", "bob")])

    async def test_failing_receiver(self, aiohttp_client: AiohttpClient) -> None:
        """A receiver that fails doesn't keep the other receivers from being called."""
        registry = Watched()

        async def fail(details: PresenceDetails) -> None:
            raise ValueError

        registry.on_first.insert(0, fail)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws", headers=await browser(client, "ann")):
            await until(lambda: registry.told)


class TestReload:
    async def test_lingers(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reconnecting after a page reload sends no ``on_last`` and no second ``on_first``."""
        monkeypatch.setattr(presence, "SCAN_EVERY", 0.01)
        registry = Watched()
        client = await aiohttp_client(make_app(registry))
        ann = await browser(client, "ann")
        for _ in range(3):
            async with client.ws_connect("/ws", headers=ann) as ws:
                await ws.receive(timeout=PATIENCE)
                await until(lambda: registry.told)
            await until(lambda: not connections(registry))

        assert registry.told == [("first", "ann")]

    async def test_off(self, aiohttp_client: AiohttpClient) -> None:
        """Without a presence receiver no background task runs."""
        registry = SessionWSRegistry(identify=user_of)
        await aiohttp_client(make_app(registry))

        assert idle(registry)


class Wire:
    """Fake nodes joined in memory; changes get lost while ``lost`` is set."""

    def __init__(self) -> None:
        self.nodes: dict[str, FakeNode] = {}
        self.lost = False

    async def ask(self, sender: FakeNode, name: str, body: dict[str, Any], wait: float) -> Answers:
        """Pass a request to all other nodes; return their answers."""
        if self.lost and not wait:
            return Answers()
        others = [node for node in self.nodes.values() if node is not sender]
        respond = {"presence": "receive", "present": "respond"}[name]
        body = json.loads(json.dumps({**body, "from": sender.instance}))
        found = [await getattr(node.presence, respond)(body) for node in others]
        answers = [
            {**answer, "from": node.instance} for node, answer in zip(others, found, strict=True)
        ]
        return Answers(tuple(answers), len(others), len(others))


class FakeNode:
    """A node without real sockets; a test sets which identities it has sockets of."""

    remote = serves = True

    def __init__(self, wire: Wire, name: str) -> None:
        self.name, self.instance = name, f"{name}/1"
        self.wire = wire
        self.tasks = BackgroundTasks()
        self.signals = Signals(self)
        self.cluster = self.connections = self  # stands in for both
        self.open: list[Any] = []
        self.told: list[tuple[bool, object, bool]] = []
        self.signals.on_first.append(self.come)
        self.signals.on_last.append(self.gone)
        self.presence = presence.Presence(self)  # type: ignore[arg-type]  # that's the test
        wire.nodes[self.instance] = self
        self.presence.start()

    async def come(self, details: PresenceDetails) -> None:
        """Record an ``on_first`` signal."""
        self.told.append((True, details.identity, details.news))

    async def gone(self, details: PresenceDetails) -> None:
        """Record an ``on_last`` signal."""
        self.told.append((False, details.identity, details.news))

    async def ask(self, name: str, body: dict[str, Any], wait: float) -> Answers:
        """Send a request to all other nodes."""
        return await self.wire.ask(self, name, body, wait)

    async def living(self) -> frozenset[str]:
        """Return the instances of the other nodes."""
        return frozenset(self.wire.nodes) - {self.instance}

    def have(self, *identities: object) -> None:
        """Have sockets of *identities*, and of no others."""
        self.open = [SimpleNamespace(identity=who, sparse=None) for who in identities]


@pytest.fixture
async def wire(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """Yield a wire whose nodes scan for changes every millisecond."""
    monkeypatch.setattr(presence, "SCAN_EVERY", 0.001)
    monkeypatch.setattr(presence, "LINGER", 0.0)
    monkeypatch.setattr(presence, "CHECK_EVERY", 0.01)
    wire = Wire()
    yield wire
    for node in wire.nodes.values():
        await node.tasks.stop(PATIENCE)


class TestGossip:
    async def test_lost(self, wire: Wire) -> None:
        """A lost change is recovered by its sequence number; its signal is not marked as news."""
        a, b = FakeNode(wire, "a"), FakeNode(wire, "b")
        a.have("ann")
        await until(lambda: b.told)
        wire.lost = True
        a.have("ann", "bob")
        await until(lambda: len(a.told) == 2)
        assert len(b.told) == 1
        wire.lost = False
        await until(lambda: len(b.told) == 2)

        assert b.told[1] == (True, "bob", False)

    async def test_many(self, wire: Wire) -> None:
        """All nodes agree in the end on who is present, although changes get lost."""
        nodes = [FakeNode(wire, name) for name in "abc"]
        random = Random(7)
        for _ in range(60):
            wire.lost = random.random() < 0.3
            random.choice(nodes).have(*random.sample(range(5), random.randrange(4)))
            await asyncio.sleep(0.002)
        wire.lost = False
        nodes[0].have(1, 2)
        nodes[1].have(2)
        nodes[2].have()

        def present(node: FakeNode) -> set[object]:
            return {who for who, last in {t[1]: t[0] for t in node.told}.items() if last}

        await until(lambda: all(present(node) == {1, 2} for node in nodes))
        for node in nodes:  # on_first and on_last alternate for each identity
            for who in range(5):
                turns = [first for first, identity, _ in node.told if identity == who]
                assert turns == [n % 2 == 0 for n in range(len(turns))]
