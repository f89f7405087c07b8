"""
The limits per session and per identity: admit or refuse a handshake, or evict older connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from .._lineage import Subject
from ..close_codes import NORMAL, TOO_MANY_CONNECTIONS
from ..exceptions import HandshakeRefused
from ..options import Limits
from .connection import OPEN, OPENING, TrackedConnection
from .manager import ConnectionManager

__all__: list[str] = []


async def make_room(
    limits: Limits, manager: ConnectionManager, connection: TrackedConnection
) -> None:
    """
    Admit an authorized handshake to its session and its identity.

    It is counted from before the first await, so that a burst of handshakes is counted
    exactly; then the evicted connections are waited for.

    Raises:
        HandshakeRefused: If there is no room.
    """
    groups = list(_groups(limits, manager, connection))
    if not groups:
        return
    if limits.on_limit == "refuse":
        if any(len(group.active()) >= group.limit for group in groups):
            raise HandshakeRefused(TOO_MANY_CONNECTIONS)
    else:
        for group in groups:
            active = sorted(group.active(), key=attrgetter("started"))
            for oldest in active[: max(0, len(active) + 1 - group.limit)]:
                manager.evict(oldest, TOO_MANY_CONNECTIONS)
    connection.admitted = manager.admit()
    for group in groups:
        while connection.rejected_with is None and len(group.admitted_before()) >= group.limit:
            # Connections that are closed for another reason take up room as well.
            leaving = {
                manager.start_close(c, c.close_order or NORMAL)
                for c in group.admitted_before()
                if c.state is not OPENING and not _stays(c)
            }
            if not leaving:  # the others stay: some were added another way
                raise HandshakeRefused(TOO_MANY_CONNECTIONS)
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)


@dataclass(frozen=True, slots=True)
class _LimitGroup:
    """
    The connections that one limit applies to.
    """

    limit: int
    manager: ConnectionManager
    subject: Subject
    connection: TrackedConnection

    def active(self) -> list[TrackedConnection]:
        """
        Return those that take up room, except those that are about to be closed.
        """
        return [c for c in self._others() if _stays(c)]

    def admitted_before(self) -> list[TrackedConnection]:
        """
        Return those that are not gone yet, and the handshakes admitted before this one.
        """
        mine = self.connection.admitted
        return [c for c in self._others() if c.state is not OPENING or c.admitted < mine]

    def _others(self) -> Iterator[TrackedConnection]:
        for c in self.manager.filed(self.subject):
            if c is not self.connection and (
                c.state is not OPENING or (c.admitted and c.rejected_with is None)
            ):
                yield c


def _groups(
    limits: Limits, manager: ConnectionManager, connection: TrackedConnection
) -> Iterator[_LimitGroup]:
    if limits.per_session is not None:
        subject = Subject("id", connection.session_ws_id)
        yield _LimitGroup(limits.per_session, manager, subject, connection)
    if limits.per_identity is not None and connection.identity is not None:
        subject = Subject("identity", connection.identity)
        yield _LimitGroup(limits.per_identity, manager, subject, connection)


def _stays(connection: TrackedConnection) -> bool:
    return connection.close_order is None and connection.state in (OPENING, OPEN)
