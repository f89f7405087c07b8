"""
Places where whoever comes is held: races, step by step.
"""

from __future__ import annotations

import asyncio


class Turnstile:
    """A place where whoever comes is held, if it is shut."""

    def __init__(self) -> None:
        self.shut = False
        self.waiting: list[asyncio.Future[None]] = []
        self.arrived = asyncio.Event()

    async def __call__(self) -> None:
        """Pass, now or when let."""
        if self.shut:
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            self.arrived.set()
            await waiter

    def let(self) -> None:
        """Open, and let everybody pass."""
        self.shut = False
        self.arrived.clear()
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()
