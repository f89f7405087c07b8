"""
A dictionary whose entries expire, bounded in number.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

__all__: list[str] = []

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ExpiringDict(Generic[K, V]):
    """
    A bounded dictionary whose entries live for a time after they were last met.

    Args:
        limit: The largest number of entries; beyond it the one not met for longest goes.
        ttl: Seconds an entry lives unless :meth:`put` says otherwise.
        clock: Seconds that never go back.
        on_evict: Called when a living entry had to go because there were too many.
    """

    __slots__ = ("_clock", "_entries", "_limit", "_on_evict", "_ttl")

    def __init__(
        self,
        limit: int,
        ttl: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_evict: Callable[[], None] | None = None,
    ) -> None:
        self._limit = limit
        self._ttl = ttl
        self._clock = clock
        self._on_evict = on_evict
        # The one not met for longest first. A plain dict would look for its first item through
        # the places of all that were deleted before it.
        self._entries: OrderedDict[K, tuple[V, float, float]] = OrderedDict()  # value, ttl, end

    def __len__(self) -> int:
        if self._entries:
            self._prune(self._clock())
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return self.peek(key) is not None

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._entries))

    def values(self) -> Iterator[V]:
        """
        Return the values, the one not met for longest first; expired ones may be among them.
        """
        return (value for value, _, _ in tuple(self._entries.values()))

    def get(self, key: K) -> V | None:
        """
        Return the value of *key*, and restart its time.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, ttl, end = entry
        now = self._clock()
        if end <= now:
            del self._entries[key]
            return None
        if end - now < 0.99 * ttl:  # or each request of a busy session would move it
            self._entries[key] = value, ttl, now + ttl
            self._entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """
        Return the value of *key*, without restarting its time.
        """
        entry = self._entries.get(key)
        return None if entry is None or entry[2] <= self._clock() else entry[0]

    def put(self, key: K, value: V, ttl: float | None = None) -> None:
        """
        Set the value of *key* and restart its time, *ttl* seconds.
        """
        now = self._clock()
        ttl = self._ttl if ttl is None else ttl
        self._entries[key] = value, ttl, now + ttl
        self._entries.move_to_end(key)
        self._prune(now)

    def pop(self, key: K) -> V | None:
        """
        Remove *key* and return its value.
        """
        entry = self._entries.pop(key, None)
        return None if entry is None else entry[0]

    def clear(self) -> None:
        """
        Remove everything.
        """
        self._entries.clear()

    def _prune(self, now: float) -> None:
        """
        Remove what has expired, as far as it stands in front, and what is too much.
        """
        entries = self._entries
        while entries:
            key = next(iter(entries))
            if entries[key][2] > now:
                if len(entries) <= self._limit:
                    return
                if self._on_evict is not None:
                    self._on_evict()
            del entries[key]
