"""
How orders of other nodes take effect on this one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ..close_codes import RECONNECT
from ..connections.connection import State, TrackedConnection
from ..registry.cluster import Effect, LocalNode, Order
from ..sessions.records import Change
from .clock import RedisClock
from .decoding import HeardOrder
from .messages import CloseSession
from .recent import SeenOrders

__all__: list[str] = []


class Applier:
    """
    Lets orders take effect on this node, by the same methods as its own.

    Args:
        node: This node.
        seen: The close orders that were carried out here.
        clock: The one clock of all nodes.
    """

    def __init__(self, node: LocalNode, seen: SeenOrders, clock: RedisClock) -> None:
        self._node = node
        self._seen = seen
        self._clock = clock

    def apply(self, order: HeardOrder) -> Effect:
        """
        Let an order that was just published take effect; what is left is to close sockets.

        What Redis refused to record is published twice, and carried out once.
        """
        closes = order.closes
        if closes:
            closes = tuple([close for close in closes if self._seen.add(close.number)])
        subjects = tuple([close.subject for close in closes])
        return self._node.apply(Order(order.changes, subjects, order.close, order.by))

    def carry_out_soon(self, order: HeardOrder) -> None:
        """
        Let an order take effect, and close its sockets in the background.
        """
        effect = self.apply(order)
        if effect.closing:
            self._node.carry_out_soon(effect)

    def learn(self, changes: Sequence[Change], closes: Iterable[CloseSession]) -> None:
        """
        Let records take effect that were missed when they were published.
        """
        self._node.learn(changes)
        for close in closes:
            if self._seen.add(close.number):
                late = [c for c in self._of(close) if self._began_before(c, close)]
                self._close(late, close)

    def judge(
        self,
        connection: TrackedConnection,
        changes: Sequence[Change],
        closes: Iterable[CloseSession],
    ) -> None:
        """
        Let records take effect that were found about *connection*.
        """
        if changes:
            # Not learn(): it may be news to the connection alone.
            self._node.carry_out_soon(self._node.apply(Order(tuple(changes))))
        for close in closes:
            known = connection.known_orders if isinstance(connection.known_orders, tuple) else ()
            if close.number in known or self._seen.first_seen(close.number) is not None:
                continue
            connection.known_orders = (*known, close.number)
            if self._began_before(connection, close):
                self._close([connection], close)

    def refuse(self, connection: TrackedConnection) -> None:
        """
        Have a connection reconnect of which something is recorded that can't be read.
        """
        if connection.state is State.OPENING:
            connection.reject(RECONNECT)
        else:
            self._node.connections.close_soon([connection], RECONNECT)

    def _of(self, close: CloseSession) -> list[TrackedConnection]:
        return list(self._node.connections.of_subject(close.subject))

    def _close(self, connections: Sequence[TrackedConnection], close: CloseSession) -> None:
        for connection in connections:
            if connection.state is State.OPENING:
                connection.reject(close.close)
        opened = [c for c in connections if c.state is not State.OPENING]
        if opened:
            self._node.connections.close_soon(opened, close.close)

    def _began_before(self, connection: TrackedConnection, close: CloseSession) -> bool:
        """
        Tell whether a handshake began before an order was given on another node.
        """
        began = self._clock.now() - (time.monotonic() - connection.started)
        return began <= close.at + 2 * self._clock.error
