"""
Sends the clients of a server that is going to stop to others, a few at a time.
"""

from __future__ import annotations

import asyncio
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
    Closes all sockets over a window of time, so that their clients don't reconnect as a herd.

    Args:
        connections: What is open.
        tasks: Where it runs.

    Attributes:
        refuses: Whether handshakes are refused since the process ends.
    """

    def __init__(self, connections: ConnectionManager, tasks: BackgroundTasks) -> None:
        self.refuses = False
        self._connections, self._tasks = connections, tasks
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """
        Begin to serve an application.
        """
        self.refuses, self._running = False, None

    async def drain(self, window: float) -> None:
        """
        Refuse handshakes, and close all sockets with 1012 in random order over *window* seconds.
        """
        self.refuses = True
        for connection in self._connections.handshakes():
            connection.reject(SERVICE_RESTART)  # one that is being answered is closed then
        if self._running is None:
            self._running = self._tasks.spawn(self._drain(window), "drain")
        await asyncio.shield(self._running)

    async def _drain(self, window: float) -> None:
        loop = asyncio.get_running_loop()
        began, closed = loop.time(), 0
        connections = list(self._connections.open)
        random.shuffle(connections)
        while closed < len(connections):
            share = min(1.0, (loop.time() - began) / window) if window > 0 else 1.0
            due = connections[closed : max(closed, int(share * len(connections)))]
            closed += len(due)
            # One that an order closes meanwhile is told by that.
            self._connections.close_soon([c for c in due if c.state is OPEN], SERVICE_RESTART)
            await asyncio.sleep(min(STEP, window))
        _ = await self._connections.close_now(connections, SERVICE_RESTART)
