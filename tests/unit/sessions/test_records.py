"""
The records of ended and renewed sessions: merging in any order, expiry and bounds.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Hashable, Sequence

import pytest
from hypothesis import given, settings, strategies as st

from aiohttp_session_ws._lineage import Kind, Subject
from aiohttp_session_ws.sessions.records import (
    MINOR_TTL,
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from tests.support.seconds import Seconds

TTL = 86_400.0


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def records(clock: Seconds) -> Records:
    return Records(clock=clock)


def ended(
    token: str = "a", at: float = 10.0, *, carries: bool = False, minor: bool = False
) -> LineageEnded:
    """Return the end of a lineage."""
    return LineageEnded(token, at, carries, TTL, minor)


def renewed(
    generation: int, *, token: str = "a", after: int = 0, at: float = 10.0, seen: bool = False
) -> LineageRenewed:
    """Return a generation of a lineage."""
    return LineageRenewed(token, generation, after, at, False, seen, TTL)


def end_of(session_ws_id: Hashable, before: float = 10.0) -> SubjectEnded:
    """Return the end of an id."""
    return SubjectEnded(Subject("id", session_ws_id), before, TTL)


def merged(changes: Sequence[Change]) -> set[Change]:
    """Return the records that result from some changes."""
    records = Records(clock=Seconds())
    for change in changes:
        records.merge(change)
    return set(records)


SUBJECT_KINDS: tuple[Kind, ...] = ("id", "identity", "label")
tokens = st.sampled_from("abc")
times = st.sampled_from([1.0, 2.0, 3.0])
ends = st.builds(LineageEnded, tokens, times, st.booleans(), st.just(TTL), st.booleans())
renewals = st.builds(
    LineageRenewed, tokens, st.integers(1, 3), st.integers(0, 2), times, st.booleans(),
    st.booleans(), st.just(TTL),
)  # fmt: skip
subjects = st.builds(Subject, st.sampled_from(SUBJECT_KINDS), st.sampled_from("xyz"))
subject_ends = st.builds(SubjectEnded, subjects, times, st.just(TTL))
# One lineage for each id: of several, the first counts, which has a test of its own.
TOKENS = {"x": "a", "y": "b", "z": "c"}
notes = st.tuples(st.sampled_from("xyz"), times).map(
    lambda drawn: IdNote(drawn[0], TOKENS[drawn[0]], drawn[1], TTL)
)
changes = st.lists(st.one_of(ends, renewals, subject_ends, notes), max_size=12)


class TestMerge:
    @settings(max_examples=400, deadline=None)
    @given(changes.flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))))
    def test_order(self, orders: tuple[list[Change], list[Change]]) -> None:
        """The result of merging doesn't depend on the order of the changes."""
        one, other = orders

        assert merged(one) == merged(other)

    @given(changes)
    def test_twice(self, some: list[Change]) -> None:
        """Merging changes or records again changes nothing."""
        records = Records(clock=Seconds())
        for change in some:
            records.merge(change)
        epoch, kept = records.epoch, set(records)

        assert not any(records.merge(change) for change in [*some, *kept])
        assert records.epoch == epoch
        assert set(records) == kept

    @given(changes, changes)
    def test_records_are_changes(self, one: list[Change], other: list[Change]) -> None:
        """Merging the records of two nodes gives the same as merging all their changes."""
        assert merged([*merged(one), *merged(other)]) == merged([*one, *other])

    @settings(deadline=None)
    @given(
        changes, st.sampled_from(SUBJECT_KINDS), st.lists(st.tuples(st.sampled_from("xyz"), times))
    )
    def test_many_at_once(
        self, before: list[Change], kind: Kind, ends: list[tuple[str, float]]
    ) -> None:
        """Ends of many subjects lead to the same records when merged at once or one by one."""
        one, other = Records(clock=Seconds()), Records(clock=Seconds())
        for change in before:
            one.merge(change)
            other.merge(change)
        for value, time in ends:
            one.merge(SubjectEnded(Subject(kind, value), time, TTL))
        other.end_subjects(kind, [value for value, _ in ends], [time for _, time in ends], TTL)

        assert set(one) == set(other)
        assert one.latest_owner_end == other.latest_owner_end

    def test_the_collector_looks_away(self) -> None:
        """Records contain almost no objects that the garbage collector tracks."""
        records, number = Records(), 2000
        gc.collect()
        before = len(gc.get_objects())
        for n in range(number):
            records.merge(ended(f"ended {n}", 10.0 + n, minor=n % 2 > 0))
            records.merge(renewed(n, token=f"renewed {n}", at=10.0 + n))
            records.merge(IdNote(f"noted {n}", f"lineage {n}", 10.0 + n, TTL))
            records.merge(end_of(f"id {n}", 10.0 + n))
        records.end_subjects("id", [f"x {n}" for n in range(number)], [1.5] * number, TTL)
        gc.collect()

        assert len(records) == 5 * number
        assert len(gc.get_objects()) < before + number / 10

    def test_ended_beats_all(self, records: Records) -> None:
        """A lineage that has ended can't be renewed."""
        assert records.merge(renewed(1))
        assert records.merge(ended())
        assert not records.merge(renewed(2))

        assert records.lineage("a") == ended()
        assert records.newest("a") == 0

    def test_the_later_end_counts(self, records: Records) -> None:
        """Of several ends of a lineage the latest time counts, and ``carries`` is kept."""
        records.merge(ended(at=20.0, carries=True))
        records.merge(ended(at=10.0))
        records.merge(ended(at=30.0))

        assert records.lineage("a") == ended(at=30.0, carries=True)

    def test_the_greater_generation_counts(self, records: Records) -> None:
        """Of several generations of a lineage only the newest is kept."""
        records.merge(renewed(2, at=20.0, seen=True))
        assert records.merge(renewed(3, at=15.0))
        assert not records.merge(renewed(1, at=50.0))

        assert records.lineage("a") == renewed(3, at=15.0)
        assert records.newest("a") == 3

    def test_the_same_generation_adds_up(self, records: Records) -> None:
        """Two records of the same generation are combined, each field to the greater value."""
        records.merge(renewed(2, after=1, at=20.0))
        login = LineageRenewed("a", 2, 0, 30.0, True, True, TTL)
        assert records.merge(login)

        assert records.lineage("a") == LineageRenewed("a", 2, 1, 30.0, True, True, TTL)

    def test_the_later_before_counts(self, records: Records) -> None:
        """Of two ends of an id the later one counts."""
        assert records.merge(end_of("x", 20.0))
        assert not records.merge(end_of("x", 10.0))

        assert records.ended_before(Subject("id", "x")) == 20.0
        assert records.ended_before(Subject("identity", "x")) == -math.inf

    def test_epoch(self, records: Records) -> None:
        """The epoch increases if and only if a change is new."""
        epoch = records.epoch
        records.merge(ended())
        assert records.epoch > epoch

        epoch = records.epoch
        records.merge(ended(at=5.0))
        assert records.epoch == epoch


