"""
For what may take a certain time, on a machine that stands still now and then.
"""

from __future__ import annotations

import asyncio

TICK = 0.01  # seconds


class Stopwatch:
    """
    Measures how long something takes by the turns that its event loop has meanwhile.

    Who waits lets time pass; while the machine does something else, none does.
    """

    def __init__(self) -> None:
        self._ticks = 0
        self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def stop(self) -> float:
        """
        Return the seconds since it was made, and stop.
        """
        self._timer.cancel()
        return self._ticks * TICK
