"""
The clock shared by all nodes: Redis' ``TIME``, as measured by this node. No I/O.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ..sessions.clock import PENDING, TICK, Clock

__all__: list[str] = []

SAMPLES: Final = 10
LARGEST_ERROR: Final = 0.2  # seconds; beyond it an answer was too late to measure the time
LATE: Final = 5  # answers; if all are late, the network is slow, and the best one is used
DRIFT: Final = 1e-4  # how much faster or slower one clock may be than another
AHEAD: Final = 2.0  # seconds that an end on another node may be ahead: its time is rounded up


class Sample(NamedTuple):
    """
    One measurement.

    Attributes:
        at: When it was taken, by this process's clock.
        offset: How many seconds the shared clock is ahead of this process's clock.
        error: How many seconds the offset may be wrong, either way.
    """

    at: float
    offset: float
    error: float


class RedisClock(Clock):
    """
    Redis' clock, which every node measures with each heartbeat.

    It never runs back: when Redis' own clock is set back, each node continues by its own clock,
    and reports to Redis by how much the shared clock is :attr:`ahead` from then on.

    The times of ends are rounded up by the error of the measurement and those of beginnings down,
    so that a lineage that began before an end on another node never seems to have begun after it.
    Until the clock is known, an end concerns every lineage, and new lineages begin at 0.

    Args:
        wall: Seconds since the epoch, until the clock is known.
        monotonic: Seconds that never go back.

    Attributes:
        ahead: By how many seconds, at least, the shared clock is ahead of Redis' own, as far as
            this node knows; the next heartbeat reports it.
        leap: By how many seconds the last measurement found Redis' own clock set forward.
    """

    known = False

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(wall=wall, monotonic=monotonic)
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._late: deque[Sample] = deque(maxlen=LATE)
        self._best = Sample(monotonic(), 0.0, 0.0)
        self._reported_ahead = 0.0
        self._last_end = 0.0
        self.ahead = self.leap = 0.0

    @property
    def was_set_back(self) -> bool:
        """
        Whether Redis' clock was set back, and this still has to be reported to Redis.
        """
        return self.ahead > self._reported_ahead

    @property
    def error(self) -> float:
        """
        How many seconds the clock may be wrong, either way.
        """
        return self._error_of(self._best)

    def _error_of(self, sample: Sample) -> float:
        return sample.error + (self.monotonic() - sample.at) * DRIFT

    def measure(self, server: float, sent: float, received: float, ahead: float = 0.0) -> None:
        """
        Measure the shared clock by an answer of Redis.

        Args:
            server: The time of the shared clock in the answer.
            sent: When the request was sent, by this process's clock.
            received: When the answer was received, by this process's clock.
            ahead: How many seconds the shared clock is ahead of Redis' own.
        """
        self.leap = 0.0
        if ahead != self._reported_ahead:  # earlier samples are of another clock
            self._forget_samples()
            self._reported_ahead = self.ahead = ahead
        sample = Sample(received, server - (sent + received) / 2, (received - sent) / 2)
        if sample.error > LARGEST_ERROR:
            self._late.append(sample)
            if self._samples or len(self._late) < LATE:
                return
            sample = min(self._late, key=self._error_of)
        change, doubt = sample.offset - self._best.offset, sample.error + self.error
        if self.known and change < -doubt:
            # Later times have been given out already. Until Redis knows, this node continues by
            # its own clock, as the others do.
            self._forget_samples()
            self.ahead = ahead - change + doubt
            return
        self.ahead = ahead
        if change > doubt:
            self._samples.clear()  # a clock was set
            self.leap = change if self.known else 0.0
        self._samples.append(sample)
        self._best = min(self._samples, key=self._error_of)
        if not self.known:
            self.known = True
            if self._last_end > self.now() + AHEAD:
                self._last_end = 0.0  # from a journal, by a clock that was wrong

    def _forget_samples(self) -> None:
        self._samples.clear()
        self._late.clear()

    def now(self) -> float:
        """
        Return the current time, for computing ages.
        """
        return self.monotonic() + self._best.offset if self.known else super().now()

    def age(self, at: float) -> float:
        """
        Return how many seconds ago *at* was; it may be from before the clock was known.
        """
        return super().age(at) if at < PENDING else self.monotonic() - (at - PENDING)

    def latest(self, at: float) -> float:
        """
        Convert a past time of the shared clock to this process's clock, rounded up by the error.

        The result is never later than now; until the clock is known, it is now.
        """
        now = self.monotonic()
        if not self.known:
            return now
        measured, offset, error = self._best
        latest = at - offset + error + (now - measured) * DRIFT
        return latest if latest < now else now

    def begin_time(self) -> float:
        """
        Return the time for a lineage that begins now: after the ends that are known here.

        Except for these it is no later than the true time, or an end on another node could miss
        the lineage.
        """
        if not self.known:
            return 0.0
        at, after = self.now() - self.error, self._last_end + TICK
        at = at if at > after else after
        self._last = max(self._last, at)
        return at

    def end_time(self) -> float:
        """
        Return the time for an end that is ordered now: after all beginnings on this node so far.
        """
        at, after = self.order_time(), self._last + TICK
        if at < PENDING:
            self._last = self._last_end = at = at if at > after else after
        return at

    def order_time(self) -> float:
        """
        Return the time for an order that ends a single lineage, or only closes sockets.
        """
        monotonic = self.monotonic()
        if not self.known:
            return PENDING + monotonic
        at, offset, error = self._best
        return monotonic + offset + error + (monotonic - at) * DRIFT

    def observe_end(self, at: float) -> None:
        """
        Record the time of an end on another node: lineages that begin here later begin after it.

        A time that is far ahead is ignored: it isn't from a correct clock.
        """
        if self.known and self._last_end < at < self.now() + AHEAD:
            self._last_end = at
            self._last = max(self._last, at)

    def resolve(self, at: float) -> float:
        """
        Convert *at* to the shared clock, in case it is from before that was known.
        """
        if not self.known or at < PENDING:
            return at
        # If an earlier process took it before the machine was restarted, it may be anything.
        return min(at - PENDING + self._best.offset, self.now()) + self.error

    def start_after(self, last: float) -> None:
        """
        Continue from *last*, the latest time that an earlier process has seen.
        """
        if last < PENDING:
            super().start_after(last)
            self._last_end = max(self._last_end, last)

    def on_reserve(self, store: Callable[[], object]) -> None:
        """
        Do nothing: Redis keeps the time.
        """

    def reserved_until(self) -> float:
        """
        Return the time: a process that continued from a later one would be ahead of other nodes.

        Until the clock is known, this is the latest time that an earlier process has seen. The
        wall clock may be ahead: lineages would then begin after ends that others order later.
        """
        return self.now() if self.known else self._last
