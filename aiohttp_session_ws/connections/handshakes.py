"""
The time a handshake may take: one timer for all of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict
from types import TracebackType

from aiohttp import web

__all__: list[str] = []


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

    def tick(self) -> None:
        """
        End the handshakes of clients that have hung up.
        """
        for entry in tuple(self._entries):
            entry.cancel_if_hung_up()

    def _sleep(self) -> None:
        loop = asyncio.get_running_loop()
        first = next(iter(self._entries))
        # In no request's context, or it would be kept until the timer rings.
        self._timer = loop.call_at(
            first.started + self._timeout, self._wake, context=contextvars.Context()
        )

    def _wake(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._entries:
            first = next(iter(self._entries))
            if first.started + self._timeout > now:
                self._sleep()
                return
            del self._entries[first]
            first.cancel()

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
            raise web.HTTPServiceUnavailable(
                headers={"Retry-After": "1"}, text="websocket refused: the handshake took too long"
            )

    def cancel(self) -> None:
        """
        End it: it is late.
        """
        self._late = True
        self._task.cancel("the websocket handshake took too long")

    def cancel_if_hung_up(self) -> None:
        """
        End it if its client has gone.
        """
        transport = self._request.transport
        if not self._late and (transport is None or transport.is_closing()):
            self.cancel()
