"""
The clock that all nodes share, as a node measures it.
"""

from __future__ import annotations

import random

from aiohttp_session_ws.redis.clock import LATE, RedisClock
from aiohttp_session_ws.sessions.clock import PENDING


class Times:
    """A process whose clock is wrong, and a Redis whose clock is right."""

    def __init__(self, skew: float = 600.0) -> None:
        self.now = 100.0
        self.skew = skew
        self.clock = RedisClock(wall=lambda: self.right + skew, monotonic=lambda: self.now)

    @property
    def right(self) -> float:
        """The time of Redis."""
        return self.now + 1_700_000_000.0

    def measure(self, there: float, back: float) -> None:
        """Measure Redis' time; the request takes *there* seconds, and the reply *back* seconds."""
        sent = self.now
        self.now += there
        said = self.right
        self.now += back
        self.clock.measure(said, sent, self.now)


class TestRedisClock:
    def test_error(self) -> None:
        """The time of an end is never before the true time, that of a beginning never after it."""
        rng, times = random.Random(1), Times()
        for _ in range(50):
            times.measure(rng.uniform(0, 0.05), rng.uniform(0, 0.05))
            times.now += 1.0
            assert times.clock.begin_time() <= times.right <= times.clock.end_time()
            times.now += 1.0  # since the clock never runs back

    def test_right_after_an_order(self) -> None:
        """An order's time is never before the true time, and moves no later beginning past it."""
        times = Times()
        times.measure(0.15, 0.05)
        for _ in range(3):
            assert times.clock.order_time() >= times.right >= times.clock.begin_time()

    def test_heard(self) -> None:
        """A lineage begins after the ends received from other nodes, unless they are far ahead."""
        times = Times()
        times.clock.observe_end(times.right)
        assert times.clock.begin_time() == 0.0
        times.measure(0.1, 0.0)
        heard = times.right + 0.2
        times.clock.observe_end(heard)
        assert heard < times.clock.begin_time() < heard + 0.001
        assert times.clock.end_time() > heard
        times.clock.observe_end(times.right + 3600.0)
        times.clock.observe_end(PENDING)
        assert times.clock.end_time() < times.right + 0.3

    def test_after_an_earlier_process(self) -> None:
        """A lineage begins after the ends in the journal of an earlier process."""
        times = Times()
        last = times.right + 0.15
        times.clock.start_after(last)
        times.clock.start_after(PENDING)
        times.measure(0.1, 0.0)
        assert last < times.clock.begin_time() < last + 0.001

    def test_what_a_journal_keeps(self) -> None:
        """The time for a journal isn't that of a wall clock that is ahead of Redis'."""
        times = Times()
        times.clock.start_after(times.right - 60.0)
        assert times.clock.reserved_until() == times.right - 60.0
        times.measure(0.1, 0.0)
        assert abs(times.clock.reserved_until() - times.right) < 0.2

    def test_ahead_of_redis(self) -> None:
        """A time of an earlier process that was far ahead is dropped once the clock is known."""
        times = Times()
        times.clock.start_after(times.right + 600.0)
        times.measure(0.1, 0.0)
        assert times.clock.begin_time() <= times.right
        assert times.clock.end_time() > times.right - 0.2

    def test_latest(self) -> None:
        """``latest()`` returns a time neither before the true one, nor after now."""
        rng, times = random.Random(2), Times()
        assert times.clock.latest(PENDING) == times.now
        for _ in range(50):
            times.measure(rng.uniform(0, 0.05), rng.uniform(0, 0.05))
            ago = rng.uniform(0, 5.0)
            latest = times.clock.latest(times.right - ago)
            assert times.now - ago - 1e-6 <= latest <= times.now
            assert latest <= times.now - ago + 2 * times.clock.error + 1e-6
            assert times.clock.latest(times.right + ago) == times.now
            times.now += 1.0

    def test_best_counts(self) -> None:
        """The quickest answer counts, also after a slower one."""
        times = Times()
        times.measure(0.1, 0.0)
        times.measure(0.0001, 0.0001)
        assert times.clock.error < 0.001
        times.measure(0.15, 0.0)
        assert times.clock.error < 0.001

    def test_late(self) -> None:
        """Answers that took too long are ignored, unless all of them did."""
        times = Times()
        for _ in range(LATE - 1):
            times.measure(0.5, 0.1)
            assert not times.clock.known
        times.measure(0.5, 0.1)
        assert times.clock.known
        assert abs(times.clock.now() - times.right) < 0.31

    def test_unknown(self) -> None:
        """Until the clock is known, beginnings are at 0 and ends are pending, resolved later."""
        times = Times(skew=-600.0)
        assert times.clock.begin_time() == 0.0
        end = times.clock.end_time()
        assert end > times.right
        assert times.clock.resolve(end) == end
        times.now += 30.0
        assert times.clock.age(end) == 30.0
        times.measure(0.001, 0.001)
        assert times.clock.age(end) >= 30.0
        assert abs(times.clock.age(times.clock.resolve(end)) - 30.0) < 0.01
        assert abs(times.clock.resolve(end) - (times.right - 30.0)) < 0.01
        assert times.clock.resolve(5.0) == 5.0

    def test_earlier_process(self) -> None:
        """A pending time from before a restart of the machine isn't resolved to the future."""
        times = Times()
        times.measure(0.001, 0.001)
        assert times.clock.resolve(PENDING + 1e6) <= times.right + 0.01

    def test_increasing(self) -> None:
        """Beginnings and ends have increasing times, even when Redis' clock is set back."""
        times = Times()
        times.measure(0.01, 0.01)
        stamps = [times.clock.end_time(), times.clock.begin_time(), times.clock.end_time()]
        times.clock.measure(times.right - 300.0, times.now, times.now)
        stamps += [times.clock.begin_time(), times.clock.end_time()]
        assert stamps == sorted(set(stamps))

    def test_clock_was_set(self) -> None:
        """When Redis' own clock is set forward, the shared clock follows."""
        times = Times()
        times.measure(0.001, 0.001)
        times.now += 100.0
        times.clock.measure(times.right + 50.0, times.now, times.now)
        assert abs(times.clock.now() - (times.right + 50.0)) < 0.1

    def test_set_back(self) -> None:
        """When Redis' own clock is set back, ours continues, and ``ahead`` is to be reported."""
        times = Times()
        times.measure(0.001, 0.001)
        begun = times.clock.begin_time()
        times.now += 5.0
        times.clock.measure(times.right - 300.0, times.now, times.now)
        assert times.clock.was_set_back
        assert 300.0 <= times.clock.ahead < 300.01
        assert times.clock.begin_time() - begun > 4.99
        ahead = times.clock.ahead
        times.now += 5.0
        times.clock.measure(times.right - 300.0 + ahead, times.now, times.now, ahead)
        assert times.clock.ahead == ahead
        assert abs(times.clock.now() - times.right) < 0.01

    def test_others_have_told(self) -> None:
        """A difference that another node has reported is applied at once, however small."""
        times = Times()
        times.measure(0.0, 0.0)
        times.now += 1.0
        times.clock.measure(times.right + 0.005, times.now - 0.02, times.now, 0.02)
        assert not times.clock.was_set_back
        assert abs(times.clock.now() - (times.right + 0.015)) < 1e-6

    def test_redis_has_forgotten(self) -> None:
        """When Redis has lost the reported difference, a node has to report it again."""
        times = Times()
        times.clock.measure(times.right, times.now, times.now, 300.0)
        times.now += 3.0
        times.clock.measure(times.right - 300.0, times.now, times.now, 0.0)
        assert times.clock.was_set_back
        assert 300.0 <= times.clock.ahead < 300.01
        assert abs(times.clock.now() - times.right) < 0.01
