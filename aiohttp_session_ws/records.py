"""
Records that are kept for some time, bounded in number.
"""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["fingerprint"]

log = logging.getLogger("aiohttp_session_ws")


@dataclass(slots=True, eq=False)
class Record:
    """
    What is known of a subject.

    Attributes:
        at: When it was made, by the clock of the records.
        ttl: For how many seconds after it was last met it is kept.
        expires: When it is forgotten.
    """

    at: float
    ttl: float
    expires: float


R = TypeVar("R", bound=Record)


def fingerprint(subject: Hashable) -> str:
    """
    Return what an id or an identity is called in logs: the same for the same.

    It doesn't tell the id. Of an identity that is easy to guess it can be found out.
    """
    return hashlib.blake2b(repr(subject).encode("utf-8", "replace"), digest_size=6).hexdigest()


def blame(exc: BaseException) -> str:
    """
    Return what may be logged of an application's or a storage's error.

    Not what it says, which may be a session's key.
    """
    frame, line = [*traceback.walk_tb(exc.__traceback__)][-1]
    return f"{type(exc).__name__} at {frame.f_code.co_filename}:{line}"


class Records(Generic[R]):
    """
    Records by their subject.

    Args:
        limit: How many to keep; beyond that the one not met for longest goes, with a
            warning.
        clock: Seconds that never go back.
    """

    what = "records"  # for the warning

    def __init__(
        self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._evicted = 0
        # The one not met for longest first. A dict would look for its first item through the
        # places of all that were deleted before it.
        self._records: OrderedDict[Hashable, R] = OrderedDict()

    def __len__(self) -> int:
        if self._records:
            self._prune(self._clock())
        return len(self._records)

    def get(self, subject: Hashable) -> R | None:
        """
        Return the record of *subject*, if there is one, and restart its time.
        """
        record = self._records.get(subject)
        if record is None:
            return None
        now = self._clock()
        if record.expires <= now:
            self._forget(subject)
            return None
        record.expires = now + record.ttl
        self._records.move_to_end(subject)
        return record

    def age(self, record: R) -> float:
        """
        Return how many seconds ago *record* was made.
        """
        return self._clock() - record.at

    def _put(self, subject: Hashable, record: R, now: float) -> None:
        self._records[subject] = record
        self._records.move_to_end(subject)
        self._prune(now)

    def _forget(self, subject: Hashable) -> bool:
        """
        Forget a record; tell whether there was one.
        """
        return self._records.pop(subject, None) is not None

    def _prune(self, now: float) -> None:
        while self._records:
            subject = next(iter(self._records))
            if self._records[subject].expires > now:
                if len(self._records) <= self._limit:
                    return
                if self._evicted % 10_000 == 0:
                    log.warning(
                        "more than %d %s are remembered; the oldest are being forgotten, and"
                        " a stale cookie could be used again",
                        self._limit,
                        self.what,
                    )
                self._evicted += 1
            self._forget(subject)
