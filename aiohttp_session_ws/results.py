"""
What orders, pushes and queries return: copies that may be kept and logged.
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
    What an order did: on this process, and with ``wait=`` on those that answered in time.

    Attributes:
        sockets: How many open sockets it was about.
        aborted: How many of them could not be closed within the close timeout and were cut.
        cancelled: How many handlers had to be cancelled.
        handshakes: How many handshakes in flight it will refuse.
        nodes_expected: How many processes were asked to answer, this one included.
        nodes_answered: How many of them did; one without ``identify`` can't for an identity, nor
            one without ``labels`` for a label.
        stored: Whether the order is recorded where it outlives this process: in Redis or in
            the journal. True where there is neither.
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
        Whether all who were asked have answered.
        """
        return self.nodes_answered >= self.nodes_expected


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    What became of a push.

    Attributes:
        sockets: How many sockets took it: it was written, or is in their queue.
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

    What comes back from the page is a text: ``Handle(text)``.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionInfo:
    """
    One open websocket at the moment when it was asked for.

    Its ``repr()`` is safe to log: it shows a hash of the session ws id and of the identity.

    Attributes:
        id: Its own id, unique in this process.
        session_ws_id: The id of the session it belongs to.
        identity: Whom the session belongs to; ``None`` if nobody is known.
        remote: The address of the peer as aiohttp knows it, which may be a proxy's.
        opened_at: When it was opened, in seconds since the epoch.
        path: The path of its URL, without the query.
        idle: For how many seconds its handler has waited for a message; since it was
            opened if it never has.
        node: The process that serves it; empty on a registry that knows no other.
        user_agent: What its client calls itself, the first 200 characters of it: not to be
            trusted, and not to be shown without escaping.
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
    How many sockets are open.

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
        Return a tuple of what was *found*.
        """
        self = super().__new__(cls, found)
        self.complete = complete
        return self


class Snapshot(_Found[ConnectionInfo]):
    """
    The connections that were asked for, the one opened first at the front.

    Attributes:
        complete: Whether everybody who was asked has answered; always true on a registry
            that knows its own process only.
    """


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """
    One process at the moment when it was asked.

    Attributes:
        name: How it is called.
        sockets: How many are open.
        sessions: How many sessions have one.
        handshakes: How many are on their way.
    """

    name: str
    sockets: int
    sessions: int
    handshakes: int


class Nodes(_Found[NodeInfo]):
    """
    The processes, by name.

    Attributes:
        complete: Whether everybody has answered who is known to run.
    """


@dataclass(frozen=True, slots=True)
class Stats:
    """
    What one process has counted since it started, and what it holds at this moment.

    Attributes:
        node: How it is called; empty on a registry that knows no other.
        open: How many sockets and streams are open.
        opening: How many handshakes are on their way.
        streams: How many of the open ones are streams.
        records: How many ends, renewals and notes are held, some of which may have expired.
        outbox: How many orders wait for Redis.
        orders_given: How many orders this process has given.
        orders_heard: How many orders of other processes it has carried out.
        orders_reconciled: How many records it had missed, and found later.
        outages: How many times Redis was away, or something that is done with it didn't work.
        outage_seconds: For how long in all, the present outage included.
        closes: How many sockets and streams have ended, by who began (``"order"``,
            ``"handler"`` or ``"client"``) and close code.
        refusals: How many handshakes were refused, by a word for why: ``"origin"``,
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
        Return the same as JSON can hold it: ``closes`` as ``{"order": {"4401": 2}}``.
        """
        closes: dict[str, dict[str, int]] = {}
        for (by, code), count in self.closes.items():
            closes.setdefault(by, {})[str(code)] = count
        return {**asdict(self), "closes": closes}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """
        Return what :meth:`as_dict` has made JSON of; what is unknown is left out.
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
    The figures of all processes, by name.

    Attributes:
        complete: Whether everybody has answered who is known to run.
    """

    def __new__(cls, found: Iterable[Stats], *, complete: bool = True) -> Self:
        """
        Return a tuple of what was *found*, by name.
        """
        return super().__new__(cls, sorted(found, key=lambda one: one.node), complete=complete)

    @property
    def total(self) -> Stats:
        """
        The sums of all.
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
