"""
The records of what has ended or was renewed: bounded, and merged in any order.

A record is the change that made it. The same tuples are kept here, written to Redis and to the
journal, and sent to other nodes; merging them twice or in another order gives the same.

Over 300 lines long since the four changes and how they merge are read together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .._expiring import ExpiringDict
from .._lineage import Subject
from .._logging import log

__all__: list[str] = []

RECORDS: Final = 1_000_000  # ends; and as many generations and notes
MINOR: Final = 100_000  # ends of sessions that held nothing
MINOR_TTL: Final = 3600.0  # seconds that such an end is kept
LOGIN_TTL: Final = 3600.0  # seconds that a visitor's generation is kept after a log-in

Cause: TypeAlias = Literal["renewal", "login"]


class LineageEnded(NamedTuple):
    """
    A lineage is over.

    Attributes:
        token: Which one.
        at: When it ended, by the one clock.
        carries: Whether the response that ended it carries a session that may reconnect.
        ttl: Seconds to keep this after it was last met.
        minor: Whether it held nothing but our own keys and belonged to nobody.
    """

    token: str
    at: float
    carries: bool
    ttl: float
    minor: bool = False

    def moved_to(self, at: float) -> LineageEnded:
        """
        Return the same with another time.
        """
        return self._replace(at=at)

    def as_major(self) -> LineageEnded:
        """
        Return the same of a session that belonged to somebody.
        """
        return self._replace(minor=False)


class LineageRenewed(NamedTuple):
    """
    A lineage was given its next generation.

    Attributes:
        token: Which one.
        generation: The newest.
        after: To which one it was given; what is older is replaced for good.
        at: When, by the one clock.
        by: A renewal, a visitor's log-in, or both at once.
        seen: Whether a request has come with it.
        ttl: Seconds to keep this after it was last met.
    """

    token: str
    generation: int
    after: int
    at: float
    by: frozenset[Cause]
    seen: bool
    ttl: float

    def moved_to(self, at: float) -> LineageRenewed:
        """
        Return the same with another time.
        """
        return self._replace(at=at)

    def as_seen(self) -> LineageRenewed:
        """
        Return the same once a request has come with it.
        """
        return self._replace(seen=True)


class SubjectEnded(NamedTuple):
    """
    What belongs to an id, an identity or a label and began no later than *before* is over.

    Attributes:
        subject: Whose sessions.
        before: The time of the order, by the one clock.
        ttl: Seconds to keep this after it was last met.
    """

    subject: Subject
    before: float
    ttl: float

    def moved_to(self, before: float) -> SubjectEnded:
        """
        Return the same with another time.
        """
        return self._replace(before=before)


class IdNote(NamedTuple):
    """
    Which lineage an id belongs to, so that an order by id finds it.

    Attributes:
        session_ws_id: The id.
        token: The lineage; of several the one that began first.
        began: When that began.
        ttl: Seconds to keep this after it was last met.
    """

    session_ws_id: Hashable
    token: str
    began: float
    ttl: float


Change: TypeAlias = LineageEnded | LineageRenewed | SubjectEnded | IdNote


class Records:
    """
    What this process knows of ends and renewals.

    Args:
        limit: How many ends to keep; beyond it the one not met for longest goes, with a
            warning. Generations and notes have as much room of their own.
        minor: How many ends of sessions that held nothing.
        clock: Seconds that never go back, for the time that a record is kept.

    Attributes:
        epoch: Raised by every change that says something new.
        latest_owner_end: The latest end of any identity or label.
    """

    def __init__(
        self,
        *,
        limit: int = RECORDS,
        minor: int = MINOR,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def kept(most: int, on_evict: Callable[[], None] | None = None) -> ExpiringDict[Any, Any]:
            return ExpiringDict(most, math.inf, clock=clock, on_evict=on_evict)

        self.epoch = 0
        self.latest_owner_end = -math.inf
        self._limit = limit
        self._evicted = 0
        self._ended: ExpiringDict[str, LineageEnded] = kept(limit, self._count_evicted)
        self._minor: ExpiringDict[str, LineageEnded] = kept(minor)
        self._subjects: ExpiringDict[Subject, SubjectEnded] = kept(limit, self._count_evicted)
        self._renewed: ExpiringDict[str, LineageRenewed] = kept(limit)
        self._notes: ExpiringDict[Hashable, IdNote] = kept(limit)

    def __len__(self) -> int:
        ends = len(self._ended) + len(self._minor) + len(self._subjects)
        return ends + len(self._renewed) + len(self._notes)

    @property
    def held(self) -> int:
        """
        How many there are, expired ones among them; may be asked in any thread.
        """
        kept = (self._ended, self._minor, self._subjects, self._renewed, self._notes)
        return sum(len(records.entries) for records in kept)

    def __iter__(self) -> Iterator[Change]:
        yield from self._ended.values()
        yield from self._minor.values()
        yield from self._subjects.values()
        yield from self._renewed.values()
        yield from self._notes.values()

    def knows(self, token: str) -> bool:
        """
        Tell whether a lineage may have a record.
        """
        return (
            token in self._renewed.entries
            or token in self._ended.entries
            or token in self._minor.entries
        )

    def has(self, change: Change) -> bool:
        """
        Tell whether there is a record of what *change* is about; its time goes on.
        """
        match change:
            case LineageEnded(token):
                return token in self._ended or token in self._minor
            case LineageRenewed(token):
                return token in self._renewed
            case SubjectEnded(subject):
                return subject in self._subjects
            case IdNote(session_ws_id):
                return session_ws_id in self._notes

    def lineage(self, token: str) -> LineageEnded | LineageRenewed | None:
        """
        Return what is known of a lineage: its end, else its newest generation.
        """
        return self._ended.get(token) or self._minor.get(token) or self._renewed.get(token)

    def ended_before(self, subject: Subject) -> float:
        """
        Return up to which beginning the lineages of *subject* have ended, else minus infinity.
        """
        record = self._subjects.get(subject)
        return -math.inf if record is None else record.before

    @property
    def has_subjects(self) -> bool:
        """
        Whether an id, an identity or a label was ended at all.
        """
        return bool(self._subjects.entries)

    def note_of(self, session_ws_id: Hashable) -> IdNote | None:
        """
        Return which lineage an id was noted for.
        """
        return self._notes.get(session_ws_id)

    def newest(self, token: str) -> int:
        """
        Return the newest generation of a lineage; 0 if it was never renewed, or has ended.
        """
        record = self.lineage(token)
        return record.generation if isinstance(record, LineageRenewed) else 0

    def merge(self, change: Change) -> bool:
        """
        Add what *change* says; tell whether that was news.
        """
        match change:
            case LineageEnded():
                news = self._merge_end(change)
            case LineageRenewed():
                news = self._merge_renewal(change)
            case SubjectEnded():
                news = self._merge_subject(change)
            case IdNote():
                news = self._merge_note(change)
        self.epoch += news
        return news

    def resolve(self, time_of: Callable[[float], float]) -> None:
        """
        Give the records their time that were made before the clock was known.

        Args:
            time_of: Returns the time of what was taken for one.
        """
        for store in (self._ended, self._minor):
            for end in store.values():
                if (at := time_of(end.at)) != end.at:
                    store.put(end.token, end.moved_to(at), end.ttl)
        for renewal in self._renewed.values():
            if (at := time_of(renewal.at)) != renewal.at:
                self._renewed.put(renewal.token, renewal.moved_to(at), renewal.ttl)
        for record in self._subjects.values():
            if (before := time_of(record.before)) != record.before:
                self._subjects.put(record.subject, record.moved_to(before), record.ttl)
        owners = [r.before for r in self._subjects.values() if r.subject.kind != "id"]
        self.latest_owner_end = max(owners, default=-math.inf)
        self.epoch += 1

    def _merge_end(self, change: LineageEnded) -> bool:
        token = change.token
        known = self._ended.get(token) or self._minor.get(token)
        merged = change if known is None else _merged_ends(known, change)
        if merged == known:
            return False
        self._renewed.pop(token)
        if merged.minor:
            self._minor.put(token, merged, min(merged.ttl, MINOR_TTL))
        else:
            self._minor.pop(token)
            self._ended.put(token, merged, merged.ttl)
        return True

    def _merge_renewal(self, change: LineageRenewed) -> bool:
        known = self.lineage(change.token)
        if isinstance(known, LineageEnded):
            return False  # ended beats all
        merged = change if known is None else _merged_renewals(known, change)
        if merged == known:
            return False
        self._renewed.put(change.token, merged, merged.ttl)
        return True

    def _merge_subject(self, change: SubjectEnded) -> bool:
        subject = change.subject
        known = self._subjects.get(subject)
        if known is not None and known.before >= change.before:
            return False
        self._subjects.put(subject, change, change.ttl)
        if subject.kind == "id":
            self._end_noted(self.note_of(subject.value), change)
        else:
            self.latest_owner_end = max(self.latest_owner_end, change.before)
        return True

    def _merge_note(self, change: IdNote) -> bool:
        known = self._notes.get(change.session_ws_id)
        if known is not None and (known.began, known.token) <= (change.began, change.token):
            return False
        self._notes.put(change.session_ws_id, change, change.ttl)
        self._end_noted(change, self._subjects.get(Subject("id", change.session_ws_id)))
        return True

    def _end_noted(self, note: IdNote | None, end: SubjectEnded | None) -> None:
        """
        End the lineage that an ended id was noted for, whichever of the two came first.
        """
        if note is not None and end is not None and note.began <= end.before:
            self.merge(LineageEnded(note.token, end.before, carries=False, ttl=end.ttl))

    def _count_evicted(self) -> None:
        if self._evicted % 10_000 == 0:
            log.warning(
                "more than %d ended sessions are remembered; the oldest records are dropped, and"
                " a stale cookie of one of them could be used again",
                self._limit,
            )
        self._evicted += 1


def _merged_ends(known: LineageEnded, change: LineageEnded) -> LineageEnded:
    return LineageEnded(
        known.token,
        max(known.at, change.at),
        carries=known.carries or change.carries,
        ttl=max(known.ttl, change.ttl),
        minor=known.minor and change.minor,
    )


def _merged_renewals(known: LineageRenewed, change: LineageRenewed) -> LineageRenewed:
    if known.generation != change.generation:
        return max(known, change, key=lambda record: record.generation)
    return LineageRenewed(
        known.token,
        known.generation,
        max(known.after, change.after),
        max(known.at, change.at),
        known.by | change.by,
        known.seen or change.seen,
        max(known.ttl, change.ttl),
    )
