"""
Apply orders of other nodes to the records and the sockets of this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Final

from .._lineage import Subject
from ..close_codes import RECONNECT
from ..connections.connection import State, TrackedConnection
from ..registry.cluster import LocalNode
from ..registry.judging import Effect
from ..registry.order import Order
from ..sessions.records import Change, SubjectEnded
from .clock import RedisClock
from .messages import PublishedOrder, Record, split
from .recent import SeenOrders
from .rows import Row, Shape

__all__: list[str] = []

CLOSE_AFTER: Final = 3.0  # seconds; longer than the default wait for a response


class Applier:
    """
    Applies orders of other nodes, by the same methods as this node's own.

    Args:
        node: This node.
        seen: The close orders that were already carried out here.
        clock: The clock shared by all nodes.
    """

    def __init__(self, node: LocalNode, seen: SeenOrders, clock: RedisClock) -> None:
        self._node = node
        self._effects = node.effects
        self._seen = seen
        self._clock = clock

    def apply(self, published: PublishedOrder, sender: str) -> Effect:
        """
        Apply an order that was just published; the caller closes the open sockets.

        An order that Redis first refused to record is published twice, but carried out once.
        """
        self._observe_ends(published.changes)
        order, given = self._order(published)
        effect = self._effects.apply(order, before=given)
        self._node.announcer.received(order, effect, sender.rpartition("/")[0])
        return effect

    def _order(self, published: PublishedOrder) -> tuple[Order, float | None]:
        """
        Convert a published order; return also, if it has close orders, when it was given.

        Connections whose handshake began later are not told to reconnect.
        """
        changes, closes, close, by, _, refresh, _, _ = published
        if not closes:
            return Order(changes, (), close, by, refresh), None
        at = max([order.at for order in closes])
        # With a log-in or a renewal, close orders are for sockets that share the id. A client
        # that connects after receiving the response isn't affected: the time is rounded down.
        given = self._clock.latest(at - 2 * self._clock.error if changes else at)
        subjects = tuple([order.subject for order in closes if self._seen.add(order.number)])
        if close is None and not changes:
            close = closes[0].close
        return Order(changes, subjects, close, by, refresh), given

    def _observe_ends(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, SubjectEnded):
                self._clock.observe_end(change.at)

    def carry_out_soon(self, order: PublishedOrder, sender: str) -> None:
        """
        Apply an order, and close its sockets in the background.
        """
        if order.held:
            self._observe_ends(order.changes)
            self.apply_except_open_sockets(order.changes)
            return
        effect = self.apply(order, sender)
        if effect.closes:
            self._effects.carry_out_soon(effect)

    def carry_out_one(
        self, shape: Shape, at: float, value: Hashable, sender: str, number: int = 0
    ) -> None:
        """
        Apply an order about one subject; its close frames are written before anything else.

        Args:
            shape: The fields that orders of one row share.
            at: When it was given, by the shared clock.
            value: The id, identity or label.
            sender: The node that gave it.
            number: Its number among that node's close orders; 0 for an end, or if the number is
                recorded as seen already.
        """
        ends, kind, close, ttl = shape
        subject, given = Subject(kind, value), None
        connections = self._node.connections
        if ends:
            self._clock.observe_end(at)
            first = connections.write_first(subject, close, began=at)
            order = Order((SubjectEnded(subject, at, ttl),), (), close)
        else:
            if number and not self._seen.add_one(sender, number):
                return
            given = self._clock.latest(at)
            first = connections.write_first(subject, close, started=given)
            order = Order((), (subject,), close)
        try:
            effect = self._effects.apply(order, before=given)
        except BaseException:
            connections.close_soon(first, close)
            raise
        if effect.closes:
            self._effects.carry_out_soon(effect)
        self._node.announcer.received(order, effect, sender.rpartition("/")[0])

    def carry_out_row(self, row: Row, sender: str) -> Sequence[Callable[[], None]]:
        """
        Apply a row of orders; return callables for those that must be carried out one by one.

        Most orders concern nothing on this node: these are recorded together, in bulk.
        """
        shape, first, times, values = row
        ends, kind, _, _ = shape
        if ends:
            known: set[int] = set()
            self._clock.observe_end(max(times))
        else:
            known = self._seen.add_row(sender, first, len(values))
        concerned = self._effects.concerned(kind, values, ends=ends)
        if not (concerned or known):
            self._record_row(row)
            return ()
        rest = [
            place
            for place, value in enumerate(values)
            if value not in concerned and first + place not in known
        ]
        if rest:
            some = [times[place] for place in rest], [values[place] for place in rest]
            self._record_row(row._replace(times=some[0], values=some[1]))
        return [
            partial(self.carry_out_one, shape, times[place], value, sender)
            for place, value in enumerate(values)
            if value in concerned and (ends or first + place not in known)
        ]

    def _record_row(self, row: Row) -> None:
        (ends, kind, _, ttl), _, times, values = row
        if ends:
            self._effects.note_ends(kind, values, times, ttl)
        else:
            given = list(map(self._clock.latest, times))
            self._effects.note_closes(kind, values, given)

    def apply_except_open_sockets(self, changes: Sequence[Change]) -> None:
        """
        Apply changes to all but open sockets, since a response may be on its way.

        The sockets are closed when the changes are published again, after the response has been
        sent; after :data:`CLOSE_AFTER` in any case, since the node that sends it may have died.
        """
        if self._effects.apply(Order(tuple(changes))).closes:
            _ = asyncio.get_running_loop().call_later(CLOSE_AFTER, self._apply_and_close, changes)

    def _apply_and_close(self, changes: Sequence[Change]) -> None:
        self._effects.carry_out_soon(self._effects.apply(Order(tuple(changes))))

    def apply_missed(self, records: Iterable[Record]) -> None:
        """
        Apply records that this node missed when they were published.
        """
        changes, closes = split(records)
        self._observe_ends(changes)
        self._effects.apply_missed(changes)
        for change in changes:
            self._node.announcer.recovered(change)
        for close in closes:
            if self._seen.add(close.number):
                order = Order(closes=(close.subject,), close=close.close)
                effect = self._effects.apply(order, before=self._clock.latest(close.at))
                self._effects.carry_out_soon(effect)

    def apply_to_connection(
        self, connection: TrackedConnection, records: Iterable[Record]
    ) -> None:
        """
        Apply the records that were found for *connection*.
        """
        changes, closes = split(records)
        if changes and connection.state is State.OPENING:
            self.apply_except_open_sockets(changes)  # open sockets are closed by the order itself
        elif changes:
            # apply_missed() would skip what this node knows, but the connection may have missed.
            self._apply_and_close(changes)
        for close in closes:
            if self._seen.has(close.number):
                continue
            if connection.started > self._clock.latest(close.at):
                continue
            if connection.state is State.OPENING:
                connection.reject(close.close)
            else:
                self._node.connections.close_soon([connection], close.close)

    def make_reconnect(self, connection: TrackedConnection) -> None:
        """
        Make a connection reconnect because one of its records can't be read.
        """
        if connection.state is State.OPENING:
            connection.reject(RECONNECT)
        else:
            self._node.connections.close_soon([connection], RECONNECT)
