"""
What orders, pushes and queries return: copies that may be kept and logged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Self

from ._logging import fingerprint

__all__ = [
    "CloseReport",
    "ConnectionInfo",
    "Count",
    "Delivery",
    "NodeInfo",
    "Nodes",
    "Snapshot",
]


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
        nodes_answered: How many of them did.
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
    """

    id: str
    session_ws_id: Hashable
    identity: Hashable | None
    remote: str | None
    opened_at: float
    path: str
    idle: float
    node: str = ""

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


class Snapshot(tuple[ConnectionInfo, ...]):
    """
    The connections that were asked for, the one opened first at the front.

    Attributes:
        complete: Whether everybody who was asked has answered; always true on a registry
            that knows its own process only.
    """

    complete: bool

    def __new__(cls, connections: Iterable[ConnectionInfo], *, complete: bool = True) -> Self:
        """
        Return a tuple of *connections*.
        """
        self = super().__new__(cls, connections)
        self.complete = complete
        return self


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


class Nodes(tuple[NodeInfo, ...]):
    """
    The processes, by name.

    Attributes:
        complete: Whether everybody has answered who is known to run.
    """

    complete: bool

    def __new__(cls, nodes: Iterable[NodeInfo], *, complete: bool = True) -> Self:
        """
        Return a tuple of *nodes*.
        """
        self = super().__new__(cls, nodes)
        self.complete = complete
        return self
