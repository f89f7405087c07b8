"""
The shared clock: it issues the timestamps at which lineages begin and end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

__all__: list[str] = []

TICK: Final = 1e-6  # seconds by which a beginning and an end differ at least
#: Seconds of timestamps that are reserved in advance: a journal holds the end of that range, and
#: the next process starts there.
RESERVED: Final = 5.0

#: Timestamps from here on are pending: those of orders that were given before the clock was known.
#: They are later than all others, so that such an order concerns every lineage, until
#: :meth:`Clock.resolve` replaces them.
PENDING: Final = 1e11


class Clock:
    """
    The wall clock, but it never runs backwards during the life of the process.

    Args:
        wall: Returns seconds since the epoch.
        monotonic: Returns seconds of a monotonic clock.

    Attributes:
        known: Whether its time can be compared with that of other processes.
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
        self._reserve_due = math.inf
        self._reserve: Callable[[], object] = self.now

    def now(self) -> float:
        """
        Return the time, to compute ages; two calls may return the same.
        """
        monotonic = self.monotonic()
        # It follows a wall clock that is set forward, but not one that is set back.
        self._offset = max(self._offset, self.wall() - monotonic)
        return max(self._last, monotonic + self._offset)

    def age(self, at: float) -> float:
        """
        Return how many seconds ago *at* was.
        """
        return self.now() - at

    def begin_time(self) -> float:
        """
        Return the timestamp of a lineage that begins now: later than all ends so far.
        """
        monotonic = self.monotonic()
        offset = self.wall() - monotonic
        if offset > self._offset:
            self._offset = offset
        now, last = monotonic + self._offset, self._last + TICK
        self._last = now = now if now > last else last
        if now >= self._reserve_due:
            self._reserve_due = now + RESERVED / 2
            self._reserve()
        return now

    def end_time(self) -> float:
        """
        Return the timestamp of an end that is ordered now: later than all beginnings so far.
        """
        return self.begin_time()

    def order_time(self) -> float:
        """
        Return the timestamp of an order that ends only one lineage, or only closes sockets.
        """
        return self.begin_time()

    def resolve(self, at: float) -> float:
        """
        Return the real time of *at*, which may have been taken before the clock was known.
        """
        return at

    def start_after(self, last: float) -> None:
        """
        Continue from *last*, the latest time of an earlier process.
        """
        self._offset = max(self._offset, last - self.monotonic())
        self._last = max(self._last, last)

    def on_reserve(self, store: Callable[[], object]) -> None:
        """
        Call *store* when a timestamp is issued, at most once in :data:`RESERVED` / 2 seconds.

        It has to store what :meth:`reserved_until` returns soon; it isn't awaited.
        """
        self._reserve, self._reserve_due = store, 0.0

    def reserved_until(self) -> float:
        """
        Return the time from which the next process may continue if this one is killed.
        """
        return self.now() + RESERVED
