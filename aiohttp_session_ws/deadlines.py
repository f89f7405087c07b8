"""
When to look at which socket: deadlines in one heap, and one timer for all of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import aiohttp_session

from .connection import Connection

__all__: list[str] = []

LONGEST: Final = 60.0  # seconds between two looks at the clocks
DRIFT: Final = 1.0  # seconds that the clocks may go apart in between
MARGIN: Final = 0.001  # seconds that the timer is late, as clocks are not exact
RATE: Final = 1000  # deadlines in a second, when all are due at once


def end_of(session: aiohttp_session.Session | None) -> float:
    """
    Return the first second at which aiohttp_session calls *session* expired.
    """
    if session is None or session.max_age is None:
        return math.inf
    return session.created + session.max_age + 1


def is_kept(session: aiohttp_session.Session | None) -> bool:
    """
    Tell whether *session* is known to be kept on the server: it has a key there.
    """
    return session is not None and session.identity is not None


def jitter(seconds: float) -> float:
    """
    Return *seconds*, give or take a fifth.
    """
    return seconds * random.uniform(0.8, 1.2)


class Deadline:
    """
    When to look at a connection.

    Attributes:
        connection: Which one; ``None`` once it is gone.
        due: When, by the event loop's clock.
        queued: Its key in the heap, never later than ``due``; infinite if it isn't there.
        ends: When the session's time is over, by the wall clock, as far as is known.
        kept: Whether the session is known to be kept on the server.
        tries: How many times in a row the session could not be checked.
    """

    __slots__ = ("_deadlines", "connection", "due", "ends", "kept", "queued", "tries")

    def __init__(
        self,
        deadlines: Deadlines,
        connection: Connection,
        session: aiohttp_session.Session | None = None,
    ) -> None:
        self._deadlines = deadlines
        self.connection: Connection | None = connection
        self.due = self.queued = math.inf
        self.ends = end_of(session)
        self.kept = is_kept(session)
        self.tries = 0

    def __lt__(self, other: Deadline) -> bool:
        return self.queued < other.queued

    def cancel(self) -> None:
        """
        Let go of the connection.
        """
        if self.connection is not None:
            self.connection = None
            if self.queued < math.inf:
                self._deadlines.lost_one()


class Deadlines:
    """
    A heap of deadlines, of which no more than half are cancelled.
    """

    def __init__(self) -> None:
        self._heap: list[Deadline] = []
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Connection]:
        return (d.connection for d in self._heap if d.connection is not None)

    @property
    def first(self) -> float:
        """
        When the first may be due; infinite if there is none.
        """
        return self._heap[0].queued if self._heap else math.inf

    def put(self, deadline: Deadline, due: float) -> None:
        """
        Make a deadline due at *due*; not earlier than it stands in the heap already.
        """
        if deadline.queued < math.inf:
            deadline.due = max(due, deadline.queued)  # pop() puts it where it belongs
        elif deadline.connection is not None and due < math.inf:
            deadline.due = deadline.queued = due
            heapq.heappush(self._heap, deadline)

    def pop(self, now: float) -> Deadline | None:
        """
        Take out the first that is due.
        """
        while self.first <= now:
            deadline = heapq.heappop(self._heap)
            moved = deadline.due > deadline.queued
            deadline.queued = math.inf
            if deadline.connection is None:
                self._dead -= 1
            elif moved:
                self.put(deadline, deadline.due)
            else:
                self._compact()
                return deadline
        return None

    def lost_one(self) -> None:
        """
        Note that one in the heap has been cancelled.
        """
        self._dead += 1
        self._compact()

    def _compact(self) -> None:
        if self._dead * 2 > len(self._heap):
            self._rebuild()

    def hurry(self, now: float) -> None:
        """
        Make all of them due from *now* on, a few at a time.
        """
        within = min(LONGEST, len(self._heap) / RATE)
        for deadline in self._heap:
            deadline.due = deadline.queued = min(deadline.due, now + random.uniform(0, within))
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [deadline for deadline in self._heap if deadline.connection is not None]
        heapq.heapify(self._heap)
        self._dead = 0


class Alarm:
    """
    One timer, which never sleeps for longer than it may be wrong about the wall clock.

    Args:
        awake: Called when it rings, and told whether the wall clock was set, or stood
            still, since it was set: a machine may have slept.
        clock: The event loop's clock.
        wall: The wall clock.
    """

    def __init__(
        self,
        awake: Callable[[bool], None],
        *,
        clock: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
        wall: Callable[[], float] = lambda: time.time(),
    ) -> None:
        self._awake = awake
        self.clock = clock
        self.wall = wall
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf
        self._offset = 0.0  # of the wall clock from the loop's

    def set(self, at: float) -> None:
        """
        Ring at *at* or before.
        """
        now = self.clock()
        at = min(at, now + LONGEST)
        if self._timer is None:
            self._offset = self.wall() - now
        elif self._at <= at:
            return
        else:
            self._timer.cancel()
        self._at = at
        # In no request's context, or it would be kept as long as there are sockets.
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, at - now) + MARGIN, self.ring, context=contextvars.Context()
        )

    def ring(self) -> None:
        """
        Ring now.
        """
        self.stop()
        self._awake(abs(self.wall() - self.clock() - self._offset) > DRIFT)

    def stop(self) -> None:
        """
        Let it not ring.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
