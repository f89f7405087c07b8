"""
The protocol between a registry and a cluster of processes, in both directions.

Internal in 2.0. An implementation for NATS or PostgreSQL would have to guarantee three things: the
shared store merges records as :mod:`..sessions.records` does; an order is recorded before it is
published, and a node that was disconnected finds later what was published meanwhile; and a query
about a session is answered from the shared records, not from the memory of this process.

Over 300 lines long: nearly all of it specifies what each method has to do.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from .._lineage import Lineage, Subject
from .._tasks import BackgroundTasks
from ..connections.connection import TrackedConnection
from ..connections.manager import ConnectionManager
from ..results import CloseReport, Count, Delivery, Snapshot
from ..sessions.clock import Clock
from ..sessions.records import Records
from ..typing import Data
from .announce import Announcer
from .effects import Effects
from .order import Order
from .questions import Answers, Figures, Questions
from .relay import Relays

__all__: list[str] = []


class Place(NamedTuple):
    """
    A socket that counts for a limit over all nodes.

    Attributes:
        node: The instance name of its node.
        number: Its number on that node.
    """

    node: str
    number: int


class Taken(NamedTuple):
    """
    The answer to a handshake that requests a place.

    Attributes:
        granted: Whether it was given one.
        others: By subject, the sockets that have to make room for it; if it was given no place,
            those that hold the places.
    """

    granted: bool
    others: dict[Subject, list[Place]]


class Held(NamedTuple):
    """
    The places of one subject on this node.

    Attributes:
        subject: An id or an identity.
        limit: How many it may have on all nodes.
        ages: The ages of its sockets in seconds, by their numbers.
    """

    subject: Subject
    limit: int
    ages: dict[int, float]


class LocalNode(Protocol):
    """
    What a cluster needs from this node.

    Attributes:
        announcer: Announces the orders of other nodes.
        connections: Its sockets.
        effects: Applies orders here.
        own_ttl: Seconds that it needs ends to be kept, by the storages that it has seen; 0 if it
            has seen none.
        questions: The questions of other nodes that it answers.
        records: What has ended or was renewed.
        relays: Receives the messages that other nodes relay.
        tasks: Where received messages are processed.
        ttl: Seconds that it keeps ends.
    """

    announcer: Announcer
    connections: ConnectionManager
    effects: Effects
    own_ttl: float
    questions: Questions
    records: Records
    relays: Relays
    tasks: BackgroundTasks
    ttl: float

    def snapshot(self, subject: Subject | None) -> Snapshot:
        """
        Describe the open connections of this node.
        """

    async def push_here(self, subject: Subject | None, data: Data) -> Delivery:
        """
        Push to the sockets of this node.
        """

    def keep_ends(self, ttl: float) -> None:
        """
        Keep ends for at least *ttl* seconds, since another node needs that.
        """

    def recount(self) -> None:
        """
        Report all places again: a report, or another node's request to evict, may be lost.
        """


class PendingReport(Protocol):
    """
    An order that is being published, and the reports of other nodes about it.
    """

    async def report(self, own: CloseReport) -> CloseReport:
        """
        Wait for the reports of other nodes, and add them to *own*, that of this node.
        """

    async def published(self, timeout: float) -> None:
        """
        Wait until the order has been recorded and published, *timeout* seconds at most.
        """


class Cluster(Protocol):
    """
    The other nodes, and the records that all nodes share.

    Attributes:
        remote: Whether there may be other nodes.
        name: The name of this node.
        instance: Its unique name among all nodes: its name and a random part.
        serves: Whether this node holds sockets: it is an application, not a script.
    """

    remote: bool
    name: str
    instance: str
    serves: bool

    @property
    def clock(self) -> Clock:
        """
        The clock that all nodes share.
        """

    @property
    def may_miss_orders(self) -> bool:
        """
        Whether this node may be missing orders: a handshake then queries right before it opens.
        """

    def check_subject(self, value: Hashable) -> None:
        """
        Check that an id, an identity or the value of a label can be sent to other nodes.

        Raises:
            TypeError: If it can't.
        """

    def record(self, order: Order) -> None:
        """
        Record an order now, for handshakes on all nodes; a response that belongs to it is still
        to be sent, so open sockets are left until :meth:`publish`.
        """

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """
        Record an order, again if :meth:`record` has, and publish it to the other nodes.

        Args:
            order: The order.
            wait: Seconds to wait for their reports.
        """

    def check_due(self, token: str) -> bool:
        """
        Return whether it is time to query the records of a lineage.
        """

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Fetch and apply the records of an HTTP request's session; return whether they are known.

        Bounded in time, and never raises.
        """

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Fetch and apply the records of a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If they can't be fetched.
        """

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Record and publish an order if, by all shared records, its own session is alive.

        Args:
            order: The end of an identity, and of the lineage whose request ends the others.
            lineage: That lineage.
            subjects: Its id, and its identity and labels.
            since: The session counts as ended if the identity was ended at or after this time.
        """

    async def start(self, node: LocalNode) -> None:
        """
        Join the other nodes, before the first request.
        """

    async def stop(self) -> None:
        """
        Leave them, after the last request.
        """

    def write_again(self) -> None:
        """
        Record for all nodes what only this one may know, since its journal was read late.
        """

    async def connections(self, subject: Subject | None, here: Snapshot) -> Snapshot:
        """
        Return the connections of all nodes; *here* are this one's.
        """

    async def count(self, here: int) -> Count:
        """
        Return how many sockets all nodes have; *here* are this one's.
        """

    async def push(
        self, subject: Subject | None, data: Data, here: Delivery, *, wait: float = 0.0
    ) -> Delivery:
        """
        Push to the sockets of the other nodes.

        Args:
            subject: Whose sockets; all if it is ``None``.
            data: The message.
            here: The result on this node.
            wait: Seconds to wait for the answers of the others; with 0 they send none.
        """

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Send a message to all other nodes, at most once and in the order of the calls.
        """

    def figures(self) -> Figures:
        """
        Return the counters; may be called from any thread.
        """

    async def ask(
        self, name: str, body: dict[str, Any], wait: float, of: Collection[str] | None = None
    ) -> Answers:
        """
        Send a question that registries answer to all other nodes, or to those in *of*.

        With a *wait* of 0 seconds no answer is expected.
        """

    async def take_place(
        self, number: int, limits: Mapping[Subject, int], *, evict: bool
    ) -> Taken | None:
        """
        Take a place for a handshake of this node under each of some subjects, or under none.

        Args:
            number: Its number on this node.
            limits: How many places each subject has.
            evict: Whether the oldest make room; else the handshake is refused if all are taken.

        Returns:
            The result; ``None`` if it can't be determined.
        """

    async def report_places(
        self, held: Sequence[Held], *, evict: bool
    ) -> dict[Subject, list[Place]] | None:
        """
        Report the places that this node has under some subjects; it has no others there.

        Returns:
            By subject, the places over its limit, of all nodes: the oldest if these make room,
            else the newest; ``None`` if the report failed.
        """

    async def living(self) -> frozenset[str] | None:
        """
        Return the instances of the other nodes that are alive; ``None`` if that isn't known.
        """
