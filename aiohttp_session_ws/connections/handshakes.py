"""
The time a handshake may take: one timer for all of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from types import TracebackType
from typing import Any, Final

from aiohttp import web

from .._refused import Unavailable

__all__: list[str] = []

LOOK: Final = 1.0  # seconds between two looks for clients that have hung up


class Handshakes:
    """
    The handshakes in flight, the one that began first in front.

    Args:
        timeout: Seconds that a handshake may take.

    Attributes:
        entries: Those that are timed.
        timer: Set while there are any.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.entries: dict[TimedHandshake, None] = {}
        self.timer: asyncio.TimerHandle | None = None

    def sleep(self) -> None:
        """
        Set the timer for the next look.
        """
        loop = asyncio.get_running_loop()
        first = next(iter(self.entries))
        due = min(first.started + self._timeout, loop.time() + LOOK)
        # In no request's context, or it would be kept until the timer rings.
        self.timer = loop.call_at(due, self._wake, context=contextvars.Context())

    def _wake(self) -> None:
        """
        End the handshakes that are late, and those whose clients have hung up.
        """
        self.timer = None
        late = asyncio.get_running_loop().time() - self._timeout
        for entry in tuple(self.entries):
            why = "client gone" if entry.hung_up else "late" if entry.started <= late else None
            if why is not None:
                del self.entries[entry]
                entry.cancel(why)
        if self.entries:
            self.sleep()

    def stop(self) -> None:
        """
        Stop the timer.
        """
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class TimedHandshake:
    """
    One handshake that is timed: cancelled when it is late, and answered with 503 then. One whose
    client has hung up is, too.

    Args:
        handshakes: Those in flight, which it is one of while it is entered.
        request: The request.
        task: The task that enters it.

    Attributes:
        started: When it began, by the event loop's clock.
    """

    __slots__ = ("_handshakes", "_request", "_task", "_why", "started")

    def __init__(
        self, handshakes: Handshakes, request: web.Request, task: asyncio.Task[Any] | None
    ) -> None:
        assert task is not None, "handshakes run in tasks"
        self._handshakes = handshakes
        self._request = request
        self._task = task
        self._why: str | None = None  # it was ended
        self.started = time.monotonic()  # as the event loop's clock, but quicker

    def __enter__(self) -> None:
        handshakes = self._handshakes
        handshakes.entries[self] = None
        if handshakes.timer is None:
            handshakes.sleep()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handshakes.entries.pop(self, None)
        why = self._why
        if why and self._task.uncancel() == 0 and exc_type is asyncio.CancelledError:
            raise Unavailable(why, "websocket refused: the handshake took too long")

    def cancel(self, why: str) -> None:
        """
        End it.

        Args:
            why: The word under which it is counted.
        """
        self._why = why
        self._task.cancel("the websocket handshake took too long")

    @property
    def hung_up(self) -> bool:
        """
        Whether its client has gone.
        """
        transport = self._request.transport
        return transport is None or transport.is_closing()
