"""
Bounded dictionaries whose entries expire.
"""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiohttp_session_ws._expiring import ExpiringDict
from tests.support.seconds import Seconds

TTL = 10.0


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def evicted() -> list[None]:
    """Return a list with an item for each eviction of a live entry."""
    return []


@pytest.fixture
def small(clock: Seconds, evicted: list[None]) -> ExpiringDict[str, int]:
    """Return a dictionary of at most three entries."""
    return ExpiringDict(3, TTL, clock=clock, on_evict=lambda: evicted.append(None))


class TestLifetime:
    @pytest.mark.parametrize(("later", "there"), [(0, True), (TTL - 0.1, True), (TTL, False)])
    def test_ttl(
        self, small: ExpiringDict[str, int], clock: Seconds, later: float, there: bool
    ) -> None:
        """An entry is present until its time to live has passed."""
        small.put("a", 1)
        clock.now += later

        assert ("a" in small) is there
        assert (small.get("a") == 1) is there
        assert len(small) == there

    def test_a_hit_restarts_it(self, small: ExpiringDict[str, int], clock: Seconds) -> None:
        """A hit restarts the time to live of an entry."""
        small.put("a", 1)
        for _ in range(5):
            clock.now += TTL - 1
            assert small.get("a") == 1

        clock.now += TTL
        assert small.get("a") is None

    def test_a_peek_does_not(self, small: ExpiringDict[str, int], clock: Seconds) -> None:
        """``peek()`` and ``in`` don't restart the time to live of an entry."""
        small.put("a", 1)
        clock.now += TTL - 1
        assert small.peek("a") == 1
        assert "a" in small

        clock.now += 1
        assert small.peek("a") is None

    def test_a_time_of_its_own(self, small: ExpiringDict[str, int], clock: Seconds) -> None:
        """An entry may have a time to live of its own, which a hit restarts."""
        small.put("a", 1, 10 * TTL)
        clock.now += 9 * TTL
        assert small.get("a") == 1
        clock.now += 9 * TTL

        assert small.get("a") == 1

    def test_pop(self, small: ExpiringDict[str, int]) -> None:
        """``pop()`` removes an entry, and returns its value once."""
        small.put("a", 1)

        assert small.pop("a") == 1
        assert small.pop("a") is None
        assert "a" not in small


class TestBound:
    def test_beyond(self, small: ExpiringDict[str, int], evicted: list[None]) -> None:
        """Beyond the limit the least recently used entries are evicted, each with a callback."""
        for number, key in enumerate("abc"):
            small.put(key, number)
        assert not evicted
        small.put("d", 3)
        small.put("e", 4)

        assert list(small) == ["c", "d", "e"]
        assert len(evicted) == 2

    def test_met_ones_stay(self, small: ExpiringDict[str, int], clock: Seconds) -> None:
        """A hit makes an entry the most recently used, so that another one is evicted."""
        for number, key in enumerate("abc"):
            small.put(key, number)
        clock.now += 1
        small.get("a")
        small.put("d", 3)

        assert list(small) == ["c", "a", "d"]

    def test_expired_ones_go_first(
        self, small: ExpiringDict[str, int], clock: Seconds, evicted: list[None]
    ) -> None:
        """Expired entries are removed before live ones are evicted."""
        for number, key in enumerate("abc"):
            small.put(key, number)
        clock.now += TTL
        for number, key in enumerate("def"):
            small.put(key, number)

        assert len(small) == 3
        assert not evicted

    def test_again_is_no_more(self, small: ExpiringDict[str, int]) -> None:
        """An entry that is put again replaces the old one and takes no more room."""
        for number, key in enumerate("abcaaa"):
            small.put(key, number)

        assert sorted(small) == ["a", "b", "c"]
        assert small.get("a") == 5

    def test_busy_entries_are_not_moved(
        self, small: ExpiringDict[str, int], clock: Seconds
    ) -> None:
        """A hit shortly after the last one doesn't move the entry, to save the write."""
        for number, key in enumerate("abc"):
            small.put(key, number)
        clock.now += TTL / 1000
        small.get("a")

        assert list(small) == ["a", "b", "c"]


class Model(RuleBasedStateMachine):
    """
    Compare a dictionary that never reaches its limit with a plain one.
    """

    keys = st.sampled_from(["a", 1, True, (1,), frozenset({1}), "\ud800"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Seconds()
        self.real: ExpiringDict[object, int] = ExpiringDict(100, TTL, clock=self.clock)
        self.plain: dict[object, int] = {}

    @rule(key=keys, value=st.integers())
    def put(self, key: object, value: int) -> None:
        """Put an entry into both."""
        self.real.put(key, value)
        self.plain[key] = value

    @rule(key=keys)
    def get(self, key: object) -> None:
        """Compare the value of a key."""
        assert self.real.get(key) == self.plain.get(key)

    @rule(key=keys)
    def pop(self, key: object) -> None:
        """Remove an entry from both, and compare its value."""
        assert self.real.pop(key) == self.plain.pop(key, None)

    @rule()
    def forget(self) -> None:
        """Let all entries expire."""
        self.clock.now += TTL
        self.plain.clear()

    @invariant()
    def same(self) -> None:
        """Both have the same number of entries."""
        assert len(self.real) == len(self.plain)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
