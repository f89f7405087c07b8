"""
How often and for how long a node was degraded because of Redis. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__: list[str] = []


class Outages:
    """
    Counts the outages, in which Redis could not be used or orders could not be received.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._number = 0
        self._seconds = 0.0
        self._since: float | None = None  # when the current one began

    def begin(self) -> None:
        """
        Record the start of an outage, unless one has already started.
        """
        if self._since is None:
            self._since = self._clock()
            self._number += 1

    def end(self) -> float:
        """
        Record the end of the current outage, or that the node stops during it; return its duration
        in seconds, 0 if there is none.
        """
        if self._since is None:
            return 0.0
        lasted = self._clock() - self._since
        self._seconds += lasted
        self._since = None
        return lasted

    def so_far(self) -> tuple[int, float]:
        """
        Return the number of outages and their total duration in seconds, the current one included.
        """
        since = self._since
        return self._number, self._seconds + (0.0 if since is None else self._clock() - since)
