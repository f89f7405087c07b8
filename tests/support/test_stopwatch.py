"""
The stopwatch counts time spent waiting, and ignores stalls of the machine.
"""

from __future__ import annotations

import asyncio
import time

from tests.support import Stopwatch


async def test_who_waits() -> None:
    """Time spent waiting counts."""
    watch = Stopwatch()
    for _ in range(20):
        await asyncio.sleep(0.02)

    assert 0.1 < watch.stop() < 10.0


async def test_who_stands_still() -> None:
    """Time in which the machine or the event loop stalls doesn't count."""
    watch = Stopwatch()
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251  that is the point
    await asyncio.sleep(0)

    assert watch.stop() < 0.1
