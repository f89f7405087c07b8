"""
The one clock by which lineages begin and end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

__all__: list[str] = []

TICK: Final = 1e-6  # seconds; nothing begins at the tick of an end
#: Seconds for which a time is promised to be given out: a journal holds the end of them, and the
#: next process begins there.
PROMISED: Final = 5.0

#: Times of orders that were given before the clock was known: later than all that is known, so
#: that they concern everything there is. They get their time by :meth:`Clock.resolve`.
PENDING: Final = 1e11


class Clock:
    """
    The wall clock, which never runs back while the process lives.

    Args:
        wall: Seconds since the epoch.
        monotonic: Seconds that never go back.

    Attributes:
        known: Whether the time can be compared with what other processes say.
    """

    known = True

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wall = wall
        self.monotonic = monotonic
        self._offset = wall() - monotonic()
        self._last = 0.0
        self._promise_due = math.inf
        self._promise: Callable[[], object] = self.now

    def now(self) -> float:
        """
        Return the time, for ages: two calls may return the same.
        """
        monotonic = self.monotonic()
        # It follows a wall clock that is set forward, and goes on from one that is set back.
        self._offset = max(self._offset, self.wall() - monotonic)
        return max(self._last, monotonic + self._offset)

    def age(self, at: float) -> float:
        """
        Return how many seconds ago *at* was.
        """
        return self.now() - at

    def begin_time(self) -> float:
        """
        Return the time for a lineage that begins now: after all that has ended so far.
        """
        monotonic = self.monotonic()
        offset = self.wall() - monotonic
        if offset > self._offset:
            self._offset = offset
        now, last = monotonic + self._offset, self._last + TICK
        self._last = now = now if now > last else last
        if now >= self._promise_due:
            self._promise_due = now + PROMISED / 2
            self._promise()
        return now

    def end_time(self) -> float:
        """
        Return the time for an end that is ordered now: after all that has begun so far.
        """
        return self.begin_time()

    def order_time(self) -> float:
        """
        Return the time for an order that ends nothing but one lineage, or only closes.
        """
        return self.begin_time()

    def resolve(self, at: float) -> float:
        """
        Return the time of *at*, which may have been taken before the clock was known.
        """
        return at

    def start_after(self, last: float) -> None:
        """
        Go on from *last*, which an earlier process has seen.
        """
        self._offset = max(self._offset, last - self.monotonic())
        self._last = max(self._last, last)

    def promise_by(self, promise: Callable[[], object]) -> None:
        """
        Have *promise* called when times are given out that :meth:`promised` didn't cover lately.

        It has to store what :meth:`promised` returns soon, without being waited for.
        """
        self._promise, self._promise_due = promise, 0.0

    def promised(self) -> float:
        """
        Return the time from which another process may go on, should this one be killed.
        """
        return self.now() + PROMISED
