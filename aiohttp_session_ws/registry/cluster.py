"""
What a registry needs from a cluster of processes, and a cluster of it.

Internal in 2.0. Before somebody writes one for NATS or PostgreSQL three things must hold: records
merge as :mod:`..sessions.records` says, in the place where they are kept; an order is recorded
before it is published, and what was published while a node couldn't hear is found by it later; and
a question about a session is answered from the records, not from what this process remembers.

Over 300 lines long: nearly all of it tells what a method has to do.
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
        node: The instance of its node.
        number: Its number there.
    """

    node: str
    number: int


class Taken(NamedTuple):
    """
    What became of a handshake that asked for its place.

    Attributes:
        granted: Whether it has one.
        others: By subject those that have to make room, or that are in the way.
    """

    granted: bool
    others: dict[Subject, list[Place]]


class Held(NamedTuple):
    """
    The places of one subject on this node.

    Attributes:
        subject: An id or an identity.
        limit: How many it may have on all nodes.
        ages: For how many seconds which has been there, by number.
    """

    subject: Subject
    limit: int
    ages: dict[int, float]


class LocalNode(Protocol):
    """
    What a cluster needs of this node.

    Attributes:
        announcer: Tells of the orders of others.
        connections: Its sockets.
        effects: How orders take effect here.
        own_ttl: For how many seconds it needs ends, by the storages that it has seen; 0 if it has
            seen none.
        questions: What others may ask it.
        records: What has ended or was renewed.
        relays: Takes the messages that others relay.
        tasks: Where what is heard is worked on.
        ttl: For how many seconds it keeps ends.
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
        Keep ends for *ttl* seconds at least, as another node needs.
        """

    def recount(self) -> None:
        """
        Report all places once more: what was reported may be lost, or another node's request.
        """


class PendingReport(Protocol):
    """
    An order that is on its way to other nodes.
    """

    async def report(self, own: CloseReport) -> CloseReport:
        """
        Wait for what the others report, and add it to what this node has done.
        """

    async def published(self, timeout: float) -> None:
        """
        Wait until the others have been sent it, for *timeout* seconds at most.
        """


class Cluster(Protocol):
    """
    The other nodes, and what they have recorded.

    Attributes:
        remote: Whether there are other nodes at all.
        name: What this node is called.
        instance: What it is called among the others: its name, and something random.
        serves: Whether this node holds sockets: an application, and not a script.
    """

    remote: bool
    name: str
    instance: str
    serves: bool

    @property
    def clock(self) -> Clock:
        """
        The one clock of all nodes.
        """

    @property
    def deaf(self) -> bool:
        """
        Whether orders may be missed now, so that a handshake has to ask right before it opens.
        """

    def check_subject(self, value: Hashable) -> None:
        """
        Expect an id, an identity or a label's value to be one that other nodes can be told of.

        Raises:
            TypeError: If it isn't.
        """

    def record(self, order: Order) -> None:
        """
        Record an order now, and tell nobody: the response that goes with it is on its way.
        """

    def publish(self, order: Order, *, wait: float = 0.0) -> PendingReport:
        """
        Record an order, once more if :meth:`record` has, and tell the other nodes.

        Args:
            order: The order.
            wait: Seconds to wait for what they report.
        """

    def check_due(self, token: str) -> bool:
        """
        Tell whether it is time to ask what is recorded of a lineage.
        """

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Learn what is recorded of the session of an HTTP request; tell whether that is known.

        Bounded, and never raises.
        """

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Learn what is recorded of a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If that can't be found out.
        """

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Record and publish an order if its own session is alive by all that is recorded.

        Args:
            order: The end of an identity and of the lineage that ends the others.
            lineage: That lineage.
            subjects: Its id, and its identity and labels.
            since: Up to when an end of the identity would concern the session that goes on.
        """

    async def start(self, node: LocalNode) -> None:
        """
        Come to know the other nodes, before the first request.
        """

    async def stop(self) -> None:
        """
        Leave them, after the last request.
        """

    def write_again(self) -> None:
        """
        Let the others have what this node knows, and they don't: its journal was read late.
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
            data: What.
            here: What became of it on this node.
            wait: Seconds to wait for what the others answer; without it they aren't asked.
        """

    async def relay(self, name: str, data: bytes) -> Delivery:
        """
        Send a message to all other nodes, at most once and in the order of the calls.
        """

    def figures(self) -> Figures:
        """
        Return what was counted; called from any thread.
        """

    async def ask(
        self, name: str, body: dict[str, Any], wait: float, of: Collection[str] | None = None
    ) -> Answers:
        """
        Ask all other nodes something that their registries answer, or those in *of*.

        With 0 seconds to *wait* they are only told.
        """

    async def take_place(
        self, number: int, limits: Mapping[Subject, int], *, evict: bool
    ) -> Taken | None:
        """
        Give a handshake of this node its place under each of some subjects, or under none.

        Args:
            number: Its number on this node.
            limits: How many each subject may have.
            evict: Whether the oldest make room; else it is refused if there is none.

        Returns:
            What became of it; ``None`` if that can't be found out.
        """

    async def report_places(
        self, held: Sequence[Held], *, evict: bool
    ) -> dict[Subject, list[Place]] | None:
        """
        Tell which places this node has under some subjects, and no others.

        Returns:
            By subject the places on all nodes that are too many: the oldest if these make room,
            else the newest; ``None`` if it couldn't be told.
        """

    async def living(self) -> frozenset[str] | None:
        """
        Return the instances of the other nodes that live; ``None`` if that can't be found out.
        """
