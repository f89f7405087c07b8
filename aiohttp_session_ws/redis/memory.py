"""
What was ordered lately, so that a Redis that loses its data can be told again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Final

from .wire import Closed, ClosedIdentity, Ended, EndedIdentity, Moved, Order

__all__: list[str] = []

KEPT: Final = 3600.0  # seconds
MOST: Final = 100_000  # orders


class Memory:
    """
    The orders of the last hour, those that other processes gave as well.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, Order] = OrderedDict()  # by key, the oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, order: Order) -> None:
        """
        Remember *order*; the newest of a key counts.
        """
        key, now = order.key(), self._clock()
        known = self._entries.get(key)
        if known is not None:
            if not _says_more(order, known):
                return
            self._entries.move_to_end(key)
        order.came = now
        self._entries[key] = order
        while self._entries:
            first = next(iter(self._entries))
            if len(self._entries) <= MOST and self._entries[first].came >= now - KEPT:
                break
            del self._entries[first]

    def since(self, age: float) -> list[Order]:
        """
        Return what came within *age* seconds.
        """
        oldest = self._clock() - age
        return [order for order in self._entries.values() if order.came >= oldest]


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


class Numbers:
    """
    The close orders that were carried out here, by their numbers.

    Args:
        instance: The name that is this process's own.
    """

    def __init__(self, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._instance = instance
        self._clock = clock
        self._count = count(1)
        self._done: OrderedDict[str, float] = OrderedDict()  # the oldest first

    def new(self) -> str:
        """
        Return a number for an order that is carried out here by now.
        """
        number = f"{self._instance}/{next(self._count)}"
        _ = self.came(number)
        return number

    def came(self, number: str) -> bool:
        """
        Note that an order has come; tell whether it is the first time.
        """
        if number in self._done:
            return False
        now = self._clock()
        self._done[number] = now
        while len(self._done) > MOST or self._done[first := next(iter(self._done))] < now - KEPT:
            del self._done[first]
        return True

    def when(self, number: str) -> float | None:
        """
        Return when an order has come, ``None`` if it hasn't.
        """
        return self._done.get(number)
