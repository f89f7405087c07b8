"""
Orders on their way: from this process to the others, and from them to its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..closing import RECONNECT, SESSION_ENDED, Close, CloseReport
from ..connection import Connection
from ..elsewhere import Told
from ..ids import stamp_key
from ..revocation import Kind
from ..visit import session_of
from .asking import Asking, Question
from .node import KEPT, MOST, Node
from .wire import (
    Closed,
    ClosedIdentity,
    Ended,
    EndedIdentity,
    Lifted,
    Moved,
    Order,
    Unit,
    read_envelope,
    read_record,
)
from .writer import Job

if TYPE_CHECKING:
    from .registry import RedisSessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

REPORTS: Final = "answers"  # the channel, to which the name of a node is added


class Telling:
    """
    Tells other processes of orders, and carries out theirs.
    """

    def __init__(self, registry: RedisSessionWSRegistry, node: Node, asking: Asking) -> None:
        self._registry = registry
        self._node = node
        self._asking = asking
        self._untold: dict[Hashable, str] = {}  # numbers of close orders that are recorded only
        self._done: dict[str, float] = {}  # numbers of close orders, and when they came here

    # From here

    def store(self, ids: Iterable[Hashable], identity: Hashable | None) -> None:
        """
        Record an order that is told later.
        """
        orders = self._orders(ids, identity)
        self._untold.update((o.session_ws_id, o.number) for o in orders if isinstance(o, Closed))
        self._node.remember(orders)
        _ = self._node.writer.put(orders)

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
        return self._send([ClosedIdentity(identity, self._number())], close, wait)

    def lift(self, session_ws_id: Hashable) -> None:
        """
        Tell that an id is alive again.
        """
        _ = self._send([Lifted(session_ws_id)], None, 0.0)

    def _send(self, orders: Sequence[Order], close: Close | None, wait: float) -> Told:
        question = self._asking.open() if wait else None
        unit = Unit(tuple(orders), close, None if question is None else question.number)
        self._node.remember(orders)
        job = self._node.writer.put(orders, unit)

        async def told(report: CloseReport) -> CloseReport:
            if question is None:
                return replace(report, stored=job.stored)
            try:
                return await _gather(report, job, question, wait)
            finally:
                self._asking.close(question)

        return told

    def _orders(self, ids: Iterable[Hashable], identity: Hashable | None) -> list[Order]:
        """
        Say what this process knows of sessions, and of an identity that it has ended.
        """
        orders: list[Order] = []
        revocations = self._registry._revocations
        for session_ws_id in ids:
            record = revocations.get(session_ws_id)
            if record is None:
                number = self._untold.pop(session_ws_id, None) or self._number()
                orders.append(Closed(session_ws_id, number))
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

    def _number(self) -> str:
        """
        Return a number for a close order that is carried out here by now.
        """
        now = time.monotonic()
        number = f"{self._node.instance}/{now}"
        self.came(number)
        return number

    # To here

    def came(self, number: str) -> bool:
        """
        Note that a close order has come; tell whether it is the first time.
        """
        if number in self._done:
            return False
        now = asyncio.get_running_loop().time()
        self._done[number] = now
        while len(self._done) > MOST or self._done[first := next(iter(self._done))] < now - KEPT:
            del self._done[first]
        return True

    def when(self, number: str) -> float | None:
        """
        Return when a close order has come, by the event loop's clock; ``None`` if it hasn't.
        """
        return self._done.get(number)

    def hear(self, data: bytes) -> None:
        """
        Carry out what is told in a message.
        """
        message = read_envelope(data)
        if message is None:
            log.warning("a message that isn't ours, or of another version, is on our channel")
            return
        sender, units = message
        if sender == self._node.instance:
            return
        for unit in units:
            if unit.orders:
                self._carry_out(sender, unit)
            else:
                self._node.missed.set()

    def _carry_out(self, sender: str, unit: Unit) -> None:
        sockets: list[Connection] = []
        handshakes = 0
        self._node.remember(unit.orders)
        for order in unit.orders:
            found, number = self.apply(order, unit.close)
            sockets += found
            handshakes += number
        close = unit.close or SESSION_ENDED
        if unit.question is not None:
            coro = self._report(sender, unit.question, sockets, close, handshakes)
            _ = self._registry._sockets.spawn(coro, "report to another process")
        elif sockets:
            self.close_soon(sockets, close)

    def close_soon(self, sockets: Sequence[Connection], close: Close) -> None:
        """
        Close sockets in the background.
        """
        index = self._registry._sockets
        _ = index.spawn(index.close(sockets, close), "close for another process")

    async def _report(
        self,
        asker: str,
        question: str,
        sockets: Sequence[Connection],
        close: Close,
        handshakes: int,
    ) -> None:
        report = await self._registry._carry_out(sockets, close, handshakes)
        body = {
            "sockets": report.sockets,
            "aborted": report.aborted,
            "cancelled": report.cancelled,
            "handshakes": report.handshakes,
        }
        self._asking.answer(asker, question, REPORTS, body)

    def apply(self, order: Order, close: Close | None = None) -> tuple[list[Connection], int]:
        """
        Let an order of another process take effect.

        Returns:
            The sockets to close, and how many handshakes will be refused.
        """
        registry = self._registry
        match order:
            case Ended():
                return self._end(order, close or SESSION_ENDED)
            case Moved():
                return self._move(order, close or RECONNECT)
            case Closed():
                if not self.came(order.number):
                    return [], 0
                return registry._order([order.session_ws_id], close or RECONNECT)
            case EndedIdentity():
                return self._end_identity(order, close or SESSION_ENDED)
            case ClosedIdentity():
                if not self.came(order.number):
                    return [], 0
                return registry._order_identity(order.identity, close or RECONNECT)
            case Lifted():
                _ = registry._revocations.lift(order.session_ws_id)
        return [], 0

    def _end(self, order: Ended, close: Close) -> tuple[list[Connection], int]:
        revocations = self._registry._revocations
        known = revocations.has_ended(order.session_ws_id)
        ids = revocations.end(order.session_ws_id, order.ttl, self._age(order.at))
        if len(ids) > 1 and not known:
            # Others may not have known of all of them.
            _ = self.tell([id_ for id_ in ids if id_ != order.session_ws_id], close)
        return self._registry._order(ids, close)

    def _move(self, order: Moved, close: Close) -> tuple[list[Connection], int]:
        id_, age = order.session_ws_id, self._age(order.at)
        revocations = self._registry._revocations
        for successor in order.to:
            revocations.move(id_, successor, order.ttl, age)
        if not order.to:  # it has moved on to nothing that lives
            _ = revocations.end(id_, order.ttl, age)
        if revocations.has_ended(id_):
            ids = revocations.family(id_)
            _ = self.tell(ids, SESSION_ENDED)
            return self._registry._order(ids, SESSION_ENDED)
        return self._registry._order([id_], close)

    def _end_identity(self, order: EndedIdentity, close: Close) -> tuple[list[Connection], int]:
        registry = self._registry
        revocations, identity = registry._revocations, order.identity
        revocations.ends += 1
        registry._identities.end(
            identity, order.left_out, order.ttl, revocations.ends, order.before
        )
        registry._identity_orders.note(identity, asyncio.get_running_loop().time())
        out = set(order.left_out)
        for id_ in order.left_out:
            out |= revocations.family(id_)
        ended = {
            connection.session_ws_id
            for connection in registry._sockets.of_identity(identity)
            if connection.session_ws_id not in out and self._was_before(connection, order.before)
        }
        ids = [member for id_ in ended for member in revocations.end(id_, order.ttl)]
        if ids:
            _ = self.tell(ids, close)
        return registry._order(ids, close)

    def _was_before(self, connection: Connection, before: float) -> bool:
        """
        Tell whether a connection's id was minted before; if nobody knows, it was.
        """
        session = None if connection.request is None else session_of(connection.request)
        minted = None if session is None else session.get(stamp_key(self._registry.session_key))
        return not isinstance(minted, int | float) or not minted > before

    def _age(self, at: float) -> float:
        return max(0.0, self._node.earliest() - at)

    # What was there before

    def found(self, order: Order, old: bytes) -> None:
        """
        Look at what was recorded in the place of an order of this process.
        """
        match order, read_record(old):
            case Ended(), Moved(to=to):
                for successor in to:
                    if not self._registry._revocations.has_ended(successor):
                        self._registry._end_now(successor)
            case Moved(), Ended():
                if not self._registry._revocations.has_ended(order.session_ws_id):
                    self._registry._end_now(order.session_ws_id)
            case EndedIdentity(before=before), EndedIdentity(before=later) as known:
                if later > before:
                    sockets, _ = self.apply(known)
                    self.close_soon(sockets, SESSION_ENDED)


async def _gather(report: CloseReport, job: Job, question: Question, wait: float) -> CloseReport:
    """
    Make the report of this process one of all that answer in time.
    """
    await asyncio.gather(job.wait(wait), question.wait(wait))
    answers = question.answers
    return replace(
        report,
        sockets=report.sockets + sum(int(a.get("sockets", 0)) for a in answers),
        aborted=report.aborted + sum(int(a.get("aborted", 0)) for a in answers),
        cancelled=report.cancelled + sum(int(a.get("cancelled", 0)) for a in answers),
        handshakes=report.handshakes + sum(int(a.get("handshakes", 0)) for a in answers),
        nodes_expected=1 + len(question.expected | question.answered),
        nodes_answered=1 + len(question.answered),
        stored=job.stored,
    )
