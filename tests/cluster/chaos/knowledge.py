"""
Who can know of an order, by what was killed and cut off when: no I/O, no look at what nodes say.

A log-out can't hold if everybody who had heard of it was gone before anybody else had heard. Who
judges that may not take the nodes' word for it, so it is reckoned from the driver's own deeds, by
four rules. At first the node that answered knows the order. Redis gets it from a node that knows
it and has been in contact with Redis for :data:`HAND` seconds in one go (or is seen to have it). A
node hears of it that is in contact with a Redis that has it, for :data:`HEAR` seconds; one that
was away meanwhile, or has started since, for :data:`CATCH_UP`. A node that is killed knows
nothing any more, nor does a Redis that loses its data, or evicts the order, which it is told again
up to :data:`REST` seconds later; and of what it had when it evicted the list of numbers, nobody
learns late. But with a journal, the next process of a node knows what the last one had known for
:data:`COMMIT` seconds. Contact is broken while the node or Redis is down or frozen, or the way
between them is. After a loss, and for one that learns late, it takes longer the more there is to
tell: so long as all orders up to then last at :data:`SPEED`.

Whoever is slower than these rules allow is at fault, and fails the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

HAND: Final = 3.0  # seconds in which a node tells Redis all that it knows
HEAR: Final = 1.0  # seconds in which a node hears what Redis has just got
CATCH_UP: Final = 2.0  # seconds in which a node learns what Redis has had for longer
COMMIT: Final = 1.0  # seconds in which a journal is written
REST: Final = 7.0  # seconds until a node looks for what Redis has evicted since it did last
SYNC: Final = 2.0  # seconds of writes that a Redis may lose when it is killed
#: Orders that a node tells or learns in a second, with the renewals of their sessions: each makes
#: two to four records.
SPEED: Final = 10_000.0

Span = tuple[float, float]


@dataclass
class Life:
    """
    A process of a node.

    Attributes:
        pid: Its id.
        node: The number of its node.
        born: When it served.
        died: When it was killed.
        broken: When it had no contact with Redis, through its own fault or the way's.
    """

    pid: int
    node: int
    born: float
    died: float = math.inf
    broken: list[Span] = field(default_factory=list)


@dataclass
class _State:
    """
    Who knows an order, and since when.
    """

    nodes: dict[int, float]
    redis: float | None = None
    lost: float = -math.inf  # when Redis lost it last
    hand: float = HAND  # seconds in which a node tells Redis it
    journals: set[int] = field(default_factory=set)  # of which nodes have it


class Timeline:
    """
    What was there, and when.

    Attributes:
        lives: The processes of all nodes.
        away: When Redis was away, or the driver stood still, through which all goes to it.
        refusing: When it took no writes.
        killed: When it was killed, and kept its data as far as they were on disk.
        lost: When it lost its data.
        evicting: When it evicted keys.
        unlisted: When it evicted what says which number an order has.
        orders: When which orders were given.
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
        self._contacts: list[dict[int, float]] = []  # up to each moment, by process: since when
        self._all_know: dict[int, float] = {}  # by the number of a moment: when nobody knows

    def close(self) -> None:
        """Take no more events: now it can be asked."""
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
        Return from when on nobody need know of an order any more; infinity if somebody has to.

        Args:
            pid: The process that was given it.
            at: When it answered.
            stored: When Redis was first seen to have it.
            evicted: When Redis evicted something that it needs.
        """
        state = _State({pid: at})
        now = at
        passed: list[int] = []  # moments at which all knew: all such orders have one fate
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

    # What happens

    def _pass(
        self,
        state: _State,
        there: dict[int, float],
        now: float,
        until: float,
        stored: float | None,
    ) -> None:
        """Let time pass in which nothing breaks and nothing is mended."""
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
        """Tell whether what Redis got once can't be found by its number any more."""
        return any(got - HEAR <= at <= heard for at in self.unlisted)

    def _strike(self, state: _State, at: float, evicted: Collection[float]) -> None:
        """Let break what breaks at this moment."""
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

    # What is there

    def _in_contact(self, at: float) -> Iterator[tuple[int, float]]:
        """Return which processes are in contact with Redis, and since when."""
        if _within(self.away, at):
            return
        back = self._since(self.away, at)
        for life in self.lives:
            if life.born <= at < life.died and not _within(life.broken, at):
                yield life.pid, max(life.born, back, self._since(life.broken, at))

    def _since(self, spans: list[Span], at: float) -> float:
        return max((end for _, end in spans if end <= at), default=-math.inf)

    def _telling(self, at: float) -> float:
        """Return how many seconds it takes to tell all orders that were given by then."""
        return bisect_right(self.orders, at) / SPEED

    def _all_have_it(self, state: _State, at: float) -> bool:
        living = {life.pid for life in self.lives if life.born < at <= life.died}
        return state.redis is not None and living <= state.nodes.keys() and len(living) > 0


def _within(spans: list[Span], at: float) -> bool:
    return any(begin <= at < end for begin, end in spans)
