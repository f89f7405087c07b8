"""
Drains a server that is about to stop: closes its sockets a few at a time.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Final

from .._tasks import BackgroundTasks
from ..close_codes import SERVICE_RESTART
from ..connections.connection import OPEN
from ..connections.manager import ConnectionManager

__all__: list[str] = []

STEP: Final = 0.05  # seconds between two steps


class Drainer:
    """
    Closes all sockets over a window of time, so that their clients don't reconnect all at once.

    Args:
        connections: The sockets.
        tasks: Where the drain runs.

    Attributes:
        refuses: Whether handshakes are refused, since the process is about to stop.
    """

    def __init__(self, connections: ConnectionManager, tasks: BackgroundTasks) -> None:
        self.refuses = False
        self._connections, self._tasks = connections, tasks
        self._running: asyncio.Task[None] | None = None
        self._due = math.inf  # when all are to be closed, by the event loop's clock

    def start(self) -> None:
        """
        Begin to serve an application.
        """
        self.refuses, self._running, self._due = False, None, math.inf

    async def drain(self, window: float) -> None:
        """
        Refuse handshakes, and close all sockets with 1012 in random order over *window* seconds.

        If two calls overlap, both end at the earlier deadline: a shutdown isn't held up by a
        longer drain.
        """
        self.refuses = True
        self._due = min(self._due, asyncio.get_running_loop().time() + window)
        for connection in self._connections.handshakes():
            connection.reject(SERVICE_RESTART)  # if its upgrade is being written, closed after it
        if self._running is None:
            self._running = self._tasks.spawn(self._drain(), "drain")
        await asyncio.shield(self._running)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        began, closed = loop.time(), 0
        connections = list(self._connections.open)
        random.shuffle(connections)
        while closed < len(connections):
            now = loop.time()
            share = (now - began) / (self._due - began) if now < self._due else 1.0
            due = connections[closed : max(closed, int(share * len(connections)))]
            closed += len(due)
            # One that an order has closed meanwhile was sent the code of that order.
            self._connections.close_soon([c for c in due if c.state is OPEN], SERVICE_RESTART)
            await asyncio.sleep(max(0.0, min(STEP, self._due - now)))
        _ = await self._connections.close_now(connections, SERVICE_RESTART)
