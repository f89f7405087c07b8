"""
Pacing: when an order may be sent.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws.redis.clock import RedisClock
from aiohttp_session_ws.redis.pace import MANY, TICK, Pace
from tests.support.seconds import Seconds


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def clock(seconds: Seconds) -> RedisClock:
    clock = RedisClock(wall=seconds, monotonic=seconds)
    clock.measure(seconds() + 1000.003, seconds(), seconds())
    return clock


@pytest.mark.parametrize(("nodes", "messages", "in_step"), [(2, 20_000, True), (2, 9000, False),
    (100, 260, True), (100, 240, False), (0, 90_000, False)])  # fmt: skip
def test_in_step(
    seconds: Seconds, clock: RedisClock, nodes: int, messages: int, in_step: bool
) -> None:
    """Orders wait for ticks if Redis delivers many messages to many nodes."""
    pace = Pace(clock, seconds)
    assert pace.wait() == 0.0
    for _ in range(3 * messages):
        pace.count()
    seconds.now += 3.0
    pace.measure(nodes)

    assert pace.in_step is in_step is (messages * nodes >= MANY)
    assert bool(pace.wait()) is in_step


def test_ticks(seconds: Seconds, clock: RedisClock) -> None:
    """Orders wait for the next tick of the shared clock, until the load is low again."""
    pace = Pace(clock, seconds)
    pace.count()
    seconds.now += 1.0
    pace.measure(MANY)
    for _ in range(30):
        wait = pace.wait()
        assert 0.0 < wait <= TICK
        assert (clock.now() + wait) % TICK == pytest.approx(0.0, abs=1e-6) or (
            clock.now() + wait
        ) % TICK == pytest.approx(TICK, abs=1e-6)
        seconds.now += 0.0037
    seconds.now += 1.0
    pace.measure(MANY)
    assert pace.wait() == 0.0


def test_unknown_clock(seconds: Seconds) -> None:
    """Orders wait for no tick while the shared clock isn't known."""
    pace = Pace(RedisClock(wall=seconds, monotonic=seconds), seconds)
    pace.count()
    seconds.now += 1.0
    pace.measure(MANY)
    assert pace.in_step
    assert pace.wait() == 0.0
