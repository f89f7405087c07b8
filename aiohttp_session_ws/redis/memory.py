"""
What was ordered lately, so that a Redis that loses its data can be told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .wire import Closed, ClosedIdentity, Ended, EndedIdentity, Moved, Order

__all__: list[str] = []

KEPT: Final = 3600.0  # seconds
MOST: Final = 100_000  # orders


class Memory:
    """
    The orders of the last hour, those that other processes gave as well.
    """

    class Entry(NamedTuple):
        """
        An order, when it was given by this process's clock, and its place in the row.
        """

        order: Order
        at: float
        number: int

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, Memory.Entry] = {}  # by key
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, order: Order, age: float = 0.0) -> None:
        """
        Remember *order*, which was given *age* seconds ago; the newest of a key counts.
        """
        key, now = order.key(), self._clock()
        known = self._entries.get(key)
        if known is not None:
            if not _says_more(order, known.order):
                return
            del self._entries[key]
        self._number += 1
        self._entries[key] = Memory.Entry(order, now - age, self._number)
        while self._entries:
            first = next(iter(self._entries))
            if len(self._entries) <= MOST and self._entries[first].at >= now - KEPT:
                break
            del self._entries[first]

    def since(self, age: float, after: int = 0) -> Iterator[Entry]:
        """
        Find what is at most *age* seconds old, and has come *after* a number.
        """
        oldest = self._clock() - min(age, KEPT)
        for entry in list(self._entries.values()):
            if entry.number > after and entry.at >= oldest:
                yield entry


def _says_more(order: Order, known: Order) -> bool:
    """
    Tell whether an order says more than another of the same key.
    """
    match order, known:
        case ((Ended() | Moved()), Ended()):
            return False
        case Moved(to=to), Moved(to=others):
            return not set(to) <= set(others)
        case EndedIdentity(before=before), EndedIdentity(before=other):
            return before > other
        case (Closed(number=number), Closed(number=other)) | (
            ClosedIdentity(number=number),
            ClosedIdentity(number=other),
        ):
            return number != other
    return True
