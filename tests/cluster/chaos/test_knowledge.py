"""
The rules by which an order is counted apart: only if no process and no Redis can know it.
"""

from __future__ import annotations

from math import inf

import pytest

from tests.cluster.chaos.knowledge import CATCH_UP, HAND, HEAR, REST, SPEED, Life, Timeline


def timeline(*lives: Life, **events: list[float] | list[tuple[float, float]]) -> Timeline:
    """Return a timeline with these processes and events."""
    made = Timeline()
    made.lives += lives
    for name, found in events.items():
        setattr(made, name, found)
    made.close()
    return made


def test_nothing_happens() -> None:
    """A node that lives knows an order for ever."""
    assert timeline(Life(1, 0, 0.0)).forgotten(1, 10.0) == inf


def test_killed_at_once() -> None:
    """An order is lost if its node is killed before it had time to write it to Redis."""
    giver = Life(1, 0, 0.0, died=10.0 + HAND - 0.1)

    assert timeline(giver, Life(2, 1, 0.0)).forgotten(1, 10.0) == giver.died


def test_told() -> None:
    """An order is not lost if its node had enough time to write it to Redis."""
    giver = Life(1, 0, 0.0, died=10.0 + HAND + 0.1)

    assert timeline(giver).forgotten(1, 10.0) == inf


def test_seen() -> None:
    """An order whose record was seen in Redis outlives its node, even one killed at once."""
    giver = Life(1, 0, 0.0, died=10.5)

    assert timeline(giver).forgotten(1, 10.0, stored=10.2) == inf


@pytest.mark.parametrize(
    "events",
    [
        {"away": [(9.0, 16.0)]},
        {"refusing": [(9.0, 17.5 - HAND + 0.1)]},
        {"away": [(10.0 + HAND - 0.1, 15.0), (17.0, 18.0)]},
    ],
)
def test_no_time(events: dict[str, list[tuple[float, float]]]) -> None:
    """An order is lost if Redis was never available for long enough at a time."""
    giver = Life(1, 0, 0.0, died=17.5)

    assert timeline(giver, Life(2, 1, 0.0), **events).forgotten(1, 10.0) == 17.5


def test_cut_off() -> None:
    """An order is lost if its node was frozen or cut off until shortly before it was killed."""
    giver = Life(1, 0, 0.0, died=18.0, broken=[(9.0, 18.1 - HAND)])

    assert timeline(giver).forgotten(1, 10.0) == 18.0
    giver.broken = [(9.0, 17.9 - HAND)]
    assert timeline(giver).forgotten(1, 10.0) == inf


def test_heard() -> None:
    """An order that Redis has lost survives its node if another one had time to receive it."""
    giver, other = Life(1, 0, 0.0, died=12.0), Life(2, 1, 0.0)

    assert timeline(giver, other, lost=[10.1 + HEAR]).forgotten(1, 10.0, 10.2) == 12.0
    assert timeline(giver, other, lost=[10.3 + HEAR]).forgotten(1, 10.0, 10.2) == inf


def test_started_later() -> None:
    """A node that starts later learns an order from Redis, but not at once."""
    giver, late = Life(1, 0, 0.0, died=30.0), Life(2, 1, 32.0)

    assert timeline(giver, late, lost=[32.0 + CATCH_UP - 0.1]).forgotten(1, 10.0) == pytest.approx(
        32.0 + CATCH_UP - 0.1
    )
    assert timeline(giver, late, lost=[32.0 + CATCH_UP + 0.1]).forgotten(1, 10.0) == inf


def test_written_back() -> None:
    """A node that knows an order needs time to write it again after a loss of data."""
    first, second = Life(1, 0, 0.0, died=20.0), Life(2, 1, 0.0, died=31.0)
    third = Life(3, 2, 21.0)

    soon = timeline(first, second, third, lost=[31.0 - HAND + 0.1])
    assert soon.forgotten(1, 10.0) == inf  # the third has received it before
    third.born = 31.0 - HAND - 0.2
    assert timeline(first, second, third, lost=[31.1 - HAND]).forgotten(1, 10.0) == 31.0
    assert timeline(first, second, third, lost=[30.9 - HAND]).forgotten(1, 10.0) == inf


def test_much_to_tell() -> None:
    """More orders take longer to write again after a loss, and longer to learn."""
    giver, other = Life(1, 0, 0.0, died=30.0), Life(2, 1, 30.0 - HAND)
    orders = [5.0] * int(2 * SPEED)

    assert timeline(giver, other, lost=[29.9 - HAND]).forgotten(1, 10.0) == inf
    soon = timeline(giver, other, lost=[29.9 - HAND], orders=orders)
    assert soon.forgotten(1, 10.0) == 30.0
    long_ago = timeline(giver, other, lost=[27.9 - HAND], orders=orders)
    assert long_ago.forgotten(1, 10.0) == inf
    newcomer = Life(2, 1, 28.1 - CATCH_UP)
    assert timeline(giver, newcomer, lost=[30.5]).forgotten(1, 10.0) == inf
    assert timeline(giver, newcomer, lost=[30.0], orders=orders).forgotten(1, 10.0) == 30.0


def test_evicted() -> None:
    """An evicted order is written again by a node that knows it, but not at once."""
    giver, other = Life(1, 0, 0.0, died=40.0), Life(2, 1, 20.0)

    late = timeline(giver, other, evicting=[40.1 - HAND - REST])
    assert late.forgotten(1, 10.0, evicted={40.1 - HAND - REST}) == inf  # the other knows it
    other.born = 41.0
    late.close()
    assert late.forgotten(1, 10.0) == inf  # another order was evicted
    assert late.forgotten(1, 10.0, evicted={40.1 - HAND - REST}) == 40.0
    soon = timeline(giver, other, evicting=[39.9 - HAND - REST])
    assert soon.forgotten(1, 10.0, evicted={39.9 - HAND - REST}) == inf


def test_last_seconds() -> None:
    """A Redis that is killed may lose its last seconds of writes, but nothing older."""
    giver = Life(1, 0, 0.0, died=14.0)

    assert timeline(giver, killed=[13.0], away=[(13.0, 15.0)]).forgotten(1, 10.0, 12.5) == 14.0
    assert timeline(giver, killed=[13.0], away=[(13.0, 15.0)]).forgotten(1, 10.0, 10.5) == inf


def test_journal() -> None:
    """A journal keeps an order that no other node has received, if it had time to commit."""
    giver, late = Life(1, 0, 0.0, died=12.0), Life(2, 0, 14.0, died=14.0 + HAND + 0.1)
    made = Timeline(journals=True)
    made.lives += [giver, late]
    made.close()

    assert made.forgotten(1, 10.0) == inf
    assert made.forgotten(1, 11.5) == 12.0
    late.died = 14.5  # the next process would know it again
    made.close()
    assert made.forgotten(1, 10.0) == inf


def test_same_for_all() -> None:
    """Orders that all nodes knew at a moment share their result from then on."""
    lives = [Life(1, 0, 0.0, died=50.0), Life(2, 1, 0.0, died=50.5)]
    made = timeline(*lives, lost=[30.0, 49.0], away=[(40.0, 41.0)])

    assert made.forgotten(1, 10.0) == made.forgotten(2, 20.0) == 50.5
    assert made.forgotten(1, 49.5) == 50.0
