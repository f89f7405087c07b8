"""
The status of a session (alive, replaced or ended), decided here for all other modules.
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

#: Seconds that a beginning may lie in the future, since the clock of another server is ahead.
FUTURE: Final = 5.0
#: Seconds after an end in which another response may be on its way with the right cookie.
SETTLED: Final = 10.0


class State(enum.Enum):
    """
    Whether a session is alive, replaced by a newer generation, or ended.
    """

    ALIVE = "alive"
    REPLACED = "replaced"
    ENDED = "ended"


class Status(NamedTuple):
    """
    The state of a session, and since when.

    Attributes:
        state: Alive, replaced by a newer generation, or ended.
        age: Seconds since it was replaced or ended; infinite if it was replaced for good.
        carries: Whether the response that ended it carries a session that may reconnect.
    """

    state: State
    age: float
    carries: bool = False

    @property
    def alive(self) -> bool:
        """
        Whether the session is alive.
        """
        return self.state is State.ALIVE


ALIVE: Final = Status(State.ALIVE, 0.0)


def effective_began(lineage: Lineage, now: float) -> float:
    """
    Return when a lineage began; 0 if it claims to begin in the future: then any end concerns it.
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
    Return the status of a session by the records.

    Args:
        records: The records that this process knows of.
        lineage: The lineage and generation of the session.
        subjects: Its id, and its identity and labels as far as they are known.
        clock: The shared clock.
        grace: Seconds in which an older generation counts as replaced though no request has
            arrived with the newer one yet.
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
