"""
Outgoing orders: publishes those of this node, collects reports on them, and sends reports.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from .._lineage import Kind
from ..close_codes import RECONNECT, Close
from ..registry.cluster import LocalNode
from ..registry.judging import NOTHING_CLOSED, Effect
from ..registry.order import Order
from ..results import CloseReport
from ..sessions.records import IdNote, SubjectEnded
from .apply import Applier
from .clock import RedisClock
from .entries import AnyEntry, Entry, SubjectEntry
from .io.outbox import Outbox
from .messages import CloseSession, PublishedOrder
from .recent import SeenOrders
from .requests import REPORTS, PendingRequest, Requests
from .rows import Shape

__all__: list[str] = []

FORGOTTEN: Final = 60.0  # seconds after its timeout until an abandoned request is closed
_NOTHING_YET: Final = replace(NOTHING_CLOSED, stored=False)
COUNTED: Final = ("sockets", "aborted", "cancelled", "handshakes")  # sums in a report


class Pending:
    """
    An order that is being published: a :class:`~..registry.cluster.PendingReport`.
    """

    __slots__ = ("_entry", "_request", "_requests", "_wait")

    def __init__(
        self, entry: AnyEntry, requests: Requests, request: PendingRequest | None, wait: float
    ) -> None:
        self._entry = entry
        self._requests = requests
        self._request = request
        self._wait = wait

    async def published(self, timeout: float) -> None:
        """
        Wait until Redis has recorded and published it, for *timeout* seconds at most.
        """
        await self._entry.wait(timeout)

    async def report(self, own: CloseReport) -> CloseReport:
        """
        Wait for the reports of the other nodes, and add them to that of this node.

        The sum is complete only if the order was published, and all members are known and have
        answered.
        """
        entry, request = self._entry, self._request
        if request is None:
            if own is NOTHING_CLOSED:
                return own if entry.stored else _NOTHING_YET
            return own if own.stored is entry.stored else replace(own, stored=entry.stored)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait
        try:
            await asyncio.gather(entry.wait(self._wait), request.wait(self._wait))
            if entry.published:
                await self._requests.wait_for_joined(request, until - loop.time())
        finally:
            self._requests.close(request)
        answered = 1 + len(request.answered - request.unresolved)
        expected = 1 + len(request.expected | request.answered)
        if not (entry.published and request.known):
            expected = max(expected, answered + 1)  # there may be further nodes
        sums = {
            name: getattr(own, name) + sum(int(answer.get(name, 0)) for answer in request.answers)
            for name in COUNTED
        }
        return replace(
            own,
            **sums,
            nodes_expected=expected,
            nodes_answered=answered,
            stored=entry.stored,
        )


class Outbound:
    """
    Publishes orders, and sends reports to the nodes that have requested them.

    Args:
        node: This node.
        outbox: The queue of orders to Redis.
        requests: The pending requests.
        seen: The close orders that were carried out here.
        clock: The clock of all nodes.
        applier: Applies the orders of other nodes.
        resolves: The kinds of subjects by which this node finds its sockets.
    """

    def __init__(
        self,
        node: LocalNode,
        outbox: Outbox,
        requests: Requests,
        seen: SeenOrders,
        clock: RedisClock,
        applier: Applier,
        *,
        resolves: frozenset[str],
    ) -> None:
        self._node = node
        self._outbox = outbox
        self._requests = requests
        self._seen = seen
        self._clock = clock
        self._applier = applier
        self._resolves = resolves
        self._last_shape = Shape(ends=False, kind="id", close=RECONNECT, ttl=0.0)

    def record(self, order: Order) -> None:
        """
        Record an order now; other nodes apply it to handshakes, but keep open sockets for now.

        These are closed when the order is published, and in any case after
        :data:`~.apply.CLOSE_AFTER` seconds: this node may die before it has published the order.
        """
        if order.changes:
            self._outbox.put(Entry(PublishedOrder(order.changes, held=True)))

    def publish(self, order: Order, *, wait: float = 0.0) -> Pending:
        """
        Record an order, which gives it a number, and publish it to the other nodes.

        Args:
            order: The order.
            wait: Seconds to wait for their reports; 0 if none are requested.
        """
        request = None
        if wait > 0:
            request = self._requests.open()
            # The caller may be cancelled before it waits for the report, which closes the request.
            loop = asyncio.get_running_loop()
            _ = loop.call_later(wait + FORGOTTEN, self._requests.close, request)
        entry: AnyEntry | None = None
        if request is None:
            entry = self._single(order)
        if entry is None:
            entry = self.entry_of(order, None if request is None else request.number)
        if entry.size or order.refresh is not None:
            self._outbox.put(entry)
        else:
            entry.finish()
        return Pending(entry, self._requests, request, wait)

    def _single(self, order: Order) -> SubjectEntry | None:
        """
        Return an order about one subject, with nothing else, as a compact entry; else ``None``.
        """
        changes, closes, close, by, refresh = order
        if by is not None or refresh is not None or len(changes) + len(closes) != 1:
            return None
        if closes:
            (kind, value), at = closes[0], self._clock.order_time()
            shape = self._shape(False, kind, close or RECONNECT, 0.0)
            return SubjectEntry(shape, at, value, self._seen.count())
        end = changes[0]
        if close is None or type(end) is not SubjectEnded:
            return None
        (kind, value), before, ttl = end
        return SubjectEntry(self._shape(True, kind, close, ttl), before, value)

    def _shape(self, ends: bool, kind: Kind, close: Close, ttl: float) -> Shape:
        """
        Return a shape; the same object as last time if it is equal.
        """
        last = self._last_shape
        if last != (ends, kind, close, ttl):
            self._last_shape = last = Shape(ends, kind, close, ttl)
        return last

    def entry_of(self, order: Order, request_number: str | None = None) -> Entry:
        """
        Return an order as an entry of the outbox; *request_number* is the number of its request.
        """
        closes: tuple[CloseSession, ...] = ()
        if order.closes:
            times = [change.at for change in order.changes if not isinstance(change, IdNote)]
            ordered = max(times, default=0.0)
            # A client that connects after the response to a log-in or a renewal isn't affected.
            at = ordered - 2 * self._clock.error if ordered else self._clock.order_time()
            close = order.close or RECONNECT
            closes = tuple(
                [CloseSession(subject, self._seen.new(), at, close) for subject in order.closes]
            )
        # An order that only closes has the close code in its records.
        published_close = order.close if order.changes else None
        return Entry(
            PublishedOrder(
                order.changes, closes, published_close, order.by, request_number, order.refresh
            )
        )

    def report_to(self, sender: str, order: PublishedOrder) -> None:
        """
        Carry out an order of another node, and send it a report.
        """
        effect = self._applier.apply(order, sender)
        _ = self._node.tasks.spawn(self._report(sender, order, effect), "report to another node")

    async def _report(self, sender: str, order: PublishedOrder, effect: Effect) -> None:
        report = await self._node.effects.carry_out(effect)
        body = {name: getattr(report, name) for name in COUNTED}
        if not self._resolves >= _kinds_of(order):
            body["unresolved"] = True
        assert order.request_number is not None
        _ = self._requests.answer(sender, order.request_number, REPORTS, body)


def _kinds_of(order: PublishedOrder) -> set[str]:
    """
    Return the kinds of the subjects of an order.
    """
    subjects = [change.subject for change in order.changes if isinstance(change, SubjectEnded)]
    subjects += [close.subject for close in order.closes]
    return {subject.kind for subject in subjects}