class TestNotes:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize(("before", "ends"), [(4.9, False), (5.0, True), (9.0, True)])
    def test_end_of_an_id(
        self, records: Records, before: float, ends: bool, reverse: bool
    ) -> None:
        """An end of an id ends the lineage noted for it that had begun by then, in any order."""
        both: list[Change] = [IdNote("x", "a", 5.0, TTL), end_of("x", before)]
        for change in reversed(both) if reverse else both:
            records.merge(change)

        assert (records.lineage("a") == ended(at=before)) is ends

    def test_the_first_lineage(self, records: Records) -> None:
        """Of several lineages under one id, the one that began first is noted."""
        records.merge(IdNote("x", "b", 5.0, TTL))
        records.merge(IdNote("x", "a", 3.0, TTL))
        assert not records.merge(IdNote("x", "c", 4.0, TTL))

        note = records.note_of("x")
        assert note is not None
        assert note.token == "a"

    @pytest.mark.parametrize("session_ws_id", [1, 2.5, (1, "a"), frozenset({1}), "", "\ud800"])
    def test_any_hashable(self, records: Records, session_ws_id: Hashable) -> None:
        """Any hashable may be an id, including a str with surrogates."""
        records.merge(end_of(session_ws_id))

        assert records.ended_before(Subject("id", session_ws_id)) == 10.0
        assert records.ended_before(Subject("id", "a")) == -math.inf

    @pytest.mark.parametrize("other", ["1", (1,), b"one", 2], ids=repr)
    def test_different_ids(self, records: Records, other: Hashable) -> None:
        """Ids that are equal share an end; ids that only look alike don't."""
        records.merge(end_of(1))

        assert records.ended_before(Subject("id", True)) == 10.0
        assert records.ended_before(Subject("id", other)) == -math.inf


