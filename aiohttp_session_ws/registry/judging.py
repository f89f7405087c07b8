"""
Decides which connections an order closes: of a few at once, of many while they are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from ..close_codes import RECONNECT, SESSION_ENDED, Close
from ..connections.connection import CLOSED, OPEN, TrackedConnection
from ..results import CloseReport
from ..sessions.records import Change, LineageEnded, SubjectEnded
from ..sessions.status import State, Status
from .order import Order

__all__: list[str] = []


class Sessions(Protocol):
    """
    What :class:`Judge` needs from a registry.
    """

    def status_of(self, connection: TrackedConnection) -> Status:
        """
        Judge the session of a connection by the records of this node.
        """

    def close_for(self, found: Status) -> Close | None:
        """
        Return the close for sockets of a session with status *found*; ``None`` if it is alive.
        """


class Judge:
    """
    Decides whether an order closes a connection, and with what.

    Args:
        order: The order; its records are merged.
        core: The registry's parts.

    Attributes:
        replaced: Open sockets of an older generation, left open: a refresh order may keep them.
    """

    def __init__(self, order: Order, core: Sessions) -> None:
        self.replaced: list[TrackedConnection] = []
        self._order = order
        self._core = core
        self._judged: dict[tuple[object, ...], Status] = {}  # many may be of one session

    def close_of(self, connection: TrackedConnection, must_reconnect: bool) -> Close | None:
        """
        Return the close for a connection; ``None`` if it stays open.

        Args:
            connection: The connection.
            must_reconnect: Whether it has to reconnect in any case.
        """
        close, may_stay = self._decide(connection, must_reconnect)
        if may_stay:
            self.replaced.append(connection)
        return close

    def closes(self, connection: TrackedConnection, must_reconnect: bool) -> bool:
        """
        Return whether :meth:`close_of` would return a close.
        """
        return self._decide(connection, must_reconnect)[0] is not None

    def _decide(
        self, connection: TrackedConnection, must_reconnect: bool
    ) -> tuple[Close | None, bool]:
        """
        Return the close for a connection, or ``None``; and whether it is left open for now
        although its session was replaced.
        """
        c, order = connection, self._order
        key: tuple[object, ...] = c.lineage, c.session_ws_id, c.identity
        if c.sparse is not None:
            key = *key, c.labels, c.proven
        if key not in self._judged:
            self._judged[key] = self._core.status_of(connection)
        close = self._core.close_for(self._judged[key])
        if close is None:
            if must_reconnect:
                close = order.close or self._close_of_shared_id(connection)
            return close, False
        if self._judged[key].state is State.REPLACED and not order.closes and c.state is OPEN:
            return None, True
        return order.close or close, False

    def _close_of_shared_id(self, connection: TrackedConnection) -> Close:
        """
        Return the close for a connection that shares an id with the lineage of the order.
        """
        if not connection.lineage.token:  # registered by hand: it may be of that very lineage
            for change in self._order.changes:
                if isinstance(change, LineageEnded):
                    return RECONNECT if change.carries else SESSION_ENDED
        return RECONNECT


def closes_in_any_case(
    changes: Sequence[Change], connection: TrackedConnection, must_reconnect: bool
) -> bool:
    """
    Return whether an order closes a connection in any case, so that it needn't be judged.

    Args:
        changes: The records of the order; they are merged.
        connection: A connection that it may concern.
        must_reconnect: Whether it has to reconnect in any case.
    """
    if must_reconnect:
        return True
    if len(changes) != 1 or type(changes[0]) is not SubjectEnded or connection.sparse is not None:
        return False
    (kind, value), before, _ = changes[0]
    own = connection.session_ws_id if kind == "id" else connection.identity
    return kind != "label" and own == value and connection.lineage.began <= before


class UnjudgedSockets:
    """
    The sockets that an order may concern, if they are so many that to judge them takes a while.

    Only sockets that exist when the order is given are judged and counted, also those that leave
    before their turn. They are judged by the records at their turn, since no end is taken back.

    Args:
        found: The sockets, and whether each has to reconnect in any case.
        judge: Judges them.

    Attributes:
        sockets: How many are closed, so far.
        replaced: Open sockets of an older generation that are left open, so far.
    """

    def __init__(self, found: dict[TrackedConnection, bool], judge: Judge) -> None:
        self.sockets = 0
        self.replaced = judge.replaced
        self._found = found
        self._gone = frozenset([c for c in found if c.state is CLOSED])
        self._judge = judge
        self._when_judged: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._found)

    def spare(self, connection: TrackedConnection) -> None:
        """
        Keep a connection open.
        """
        _ = self._found.pop(connection, None)

    def closes(self, connection: TrackedConnection) -> bool:
        """
        Return whether a connection will be closed when its turn comes.
        """
        must_reconnect = self._found.get(connection)
        return must_reconnect is not None and self._judge.closes(connection, must_reconnect)

    def when_judged(self, act: Callable[[], None]) -> None:
        """
        Call *act* when all have been judged; at once if they have.
        """
        if self._found:
            self._when_judged.append(act)
        else:
            act()

    def __iter__(self) -> Iterator[tuple[TrackedConnection, Close] | None]:
        """
        Judge the sockets in turn, once; yield each that is to be closed with its close, else None.
        """
        for connection, must_reconnect in self._found.items():
            close = self._judge.close_of(connection, must_reconnect)
            if close is None:
                yield None
                continue
            self.sockets += connection not in self._gone
            left = connection.state is CLOSED and connection.handler_left
            yield None if left else (connection, close)
        self._found = {}
        for act in self._when_judged:
            act()
        self._when_judged.clear()


class Effect(NamedTuple):
    """
    What remains to be done on this node for an order.

    Attributes:
        closing: The open sockets to close, and with what.
        handshakes: How many handshakes it has rejected.
        replaced: Open sockets of an older generation that are left open for now.
        unjudged: If there are many open sockets: those to judge while they are closed.
    """

    closing: tuple[tuple[Close, tuple[TrackedConnection, ...]], ...] = ()
    handshakes: int = 0
    replaced: tuple[TrackedConnection, ...] = ()
    unjudged: UnjudgedSockets | None = None

    @property
    def closes(self) -> bool:
        """
        Whether there may be open sockets to close.
        """
        return bool(self.closing or self.replaced or self.unjudged is not None)


NO_EFFECT: Final = Effect()
NOTHING_CLOSED: Final = CloseReport()  # the report of most orders on most nodes
