"""
Pacing of orders: they are sent at once, or under high load at ticks common to all nodes. No I/O.

The cost of an order for Redis is mostly its delivery, one write to the socket of each node. The
orders that it receives in one turn of its loop it delivers by one write to each, however many they
are. So if orders are frequent and nodes many, all nodes send theirs at the same ticks of the clock
of all nodes, and an order takes some milliseconds longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .clock import RedisClock

__all__: list[str] = []

MANY: Final = 25_000  # deliveries per second from which on orders wait for ticks
TICK: Final = 0.01  # seconds between two ticks


class Pace:
    """
    Decides when orders are sent.

    Args:
        clock: The clock of all nodes.
        monotonic: Monotonic time in seconds.

    Attributes:
        in_step: Whether orders wait for the next tick.
    """

    def __init__(self, clock: RedisClock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._messages = 0  # received so far
        self._known = 0, monotonic()  # their count at the last heartbeat, and its time
        self.in_step = False

    def count(self) -> None:
        """
        Count a received message; every node receives all.
        """
        self._messages += 1

    def measure(self, nodes: int) -> None:
        """
        Compute the rate of deliveries to all *nodes* since the last call; called with each
        heartbeat.
        """
        (count, at), now = self._known, self._monotonic()
        self._known = self._messages, now
        if now > at:
            rate = (self._messages - count) / (now - at)
            self.in_step = rate * nodes >= MANY

    def wait(self) -> float:
        """
        Return the seconds that an order given now has to wait.
        """
        if not (self.in_step and self._clock.known):
            return 0.0
        return TICK - self._clock.now() % TICK
