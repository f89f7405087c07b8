"""
The records of ends and renewals in memory: bounded in number, and merged in any order.

Changes are merged into records, written to Redis and to the journal, and sent to other nodes;
merging them twice or in another order gives the same result. A record is stored as a plain tuple
of atoms: the garbage collector stops tracking such a tuple when it first visits it, whereas with a
million named tuples each full collection would be a pause of a second.

Over 300 lines long since the four changes and how they merge are read together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from .._expiring import ExpiringDict
from .._lineage import Kind, Subject
from .._logging import log

__all__: list[str] = []

RECORDS: Final = 1_000_000  # ends of lineages; as many of subjects, generations and notes each
MINOR: Final = 100_000  # ends of sessions that held no data
MINOR_TTL: Final = 3600.0  # seconds that such an end is kept
LOGIN_TTL: Final = 3600.0  # seconds that a visitor's generation is kept after a log-in


class LineageEnded(NamedTuple):
    """
    A lineage has ended.

    Attributes:
        token: The token of the lineage.
        at: When it ended, by the shared clock.
        carries: Whether the response that ended it carries a session that may reconnect.
        ttl: Seconds to keep this after it was last used.
        minor: Whether its session held only our own keys and had no identity.
    """

    token: str
    at: float
    carries: bool
    ttl: float
    minor: bool = False


class LineageRenewed(NamedTuple):
    """
    A lineage was given its next generation.

    Attributes:
        token: The token of the lineage.
        generation: Its newest generation.
        after: The generation that was renewed; those before it are replaced for good.
        at: When it was renewed, by the shared clock.
        login: Whether a visitor's log-in caused it, perhaps besides a renewal.
        seen: Whether a request has arrived with it.
        ttl: Seconds to keep this after it was last used.
    """

    token: str
    generation: int
    after: int
    at: float
    login: bool
    seen: bool
    ttl: float


class SubjectEnded(NamedTuple):
    """
    The lineages of an id, an identity or a label that began no later than *at* have ended.

    Attributes:
        subject: The id, identity or label.
        at: When their end was ordered, by the shared clock.
        ttl: Seconds to keep this after it was last used.
    """

    subject: Subject
    at: float
    ttl: float


class IdNote(NamedTuple):
    """
    Which lineage an id belongs to, so that an order by id finds it.

    Attributes:
        session_ws_id: The id.
        token: The token of its lineage; of several the one that began first.
        began: When that lineage began.
        ttl: Seconds to keep this after it was last used.
    """

    session_ws_id: Hashable
    token: str
    began: float
    ttl: float


Change: TypeAlias = LineageEnded | LineageRenewed | SubjectEnded | IdNote

#: Records as they are stored, under their token, subject or id.
_End: TypeAlias = tuple[float, bool, float, bool]
_Renewal: TypeAlias = tuple[int, int, float, bool, bool, float]
_Note: TypeAlias = tuple[str, float, float]


class Records:
    """
    The ends and renewals that this process knows of.

    Args:
        limit: How many ends of lineages to keep, and as many of subjects; beyond it the least
            recently used is dropped, with a warning. Generations and notes have the same limit.
        minor: How many ends of sessions that held no data to keep.
        clock: Returns seconds of a monotonic clock, for the TTL of records.

    Attributes:
        epoch: Raised by every change that adds information.
        latest_owner_end: The time of the latest end of any identity or label.
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
        self._ended: ExpiringDict[str, _End] = kept(limit, self._count_evicted)
        self._minor: ExpiringDict[str, _End] = kept(minor)
        # By kind and value: a subject is an equal key.
        self._subjects: ExpiringDict[tuple[Kind, Hashable], float] = kept(
            limit, self._count_evicted
        )
        self._renewed: ExpiringDict[str, _Renewal] = kept(limit)
        self._notes: ExpiringDict[Hashable, _Note] = kept(limit)

    def __len__(self) -> int:
        ends = len(self._ended) + len(self._minor) + len(self._subjects)
        return ends + len(self._renewed) + len(self._notes)

    @property
    def held(self) -> int:
        """
        How many records there are, expired ones included; may be read in any thread.
        """
        kept = (self._ended, self._minor, self._subjects, self._renewed, self._notes)
        return sum(len(records.entries) for records in kept)

    def __iter__(self) -> Iterator[Change]:
        yield from self._ends()
        yield from self._ends_of_subjects()
        yield from self._renewals()
        for session_ws_id, note, _ in self._notes.items():
            yield IdNote(session_ws_id, *note)

    def _ends(self) -> Iterator[LineageEnded]:
        for store in (self._ended, self._minor):
            for token, end, _ in store.items():
                yield LineageEnded(token, *end)

    def _ends_of_subjects(self) -> Iterator[SubjectEnded]:
        for subject, before, ttl in self._subjects.items():
            yield SubjectEnded(Subject(*subject), before, ttl)

    def _renewals(self) -> Iterator[LineageRenewed]:
        for token, renewal, _ in self._renewed.items():
            yield LineageRenewed(token, *renewal)

    def may_have_lineage(self, token: str) -> bool:
        """
        Return whether a lineage may have a record.
        """
        return (
            token in self._renewed.entries
            or token in self._ended.entries
            or token in self._minor.entries
        )

    def may_concern(self, token: str) -> bool:
        """
        Return whether a record may concern a session of a lineage: its own, or one of a subject.
        """
        return bool(self._subjects.entries) or self.may_have_lineage(token)

    def has(self, change: Change) -> bool:
        """
        Return whether there is a record of what *change* is about; this doesn't restart its TTL.
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
        Return the record of a lineage: its end, else its newest generation, if there is any.
        """
        end = self._end_of(token)
        if end is not None:
            return end
        renewal = self._renewed.get(token)
        return None if renewal is None else LineageRenewed(token, *renewal)

    def _end_of(self, token: str) -> LineageEnded | None:
        end = self._ended.get(token) or self._minor.get(token)
        return None if end is None else LineageEnded(token, *end)

    def ended_before(self, subject: Subject) -> float:
        """
        Return up to which beginning the lineages of *subject* have ended; minus infinity if none.
        """
        before = self._subjects.get(subject)
        return -math.inf if before is None else before

    @property
    def has_subjects(self) -> bool:
        """
        Whether there is an end of any id, identity or label.
        """
        return bool(self._subjects.entries)

    def note_of(self, session_ws_id: Hashable) -> IdNote | None:
        """
        Return the note of the lineage that an id belongs to, if there is one.
        """
        note = self._notes.get(session_ws_id)
        return None if note is None else IdNote(session_ws_id, *note)

    def may_have_id(self, session_ws_id: Hashable) -> bool:
        """
        Return whether there may be a record of an id.
        """
        return ("id", session_ws_id) in self._subjects.entries or (
            session_ws_id in self._notes.entries
        )

    def with_note(self, session_ws_ids: Sequence[Hashable]) -> list[Hashable]:
        """
        Return those of some ids that have a note: with them a lineage may have ended.
        """
        notes = self._notes.entries
        if notes.keys().isdisjoint(session_ws_ids):
            return []
        return [value for value in session_ws_ids if value in notes]

    def newest(self, token: str) -> int:
        """
        Return the newest generation of a lineage; 0 if it was never renewed, or has ended.
        """
        record = self.lineage(token)
        return record.generation if isinstance(record, LineageRenewed) else 0

    def merge(self, change: Change) -> bool:
        """
        Merge *change* into the records; return whether that changed any.
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

    def resolve(self, time_of: Callable[[float], float]) -> list[Change]:
        """
        Replace timestamps that were taken before the clock was known; return the changed records.

        Args:
            time_of: Returns the real time of such a timestamp, and any other one as it is.
        """
        moved: list[Change] = []
        for end in self._ends():
            if (at := time_of(end.at)) != end.at:
                self._put_end(end := end._replace(at=at))
                moved.append(end)
        for renewal in self._renewals():
            if (at := time_of(renewal.at)) != renewal.at:
                self._put_renewal(renewal := renewal._replace(at=at))
                moved.append(renewal)
        latest = -math.inf
        for subject, known, ttl in self._subjects.items():
            if (before := time_of(known)) != known:
                moved.append(SubjectEnded(Subject(*subject), before, ttl))
                self._subjects.put(subject, before, ttl)
            if subject[0] != "id":
                latest = max(latest, before)
        self.latest_owner_end = latest
        self.epoch += 1
        return moved

    def end_subjects(
        self, kind: Kind, values: Sequence[Hashable], times: Sequence[float], ttl: float
    ) -> None:
        """
        Add the ends of many ids, identities or labels at once.

        Args:
            kind: Whether they are ids, identities or labels.
            values: The ids, identities or labels.
            times: Up to which beginning the lineages of each have ended.
            ttl: Seconds to keep each end after it was last used.
        """
        found: dict[tuple[Kind, Hashable], float] = dict(
            zip([(kind, value) for value in values], times, strict=True)
        )
        if len(found) < len(values) or not self._subjects.entries.keys().isdisjoint(found):
            for value, before in zip(values, times, strict=True):
                _ = self.merge(SubjectEnded(Subject(kind, value), before, ttl))
            return
        self._subjects.put_new(found, ttl)
        self.epoch += len(values)
        if kind != "id":
            self.latest_owner_end = max((self.latest_owner_end, *times))
            return
        for value in self.with_note(values):
            before = self.ended_before(Subject(kind, value))
            self._end_noted(self.note_of(value), before, ttl)

    def _merge_end(self, change: LineageEnded) -> bool:
        token = change.token
        known = self._end_of(token)
        merged = change if known is None else _merged_ends(known, change)
        if merged == known:
            return False
        self._renewed.pop(token)
        if not merged.minor:
            self._minor.pop(token)
        self._put_end(merged)
        return True

    def _put_end(self, end: LineageEnded) -> None:
        if end.minor:
            self._minor.put(end.token, end[1:], min(end.ttl, MINOR_TTL))
        else:
            self._ended.put(end.token, end[1:], end.ttl)

    def _merge_renewal(self, change: LineageRenewed) -> bool:
        known = self.lineage(change.token)
        if isinstance(known, LineageEnded):
            return False  # an end beats all renewals
        merged = change if known is None else _merged_renewals(known, change)
        if merged == known:
            return False
        self._put_renewal(merged)
        return True

    def _put_renewal(self, renewal: LineageRenewed) -> None:
        self._renewed.put(renewal.token, renewal[1:], renewal.ttl)

    def _merge_subject(self, change: SubjectEnded) -> bool:
        subject, before, ttl = change
        kind, value = subject
        known = self._subjects.get(subject)
        if known is not None and known >= before:
            return False
        self._subjects.put((kind, value), before, ttl)
        if kind != "id":
            self.latest_owner_end = max(self.latest_owner_end, before)
        elif value in self._notes.entries:
            self._end_noted(self.note_of(value), before, ttl)
        return True

    def _merge_note(self, change: IdNote) -> bool:
        known = self.note_of(change.session_ws_id)
        if known is not None and (known.began, known.token) <= (change.began, change.token):
            return False
        session_ws_id, token, began, ttl = change
        self._notes.put(session_ws_id, (token, began, ttl), ttl)
        end = self._subjects.entries.get(("id", session_ws_id))
        if end is not None:
            self._end_noted(change, self.ended_before(Subject("id", session_ws_id)), end[1])
        return True

    def _end_noted(self, note: IdNote | None, before: float, ttl: float) -> None:
        """
        End the lineage noted for an id that has ended, whichever of the two records came first.
        """
        if note is not None and note.began <= before:
            self.merge(LineageEnded(note.token, before, carries=False, ttl=ttl))

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
        known.login or change.login,
        known.seen or change.seen,
        max(known.ttl, change.ttl),
    )
