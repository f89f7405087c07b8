"""
The status of a session by its records: alive, ended or replaced.
"""

from __future__ import annotations

import math

import pytest

from aiohttp_session_ws._lineage import Lineage, Subject
from aiohttp_session_ws.sessions.clock import Clock
from aiohttp_session_ws.sessions.records import (
    Change,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from aiohttp_session_ws.sessions.status import FUTURE, State, Status, status

TTL = 86_400.0
GRACE = 30.0
NOW = 1000.0
ID, ANN, LABEL = Subject("id", "x"), Subject("identity", "ann"), Subject("label", ("sid", "1"))


def judged(
    *changes: Change, generation: int = 0, began: float = 100.0, now: float = NOW
) -> Status:
    """Return the status of a session of ann's after some changes."""
    records = Records()
    for change in changes:
        records.merge(change)
    clock = Clock(wall=lambda: now, monotonic=lambda: 0.0)
    return status(records, Lineage("a", generation, began), (ID, ANN, LABEL), clock, GRACE)


def renewed(
    generation: int, *, at: float, after: int = 0, seen: bool = False, token: str = "a"
) -> LineageRenewed:
    """Return a generation of the lineage."""
    return LineageRenewed(token, generation, after, at, False, seen, TTL)


class TestEnded:
    def test_nothing_recorded(self) -> None:
        """A session without records is alive."""
        assert judged() == Status(State.ALIVE, 0.0)

    @pytest.mark.parametrize("carries", [False, True])
    def test_lineage(self, carries: bool) -> None:
        """Every generation of an ended lineage is ended, with the end's age and ``carries``."""
        end = LineageEnded("a", 990.0, carries, TTL)

        assert judged(end) == Status(State.ENDED, 10.0, carries)
        assert judged(end, generation=7).state is State.ENDED

    def test_other_lineage(self) -> None:
        """The end of another lineage doesn't end a session."""
        assert judged(LineageEnded("b", 990.0, carries=False, ttl=TTL)).alive

    @pytest.mark.parametrize("subject", [ID, ANN, LABEL], ids=["id", "identity", "label"])
    @pytest.mark.parametrize(("began", "over"), [(499.0, True), (500.0, True), (500.1, False)])
    def test_subject(self, subject: Subject, began: float, over: bool) -> None:
        """The end of an id, identity or label ends the sessions that had begun by then."""
        end = SubjectEnded(subject, 500.0, TTL)

        assert (judged(end, began=began).state is State.ENDED) is over

    def test_renewal_escapes_no_end(self) -> None:
        """A renewal after an end of its identity doesn't save a session."""
        end = SubjectEnded(ANN, 500.0, TTL)

        assert judged(renewed(3, at=900.0), end, generation=3).state is State.ENDED

    @pytest.mark.parametrize(("ahead", "over"), [(FUTURE, False), (FUTURE + 0.1, True)])
    def test_from_the_future(self, ahead: float, over: bool) -> None:
        """A lineage that begins too far in the future is ended by any end, and alive without."""
        end = SubjectEnded(ANN, 1.0, TTL)

        assert (judged(end, began=NOW + ahead).state is State.ENDED) is over
        assert judged(began=NOW + ahead).alive

    def test_from_the_future_again_later(self) -> None:
        """A lineage from the future is alive again once its beginning has passed."""
        end = SubjectEnded(ANN, 1.0, TTL)

        assert judged(end, began=NOW + 60).state is State.ENDED
        assert judged(end, began=NOW + 60, now=NOW + 60).alive


class TestReplaced:
    @pytest.mark.parametrize(
        ("age", "seen", "state"),
        [
            (0.0, False, State.REPLACED),
            (GRACE - 0.1, False, State.REPLACED),
            (GRACE, False, State.ALIVE),
            (GRACE, True, State.REPLACED),
            (1e6, True, State.REPLACED),
        ],
    )
    def test_older_generation(self, age: float, seen: bool, state: State) -> None:
        """An older generation is replaced for the grace, and for good once the newest was seen."""
        found = judged(renewed(1, at=NOW - age, seen=seen))

        assert found.state is state
        assert state is State.ALIVE or found.age == pytest.approx(age)

    @pytest.mark.parametrize("age", [0.0, GRACE, 1e6])
    def test_given_after_a_later_one(self, age: float) -> None:
        """A generation older than the one that was renewed is replaced for good."""
        found = judged(renewed(5, at=NOW - age, after=3), generation=2)

        assert found == Status(State.REPLACED, math.inf)

    @pytest.mark.parametrize("generation", [5, 6])
    def test_newest(self, generation: int) -> None:
        """The newest recorded generation is alive, and so is a newer one."""
        assert judged(renewed(5, at=NOW, after=3, seen=True), generation=generation).alive

    def test_lost_response(self) -> None:
        """If the newest generation isn't seen within the grace, the one before is alive again."""
        lost = renewed(5, at=NOW - GRACE, after=4)

        assert judged(lost, generation=4).alive
        assert judged(lost, generation=3).state is State.REPLACED
