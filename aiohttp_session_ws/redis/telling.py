"""
Orders on their way from this process to the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..closing import Close, CloseReport
from ..elsewhere import Told
from ..revocation import Kind
from .asking import Asking, Question
from .node import Node
from .wire import Closed, ClosedIdentity, Ended, EndedIdentity, Lifted, Moved, Order, Unit
from .writer import Job

if TYPE_CHECKING:
    from .registry import RedisSessionWSRegistry

__all__: list[str] = []

FORGOTTEN: Final = 60.0  # seconds after which nobody waits for a report any more
COUNTED: Final = ("sockets", "aborted", "cancelled", "handshakes")  # of a report


class Telling:
    """
    Tells other processes of orders.
    """

    def __init__(self, registry: RedisSessionWSRegistry, node: Node, asking: Asking) -> None:
        self._registry = registry
        self._node = node
        self._asking = asking
        self._untold: dict[Hashable, str] = {}  # numbers of close orders that are recorded only

    def store(self, ids: Iterable[Hashable], identity: Hashable | None) -> None:
        """
        Record an order that is told later.
        """
        orders = self._orders(ids, identity)
        self._untold.update((o.session_ws_id, o.number) for o in orders if isinstance(o, Closed))
        self._put(orders)

    def tell(
        self,
        ids: Iterable[Hashable],
        close: Close,
        wait: float = 0.0,
        identity: Hashable | None = None,
    ) -> Told:
        """
        Record an order and tell others of it.
        """
        return self._send(self._orders(ids, identity), close, wait)

    def tell_identity(self, identity: Hashable, close: Close, wait: float) -> Told:
        """
        Let the sockets of an identity come back.
        """
        return self._send([ClosedIdentity(identity, self._node.numbers.new())], close, wait)

    def lift(self, session_ws_id: Hashable) -> None:
        """
        Tell that an id is alive again.
        """
        _ = self._send([Lifted(session_ws_id)], None, 0.0)

    def _send(self, orders: Sequence[Order], close: Close | None, wait: float) -> Told:
        question = self._asking.open() if wait else None
        if question is not None:  # whoever waits may be cancelled before he comes to it
            loop = asyncio.get_running_loop()
            _ = loop.call_later(wait + FORGOTTEN, self._asking.close, question)
        unit = Unit(tuple(orders), close, None if question is None else question.number)
        job = self._put(orders, unit)

        async def told(report: CloseReport) -> CloseReport:
            if question is None:
                return replace(report, stored=job.stored)
            try:
                return await _gather(report, job, question, wait)
            finally:
                self._asking.close(question)

        return told

    def _put(self, orders: Sequence[Order], unit: Unit | None = None) -> Job:
        for order in orders:
            self._node.memory.add(order)
        return self._node.writer.put(orders, unit)

    def _orders(self, ids: Iterable[Hashable], identity: Hashable | None) -> list[Order]:
        """
        Say what this process knows of sessions, and of an identity that it has ended.
        """
        orders: list[Order] = []
        revocations = self._registry._revocations
        for session_ws_id in ids:
            record = revocations.get(session_ws_id)
            number = self._untold.pop(session_ws_id, None)
            if record is None:
                orders.append(Closed(session_ws_id, number or self._node.numbers.new()))
                continue
            at = self._node.latest() - revocations.age(record)
            if record.kind is Kind.ENDED:
                orders.append(Ended(session_ws_id, at, record.ttl))
            else:
                others = revocations.family(session_ws_id) - {session_ws_id}
                to = tuple(id_ for id_ in others if revocations.get(id_) is None)
                orders.append(Moved(session_ws_id, to, at, record.ttl))
        known = None if identity is None else self._registry._identities.get(identity)
        if identity is not None and known is not None:
            out = tuple(known.left_out)
            orders.append(EndedIdentity(identity, known.before, out, known.ttl))
        return orders


async def _gather(report: CloseReport, job: Job, question: Question, wait: float) -> CloseReport:
    """
    Make the report of this process one of all that answer in time.
    """
    await asyncio.gather(job.wait(wait), question.wait(wait))
    sums = {
        name: getattr(report, name) + sum(int(answer.get(name, 0)) for answer in question.answers)
        for name in COUNTED
    }
    return replace(
        report,
        **sums,
        nodes_expected=1 + len(question.expected | question.answered),
        nodes_answered=1 + len(question.answered),
        stored=job.stored,
    )