class TestLifetime:
    def test_ttl(self, records: Records, clock: Seconds) -> None:
        """An end expires after its TTL, which each look-up restarts."""
        records.merge(ended())
        for _ in range(3):
            clock.now += TTL - 1
            assert records.lineage("a") is not None
        clock.now += TTL

        assert records.lineage("a") is None

    def test_subject(self, records: Records, clock: Seconds) -> None:
        """After the last end of a subject has expired, ``has_subjects`` is false."""
        records.merge(SubjectEnded(Subject("identity", "ann"), 10.0, TTL))
        assert records.has_subjects
        clock.now += TTL

        assert records.ended_before(Subject("identity", "ann")) == -math.inf
        assert not records.has_subjects

    def test_minor(self, records: Records, clock: Seconds) -> None:
        """The end of a session that held nothing expires after an hour."""
        records.merge(ended(minor=True))
        clock.now += MINOR_TTL

        assert records.lineage("a") is None

    def test_minor_that_belonged_to_somebody(self, records: Records, clock: Seconds) -> None:
        """A minor end is kept for the full TTL once an end that isn't minor is merged with it."""
        records.merge(ended(minor=True))
        assert records.merge(ended())
        assert not records.merge(ended(minor=True))
        clock.now += MINOR_TTL

        assert records.lineage("a") == ended()


Make = Callable[[int], Change]
KINDS: dict[str, Make] = {
    "lineage": lambda n: ended(f"token {n}"),
    "minor": lambda n: ended(f"token {n}", minor=True),
    "generation": lambda n: renewed(1, token=f"token {n}"),
    "subject": lambda n: end_of(n),
    "note": lambda n: IdNote(n, f"token {n}", 5.0, TTL),
}


class TestBound:
    @pytest.mark.parametrize("kind", KINDS)
    def test_bounded(self, kind: str) -> None:
        """The number of records of each kind is bounded."""
        records = Records(limit=10, minor=10, clock=Seconds())
        for number in range(100):
            records.merge(KINDS[kind](number))

        assert len(records) == 10

    @pytest.mark.parametrize("kind", ["minor", "generation", "note"])
    def test_pushes_out_no_end(self, kind: str) -> None:
        """Records that any client can cause in any number evict no end of a user's session."""
        records = Records(limit=10, minor=10, clock=Seconds())
        records.merge(ended("ann's"))
        records.merge(SubjectEnded(Subject("identity", "ann"), 10.0, TTL))
        for number in range(100):
            records.merge(KINDS[kind](number))

        assert records.lineage("ann's") is not None
        assert records.ended_before(Subject("identity", "ann")) == 10.0

    @pytest.mark.parametrize("kind", ["lineage", "subject"])
    def test_warning(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        """Evicting many ends logs a single warning, which names no session."""
        records = Records(limit=10, minor=10, clock=Seconds())
        for number in range(10):
            records.merge(KINDS[kind](number))
        assert not caplog.records
        for number in range(10, 100):
            records.merge(KINDS[kind](number))

        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "more than 10 ended sessions" in caplog.text
        assert "token" not in caplog.text

    def test_one_order_one_record(self, records: Records) -> None:
        """A lineage has one record, however often it was renewed or ended."""
        for generation in range(1, 1000):
            records.merge(renewed(generation))
        assert len(records) == 1
        for at in range(1000):
            records.merge(ended(at=float(at)))

        assert len(records) == 1
