"""
Somebody sets a clock: nobody who was logged out comes back for that, and nobody is logged out.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.promise.world.exchange import Plan
from tests.promise.world.steps import Config, Order, SetClock, Step, Visit, Wait
from tests.promise.world.world import play

REDIS = Config(cluster="redis")


def check(config: Config, steps: Sequence[Step], port: int | None = None) -> None:
    """Play a world; nothing may be wrong with it."""
    violations, trace = play(config, steps, port)
    assert not violations, "\n".join([*trace, *map(str, violations)])


@pytest.mark.parametrize("seconds", [-70.0, -3.0])
@pytest.mark.parametrize("later", [0.2, 11.0])
def test_redis_is_set_back(seconds: float, later: float, redis_port: int) -> None:
    """What is ordered on one node is later than what began on another before, for good."""
    early = Visit("B", Plan("log_in_renewed", user="bob", node=0))
    late = Visit("A", Plan("log_in_renewed", node=1))
    end = Order("end_identity", user="ann", node=0)
    caught_up: list[Step] = [
        Wait(70.0),
        Visit("A", Plan("open", node=1)),
        Visit("A", Plan("open", node=0)),
    ]
    steps: list[Step] = [early, Wait(11.0), late, SetClock(seconds), Wait(later), end, *caught_up]
    check(REDIS, steps, redis_port)


def test_redis_is_set_back_and_forward(redis_port: int) -> None:
    """Clocks that are set again and again change nothing."""
    end = Order("end_identity", user="ann", node=0)
    steps: list[Step] = []
    for node, seconds in enumerate([-70.0, -70.0, 3.0, -3.0, 70.0]):
        steps += [Visit("A", Plan("log_in_renewed", node=node % 2)), SetClock(seconds)]
        steps += [Wait(11.0), end, Wait(0.2), Visit("B", Plan("log_in_renewed", node=1))]
        steps += [Visit("B", Plan("open", node=0))]
    check(REDIS, steps, redis_port)
