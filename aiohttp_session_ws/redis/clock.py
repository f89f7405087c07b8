"""
The one clock of all nodes: Redis' ``TIME``, as far as it could be measured. No I/O.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ..sessions.clock import PENDING, TICK, Clock

__all__: list[str] = []

SAMPLES: Final = 10
LARGEST_ERROR: Final = 0.2  # seconds; beyond it an answer was late, and tells no time
LATE: Final = 5  # answers; if all are late, the network is slow, and the best of them counts
DRIFT: Final = 1e-4  # how much faster or slower one clock may be than another
AHEAD: Final = 2.0  # seconds that the time of an end elsewhere may be ahead: it is rounded up


class Sample(NamedTuple):
    """
    One measurement.

    Attributes:
        at: When, by this process's clock.
        offset: How many seconds Redis' clock is before that.
        error: How many seconds that may be wrong, either way.
    """

    at: float
    offset: float
    error: float


class RedisClock(Clock):
    """
    Redis' clock, which every node measures with each heartbeat.

    It never runs back: when Redis' own clock is set back, each node goes on by its own, and tells
    Redis by how much the clock of all nodes is :attr:`ahead` from then on.

    Ends are rounded up by the error of the measurement and beginnings down, so that nothing
    that began before an end on another node is taken for later. Until the clock is known, an
    end concerns all that there is, and what begins has begun at 0.

    Args:
        wall: Seconds since the epoch, until the clock is known.
        monotonic: Seconds that never go back.

    Attributes:
        ahead: By how many seconds it is ahead of Redis' own clock at least, as far as this node
            knows: what the next heartbeat says.
        leap: How many seconds Redis' own clock was found set forward by the last measurement.
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
        self._told_ahead = 0.0
        self._last_end = 0.0
        self.ahead = self.leap = 0.0

    @property
    def was_set_back(self) -> bool:
        """
        Whether Redis has to be told that its clock was set back.
        """
        return self.ahead > self._told_ahead

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
        Take the time from an answer of Redis.

        Args:
            server: The time of all nodes.
            sent: When the question was sent, by this process's clock.
            received: When the answer came.
            ahead: How many seconds the time of all nodes is ahead of Redis' own.
        """
        self.leap = 0.0
        if ahead != self._told_ahead:  # what was measured before is not of the same clock
            self._forget_samples()
            self._told_ahead = self.ahead = ahead
        sample = Sample(received, server - (sent + received) / 2, (received - sent) / 2)
        if sample.error > LARGEST_ERROR:
            self._late.append(sample)
            if self._samples or len(self._late) < LATE:
                return
            sample = min(self._late, key=self._error_of)
        change, doubt = sample.offset - self._best.offset, sample.error + self.error
        if self.known and change < -doubt:
            # Others have been given later times. Until Redis knows, this node goes on by its own
            # clock, as they do.
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
                self._last_end = 0.0  # a journal has it from a clock that was wrong

    def _forget_samples(self) -> None:
        self._samples.clear()
        self._late.clear()

    def now(self) -> float:
        """
        Return the time, for ages.
        """
        return self.monotonic() + self._best.offset if self.known else super().now()

    def age(self, at: float) -> float:
        """
        Return how many seconds ago *at* was, which may have been taken before the clock was known.
        """
        return super().age(at) if at < PENDING else self.monotonic() - (at - PENDING)

    def latest(self, at: float) -> float:
        """
        Return a time that is past by this process's clock, as late as it may have been.

        Until the clock is known that is now.
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

        But for these it is no later than the right time, or an end on another node would miss it.
        """
        if not self.known:
            return 0.0
        at, after = self.now() - self.error, self._last_end + TICK
        at = at if at > after else after
        self._last = max(self._last, at)
        return at

    def end_time(self) -> float:
        """
        Return the time for an end that is ordered now: after all that has begun so far.
        """
        at, after = self.order_time(), self._last + TICK
        if at < PENDING:
            self._last = self._last_end = at = at if at > after else after
        return at

    def order_time(self) -> float:
        """
        Return the time for an order that ends nothing but one lineage, or only closes.
        """
        monotonic = self.monotonic()
        if not self.known:
            return PENDING + monotonic
        at, offset, error = self._best
        return monotonic + offset + error + (monotonic - at) * DRIFT

    def hear(self, at: float) -> None:
        """
        Note the time of an end on another node: what begins here from now on begins after it.

        A time that is far ahead is no time of a clock that is right.
        """
        if self.known and self._last_end < at < self.now() + AHEAD:
            self._last_end = at
            self._last = max(self._last, at)

    def resolve(self, at: float) -> float:
        """
        Return the time of *at*, which may have been taken before the clock was known.
        """
        if not self.known or at < PENDING:
            return at
        # Of an earlier process, of before the machine was started, it may be anything.
        return min(at - PENDING + self._best.offset, self.now()) + self.error

    def start_after(self, last: float) -> None:
        """
        Go on from *last*, which an earlier process has seen.
        """
        if last < PENDING:
            super().start_after(last)
            self._last_end = max(self._last_end, last)

    def promise_by(self, promise: Callable[[], object]) -> None:
        """
        Do nothing: Redis keeps the time.
        """

    def promised(self) -> float:
        """
        Return the time: to go on from a later one would be ahead of other nodes.

        Until it is known, that is what an earlier process has seen. The wall clock may be ahead:
        what began after it would have begun after ends that others order later.
        """
        return self.now() if self.known else self._last
