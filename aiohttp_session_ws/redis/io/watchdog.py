"""
The deadline for an answer of Redis: it answers one question after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .connect import LIMIT

__all__: list[str] = []

STALL: Final = 0.1  # seconds that a timer is late if this process itself stood still


class Watchdog:
    """
    Tells when the oldest question has had its turn for :data:`LIMIT`, and no answer.

    Args:
        oldest: Returns when the oldest question that waits was asked, by the event loop's clock;
            ``None`` if none does.
        late: Called when it isn't answered in time.
    """

    def __init__(self, oldest: Callable[[], float | None], late: Callable[[], None]) -> None:
        self._oldest = oldest
        self._late = late
        self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """
        Note that something was asked.
        """
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LIMIT, self._check, loop.time() + LIMIT)

    def answered(self) -> None:
        """
        Note that something was answered: the next question has its turn only now.
        """
        self._answered_at = asyncio.get_running_loop().time()

    def stop(self) -> None:
        """
        Watch no more.
        """
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        oldest = self._oldest()
        if oldest is None:
            return
        late = max(oldest, self._answered_at) + LIMIT
        if now - due > STALL:
            late = max(late, now + STALL)  # the answer is perhaps there, and not read yet
        if now < late:
            self._timer = loop.call_at(late, self._check, late)
        else:
            self._late()
