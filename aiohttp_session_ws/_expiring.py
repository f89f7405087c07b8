"""
A dictionary with a time to live for each entry and a bounded number of entries.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

__all__: list[str] = []

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ExpiringDict(Generic[K, V]):
    """
    A bounded dictionary whose entries expire some time after they were last used.

    Args:
        limit: The largest number of entries; beyond it the least recently used one is evicted.
        ttl: Seconds an entry lives, unless :meth:`put` is given another time.
        clock: Returns seconds that never go back.
        on_evict: Called when an entry is evicted before it has expired.

    Attributes:
        entries: By key the value, its time to live, and its expiry time by the clock; may
            contain expired entries. For quick tests whether a key may be present.
    """

    __slots__ = ("_clock", "_limit", "_on_evict", "_ttl", "entries")

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
        # Least recently used first. To find its first item, a plain dict would scan the slots of
        # all items that were deleted before it.
        self.entries: OrderedDict[K, tuple[V, float, float]] = OrderedDict()  # value, ttl, end

    def __len__(self) -> int:
        if self.entries:
            self._prune(self._clock())
        return len(self.entries)

    def __contains__(self, key: K) -> bool:
        return self.peek(key) is not None

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self.entries))

    def items(self) -> Iterator[tuple[K, V, float]]:
        """
        Return each key with its value and its time to live in seconds, the least recently used
        first; may contain expired entries.
        """
        return ((key, value, ttl) for key, (value, ttl, _) in tuple(self.entries.items()))

    def get(self, key: K) -> V | None:
        """
        Return the value of *key*, and restart its time to live.
        """
        entry = self.entries.get(key)
        if entry is None:
            return None
        value, ttl, end = entry
        now = self._clock()
        if end <= now:
            del self.entries[key]
            return None
        if end - now < 0.99 * ttl:  # else each request of a busy session would move it
            self.entries[key] = value, ttl, now + ttl
            self.entries.move_to_end(key)
        return value

    def peek(self, key: K) -> V | None:
        """
        Return the value of *key*, without restarting its time to live.
        """
        entry = self.entries.get(key)
        return None if entry is None or entry[2] <= self._clock() else entry[0]

    def put(self, key: K, value: V, ttl: float | None = None) -> None:
        """
        Set the value of *key*, and restart its time to live, *ttl* seconds.
        """
        now = self._clock()
        ttl = self._ttl if ttl is None else ttl
        self.entries[key] = value, ttl, now + ttl
        self.entries.move_to_end(key)
        self._prune(now)

    def put_new(self, values: Mapping[K, V], ttl: float) -> None:
        """
        Set the values of many keys that are not present, to live *ttl* seconds.
        """
        now = self._clock()
        end = now + ttl
        self.entries.update([(key, (value, ttl, end)) for key, value in values.items()])
        self._prune(now)

    def pop(self, key: K) -> V | None:
        """
        Remove *key* and return its value.
        """
        entry = self.entries.pop(key, None)
        return None if entry is None else entry[0]

    def _prune(self, now: float) -> None:
        """
        Remove expired entries at the front, and the least recently used beyond the limit.
        """
        entries = self.entries
        while entries:
            key = next(iter(entries))
            if entries[key][2] > now:
                if len(entries) <= self._limit:
                    return
                if self._on_evict is not None:
                    self._on_evict()
            del entries[key]
