"""
What it costs a node that holds nothing to hear of orders.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Final

from aiohttp_session_ws.closing import SESSION_ENDED
from aiohttp_session_ws.redis.wire import Ended, Unit, envelope
from aiohttp_session_ws.redis.writer import BATCH
from redis.asyncio import Redis

from ..report import difference, line, median
from .child import Child, child
from .roles import bare, node

ORDERS: Final = 10_000  # per round
CHANNEL: Final = "aiohttp_session_ws:orders"


def _messages(together: int) -> list[str]:
    """
    Return what an outbox publishes for :data:`ORDERS` orders.
    """
    now = time.time()
    orders = [Ended(uuid.uuid4().hex, now, 3600.0) for _ in range(ORDERS)]
    units = [Unit((order,), SESSION_ENDED).text() for order in orders]
    return [envelope("x/1", units[n : n + together]) for n in range(0, ORDERS, together)]


async def _round(redis: Redis, nodes: list[Child], together: int) -> list[float]:
    """
    Return the microseconds of CPU time that one order costs each of *nodes*.
    """
    messages = _messages(together)
    expected = [await one.ask("heard") + ORDERS for one in nodes]
    before = [await one.ask("cpu") for one in nodes]
    for start in range(0, len(messages), 100):
        async with redis.pipeline(transaction=False) as pipeline:
            for message in messages[start : start + 100]:
                _ = pipeline.publish(CHANNEL, message)
            await pipeline.execute()
    for one, count in zip(nodes, expected, strict=True):
        while await one.ask("heard") < count:
            await asyncio.sleep(0.02)
    after = [await one.ask("cpu") for one in nodes]
    return [(b - a) / ORDERS * 1e6 for a, b in zip(before, after, strict=True)]


async def measure(url: str, rounds: int) -> None:
    """
    Let a node and a bare subscriber, which reads the JSON, hear the same.
    """
    async with (
        Redis.from_url(url) as redis,
        child(bare, url, CHANNEL) as floor,
        child(node, url) as ours,
    ):
        for name, together in (("in a burst", BATCH), ("one at a time", 1)):
            figures = [await _round(redis, [floor, ours], together) for _ in range(1 + rounds)][1:]
            bares, full = [pair[0] for pair in figures], [pair[1] for pair in figures]
            line(
                f"hearing an order, {name}",
                f"{median(full):.1f} us",
                f"{min(full):.1f} to {max(full):.1f}; floor {median(bares):.1f} us,"
                f" {difference(bares, full):+.1f} us; target <= 15 us",
            )
