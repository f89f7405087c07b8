"""
A stopwatch for time limits in tests that ignores stalls of the machine.
"""

from __future__ import annotations

import asyncio

TICK = 0.01  # seconds


class Stopwatch:
    """
    Measures a duration by counting ticks of a timer of the event loop.

    Ticks are counted while coroutines wait, but not while the machine or the loop is stalled.
    """

    def __init__(self) -> None:
        self._ticks = 0
        self._tick()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def stop(self) -> float:
        """
        Stop, and return the seconds counted since it was created.
        """
        self._timer.cancel()
        return self._ticks * TICK
