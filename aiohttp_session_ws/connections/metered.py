"""
Websockets whose messages are counted, for registries that have a reason to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Final

from aiohttp import WSMessage, WSMsgType

from .._expiring import ExpiringDict
from .websocket import ServedWebSocket

__all__: list[str] = []

MANY: Final = 100_000  # sessions whose last second is known
FUZZ: Final = 1e-6  # seconds that sums of floats may be off

_DATA: Final = frozenset({WSMsgType.TEXT, WSMsgType.BINARY})


class Rate:
    """
    How many there may be in a second, for each key: at most so many at once, and then as many as
    a second brings.

    Args:
        per_second: How many.
        clock: Seconds that never go back.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.pause: float = 1 / per_second
        self._early = max(0.0, 1.0 - self.pause) + FUZZ
        self._clock = clock
        # When the next one would be due, if they came evenly.
        self._due: ExpiringDict[Hashable, float] = ExpiringDict(
            MANY, 2 * max(1.0, self.pause), clock=clock
        )

    def allows(self, key: Hashable) -> bool:
        """
        Tell whether there may be one more now, and count it if so.
        """
        now = self._clock()
        due = max(now, self._due.peek(key) or 0.0)
        if due - now > self._early:
            return False
        self._due.put(key, due + self.pause)
        return True


class MeteredWebSocket(ServedWebSocket):
    """
    A websocket that tells of each message that a client has sent.

    Attributes:
        on_message: Called with each; false means that it is not delivered.
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
            return await super().receive(timeout)  # it was closed, and says so
        return message

    def release(self) -> None:
        """
        Let go of what is kept for an open websocket.
        """
        self.on_message = _deliver
        super().release()


def _deliver() -> bool:
    return True
