"""
Orders on their way: from this process to the others, and from them to its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from ..closing import RECONNECT, SESSION_ENDED, Close, CloseReport
from ..connection import Connection
from ..elsewhere import Told
from ..ids import stamp_key
from ..revocation import Kind
from ..visit import session_of
from .asking import Asking, Question
from .memory import KEPT, MOST
from .node import Node
from .wire import (
    Closed,
    ClosedIdentity,
    Ended,
    EndedIdentity,
    Lifted,
    Moved,
    Order,
    Unit,
    envelope_start,
    read_envelope,
    read_record,
)
from .writer import Job

if TYPE_CHECKING:
    from .registry import RedisSessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

COUNTED: Final = ("sockets", "aborted", "cancelled", "handshakes")  # of a report
MANY: Final = 50  # units that are carried out in one turn of the event loop
REPORTS: Final = "answers"  # the channel, to which the name of a node is added


class Effect(NamedTuple):
    """
    What is left to do of an order: the sockets to close, and how many handshakes will be
    refused.
    """

    sockets: list[Connection]
    close: Close
    handshakes: int


class Telling:
    """
    Tells other processes of orders, and carries out theirs.
    """

    def __init__(self, registry: RedisSessionWSRegistry, node: Node, asking: Asking) -> None:
        self._registry = registry
        self._node = node
        self._asking = asking
        self._mine = envelope_start(node.instance).encode()  # what its own messages begin with
        self._untold: dict[Hashable, str] = {}  # numbers of close orders that are recorded only
        self._done: dict[str, float] = {}  # numbers of close orders, and when they came here

    # From here

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
        return self._send([ClosedIdentity(identity, self._number())], close, wait)

    def lift(self, session_ws_id: Hashable) -> None:
        """
        Tell that an id is alive again.
        """
        _ = self._send([Lifted(session_ws_id)], None, 0.0)

    def _send(self, orders: Sequence[Order], close: Close | None, wait: float) -> Told:
        question = self._asking.open() if wait else None
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

    def hear(self, data: bytes) -> Awaitable[None] | None:
        """
        Carry out what is told in a message.

        Returns:
            What to wait for, if there is so much that others must have their turn meanwhile.
        """
        if data.startswith(self._mine):
            return None
        message = read_envelope(data)
        if message is None:
            log.warning("a message that isn't ours, or of another version, is on our channel")
            return None
        sender, units = message
        if len(units) > MANY:
            return self._hear_many(sender, units)
        self._hear(sender, units)
        return None

    async def _hear_many(self, sender: str, units: Sequence[Unit]) -> None:
        for start in range(0, len(units), MANY):
            self._hear(sender, units[start : start + MANY])
            await asyncio.sleep(0)

    def _hear(self, sender: str, units: Iterable[Unit]) -> None:
        for unit in units:
            if unit.orders:
                self._carry_out(sender, unit)
            else:
                self._node.look_back(KEPT)

    def _carry_out(self, sender: str, unit: Unit) -> None:
        effects = [self.apply(order, unit.close, told=True) for order in unit.orders]
        if unit.question is not None:
            coro = self._report(sender, unit.question, effects)
            _ = self._registry._sockets.spawn(coro, "report to another process")
            return
        for effect in effects:
            self.close_soon(effect.sockets, effect.close)

    def close_soon(self, sockets: Sequence[Connection], close: Close) -> None:
        """
        Close sockets in the background.
        """
        if sockets:
            index = self._registry._sockets
            for connection in sockets:
                if connection.opened and not connection.gone and connection.closing is None:
                    # Its close frame goes out before the tasks begin that wait for its end.
                    connection.close = close
                    _ = index.begin_close(connection, close)
            _ = index.spawn(index.close(sockets, close), "close for another process")

    async def _report(self, asker: str, question: str, effects: Sequence[Effect]) -> None:
        reports = await asyncio.gather(*[self._registry._carry_out(*effect) for effect in effects])
        body = {name: sum(getattr(report, name) for report in reports) for name in COUNTED}
        self._asking.answer(asker, question, REPORTS, body)

    def learn(self, order: Order) -> None:
        """
        Let an order take effect that was found, and close the sockets in the background.
        """
        sockets, close, _ = self.apply(order)
        self.close_soon(sockets, close)

    def apply(self, order: Order, close: Close | None = None, *, told: bool = False) -> Effect:
        """
        Let an order of another process take effect.

        Args:
            order: The order.
            close: With what sockets are closed.
            told: Whether it is just being given; of those that were found an order to
                close is left to :meth:`Learning.reconcile`, which knows whom it is about.
        """
        registry = self._registry
        self._node.memory.add(order)
        match order:
            case Ended():
                return self._end(order, close or SESSION_ENDED)
            case Moved():
                return self._move(order, close or RECONNECT)
            case EndedIdentity():
                return self._end_identity(order, close or SESSION_ENDED, told=told)
            case Closed() if told and self.came(order.number):
                return self._order([order.session_ws_id], close or RECONNECT)
            case ClosedIdentity() if told and self.came(order.number):
                sockets, handshakes = registry._order_identity(order.identity, close or RECONNECT)
                return Effect(sockets, close or RECONNECT, handshakes)
            case Lifted():
                _ = registry._revocations.lift(order.session_ws_id)
        return Effect([], RECONNECT, 0)

    def _order(self, ids: Iterable[Hashable], close: Close) -> Effect:
        sockets, handshakes = self._registry._order(ids, close)
        return Effect(sockets, close, handshakes)

    def _end(self, order: Ended, close: Close) -> Effect:
        revocations = self._registry._revocations
        known = revocations.has_ended(order.session_ws_id)
        ids = revocations.end(order.session_ws_id, order.ttl, self._age(order.at))
        if len(ids) > 1 and not known:
            # Others may not have known of all of them.
            _ = self.tell([id_ for id_ in ids if id_ != order.session_ws_id], close)
        return self._order(ids, close)

    def _move(self, order: Moved, close: Close) -> Effect:
        id_, age = order.session_ws_id, self._age(order.at)
        revocations = self._registry._revocations
        for successor in order.to:
            revocations.move(id_, successor, order.ttl, age)
        if not order.to:  # it has moved on to nothing that lives
            _ = revocations.end(id_, order.ttl, age)
        if not revocations.has_ended(id_):
            return self._order([id_], close)
        ids = revocations.family(id_)
        _ = self.tell(ids, SESSION_ENDED)
        return self._order(ids, SESSION_ENDED)

    def _end_identity(self, order: EndedIdentity, close: Close, *, told: bool) -> Effect:
        registry = self._registry
        revocations, identity = registry._revocations, order.identity
        known = registry._identities.get(identity)
        if known is not None and known.before >= order.before and not told:
            return Effect([], close, 0)
        revocations.ends += 1
        registry._identities.end(
            identity, order.left_out, order.ttl, revocations.ends, order.before
        )
        if told:  # for handshakes whose session has no time; a look-up finds it recorded
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
        return self._order(ids, close)

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
                    self.learn(known)


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
