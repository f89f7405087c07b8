"""
What a test knows of the orders it gave: whether Redis ever had them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.support.browsers import Browser
from tests.support.node_process import NodeProcess
from tests.support.redis_servers import RedisServer

LOOK: Final = 0.1  # seconds between two looks
ANSWER: Final = 0.5  # seconds that Redis may take
AT_ONCE: Final = 500  # orders that are looked for in the end
WATCHED: Final = 200  # of them before, the latest


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
        subject: The id or the identity that it ended; ``None`` if a lineage.
        report: What its report said, if it waited for one.
        stored: When its record was first seen in Redis; ``None`` if never.
    """

    path: str
    node: NodeProcess
    pid: int
    browsers: list[Browser]
    at: float
    subject: str | None
    report: dict[str, Any] | None = None
    stored: float | None = None

    def __str__(self) -> str:
        seen = "never" if self.stored is None else f"{self.stored - self.at:.2f} s later"
        who = ", ".join(str(browser) for browser in self.browsers)
        path = self.path.partition("?")[0]
        return f"{path} of {who} on {self.node.name}, {seen} seen in Redis"

    @property
    def by_id(self) -> bool:
        """Whether it ended an id."""
        return self.subject is not None and self.subject.startswith("id:")

    @property
    def key(self) -> str:
        """
        The key of the record that keeps all of its sessions ended, without the prefix.

        Empty if that is a lineage of which no socket was ever open.
        """
        if self.subject is not None:
            return f"end:{self.subject}"
        lineage = self.browsers[0].lineage
        return f"lineage:{json.dumps(lineage)}" if lineage else ""


class Recorder:
    """
    It looks into Redis for the records of orders.

    Args:
        redis: Where the records are.
        prefix: Of their keys.
    """

    def __init__(self, redis: RedisServer, prefix: str) -> None:
        self._redis = redis
        self._prefix = f"{{{prefix}}}:"

    async def missing(self, orders: Sequence[Order]) -> list[Order]:
        """Return of which orders, as far as their keys are known, Redis has no record now."""
        orders = [order for order in orders if order.key]
        async with self._redis.client() as client:
            found: list[bool] = []
            for start in range(0, len(orders), AT_ONCE):
                found += await self._recorded(client, orders[start : start + AT_ONCE])
        return [order for order, is_there in zip(orders, found, strict=True) if not is_there]

    def evicted(self, order: Order, keys: Mapping[str, Sequence[float]]) -> set[float]:
        """Return when something that an order needs was evicted, of all that was."""
        mine = {order.key, *(f"lineage:{json.dumps(b.lineage)}" for b in order.browsers)}
        mine |= {f"of:{json.dumps(id_)}" for b in order.browsers for id_ in b.ids}
        return {at for key in mine for at in keys.get(self._prefix + key, ())}

    async def _recorded(self, client: Redis, orders: Sequence[Order]) -> list[bool]:
        """Return of which orders Redis has the record."""
        if not orders:
            return []
        found = await client.mget([self._prefix + order.key for order in orders])
        return [text is not None and not str(text).startswith('[1,"renewed"') for text in found]

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
        seen, missing = 0, list[Order]()
        while True:
            missing = [*missing, *orders[seen:]][-WATCHED:]
            seen = len(orders)
            # Away just now, as so often here.
            with contextlib.suppress(RedisError, OSError):
                recorded = await self._recorded(client, missing)
                now = asyncio.get_running_loop().time()
                for order, is_there in zip(missing, recorded, strict=True):
                    if is_there:
                        order.stored = now
                missing = [order for order in missing if order.stored is None]
            await asyncio.sleep(LOOK)
