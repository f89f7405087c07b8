"""
The cluster of one process: nobody else is told, and nobody is asked.
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
    The report of an order that no other node was told of.
    """

    async def report(self, own: CloseReport) -> CloseReport:
        """
        Return what this node has done.
        """
        return own

    async def published(self, timeout: float) -> None:
        """
        Wait for nobody.
        """


class SingleProcess:
    """
    The cluster of one process.

    Args:
        journaled: Whether what it is told must be fit for a journal.

    Attributes:
        clock: The clock of this process.
    """

    remote = deaf = False
    name = instance = ""
    serves = True

    def __init__(self, *, journaled: bool) -> None:
        self.clock = Clock()
        self._journaled = journaled

    def check_subject(self, value: Hashable) -> None:
        """
        Expect what the journal can hold, if there is one: nobody else is told.
        """
        if self._journaled:
            encode(value)

    def record(self, order: Order) -> None:
        """
        Do nothing: the memory of this process is all there is.
        """

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """
        Tell nobody.
        """
        return OwnReport()

    def check_due(self, token: str) -> bool:
        """
        Tell that there is nothing to ask.
        """
        return False

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Learn nothing: the memory of this process is all there is.
        """
        return True

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Learn nothing.
        """

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Agree: the memory of this process was asked.
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
        Return what became of the push on this process.
        """
        return here

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Send it to nobody.
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
        Ask nobody.
        """
        return Answers()

    async def take_place(
        self, number: int, limits: Mapping[Subject, int], *, evict: bool
    ) -> Taken | None:
        """
        Grant it: the limits of this process have been asked.
        """
        return Taken(True, {})

    async def report_places(
        self, held: Sequence[Held], *, evict: bool
    ) -> dict[Subject, list[Place]] | None:
        """
        Find none too many.
        """
        return {}

    async def living(self) -> frozenset[str] | None:
        """
        Return nobody.
        """
        return frozenset()
