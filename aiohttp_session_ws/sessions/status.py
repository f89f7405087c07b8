"""
The one answer to "is this session over?", for everybody who asks.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from .._lineage import Lineage, Subject
from .clock import Clock
from .records import LineageEnded, Records

__all__: list[str] = []

#: Seconds that a beginning may lie in the future, by the clock of another server.
FUTURE: Final = 5.0
#: Seconds after an end in which another response may be on its way with the right cookie.
SETTLED: Final = 10.0


class State(enum.Enum):
    """
    What became of a session.
    """

    ALIVE = "alive"
    REPLACED = "replaced"
    ENDED = "ended"


class Status(NamedTuple):
    """
    What became of a session, and since when.

    Attributes:
        state: Alive, replaced by a newer generation, or ended.
        age: Seconds since then; infinite if it was replaced for good.
        carries: Whether the response that ended it carries a session that may reconnect.
    """

    state: State
    age: float
    carries: bool = False

    @property
    def alive(self) -> bool:
        """
        Whether it is alive.
        """
        return self.state is State.ALIVE


ALIVE: Final = Status(State.ALIVE, 0.0)


def effective_began(lineage: Lineage, now: float) -> float:
    """
    Return when a lineage began, 0 if it claims to begin in the future: any end concerns it.
    """
    return lineage.began if lineage.began <= now + FUTURE else 0.0


def status(
    records: Records,
    lineage: Lineage,
    subjects: Iterable[Subject],
    clock: Clock,
    grace: float,
) -> Status:
    """
    Judge a session by what is known.

    Args:
        records: What is known.
        lineage: Of which lineage and generation the session is.
        subjects: Its id, and its identity and labels as far as they are known.
        clock: The one clock.
        grace: Seconds in which an older generation is replaced though nobody has come with
            the newer one yet.
    """
    record = records.lineage(lineage.token)
    if isinstance(record, LineageEnded):
        return Status(State.ENDED, clock.age(record.at), record.carries)
    if records.has_subjects:
        began = effective_began(lineage, clock.now())
        for subject in subjects:
            before = records.ended_before(subject)
            if before >= began:
                return Status(State.ENDED, clock.age(before))
    if record is None or lineage.generation >= record.generation:
        return ALIVE
    if lineage.generation < record.after:
        return Status(State.REPLACED, math.inf)
    age = clock.age(record.at)
    return Status(State.REPLACED, age) if record.seen or age < grace else ALIVE
