"""
Which orders can still be known, computed from what was killed and cut off when. No I/O.

A log-out can't hold if all processes that had received it were gone before another one had. The
nodes' own statements can't be trusted for that, so it is computed from the driver's actions, by
four rules. At first the node that answered knows the order. Redis gets it from a node that knows
it and has been in contact with Redis for :data:`HAND` seconds without a break (or is seen to have
it). A node learns it after :data:`HEAR` seconds of contact with a Redis that has it; after
:data:`CATCH_UP` if it was cut off meanwhile, or has started since. A node that is killed loses
what it knows, and so does a Redis that loses its data, or evicts the order; an evicted order is
written again up to :data:`REST` seconds later. What Redis had when it evicted the list of numbers
can't be learned late. With a journal, the next process of a node knows what the last one had known
for :data:`COMMIT` seconds. There is no contact while the node or Redis is down or frozen, or their
connection is cut. After a loss, and for a node that learns late, the times grow with the number of
orders so far, which are transferred at :data:`SPEED`.

A node that is slower than these rules allow is faulty, and fails the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

HAND: Final = 3.0  # seconds in which a node writes all that it knows to Redis
HEAR: Final = 1.0  # seconds in which a node receives what was just recorded
CATCH_UP: Final = 2.0  # seconds in which a node learns older orders from Redis
COMMIT: Final = 1.0  # seconds in which a journal is written
REST: Final = 7.0  # seconds between two checks of a node for evicted keys
SYNC: Final = 2.0  # seconds of writes that a Redis may lose when it is killed
#: Orders that a node writes or reads per second, with the renewals of their sessions: each makes
#: two to four records.
SPEED: Final = 10_000.0

Span = tuple[float, float]


@dataclass
class Life:
    """
    A process of a node.

    Attributes:
        pid: Its process id.
        node: The number of its node.
        born: When it began to serve.
        died: When it was killed.
        broken: When it had no contact with Redis, by its own fault or the network's.
    """

    pid: int
    node: int
    born: float
    died: float = math.inf
    broken: list[Span] = field(default_factory=list)


@dataclass
class _State:
    """
    Which processes know an order, and since when.
    """

    nodes: dict[int, float]
    redis: float | None = None
    lost: float = -math.inf  # when Redis lost it last
    hand: float = HAND  # seconds in which a node writes it to Redis
    journals: set[int] = field(default_factory=set)  # the nodes whose journals have it


class Timeline:
    """
    When which processes and servers were available.

    Attributes:
        lives: The processes of all nodes.
        away: When Redis was away, or the driver stalled, whose proxies all connections use.
        refusing: When Redis refused writes.
        killed: When Redis was killed, and kept the data that were on disk.
        lost: When Redis lost its data.
        evicting: When Redis evicted keys.
        unlisted: When Redis evicted the keys that map numbers to orders.
        orders: When orders were given.
        journals: Whether nodes have journals.
    """

    def __init__(self, *, journals: bool = False) -> None:
        self.journals = journals
        self.lives: list[Life] = []
        self.away: list[Span] = []
        self.refusing: list[Span] = []
        self.killed: list[float] = []
        self.lost: list[float] = []
        self.evicting: list[float] = []
        self.unlisted: list[float] = []
        self.orders: list[float] = []
        self._moments: list[float] = []
        self._contacts: list[dict[int, float]] = []  # before each moment: contacts, since when
        self._all_know: dict[int, float] = {}  # by the index of a moment: when it was forgotten

    def close(self) -> None:
        """Accept no more events, and prepare for queries."""
        spans = [*self.away, *self.refusing, *(s for life in self.lives for s in life.broken)]
        moments = {moment for span in spans for moment in span}
        moments |= {moment for life in self.lives for moment in (life.born, life.died)}
        self.orders.sort()
        self._moments = sorted(
            {*moments, *self.killed, *self.lost, *self.evicting, math.inf} - {-math.inf}
        )
        begins = [-math.inf, *self._moments]
        self._contacts = [dict(self._in_contact(at)) for at in begins[:-1]]
        self._all_know.clear()

    def forgotten(
        self,
        pid: int,
        at: float,
        stored: float | None = None,
        evicted: Collection[float] = (),
    ) -> float:
        """
        Return when an order was lost everywhere; infinity if some process or Redis must know it.

        Args:
            pid: The process that received it.
            at: When that process answered.
            stored: When Redis was first seen to have it.
            evicted: When Redis evicted a record that it needs.
        """
        state = _State({pid: at})
        now = at
        passed: list[int] = []  # moments at which all nodes knew it: such orders share a result
        found = math.inf
        for number in range(bisect_right(self._moments, at), len(self._moments)):
            until = self._moments[number]
            self._pass(state, self._contacts[number], now, until, stored)
            now = until
            if until < math.inf and not evicted and self._all_have_it(state, until):
                if number in self._all_know:
                    found = self._all_know[number]
                    break
                passed.append(number)
            self._strike(state, until, evicted)
            if not (state.nodes or state.journals) and state.redis is None:
                found = until
                break
        for number in passed:
            self._all_know[number] = found
        return found

    # Changes over time

    def _pass(
        self,
        state: _State,
        there: dict[int, float],
        now: float,
        until: float,
        stored: float | None,
    ) -> None:
        """Advance through a period in which nothing breaks and nothing is restored."""
        if state.redis is None:
            ready = [
                max(since, state.nodes[pid], state.lost, self._since(self.refusing, now))
                + state.hand
                for pid, since in there.items()
                if pid in state.nodes and not _within(self.refusing, now)
            ]
            if stored is not None and state.lost <= stored:
                ready.append(stored)
            got = max(now, min(ready, default=math.inf))
            if got < until:
                state.redis = got
        if state.redis is not None:
            for pid, since in there.items():
                if pid not in state.nodes:
                    late = CATCH_UP + self._telling(since) if since > state.redis else HEAR
                    heard = max(since, state.redis) + late
                    if heard < until and not self._is_unlisted(state.redis, heard):
                        state.nodes[pid] = heard

    def _is_unlisted(self, got: float, heard: float) -> bool:
        """Return whether an order that Redis got can't be found by its number any more."""
        return any(got - HEAR <= at <= heard for at in self.unlisted)

    def _strike(self, state: _State, at: float, evicted: Collection[float]) -> None:
        """Apply the losses at this moment."""
        for life in self.lives:
            if life.died <= at and life.pid in state.nodes:
                known = state.nodes.pop(life.pid)
                if self.journals and life.died - known >= COMMIT:
                    state.journals.add(life.node)
            elif life.born == at and life.node in state.journals:
                state.nodes[life.pid] = at
        if state.redis is None:
            return
        if at in self.lost or (at in self.killed and state.redis > at - SYNC):
            state.redis, state.lost, state.hand = None, at, HAND + self._telling(at)
        elif at in evicted:
            state.redis, state.lost = None, at
            state.hand = HAND + REST + self._telling(at)

    # State at a moment

    def _in_contact(self, at: float) -> Iterator[tuple[int, float]]:
        """Yield the processes that are in contact with Redis, and since when."""
        if _within(self.away, at):
            return
        back = self._since(self.away, at)
        for life in self.lives:
            if life.born <= at < life.died and not _within(life.broken, at):
                yield life.pid, max(life.born, back, self._since(life.broken, at))

    def _since(self, spans: list[Span], at: float) -> float:
        return max((end for _, end in spans if end <= at), default=-math.inf)

    def _telling(self, at: float) -> float:
        """Return how many seconds it takes to transfer all orders given so far."""
        return bisect_right(self.orders, at) / SPEED

    def _all_have_it(self, state: _State, at: float) -> bool:
        living = {life.pid for life in self.lives if life.born < at <= life.died}
        return state.redis is not None and living <= state.nodes.keys() and len(living) > 0


def _within(spans: list[Span], at: float) -> bool:
    return any(begin <= at < end for begin, end in spans)
