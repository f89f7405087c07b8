"""
The shared clock by which lineages begin and end.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws.sessions.clock import Clock
from tests.support.seconds import Seconds


class Clocks:
    """The wall clock and the monotonic clock of a machine."""

    def __init__(self) -> None:
        self.wall, self.monotonic = Seconds(1_900_000_000.0), Seconds()
        self.clock = Clock(wall=self.wall, monotonic=self.monotonic)

    def tick(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall.now += seconds
        self.monotonic.now += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_is_the_wall_clock(clocks: Clocks) -> None:
    """The beginning of a lineage is dated by the wall clock."""
    clocks.tick(10)

    assert clocks.clock.now() == clocks.wall.now
    assert clocks.clock.begin_time() == pytest.approx(clocks.wall.now)


def test_strictly_increasing(clocks: Clocks) -> None:
    """An end is later than every beginning before it, and earlier than any after it."""
    begun = clocks.clock.begin_time()
    ended = clocks.clock.end_time()
    again = clocks.clock.begin_time()

    assert begun < ended < again


def test_set_back(clocks: Clocks) -> None:
    """When the wall clock is set back, new lineages still begin after the ends so far."""
    ended = clocks.clock.end_time()
    clocks.wall.now -= 3600
    clocks.tick(1)
    begun = clocks.clock.begin_time()

    assert begun > ended
    assert begun == pytest.approx(ended + 1, abs=0.001)


def test_set_forward(clocks: Clocks) -> None:
    """A wall clock that is set forward is followed."""
    clocks.wall.now += 3600

    assert clocks.clock.now() == clocks.wall.now


def test_set_back_again(clocks: Clocks) -> None:
    """When the wall clock is set forward and back again, time still advances."""
    clocks.wall.now += 3600
    first = clocks.clock.begin_time()
    clocks.wall.now -= 3600
    clocks.tick(1)

    assert clocks.clock.begin_time() == pytest.approx(first + 1, abs=0.001)


def test_start_after(clocks: Clocks) -> None:
    """A clock continues from the last time of an earlier process."""
    last = clocks.clock.now() + 60
    clocks.clock.start_after(last)

    assert clocks.clock.begin_time() > last
