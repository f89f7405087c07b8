"""
How often and for how long a node was degraded because of Redis. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__: list[str] = []


class Outages:
    """
    The times in which Redis could not be used, or orders could not be heard.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._number = 0
        self._seconds = 0.0
        self._since: float | None = None  # when the present one began

    def begin(self) -> None:
        """
        Note that an outage has begun.
        """
        if self._since is None:
            self._since = self._clock()
            self._number += 1

    def end(self) -> float:
        """
        Note that the present outage is over, or that nobody is there to notice it any more; return
        for how many seconds there was one.
        """
        if self._since is None:
            return 0.0
        lasted = self._clock() - self._since
        self._seconds += lasted
        self._since = None
        return lasted

    def so_far(self) -> tuple[int, float]:
        """
        Return how many there were, and their seconds in all.
        """
        since = self._since
        return self._number, self._seconds + (0.0 if since is None else self._clock() - since)
