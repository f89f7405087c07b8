"""
How long an order takes while others push as fast as they can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp_session_ws.redis.wire import VERSION
from redis.asyncio import Redis

from ..report import line, median, ratio
from .child import Child, Work, child
from .latency import latencies
from .roles import node

CHANNEL: Final = "aiohttp_session_ws:data"
TOGETHER: Final = 100  # pushes in one round trip


class Flood(Work):
    """
    Publishes pushes to a session that nobody holds, while told to.
    """

    def __init__(self, redis: Redis) -> None:
        self.published = 0
        self._redis = redis
        self._over = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """
        Begin.
        """
        self._over = False
        self._task = asyncio.create_task(self._publish())

    async def stop(self) -> int:
        """
        End; return how many were published since the last time.
        """
        assert self._task is not None
        self._over = True  # not cancelled: redis-py may take that for trouble of its own
        await self._task
        published, self.published = self.published, 0
        return published

    async def _publish(self) -> None:
        to = ["session", "nobody's"]
        head = {"v": VERSION, "from": "x/1", "q": "1", "do": "push", "to": to, "text": True}
        message = json.dumps(head).encode() + b"\n" + b"x" * 200
        while not self._over:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for _ in range(TOGETHER):
                    _ = pipeline.publish(CHANNEL, message)
                await pipeline.execute()
            self.published += TOGETHER


@asynccontextmanager
async def flooding(url: str) -> AsyncIterator[Flood]:
    """
    Be the one who pushes.
    """
    async with Redis.from_url(url) as redis:
        yield Flood(redis)


async def _idle(*nodes: Child) -> None:
    """
    Wait until the nodes have worked off what was published.
    """
    busy = True
    while busy:
        before = [await one.ask("cpu") for one in nodes]
        await asyncio.sleep(0.2)
        after = [await one.ask("cpu") for one in nodes]
        busy = max(b - a for a, b in zip(before, after, strict=True)) > 0.05


async def measure(url: str, rounds: int) -> None:
    """
    Give orders in silence and in the flood, in turns.
    """
    async with AsyncExitStack() as stack:
        a, b, flood = [
            await stack.enter_async_context(child(role, url)) for role in (node, node, flooding)
        ]
        port = await b.ask("port")
        quiet, loud, pushes = [], [], 0
        for turn in range(1 + rounds):
            quiet.append(median(await latencies(a, port, 2 * turn)))
            loud.append(median(await latencies(a, port, 2 * turn + 1, flood)))
            pushes += await flood.ask("stop")
            await _idle(a, b)
    line(
        "order in a flood of pushes, p50",
        f"{median(loud[1:]):.1f} ms",
        f"{min(loud[1:]):.1f} to {max(loud[1:]):.1f}; quiet {median(quiet[1:]):.2f} ms,"
        f" {ratio(quiet[1:], loud[1:]):.1f} x; {pushes / (1 + rounds):,.0f} pushes per round",
    )
