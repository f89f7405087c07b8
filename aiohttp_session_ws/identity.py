"""
Which identities were logged out everywhere, and when.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

from .exceptions import InvalidIdentity
from .records import Record, Records

__all__: list[str] = []


@dataclass(slots=True, eq=False)
class EndedIdentity(Record):
    """
    The record that the sessions of an identity have ended.

    Attributes:
        before: A session ends if its id was minted before, in seconds since the epoch.
        left_out: The ids of the session that lives on.
        number: The how-manieth end this process has seen.
    """

    before: float
    left_out: Collection[Hashable]
    number: int

    def ends(self, minted: object, now: float) -> bool:
        """
        Tell whether a session of this identity has ended.

        Args:
            minted: When its id was minted; anything but a number is not known, and what is
                still to come is by a clock that was wrong.
            now: The time at the latest.
        """
        return isinstance(minted, (int, float)) and not self.before < minted <= now  # nor a NaN


class EndedIdentities(Records[EndedIdentity]):
    """
    The records of identities, bounded in number and in time.

    Args:
        limit: How many to keep.
        clock: Seconds that never go back.
        wall: Seconds since the epoch.
        latest: The same; the later one, if it isn't known exactly.
    """

    what = "ended identities"

    def __init__(
        self,
        *,
        limit: int = 1_000_000,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        latest: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(limit=limit, clock=clock)
        self._wall = wall
        self._latest = wall if latest is None else latest
        self._last = -math.inf

    def end(
        self,
        identity: Hashable,
        left_out: Collection[Hashable],
        ttl: float,
        number: int,
        before: float,
    ) -> None:
        """
        Record that the sessions of *identity* have ended whose id was minted *before*, but
        that with an id *left_out*.

        An older end than that which is known changes nothing.
        """
        now = self._clock()
        self._last = max(self._last, before)
        known = self.get(identity)
        if known is None or known.before < before:
            at = now - max(0.0, self._wall() - before)
            record = EndedIdentity(at, ttl, now + ttl, before, left_out, number)
            self._put(identity, record, now)

    def now(self) -> float:
        """
        Return the time for an end that is ordered now: after all ids minted so far.
        """
        return max(self._latest(), self.time())

    def time(self) -> float:
        """
        Return the time for an id that is minted now: after all that has ended so far.

        The wall clock may have been set back.
        """
        return max(self._wall(), math.nextafter(self._last, math.inf))


def usable_identity(identity: Hashable) -> Hashable:
    """
    Return *identity* if it is one.

    Raises:
        InvalidIdentity: If it is ``None`` or can't be the key of a dictionary.
    """
    try:
        hash(identity)
    except TypeError:
        msg = "an identity must be hashable: let identify return a str, an int or a tuple of such"
        raise InvalidIdentity(msg) from None
    if identity is None:
        raise InvalidIdentity("None is no identity: it stands for a session of nobody")
    return identity
