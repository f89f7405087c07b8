"""
The time a handshake may take: one timer for all of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict
from types import TracebackType
from typing import Final

from aiohttp import web

from .._refused import Unavailable

__all__: list[str] = []

LOOK: Final = 1.0  # seconds between two looks for clients that have hung up


class Handshakes:
    """
    The handshakes in flight, the one that began first in front.

    Args:
        timeout: Seconds that a handshake may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._entries: OrderedDict[TimedHandshake, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def timed(self, request: web.Request) -> TimedHandshake:
        """
        Return a context manager that ends a handshake which takes too long.
        """
        return TimedHandshake(self, request)

    def add(self, entry: TimedHandshake) -> None:
        """
        Time a handshake.
        """
        self._entries[entry] = None
        if self._timer is None:
            self._sleep()

    def discard(self, entry: TimedHandshake) -> None:
        """
        Time a handshake no longer.
        """
        self._entries.pop(entry, None)

    def _sleep(self) -> None:
        loop = asyncio.get_running_loop()
        first = next(iter(self._entries))
        due = min(first.started + self._timeout, loop.time() + LOOK)
        # In no request's context, or it would be kept until the timer rings.
        self._timer = loop.call_at(due, self._wake, context=contextvars.Context())

    def _wake(self) -> None:
        """
        End the handshakes that are late, and those whose clients have hung up.
        """
        self._timer = None
        late = asyncio.get_running_loop().time() - self._timeout
        for entry in tuple(self._entries):
            if entry.started <= late or entry.hung_up:
                del self._entries[entry]
                entry.cancel()
        if self._entries:
            self._sleep()

    def stop(self) -> None:
        """
        Stop the timer.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class TimedHandshake:
    """
    One handshake that is timed: cancelled when it is late, and answered with 503 then.
    """

    __slots__ = ("_handshakes", "_late", "_request", "_task", "started")

    def __init__(self, handshakes: Handshakes, request: web.Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handshakes = handshakes
        self._request = request
        self._task = task
        self._late = False
        self.started = task.get_loop().time()

    def __enter__(self) -> None:
        self._handshakes.add(self)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handshakes.discard(self)
        if self._late and self._task.uncancel() == 0 and exc_type is asyncio.CancelledError:
            raise Unavailable("late", "websocket refused: the handshake took too long")

    def cancel(self) -> None:
        """
        End it: it is late.
        """
        self._late = True
        self._task.cancel("the websocket handshake took too long")

    @property
    def hung_up(self) -> bool:
        """
        Whether its client has gone.
        """
        transport = self._request.transport
        return transport is None or transport.is_closing()
