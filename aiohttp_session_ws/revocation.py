"""
Which session ws ids are dead, and which were told to come back, in this process's memory.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

__all__ = ["Expiry"]

log = logging.getLogger("aiohttp_session_ws")

#: The longest handshake that is believed, in seconds: orders are remembered so long.
HANDSHAKE_LIMIT: Final = 60.0


class Kind(enum.Enum):
    """
    Why an id is dead.
    """

    ENDED = "ended"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Expiry:
    """
    How long things live.

    Args:
        revocation_ttl: Seconds to remember a dead id, since it was last met, if the
            session storage has no ``max_age``. With one, it is that plus an hour.
    """

    revocation_ttl: float = 30 * 24 * 3600.0

    def __post_init__(self) -> None:
        if self.revocation_ttl <= 0:
            raise ValueError("revocation_ttl is a number of seconds > 0")

    def ttl(self, max_age: int | None) -> float:
        """
        Return how long an id of a session that lives *max_age* seconds stays revoked.
        """
        return self.revocation_ttl if max_age is None else max_age + 3600.0


@dataclass(slots=True, eq=False)
class Family:
    """
    The ids that one session has had, one after another or, in parallel requests, at once.

    Attributes:
        ids: The ids.
        dead: How many of them have a record.
    """

    ids: set[Hashable]
    dead: int = 0


@dataclass(slots=True, eq=False)
class Revocation:
    """
    The record that an id is dead.

    Attributes:
        session_ws_id: Which.
        kind: Ended for good, or moved to another id.
        at: When, by the clock of the registry.
        ttl: For how many seconds after it was last met it is kept.
        expires: When it is forgotten.
    """

    session_ws_id: Hashable
    kind: Kind
    at: float
    ttl: float
    expires: float


def _digest(session_ws_id: Hashable) -> Hashable:
    """
    Return what stands for the id: of a fixed size, and equal where ids are equal.
    """
    if isinstance(session_ws_id, str):
        data = session_ws_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=16).digest()
    return (session_ws_id,)


class Revocations:
    """
    The records, bounded in number and in time.

    Args:
        limit: How many to keep; beyond that the one not met for longest goes, with a
            warning.
        clock: Seconds that never go back.
    """

    def __init__(
        self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._evicted = 0
        self._families: dict[Hashable, Family] = {}
        self.ends = 0  # how many times something was ended
        self._records: dict[Hashable, Revocation] = {}  # the one not met for longest first

    def __len__(self) -> int:
        return len(self._records)

    def get(self, session_ws_id: Hashable) -> Revocation | None:
        """
        Return the record of a dead id and restart its time; ``None`` for a live one.
        """
        if not self._records:
            return None
        key = _digest(session_ws_id)
        record = self._records.get(key)
        if record is None:
            return None
        now = self._clock()
        if record.expires <= now:
            self._forget(key)
            return None
        record.expires = now + record.ttl
        del self._records[key]
        self._records[key] = record
        return record

    def age(self, record: Revocation) -> float:
        """
        Return how many seconds ago the id died.
        """
        return self._clock() - record.at

    def end(self, session_ws_id: Hashable, ttl: float) -> list[Hashable]:
        """
        Record that an id has ended, and with it every id that its session ever had.

        Returns:
            All of these ids.
        """
        self.ends += 1
        self.get(session_ws_id)  # or an old record would bring an old family
        family = self._families.get(_digest(session_ws_id))
        ids = [session_ws_id] if family is None else list(family.ids)
        for member in ids:
            self._record(member, Kind.ENDED, ttl)
        return ids

    def move(self, session_ws_id: Hashable, successor: Hashable, ttl: float) -> None:
        """
        Record that an id was given up for *successor*.

        Ended beats moved: if the id has ended meanwhile, the successor ends with it.
        """
        record = self._record(session_ws_id, Kind.MOVED, ttl)
        key, heir = _digest(session_ws_id), _digest(successor)
        family = self._families.setdefault(key, Family({session_ws_id}, dead=1))
        known = self._families.setdefault(heir, family)
        if known is not family:  # an id that is not made for one session only
            family.ids |= known.ids
            family.dead += known.dead
            self._families.update({_digest(member): family for member in known.ids})
        elif successor not in family.ids:
            family.ids.add(successor)
            family.dead += heir in self._records
        if record.kind is Kind.ENDED:
            self.end(successor, ttl)

    def lift(self, session_ws_id: Hashable) -> bool:
        """
        Forget that an id is dead; tell whether it was.
        """
        return self._forget(_digest(session_ws_id))

    def _record(self, session_ws_id: Hashable, kind: Kind, ttl: float) -> Revocation:
        now = self._clock()
        key = _digest(session_ws_id)
        record = self._records.get(key)
        if record is not None and record.expires <= now:
            self._forget(key)
            record = None
        if record is None:
            if (family := self._families.get(key)) is not None:
                family.dead += 1
            record = Revocation(session_ws_id, kind, now, ttl, now + ttl)
        elif kind is Kind.ENDED and record.kind is Kind.MOVED:
            record.kind, record.at = kind, now
        record.ttl = max(record.ttl, ttl)
        record.expires = max(record.expires, now + ttl)
        self._records.pop(key, None)
        self._records[key] = record
        self._prune(now)
        return record

    def _forget(self, key: Hashable) -> bool:
        """
        Forget a record, and its family with the last one.
        """
        record = self._records.pop(key, None)
        if record is None:
            return False
        family = self._families.pop(key, None)
        if family is not None:
            family.ids.discard(record.session_ws_id)
            family.dead -= 1
            if not family.dead:
                for member in family.ids:
                    self._families.pop(_digest(member), None)
        return True

    def _prune(self, now: float) -> None:
        while self._records:
            key = next(iter(self._records))
            if self._records[key].expires > now:
                if len(self._records) <= self._limit:
                    return
                if self._evicted % 10_000 == 0:
                    log.warning(
                        "more than %d dead session ids are remembered; the oldest are being"
                        " forgotten, and a stale cookie could use them again",
                        self._limit,
                    )
                self._evicted += 1
            self._forget(key)


class CloseOrders:
    """
    When each id was last ordered to close, for the handshakes that began before.

    A handshake that is in the index is told of an order directly. This memory is for
    one that is still loading its session, so that nobody knows its id yet.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, float] = {}  # the oldest first
        self._held: set[Hashable] = set()
        self._all = -math.inf

    def hold(self, session_ws_id: Hashable) -> None:
        """
        Let every handshake of an id miss an order, until one is noted.
        """
        self._held.add(session_ws_id)

    def note(self, session_ws_id: Hashable, now: float) -> None:
        """
        Note an order that is given at *now*.
        """
        self._held.discard(session_ws_id)
        self._last.pop(session_ws_id, None)
        self._last[session_ws_id] = now
        while (first := next(iter(self._last))) is not session_ws_id:
            if self._last[first] > now - HANDSHAKE_LIMIT:
                return
            del self._last[first]

    def note_all(self, now: float) -> None:
        """
        Note an order to all ids.
        """
        self._all = now

    def concern(self, session_ws_id: Hashable, started: float, now: float) -> bool:
        """
        Tell whether a handshake that began at *started* may have missed an order.
        """
        last = max(self._last.get(session_ws_id, -math.inf), self._all)
        return last >= started or session_ws_id in self._held or now - started >= HANDSHAKE_LIMIT
