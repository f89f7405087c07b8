"""
What a registry needs from a cluster of processes, and a cluster of it.

Internal in 2.0. Before somebody writes one for NATS or PostgreSQL three things must hold: records
merge as :mod:`..sessions.records` says, in the place where they are kept; an order is recorded
before it is published, and what was published while a node couldn't hear is found by it later; and
a question about a session is answered from the records, not from what this process remembers.

Over 300 lines long: nearly all of it tells what a method has to do.
"""

from __future__ import annotations

import math
from collections.abc import (
    Awaitable,
    Collection,
    Hashable,
    Mapping,
    Sequence,
    Set as AbstractSet,
)
from typing import Any, Final, NamedTuple, Protocol

from .._lineage import Kind, Lineage, Subject
from .._tasks import BackgroundTasks
from ..close_codes import Close
from ..connections.connection import TrackedConnection
from ..connections.manager import ConnectionManager
from ..results import CloseReport, Count, Delivery, Snapshot
from ..sessions.clock import Clock
from ..sessions.records import Change, Records
from ..sessions.status import Status
from ..typing import Data
from .judging import Unjudged
from .questions import Answers, Figures

__all__: list[str] = []


class Refresh(NamedTuple):
    """
    The open sockets of a lineage go on under another id and its next generation.

    Attributes:
        lineage: The lineage with that generation.
        session_ws_id: The id.
        until: When the session no longer belongs to its identity, by the wall clock.
        was: The id before: what was registered by hand is filed under that only.
    """

    lineage: Lineage
    session_ws_id: Hashable
    until: float = math.inf
    was: Hashable = None


class Order(NamedTuple):
    """
    What is ordered at one time.

    Attributes:
        changes: What has ended or was renewed.
        closes: Whose sockets are to reconnect besides.
        close: With what sockets are closed; without one it depends on what became of each.
        by: Who gave the order, for operators.
        refresh: Which open sockets go on in place of being closed.
    """

    changes: tuple[Change, ...] = ()
    closes: tuple[Subject, ...] = ()
    close: Close | None = None
    by: str | None = None
    refresh: Refresh | None = None


class Effect(NamedTuple):
    """
    What is left to do of an order on this node.

    Attributes:
        closing: The open sockets to close, and with what.
        handshakes: How many handshakes it has rejected.
        replaced: Open sockets of an older generation that nobody has ordered to be closed yet.
        rest: Open sockets that are judged while they are closed, if there are many.
    """

    closing: tuple[tuple[Close, tuple[TrackedConnection, ...]], ...] = ()
    handshakes: int = 0
    replaced: tuple[TrackedConnection, ...] = ()
    rest: Unjudged | None = None

    @property
    def closes(self) -> bool:
        """
        Whether there may be open sockets to close.
        """
        return bool(self.closing or self.replaced or self.rest is not None)


NO_EFFECT: Final = Effect()
NOTHING_CLOSED: Final = CloseReport()  # what most orders come to on most nodes


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


class LocalEffects(Protocol):
    """
    How orders take effect on this node, in one way for its own and for those of others.
    """

    def apply(self, order: Order, *, before: float | None = None) -> Effect:
        """
        Let an order take effect: merge its records, reject handshakes, find open sockets.

        Args:
            order: The order.
            before: When it was given, by the event loop's clock, if that was not right now:
                who began a handshake later isn't told to reconnect.
        """

    def resolve(self) -> None:
        """
        Give what was ordered before the clock was known its time.
        """

    def concerned(
        self, kind: Kind, values: Sequence[Hashable], *, ends: bool
    ) -> AbstractSet[Hashable]:
        """
        Return those of some ids, identities or labels whose orders must be carried out one by one.

        Args:
            kind: What they are.
            values: Which.
            ends: Whether they end; else their sockets are to reconnect.
        """

    def note_ends(
        self, kind: Kind, values: Sequence[Hashable], times: Sequence[float], ttl: float
    ) -> None:
        """
        Note ends, ordered by another node, of what this node holds nothing of.

        Args:
            kind: What ended: ids, identities or labels.
            values: Which.
            times: When each has ended, by the one clock.
            ttl: Seconds to keep that after it was last met.
        """

    def note_closes(self, kind: Kind, values: Sequence[Hashable], times: Sequence[float]) -> None:
        """
        Note close orders of another node to what this node holds nothing of.

        Args:
            kind: Who is to reconnect: ids, identities or labels.
            values: Which.
            times: When each was ordered, by the event loop's clock.
        """

    def carry_out(self, effect: Effect) -> Awaitable[CloseReport]:
        """
        Close the sockets of an order; their close frames are written before this returns.
        """

    def carry_out_soon(self, effect: Effect) -> None:
        """
        Write the close frames now; wait for the rest in the background.
        """

    def learn(self, changes: Sequence[Change]) -> None:
        """
        Let records take effect that were found; close what they end in the background.
        """


class LocalNode(Protocol):
    """
    What a cluster needs of this node.

    Attributes:
        records: What has ended or was renewed.
        connections: Its sockets.
        tasks: Where what is heard is worked on.
        ttl: For how many seconds it keeps ends.
        own_ttl: For how many seconds it needs them, by the storages that it has seen; 0 if it has
            seen none.
    """

    records: Records
    connections: ConnectionManager
    tasks: BackgroundTasks
    ttl: float
    own_ttl: float

    @property
    def effects(self) -> LocalEffects:
        """
        How orders take effect here.
        """

    def status_of(self, connection: TrackedConnection) -> Status:
        """
        Judge the session of a connection by what is known here.
        """

    def snapshot(self, subject: Subject | None) -> Snapshot:
        """
        Describe the open connections of this node.
        """

    async def push_here(self, subject: Subject | None, data: Data) -> Delivery:
        """
        Push to the sockets of this node.
        """

    def receive_relay(self, name: str, data: bytes) -> None:
        """
        Take a message that another node has relayed.
        """

    async def answer(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """
        Answer a question of another node.
        """

    def order_heard(self, order: Order, effect: Effect, node: str) -> None:
        """
        Announce an order of another node that has taken effect.
        """

    def order_found(self, change: Change) -> None:
        """
        Announce a record that was missed when it was published.
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
