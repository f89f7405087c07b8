"""
What a test knows of the orders it gave: whether Redis ever had them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.browsers import Browser
from tests.support.node_process import NodeProcess
from tests.support.redis_servers import RedisServer

LOOK: Final = 0.05  # seconds between two looks
ANSWER: Final = 0.5  # seconds that Redis may take


@dataclass(eq=False)
class Order:
    """
    A log-out that was answered.

    Attributes:
        path: How it was asked for.
        node: Who answered.
        pid: The node's process then.
        browsers: Whose sessions it ended.
        at: When it was answered, by the event loop's clock.
        identity: Whose sessions, if all of a user's.
        stored: When its record was first seen in Redis; ``None`` if never.
    """

    path: str
    node: NodeProcess
    pid: int
    browsers: list[Browser]
    at: float
    identity: str | None
    stored: float | None = None

    def __str__(self) -> str:
        seen = "never" if self.stored is None else f"{self.stored - self.at:.2f} s later"
        who = ", ".join(str(browser) for browser in self.browsers)
        path = self.path.partition("?")[0]
        return f"{path} of {who} on {self.node.name}, {seen} seen in Redis"


class Recorder:
    """
    It looks into Redis for the records of orders.

    Args:
        redis: Where the records are.
        prefix: Of their keys.
    """

    def __init__(self, redis: RedisServer, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    def key(self, order: Order) -> str:
        """Return the key of the record that an order makes."""
        if order.identity is not None:
            return f"{self._prefix}:identity:{json.dumps(order.identity)}"
        return f"{self._prefix}:rev:{json.dumps(order.browsers[0].id)}"

    async def has(self, order: Order) -> bool:
        """Return whether an order is in Redis now."""
        return bool(await self._redis.cli("EXISTS", self.key(order)))

    @contextlib.asynccontextmanager
    async def watching(self, orders: Sequence[Order]) -> AsyncIterator[None]:
        """Note which orders are seen in Redis, as long as the block runs."""
        async with self._redis.client(
            socket_timeout=ANSWER, socket_connect_timeout=ANSWER
        ) as client:
            task = asyncio.create_task(self._watch(client, orders), name="watch the orders")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _watch(self, client: Redis, orders: Sequence[Order]) -> None:
        while True:
            missing = [order for order in orders if not order.stored]
            # Away just now, as so often here.
            with contextlib.suppress(RedisError, OSError):
                for order, found in (
                    zip(
                        missing,
                        await client.mget([self.key(order) for order in missing]),
                        strict=True,
                    )
                    if missing
                    else ()
                ):
                    if found is not None:
                        order.stored = asyncio.get_running_loop().time()
            await asyncio.sleep(LOOK)
