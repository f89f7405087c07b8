"""
The deadline for replies of Redis, which replies to one command after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .connect import REPLY_TIMEOUT

__all__: list[str] = []

STALL: Final = 0.1  # seconds that a timer is late when this process itself was stalled


class Watchdog:
    """
    Detects that commands are pending, and no reply has arrived for :data:`REPLY_TIMEOUT`.

    Args:
        oldest: Returns when the oldest pending command was issued, by the event loop's clock;
            ``None`` if none is pending.
        late: Called when no reply has arrived in time.
    """

    def __init__(self, oldest: Callable[[], float | None], late: Callable[[], None]) -> None:
        self._oldest = oldest
        self._late = late
        self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """
        Start the timer unless it runs: a command was issued.
        """
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(REPLY_TIMEOUT, self._check, loop.time() + REPLY_TIMEOUT)

    def answered(self) -> None:
        """
        Record that a reply has arrived: the time of the next command starts only now.
        """
        self._answered_at = asyncio.get_running_loop().time()

    def stop(self) -> None:
        """
        Stop the timer.
        """
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        oldest = self._oldest()
        if oldest is None:
            return
        late = max(oldest, self._answered_at) + REPLY_TIMEOUT
        if now - due > STALL:
            late = max(late, now + STALL)  # the reply may be there, but not read yet
        if now < late:
            self._timer = loop.call_at(late, self._check, late)
        else:
            self._late()
