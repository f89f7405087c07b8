"""
Return types of orders, pushes and queries: copies that may be kept and logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from ._logging import fingerprint

__all__ = [
    "CloseReport",
    "ClusterStats",
    "ConnectionInfo",
    "Count",
    "Delivery",
    "Handle",
    "NodeInfo",
    "Nodes",
    "Snapshot",
    "Stats",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CloseReport:
    """
    The effect of an order: on this process, and with ``wait=`` on those that answered in time.

    Attributes:
        sockets: How many open sockets it closes.
        aborted: How many of them could not be closed within the close timeout and were cut.
        cancelled: How many handlers had to be cancelled.
        handshakes: How many handshakes in flight it refuses.
        nodes_expected: How many processes were asked to answer, this one included.
        nodes_answered: How many of them answered; a process without ``identify`` can't answer
            for an identity, nor one without ``labels`` for a label.
        stored: Whether the order is recorded where it outlives this process: in Redis or in
            the journal. True if there is neither.
    """

    sockets: int = 0
    aborted: int = 0
    cancelled: int = 0
    handshakes: int = 0
    nodes_expected: int = 1
    nodes_answered: int = 1
    stored: bool = True

    @property
    def complete(self) -> bool:
        """
        Whether all processes that were asked have answered.
        """
        return self.nodes_answered >= self.nodes_expected


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    The result of a push.

    Attributes:
        sockets: How many sockets accepted it: it was written to them, or is in their queue.
        nodes: How many processes it reached.
        complete: Whether no socket missed it because its queue was full, and all processes
            have answered.
    """

    sockets: int = 0
    nodes: int = 1
    complete: bool = True


class Handle(str):
    """
    A name of a session that may be shown to a page, as ``registry.handle(id)`` returns it.

    A page sends it back as a text, which ``Handle(text)`` makes a handle again.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionInfo:
    """
    A snapshot of one open connection.

    Its ``repr()`` is safe to log: it shows a hash of the session ws id and of the identity.

    Attributes:
        id: Its own id, unique in its process.
        session_ws_id: The id of its session.
        identity: Whom the session belongs to; ``None`` if it is anonymous.
        remote: The address of the peer as aiohttp reports it, which may be a proxy's.
        opened_at: When it was opened, in seconds since the epoch.
        path: The path of its URL, without the query.
        idle: Seconds since its handler last began to wait for a message; since it was opened
            if the handler never has.
        node: The name of the process that serves it; empty without a cluster.
        user_agent: The first 200 characters of the ``User-Agent`` header. The client chooses
            it: don't trust it, and escape it where you show it.
    """

    id: str
    session_ws_id: Hashable
    identity: Hashable | None
    remote: str | None
    opened_at: float
    path: str
    idle: float
    node: str = ""
    user_agent: str = ""

    def __repr__(self) -> str:
        whose = "nobody" if self.identity is None else fingerprint(self.identity)
        return (
            f"<ConnectionInfo {self.id} session={fingerprint(self.session_ws_id)}"
            f" identity={whose} remote={self.remote} path={self.path!r} idle={self.idle:.0f}s>"
        )


class Count(int):
    """
    A number of open sockets.

    Attributes:
        complete: As for a :class:`Snapshot`.
    """

    complete: bool

    def __new__(cls, number: int = 0, *, complete: bool = True) -> Self:
        """
        Return *number*.
        """
        self = super().__new__(cls, number)
        self.complete = complete
        return self


class _Found(tuple[T, ...]):
    complete: bool

    def __new__(cls, found: Iterable[T], *, complete: bool = True) -> Self:
        """
        Return a tuple of the items *found*.
        """
        self = super().__new__(cls, found)
        self.complete = complete
        return self


class Snapshot(_Found[ConnectionInfo]):
    """
    The connections that were asked for, in the order in which they opened.

    Attributes:
        complete: Whether all processes that were asked have answered; always true without a
            cluster.
    """


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """
    A snapshot of one process.

    Attributes:
        name: Its name.
        sockets: How many sockets are open.
        sessions: How many sessions have an open socket.
        handshakes: How many handshakes are in flight.
    """

    name: str
    sockets: int
    sessions: int
    handshakes: int


class Nodes(_Found[NodeInfo]):
    """
    The processes, sorted by name.

    Attributes:
        complete: Whether all processes that are known to run have answered.
    """


@dataclass(frozen=True, slots=True)
class Stats:
    """
    Counters of one process since it started, and gauges of its present state.

    Attributes:
        node: Its name; empty without a cluster.
        open: How many sockets and streams are open.
        opening: How many handshakes are in flight.
        streams: How many of the open ones are streams.
        records: How many ends, renewals and notes are held, some of which may have expired.
        outbox: How many orders wait for Redis.
        orders_given: How many orders this process has given.
        orders_heard: How many orders of other processes it has carried out.
        orders_reconciled: How many records it had missed and has read from Redis later.
        outages: How often Redis couldn't be reached, or a part of its use failed.
        outage_seconds: Seconds of all outages together, the present one included.
        closes: How many sockets and streams have ended, by who closed first (``"order"``,
            ``"handler"`` or ``"client"``) and close code.
        refusals: How many handshakes were refused, by reason: ``"origin"``,
            ``"authorize"``, ``"ended"``, ``"reconnect"``, ``"limit"``, ``"rate"``, ``"total"``,
            ``"places"``, ``"draining"``, ``"redis"``, ``"identify"``, ``"late"``, ``"no id"``,
            ``"handler"``, ``"no websocket"``, ``"client gone"`` or ``"error"``.
    """

    node: str = ""
    open: int = 0
    opening: int = 0
    streams: int = 0
    records: int = 0
    outbox: int = 0
    orders_given: int = 0
    orders_heard: int = 0
    orders_reconciled: int = 0
    outages: int = 0
    outage_seconds: float = 0.0
    closes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """
        Return a dict that JSON can encode, with ``closes`` as ``{"order": {"4401": 2}}``.
        """
        closes: dict[str, dict[str, int]] = {}
        for (by, code), count in self.closes.items():
            closes.setdefault(by, {})[str(code)] = count
        return {**asdict(self), "closes": closes}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """
        Build an instance from a dict made by :meth:`as_dict`; unknown keys are ignored.
        """
        known = {one.name: body[one.name] for one in fields(cls) if one.name in body}
        closes = {
            (by, int(code)): count
            for by, codes in body.get("closes", {}).items()
            for code, count in codes.items()
        }
        return cls(**{**known, "closes": closes})


class ClusterStats(_Found[Stats]):
    """
    The figures of all processes, sorted by name.

    Attributes:
        complete: Whether all processes that are known to run have answered.
    """

    def __new__(cls, found: Iterable[Stats], *, complete: bool = True) -> Self:
        """
        Return a tuple of the figures *found*, sorted by name.
        """
        return super().__new__(cls, sorted(found, key=lambda one: one.node), complete=complete)

    @property
    def total(self) -> Stats:
        """
        The sums over all processes, without a name.
        """
        sums: dict[str, Any] = {}
        for one in fields(Stats):
            values = [getattr(stats, one.name) for stats in self]
            if one.name == "node":
                continue
            if one.name in ("closes", "refusals"):
                counts: Counter[Any] = Counter()
                for value in values:
                    counts.update(value)
                sums[one.name] = dict(counts)
            else:
                sums[one.name] = sum(values)
        return Stats(**sums)
