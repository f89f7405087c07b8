"""
Gates that suspend coroutines, so that tests can step through races.
"""

from __future__ import annotations

import asyncio


class Turnstile:
    """A gate that suspends every caller while it is shut."""

    def __init__(self) -> None:
        self.shut = False
        self.waiting: list[asyncio.Future[None]] = []
        self.arrived = asyncio.Event()

    async def __call__(self) -> None:
        """Return at once, or if the gate is shut, when it is opened."""
        if self.shut:
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            self.arrived.set()
            await waiter

    def let(self) -> None:
        """Open the gate, and resume all suspended callers."""
        self.shut = False
        self.arrived.clear()
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()
