"""
The cluster of a single process: all methods of :class:`.Cluster` without other nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from .._lineage import Lineage, Subject
from ..connections.connection import TrackedConnection
from ..results import CloseReport, Count, Delivery, Snapshot
from ..sessions.clock import Clock
from ..sessions.encoding import encode
from ..typing import Data
from .cluster import Held, LocalNode, PendingReport, Place, Taken
from .order import Order
from .questions import Answers, Figures

__all__: list[str] = []


class OwnReport:
    """
    The report of an order where there are no other nodes.
    """

    async def report(self, own: CloseReport) -> CloseReport:
        """
        Return the report of this node.
        """
        return own

    async def published(self, timeout: float) -> None:
        """
        Do nothing: there is nothing to wait for.
        """


class SingleProcess:
    """
    The cluster of one process.

    Args:
        journaled: Whether subjects must be encodable, for a journal.

    Attributes:
        clock: The clock of this process.
    """

    remote = may_miss_orders = False
    name = instance = ""
    serves = True

    def __init__(self, *, journaled: bool) -> None:
        self.clock = Clock()
        self._journaled = journaled

    def check_subject(self, value: Hashable) -> None:
        """
        Check that the journal can hold *value*, if there is a journal.
        """
        if self._journaled:
            encode(value)

    def record(self, order: Order) -> None:
        """
        Do nothing: the records are in the memory of this process only.
        """

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """
        Return a report that waits for no other node.
        """
        return OwnReport()

    def check_due(self, token: str) -> bool:
        """
        Return false: there is no other record to look up.
        """
        return False

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Return true: all records are in the memory of this process.
        """
        return True

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Do nothing.
        """

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Return true: the caller has checked the records of this process.
        """
        return True

    async def start(self, node: LocalNode) -> None:
        """
        Do nothing.
        """

    async def stop(self) -> None:
        """
        Do nothing.
        """

    def write_again(self) -> None:
        """
        Do nothing.
        """

    async def connections(self, subject: Subject | None, here: Snapshot) -> Snapshot:
        """
        Return the connections of this process.
        """
        return here

    async def count(self, here: int) -> Count:
        """
        Return how many sockets this process has.
        """
        return Count(here)

    async def push(
        self, subject: Subject | None, data: Data, here: Delivery, *, wait: float = 0.0
    ) -> Delivery:
        """
        Return the delivery on this process.
        """
        return here

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Return a delivery to no node.
        """
        return Delivery(0, nodes=0)

    def figures(self) -> Figures:
        """
        Return zeros.
        """
        return Figures()

    async def ask(
        self, name: str, body: dict[str, Any], wait: float, of: Collection[str] | None = None
    ) -> Answers:
        """
        Return no answers.
        """
        return Answers()

    async def take_place(
        self, number: int, limits: Mapping[Subject, int], *, evict: bool
    ) -> Taken | None:
        """
        Grant the place: the limits of this process have been checked.
        """
        return Taken(True, {})

    async def report_places(
        self, held: Sequence[Held], *, evict: bool
    ) -> dict[Subject, list[Place]] | None:
        """
        Return no excess places.
        """
        return {}

    async def living(self) -> frozenset[str] | None:
        """
        Return an empty set: there are no other nodes.
        """
        return frozenset()
