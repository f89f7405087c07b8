"""
When an order may be sent: at once, or in step with other nodes where there are very many. No I/O.

What an order costs Redis is mostly its delivery, one write to the socket of each node. What it is
given in one turn it delivers by one write to each, however many orders that are. So where orders
come thick and nodes are many, all nodes send what they have at the same ticks of the one clock,
and an order takes some milliseconds longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .clock import RedisClock

__all__: list[str] = []

MANY: Final = 25_000  # deliveries in a second, from which on nodes keep in step
TICK: Final = 0.01  # seconds between two ticks


class Pace:
    """
    Tells when orders are sent.

    Args:
        clock: The one clock of all nodes.
        monotonic: Seconds that never go back.

    Attributes:
        in_step: Whether orders wait for the next tick.
    """

    def __init__(self, clock: RedisClock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._messages = 0  # that were heard
        self._known = 0, monotonic()  # how many had been heard, and when
        self.in_step = False

    def count(self) -> None:
        """
        Count a message that was heard; every node hears all.
        """
        self._messages += 1

    def measure(self, nodes: int) -> None:
        """
        Look at how many messages were heard since last time, and by how many nodes: called with
        each heartbeat.
        """
        (count, at), now = self._known, self._monotonic()
        self._known = self._messages, now
        if now > at:
            rate = (self._messages - count) / (now - at)
            self.in_step = rate * nodes >= MANY

    def wait(self) -> float:
        """
        Return for how many seconds an order that is given now waits.
        """
        if not (self.in_step and self._clock.known):
            return 0.0
        return TICK - self._clock.now() % TICK
