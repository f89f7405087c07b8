"""
Which session ws ids are dead, and which were told to come back, in this process's memory.
"""

from __future__ import annotations

import enum
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from .records import Record, Records

__all__ = ["Expiry"]

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
        revalidate_every: Seconds, give or take a fifth, between two looks whether the
            session of an open socket is still in its storage and still belongs to the
            same identity; ``None`` to look only when the session's time is over.
        max_lifetime: Seconds after which a socket is closed, whatever its session does;
            ``None`` for no limit.
        revocation_ttl: Seconds to remember a dead id, since it was last met, if the
            session storage has no ``max_age``. With one, it is that plus an hour.

    Raises:
        ValueError: If one of them is not a number of seconds > 0.
    """

    revalidate_every: float | None = 300.0
    max_lifetime: float | None = None
    revocation_ttl: float = 30 * 24 * 3600.0

    def __post_init__(self) -> None:
        for name in ("revalidate_every", "max_lifetime", "revocation_ttl"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name} is a number of seconds > 0, not {seconds!r}")

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
class Revocation(Record):
    """
    The record that an id is dead.

    Attributes:
        kind: Ended for good, or moved to another id.
    """

    kind: Kind


class Revocations(Records[Revocation]):
    """
    The records of dead ids, bounded in number and in time.

    Args:
        limit: How many to keep.
        clock: Seconds that never go back.
    """

    what = "dead session ids"

    def __init__(
        self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(limit=limit, clock=clock)
        self._families: dict[Hashable, Family] = {}
        self.ends = 0  # how many times something was ended

    def family(self, session_ws_id: Hashable) -> set[Hashable]:
        """
        Return all ids that the session of an id is known to have had.
        """
        self.get(session_ws_id)  # or an old record would bring an old family
        family = self._families.get(session_ws_id)
        return {session_ws_id} if family is None else set(family.ids)

    def end(self, session_ws_id: Hashable, ttl: float, age: float = 0.0) -> list[Hashable]:
        """
        Record that an id has ended, and with it every id that its session ever had.

        Args:
            session_ws_id: The id.
            ttl: For how many seconds it is remembered after it was last met.
            age: How many seconds ago it ended.

        Returns:
            All of these ids.
        """
        self.ends += 1
        ids = list(self.family(session_ws_id))
        for member in ids:
            self._record(member, Kind.ENDED, ttl, age)
        return ids

    def move(
        self, session_ws_id: Hashable, successor: Hashable, ttl: float, age: float = 0.0
    ) -> None:
        """
        Record that an id was given up for *successor*, *age* seconds ago.

        Ended beats moved: if the one has ended meanwhile, the other ends with it.
        """
        record = self._record(session_ws_id, Kind.MOVED, ttl, age)
        family = self._families.setdefault(session_ws_id, Family({session_ws_id}, dead=1))
        known = self._families.setdefault(successor, family)
        if known is not family:  # an id that is not made for one session only
            family.ids |= known.ids
            family.dead += known.dead
            self._families.update(dict.fromkeys(known.ids, family))
        elif successor not in family.ids:
            family.ids.add(successor)
            family.dead += successor in self._records
        if record.kind is Kind.ENDED or self.has_ended(successor):
            self.end(successor, ttl, age)

    def has_ended(self, session_ws_id: Hashable) -> bool:
        """
        Tell whether an id has ended.
        """
        record = self.get(session_ws_id)
        return record is not None and record.kind is Kind.ENDED

    def lift(self, session_ws_id: Hashable) -> bool:
        """
        Forget that an id is dead; tell whether it was.
        """
        return self._forget(session_ws_id)

    def _record(self, session_ws_id: Hashable, kind: Kind, ttl: float, age: float) -> Revocation:
        now = self._clock()
        record = self._records.get(session_ws_id)
        if record is not None and record.expires <= now:
            self._forget(session_ws_id)
            record = None
        if record is None:
            if (family := self._families.get(session_ws_id)) is not None:
                family.dead += 1
            record = Revocation(now - age, ttl, now + ttl, kind)
        elif kind is Kind.ENDED and record.kind is Kind.MOVED:
            record.kind, record.at = kind, now - age
        record.ttl = max(record.ttl, ttl)
        record.expires = max(record.expires, now + ttl)
        self._put(session_ws_id, record, now)
        return record

    def _forget(self, subject: Hashable) -> bool:
        """
        Forget a record, and its family with the last one.
        """
        if not super()._forget(subject):
            return False
        family = self._families.pop(subject, None)
        if family is not None:
            family.ids.discard(subject)
            family.dead -= 1
            if not family.dead:
                for member in family.ids:
                    self._families.pop(member, None)
        return True


class CloseOrders:
    """
    When each id was last ordered to close, for the handshakes that began before.

    A handshake that is in the index is told of an order directly. This memory is for
    one that is still loading its session, so that nobody knows its id yet.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[Hashable, float] = OrderedDict()  # the oldest first
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
        self._last[session_ws_id] = now
        self._last.move_to_end(session_ws_id)
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
