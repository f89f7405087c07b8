"""
An in-memory cluster: records are shared at once, messages arrive late or never.

It implements :class:`~aiohttp_session_ws.registry.cluster.Cluster` without Redis: the nodes of a
world run in one event loop and share one set of records. A published message is queued until the
world delivers it; the content of one that is never delivered is found by the next query.
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

ASKED_AGAIN = 60.0  # seconds after which a node queries the records of a page's session again
GRACE = 30.0  # Expiry.renewal_grace


class SharedRecords:
    """The records and messages that Redis would hold.

    Attributes:
        records: The records.
        clock: The clock that all nodes share.
        nodes: All nodes.
        messages: Undelivered messages, each with the node it is for.
    """

    def __init__(self) -> None:
        self.records = Records()
        self.clock = Clock()
        self.nodes: list[LocalNode] = []
        self.messages: list[tuple[LocalNode, Order]] = []

    def record(self, order: Order) -> None:
        """Merge the changes of an order."""
        for change in order.changes:
            self.records.merge(change)

    def send(self, sender: LocalNode, order: Order) -> None:
        """Queue a message for all other nodes."""
        self.messages += [(node, order) for node in self.nodes if node is not sender]

    def deliver(self, which: int) -> None:
        """Deliver the *which*-th message."""
        node, order = self.messages.pop(which)
        node.effects.carry_out_soon(node.effects.apply(order))

    def reconcile(self) -> None:
        """Pass all records to every node."""
        for node in self.nodes:
            node.effects.apply_missed(list(self.records))

    def known(self, order: Order) -> list[Change]:
        """Return the records of the sessions whose ids an order ends, as Redis does."""
        ended = [c.subject.value for c in order.changes if isinstance(c, SubjectEnded)]
        notes = [note for value in ended if (note := self.records.note_of(value)) is not None]
        ends = [self.records.lineage(note.token) for note in notes]
        return [*notes, *[end for end in ends if end is not None]]

    def find(self, tokens: Iterable[str], subjects: Sequence[Subject]) -> list[Change]:
        """Return the records of a session."""
        records = self.records
        found: list[Change | None] = [records.lineage(token) for token in tokens]
        for change in records:
            if getattr(change, "subject", None) in subjects:
                found.append(change)
        found += [records.note_of(s.value) for s in subjects if s.kind == "id"]
        return [change for change in found if change is not None]


class MemoryCluster(SingleProcess):
    """One node's view of the in-memory cluster.

    Args:
        shared: The records and messages shared by all nodes.
        name: The name of this node.
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
        """Join the cluster."""
        self._node = node
        self._shared.nodes.append(node)

    def record(self, order: Order) -> None:
        """Record an order."""
        self._shared.record(order)

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """Record an order, and queue it for the other nodes."""
        assert self._node is not None
        self._shared.record(order)
        self._shared.send(self._node, order)
        known = self._shared.known(order)
        if known:
            asyncio.get_running_loop().call_soon(self._node.effects.apply_missed, known)
        return super().publish(order)

    def check_due(self, token: str) -> bool:
        """Return whether a query for this session is due."""
        now = asyncio.get_running_loop().time()
        return now - self._asked.get(token, -ASKED_AGAIN) >= ASKED_AGAIN

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """Apply the records of a session."""
        assert self._node is not None
        self._asked[token] = asyncio.get_running_loop().time()
        self._node.effects.apply_missed(self._shared.find([token], subjects))
        return True

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """Apply the records of a handshake's session."""
        subjects = [Subject("id", connection.session_ws_id)]
        if connection.identity is not None:
            subjects.append(Subject("identity", connection.identity))
        subjects += connection.labels
        assert connection.lineage is not None
        await self.check_request(connection.lineage.token, subjects)

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """Record and publish an order if its own session is alive by all shared records."""
        shared = self._shared
        own = [subject for subject in subjects if subject.kind != "identity"]
        found = status(shared.records, lineage, own, shared.clock, GRACE)
        others = [subject for subject in subjects if subject.kind == "identity"]
        if not found.alive or any(shared.records.ended_before(s) >= since for s in others):
            return False
        self.publish(order)
        return True


def registry_in(shared: SharedRecords, name: str, **options: Any) -> SessionWSRegistry:
    """Create a registry that is a node of the cluster."""

    class Node(SessionWSRegistry):
        def _make_cluster(self, **_: Any) -> Cluster:
            return MemoryCluster(shared, name)

    return Node(**options)
