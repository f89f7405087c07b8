"""
The shared clock by which lineages begin and end.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws.sessions.clock import Clock
from tests.support.seconds import Seconds


class Clocks:
    """Both clocks of a machine."""

    def __init__(self) -> None:
        self.wall, self.monotonic = Seconds(1_900_000_000.0), Seconds()
        self.clock = Clock(wall=self.wall, monotonic=self.monotonic)

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.wall.now += seconds
        self.monotonic.now += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_is_the_wall_clock(clocks: Clocks) -> None:
    """What begins is dated by the wall clock."""
    clocks.tick(10)

    assert clocks.clock.now() == clocks.wall.now
    assert clocks.clock.begin_time() == pytest.approx(clocks.wall.now)


def test_strictly_increasing(clocks: Clocks) -> None:
    """What began before an end is earlier, what begins after it is later, on any clock."""
    begun = clocks.clock.begin_time()
    ended = clocks.clock.end_time()
    again = clocks.clock.begin_time()

    assert begun < ended < again


def test_set_back(clocks: Clocks) -> None:
    """A wall clock that is set back ends nobody for good: ours goes on."""
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
    """A clock that was wrong for a while doesn't stop ours."""
    clocks.wall.now += 3600
    first = clocks.clock.begin_time()
    clocks.wall.now -= 3600
    clocks.tick(1)

    assert clocks.clock.begin_time() == pytest.approx(first + 1, abs=0.001)


def test_start_after(clocks: Clocks) -> None:
    """It goes on from what an earlier process has seen."""
    last = clocks.clock.now() + 60
    clocks.clock.start_after(last)

    assert clocks.clock.begin_time() > last
