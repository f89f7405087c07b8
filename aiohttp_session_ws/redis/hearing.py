"""
Orders on their way from other processes to the sockets of this one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..closing import RECONNECT, SESSION_ENDED, Close
from ..connection import Connection
from ..ids import stamp_key
from ..visit import session_of
from .asking import Asking
from .memory import KEPT
from .node import Node
from .reading import read_envelope, read_record
from .telling import COUNTED, Telling
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
)

if TYPE_CHECKING:
    from .registry import RedisSessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

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


class Hearing:
    """
    Carries out the orders of other processes.
    """

    def __init__(
        self, registry: RedisSessionWSRegistry, node: Node, asking: Asking, telling: Telling
    ) -> None:
        self._registry = registry
        self._node = node
        self._asking = asking
        self._telling = telling
        self._mine = envelope_start(node.instance).encode()
        self._named: set[Hashable] = set()  # the ids that the unit at hand ends

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
        self._named = {order.session_ws_id for order in unit.orders if isinstance(order, Ended)}
        effects = [self.apply(order, unit.close, told=True) for order in unit.orders]
        self._named = set()
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
        _ = self._asking.answer(asker, question, REPORTS, body)

    def learn(self, order: Order, *, missed: Connection | None = None) -> None:
        """
        Let an order take effect that was found, and close the sockets in the background.

        Args:
            order: The order.
            missed: A connection that was there before it.
        """
        sockets, close, _ = self.apply(order, missed=missed)
        self.close_soon(sockets, close)

    def apply(
        self,
        order: Order,
        close: Close | None = None,
        *,
        told: bool = False,
        missed: Connection | None = None,
    ) -> Effect:
        """
        Let an order of another process take effect.

        Args:
            order: The order.
            close: With what sockets are closed.
            told: Whether it is just being given; of those that were found an order to
                close is left to :meth:`Learning.reconcile`, which knows whom it is about.
            missed: A connection that was there before it.
        """
        registry = self._registry
        self._node.memory.add(order)
        match order:
            case Ended():
                return self._end(order, close or SESSION_ENDED)
            case Moved():
                return self._move(order, close or RECONNECT)
            case EndedIdentity():
                return self._end_identity(order, close or SESSION_ENDED, told, missed)
            case Closed() if told and self._node.numbers.came(order.number):
                return self._order([order.session_ws_id], close or RECONNECT)
            case ClosedIdentity() if told and self._node.numbers.came(order.number):
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
        others = [id_ for id_ in ids if id_ != order.session_ws_id and id_ not in self._named]
        if others and not known:
            # Who gave the order has not known of all of them.
            _ = self._telling.tell(others, close)
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
        _ = self._telling.tell(ids, SESSION_ENDED)
        return self._order(ids, SESSION_ENDED)

    def _end_identity(
        self, order: EndedIdentity, close: Close, told: bool, missed: Connection | None
    ) -> Effect:
        registry = self._registry
        revocations, identity = registry._revocations, order.identity
        known = registry._identities.get(identity)
        news = known is None or known.before < order.before
        if not news and not told and missed is None:
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
            if connection.session_ws_id not in out
            and self._was_before(connection, order.before, told or connection is missed)
        }
        ids = [member for id_ in ended for member in revocations.end(id_, order.ttl)]
        if ids:
            _ = self._telling.tell(ids, close)
        return self._order(ids, close)

    def _was_before(self, connection: Connection, before: float, was_there: bool) -> bool:
        """
        Tell whether a connection's id was minted before; if that isn't known, it was if the
        connection was there.
        """
        session = None if connection.request is None else session_of(connection.request)
        minted = None if session is None else session.get(stamp_key(self._registry.session_key))
        if not isinstance(minted, int | float):
            return was_there
        # What is ordered now is after all ids there are: a later one has a wrong clock's time.
        now = self._registry._identities.now() if was_there else math.inf
        return not before < minted <= now

    def _age(self, at: float) -> float:
        return max(0.0, self._node.earliest() - at)

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
