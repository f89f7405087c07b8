"""
A clock that is set, forward or back, brings no ended session back and logs no user out.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.promise.world.app import derived_id
from tests.promise.world.exchange import Plan
from tests.promise.world.steps import Config, Order, Restart, SetClock, Step, Visit, Wait
from tests.promise.world.world import play

REDIS = Config(cluster="redis")
JOURNAL = Config(journal=True)
DERIVED = Config(journal=True, identify=False, ids="derived")


def check(config: Config, steps: Sequence[Step], port: int | None = None) -> None:
    """Run a world, and check that it has no violations."""
    violations, trace = play(config, steps, port)
    assert not violations, "\n".join([*trace, *map(str, violations)])


@pytest.mark.parametrize("seconds", [-70.0, -3.0])
@pytest.mark.parametrize("later", [0.2, 11.0])
def test_redis_is_set_back(seconds: float, later: float, redis_port: int) -> None:
    """An end on one node still ends earlier log-ins on another after Redis' clock is set back."""
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
    """Setting the clock repeatedly, in both directions, changes nothing."""
    end = Order("end_identity", user="ann", node=0)
    steps: list[Step] = []
    for node, seconds in enumerate([-70.0, -70.0, 3.0, -3.0, 70.0]):
        steps += [Visit("A", Plan("log_in_renewed", node=node % 2)), SetClock(seconds)]
        steps += [Wait(11.0), end, Wait(0.2), Visit("B", Plan("log_in_renewed", node=1))]
        steps += [Visit("B", Plan("open", node=0))]
    check(REDIS, steps, redis_port)


@pytest.mark.parametrize("config", [JOURNAL, DERIVED], ids=["identity", "id"])
@pytest.mark.parametrize("again", [False, True])
def test_set_back_and_killed(config: Config, again: bool) -> None:
    """A log-in right before the clock is set back and the process killed lives on."""
    end: Step = Order("end_identity", user="ann")
    if config is DERIVED:
        end = Order("end_session", subject=derived_id("ann"))
    late: list[Step] = [Visit("A", Plan("log_in")), SetClock(-70.0), Restart(kill=True)]
    lives: list[Step] = [Visit("A", Plan("open")), Visit("A", Plan("read"))]
    ended = [end, *lives, Wait(30.0), *lives, Wait(70.0), *lives] if again else []
    before: list[Step] = [Visit("B", Plan("log_in")), end, Wait(40.0)]
    check(config, [*before, *late, *lives, *ended])
