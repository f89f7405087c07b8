"""
A cluster in memory: what Redis would record at once, and messages that come late or never.

It is a :class:`~aiohttp_session_ws.registry.cluster.Cluster` as the registry of Redis has one,
without Redis: the nodes of a world run in one event loop and share a set of records. What is
published waits until the world delivers it; what it never delivers is found by the next question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws._lineage import Lineage, Subject
from aiohttp_session_ws.connections.connection import TrackedConnection
from aiohttp_session_ws.registry.cluster import Cluster, LocalNode, PendingReport
from aiohttp_session_ws.registry.order import Order
from aiohttp_session_ws.registry.single_process import SingleProcess
from aiohttp_session_ws.sessions.clock import Clock
from aiohttp_session_ws.sessions.records import Change, Records, SubjectEnded
from aiohttp_session_ws.sessions.status import status

ASKED_AGAIN = 60.0  # seconds after which a node asks for the records of a page's session again
GRACE = 30.0  # Expiry.renewal_grace


class SharedRecords:
    """What stands in Redis, and what is on its way from node to node.

    Attributes:
        records: The records.
        clock: The one clock of all nodes.
        nodes: All nodes.
        messages: To which node, and what.
    """

    def __init__(self) -> None:
        self.records = Records()
        self.clock = Clock()
        self.nodes: list[LocalNode] = []
        self.messages: list[tuple[LocalNode, Order]] = []

    def record(self, order: Order) -> None:
        """Merge what an order says."""
        for change in order.changes:
            self.records.merge(change)

    def send(self, sender: LocalNode, order: Order) -> None:
        """Put a message on its way to all other nodes."""
        self.messages += [(node, order) for node in self.nodes if node is not sender]

    def deliver(self, which: int) -> None:
        """Deliver the *which*-th message."""
        node, order = self.messages.pop(which)
        node.effects.carry_out_soon(node.effects.apply(order))

    def reconcile(self) -> None:
        """Let all nodes find all they have missed."""
        for node in self.nodes:
            node.effects.learn(list(self.records))

    def known(self, order: Order) -> list[Change]:
        """Return what is recorded of the sessions whose ids an order ends, as Redis answers."""
        ended = [c.subject.value for c in order.changes if isinstance(c, SubjectEnded)]
        notes = [note for value in ended if (note := self.records.note_of(value)) is not None]
        ends = [self.records.lineage(note.token) for note in notes]
        return [*notes, *[end for end in ends if end is not None]]

    def find(self, tokens: Iterable[str], subjects: Sequence[Subject]) -> list[Change]:
        """Return what is recorded of a session."""
        records = self.records
        found: list[Change | None] = [records.lineage(token) for token in tokens]
        for change in records:
            if getattr(change, "subject", None) in subjects:
                found.append(change)
        found += [records.note_of(s.value) for s in subjects if s.kind == "id"]
        return [change for change in found if change is not None]


class MemoryCluster(SingleProcess):
    """The other nodes of a world.

    Args:
        shared: What all have in common.
        name: What this node is called.
    """

    remote = True

    def __init__(self, shared: SharedRecords, name: str) -> None:
        super().__init__(journaled=False)
        self.clock = shared.clock
        self.name = name
        self._shared = shared
        self._asked: dict[str, float] = {}
        self._node: LocalNode | None = None

    async def start(self, node: LocalNode) -> None:
        """Join the others."""
        self._node = node
        self._shared.nodes.append(node)

    def record(self, order: Order) -> None:
        """Record an order."""
        self._shared.record(order)

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """Record an order, and put it on its way."""
        assert self._node is not None
        self._shared.record(order)
        self._shared.send(self._node, order)
        known = self._shared.known(order)
        if known:
            asyncio.get_running_loop().call_soon(self._node.effects.learn, known)
        return super().publish(order)

    def check_due(self, token: str) -> bool:
        """Tell whether it is time to ask."""
        now = asyncio.get_running_loop().time()
        return now - self._asked.get(token, -ASKED_AGAIN) >= ASKED_AGAIN

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """Learn what is recorded of a session."""
        assert self._node is not None
        self._asked[token] = asyncio.get_running_loop().time()
        self._node.effects.learn(self._shared.find([token], subjects))
        return True

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """Learn what is recorded of a handshake."""
        subjects = [Subject("id", connection.session_ws_id)]
        if connection.identity is not None:
            subjects.append(Subject("identity", connection.identity))
        subjects += connection.labels
        assert connection.lineage is not None
        await self.check_request(connection.lineage.token, subjects)

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """Record an order if its own session lives by all that is recorded."""
        shared = self._shared
        own = [subject for subject in subjects if subject.kind != "identity"]
        found = status(shared.records, lineage, own, shared.clock, GRACE)
        others = [subject for subject in subjects if subject.kind == "identity"]
        if not found.alive or any(shared.records.ended_before(s) >= since for s in others):
            return False
        self.publish(order)
        return True


def registry_in(shared: SharedRecords, name: str, **options: Any) -> SessionWSRegistry:
    """Make a registry that is a node of a cluster."""

    class Node(SessionWSRegistry):
        def _make_cluster(self, **_: Any) -> Cluster:
            return MemoryCluster(shared, name)

    return Node(**options)
