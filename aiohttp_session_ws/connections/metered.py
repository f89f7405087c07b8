"""
A rate limiter, and websockets whose messages are counted, for registries that need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Final

from aiohttp import WSMessage, WSMsgType

from .._expiring import ExpiringDict
from .websocket import ServedWebSocket

__all__: list[str] = []

MAX_KEYS: Final = 100_000  # sessions whose rate is known at a time
ROUNDING_ERROR: Final = 1e-6  # seconds of rounding error in sums of floats

_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


class Rate:
    """
    A rate limit per key: at most *per_second* events at once, and then as many in each second.

    Args:
        per_second: The number of events.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.pause: float = 1 / per_second
        self._burst = max(0.0, 1.0 - self.pause) + ROUNDING_ERROR
        self._clock = clock
        # When the next event would be due, if events were evenly spaced.
        self._due: ExpiringDict[Hashable, float] = ExpiringDict(
            MAX_KEYS, 2 * max(1.0, self.pause), clock=clock
        )

    def allows(self, key: Hashable) -> bool:
        """
        Return whether one more event is allowed now, and count it if so.
        """
        now = self._clock()
        due = max(now, self._due.peek(key) or 0.0)
        if due - now > self._burst:
            return False
        self._due.put(key, due + self.pause)
        return True


class MeteredWebSocket(ServedWebSocket):
    """
    A websocket that calls a hook for each message that its client has sent.

    Attributes:
        on_message: Called for each message; if it returns false, the message isn't delivered.
    """

    __slots__ = ("on_message",)

    on_message: Callable[[], bool]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.on_message = _deliver

    async def receive(self, timeout: float | None = None) -> WSMessage:
        """
        Receive as aiohttp does.
        """
        message = await super().receive(timeout)
        if message.type in _DATA and not self.on_message():
            return await super().receive(timeout)  # the hook has closed it
        return message

    def release(self) -> None:
        """
        Release what is kept for an open websocket.
        """
        self.on_message = _deliver
        super().release()


def _deliver() -> bool:
    return True
