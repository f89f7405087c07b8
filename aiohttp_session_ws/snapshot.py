"""
What is told of connections: copies that may be kept and logged.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Self

from .connection import Connection, ServedWebSocket
from .records import fingerprint

__all__ = ["ConnectionInfo", "Count", "Snapshot"]


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


def snapshot(connections: Iterable[Connection], now: float, node: str = "") -> Snapshot:
    """
    Describe *connections* at the time *now* of the event loop.
    """
    epoch = time.time() - now
    opened = sorted((c.opened_at or 0.0, n, c) for n, c in enumerate(connections))
    return Snapshot(_describe(c, at, now, epoch, node) for at, _, c in opened)


def _describe(
    connection: Connection, at: float, now: float, epoch: float, node: str
) -> ConnectionInfo:
    request, ws = connection.request, connection.ws
    heard = ws.heard_at if isinstance(ws, ServedWebSocket) else None
    return ConnectionInfo(
        # No two are at one address at a time, and what comes there later is opened later.
        id=fingerprint((id(connection), at)),
        session_ws_id=connection.session_ws_id,
        identity=connection.identity,
        remote=None if request is None else request.remote,
        opened_at=at + epoch,
        path="" if request is None else request.path,
        idle=now - max(at, heard or at),
        node=node,
    )
