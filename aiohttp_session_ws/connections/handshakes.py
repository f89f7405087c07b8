"""
The timeout of handshakes: one timer for all that are in flight.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any, Final

from aiohttp import web

from .._refused import Unavailable

__all__: list[str] = []

CHECK_INTERVAL: Final = 1.0  # seconds between two checks for clients that have disconnected


class Handshakes:
    """
    The handshakes in flight. One that takes too long, or whose client has disconnected, is
    cancelled and fails with 503.

    Args:
        timeout: Seconds that a handshake may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # When each began, by the event loop's clock, oldest first. In tuples, since creating an
        # object would cost a handshake 1 us.
        self._running: dict[object, tuple[float, web.Request, asyncio.Task[Any]]] = {}
        self._cancelled: dict[object, tuple[asyncio.Task[Any], str]] = {}  # and the reason
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, key: object, request: web.Request, task: asyncio.Task[Any] | None) -> None:
        """
        Start the timeout of a handshake.

        Args:
            key: Identifies it.
            request: The request.
            task: The current task.
        """
        assert task is not None, "handshakes run in tasks"
        self._running[key] = time.monotonic(), request, task  # quicker than the event loop's
        if self._timer is None:
            self._set_timer()

    def end(self, key: object) -> str | None:
        """
        Stop the timeout of a handshake; return the reason if the timeout, and nothing else, has
        cancelled it.
        """
        self._running.pop(key, None)
        if key not in self._cancelled:
            return None
        task, why = self._cancelled.pop(key)
        return why if task.uncancel() == 0 else None

    def fail(self, key: object, error: BaseException) -> BaseException:
        """
        Stop the timeout of a handshake that failed with *error*; return the error to answer with.
        """
        why = self.end(key)
        if why is None or not isinstance(error, asyncio.CancelledError):
            return error
        return Unavailable(why, "websocket refused: the handshake took too long")

    def _set_timer(self) -> None:
        """
        Set the timer for the next check.
        """
        loop = asyncio.get_running_loop()
        started, _, _ = next(iter(self._running.values()))
        due = min(started + self._timeout, loop.time() + CHECK_INTERVAL)
        # In an empty context: a request's would be kept alive until the timer fires.
        self._timer = loop.call_at(due, self._cancel_late, context=contextvars.Context())

    def _cancel_late(self) -> None:
        """
        Cancel the handshakes that take too long, and those whose clients have disconnected.
        """
        self._timer = None
        late = asyncio.get_running_loop().time() - self._timeout
        for key, (started, request, task) in tuple(self._running.items()):
            transport = request.transport
            disconnected = transport is None or transport.is_closing()
            if disconnected or started <= late:
                del self._running[key]
                self._cancelled[key] = task, "client gone" if disconnected else "late"
                task.cancel("the websocket handshake took too long")
        if self._running:
            self._set_timer()

    def stop(self) -> None:
        """
        Stop the timer.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
