"""
How many sockets there may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from .closing import NORMAL, TOO_MANY_CONNECTIONS
from .connection import Connection, Index
from .exceptions import HandshakeRefused
from .sockets import Sockets

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How many sockets there may be on this process; handshakes in flight count.

    Args:
        per_session: For one session; ``None`` for any number.
        per_identity: For one identity, over all its sessions; ``None`` for any number.
        total: For all; beyond it a handshake gets 503 with ``Retry-After``.
        on_limit: What happens to one too many of a session or an identity:
            ``"evict_oldest"`` closes the oldest with 4429 and lets the new one in when
            that is gone; ``"refuse"`` refuses the new one.

    Raises:
        ValueError: If a limit is not a number > 0, or *on_limit* something else.
    """

    per_session: int | None = None
    per_identity: int | None = None
    total: int | None = None
    on_limit: Literal["evict_oldest", "refuse"] = "evict_oldest"

    def __post_init__(self) -> None:
        for name in ("per_session", "per_identity", "total"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} is a number > 0 or None, not {number!r}")
        if self.on_limit not in ("evict_oldest", "refuse"):
            raise ValueError(f"on_limit is 'evict_oldest' or 'refuse', not {self.on_limit!r}")


def expect_room(limits: Limits, sockets: Sockets) -> None:
    """
    Let a handshake pass that is not filed yet, if there may be one more socket.

    Raises:
        aiohttp.web.HTTPServiceUnavailable: If there may not.
    """
    if limits.total is not None and sockets.open.size + sockets.opening.size >= limits.total:
        raise web.HTTPServiceUnavailable(
            headers={"Retry-After": "1"}, text="websocket refused: too many connections"
        )


async def make_room(limits: Limits, sockets: Sockets, connection: Connection) -> None:
    """
    Let a handshake that is authorized take its place in its session and with its identity.

    The place is taken before the first await, so that a burst of handshakes is counted
    exactly; then those who had to make room are waited for.

    Raises:
        HandshakeRefused: If there is no room.
    """
    crowds = list(_crowds(limits, sockets, connection))
    if not crowds:
        return
    if limits.on_limit == "refuse":
        if any(len(crowd.staying()) >= crowd.limit for crowd in crowds):
            raise HandshakeRefused(TOO_MANY_CONNECTIONS)
    else:
        for crowd in crowds:
            staying = sorted(crowd.staying(), key=_started)
            for oldest in staying[: max(0, len(staying) + 1 - crowd.limit)]:
                sockets.evict(oldest, TOO_MANY_CONNECTIONS)
    connection.admitted = sockets.admit()
    for crowd in crowds:
        while connection.refusal is None and len(crowd.ahead()) >= crowd.limit:
            # Who is closed for another reason is in the way as well.
            going = [c for c in crowd.ahead() if c.opened and (c.close or c.closing)]
            leaving = {c.closing or sockets.begin_close(c, c.close or NORMAL) for c in going}
            if not leaving:  # somebody came by another way, who stays
                raise HandshakeRefused(TOO_MANY_CONNECTIONS)
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """
    The sockets that one limit is about.
    """

    limit: int
    index: tuple[Index, ...]
    key: Hashable
    connection: Connection

    def staying(self) -> list[Connection]:
        """
        Return those that have a place, but not those that are about to leave it.
        """
        return [c for c in self._others() if c.close is None and c.closing is None]

    def ahead(self) -> list[Connection]:
        """
        Return those that are still there, and those that will be before this one.
        """
        mine = self.connection.admitted
        return [c for c in self._others() if c.opened or c.admitted < mine]

    def _others(self) -> Iterator[Connection]:
        for index in self.index:
            for c in index.of(self.key):
                if c is not self.connection and (c.opened or (c.admitted and c.refusal is None)):
                    yield c


def _crowds(limits: Limits, sockets: Sockets, connection: Connection) -> Iterator[_Crowd]:
    if limits.per_session is not None:
        index = (sockets.open, sockets.opening)
        yield _Crowd(limits.per_session, index, connection.session_ws_id, connection)
    if limits.per_identity is not None and connection.identity is not None:
        identities = (sockets.identities,)
        yield _Crowd(limits.per_identity, identities, connection.identity, connection)


def _started(connection: Connection) -> float:
    return connection.started
