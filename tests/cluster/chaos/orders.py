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

    async def has(self, order: Order) -> bool:
        """Return whether an order is in Redis now."""
        async with self._redis.client() as client:
            return (await self._recorded(client, [order]))[0]

    async def _recorded(self, client: Redis, orders: Sequence[Order]) -> list[bool]:
        """Return of which orders Redis has the record."""
        if not orders:
            return []
        keys = []
        for order in orders:
            id_ = json.dumps(order.browsers[0].id)
            who = f"identity:{json.dumps(order.identity)}" if order.identity else f"id:{id_}"
            keys += [f"{{{self._prefix}}}:end:{who}", f"{{{self._prefix}}}:of:{id_}"]
        found = await client.mget(keys)
        ends, notes = found[::2], found[1::2]
        # A log-out ends the lineage, which the note of its id names.
        tokens = ["" if note is None else json.loads(note)[5] for note in notes]
        lineages = await client.mget(
            [f"{{{self._prefix}}}:lineage:{json.dumps(token)}" for token in tokens]
        )
        return [
            end is not None or str(lineage).startswith('[1,"ended"')
            for end, lineage in zip(ends, lineages, strict=True)
        ]

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
                recorded = await self._recorded(client, missing)
                for order, is_there in zip(missing, recorded, strict=True):
                    if is_there:
                        order.stored = asyncio.get_running_loop().time()
            await asyncio.sleep(LOOK)
