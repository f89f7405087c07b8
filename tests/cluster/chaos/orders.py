"""
The orders that a test gave, and whether Redis has ever had their records.
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

LOOK: Final = 0.1  # seconds between two checks
ANSWER: Final = 0.5  # seconds that Redis may take
AT_ONCE: Final = 500  # orders that are looked up in one step in the end
WATCHED: Final = 200  # the latest orders are checked during the run


@dataclass(eq=False)
class Order:
    """
    A log-out that was answered.

    Attributes:
        path: The path that was requested.
        node: The node that answered.
        pid: The process of the node at that time.
        browsers: The browsers whose sessions it ended.
        at: When it was answered, by the event loop's clock.
        subject: The id or the identity that it ended; ``None`` for a lineage.
        report: Its report, if it waited for one.
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
        The key, without prefix, of the record that keeps all of its sessions ended.

        Empty for a lineage that never had an open socket.
        """
        if self.subject is not None:
            return f"end:{self.subject}"
        lineage = self.browsers[0].lineage
        return f"lineage:{json.dumps(lineage)}" if lineage else ""


class Recorder:
    """
    Checks Redis for the records of orders.

    Args:
        redis: The server that has the records.
        prefix: The prefix of their keys.
    """

    def __init__(self, redis: RedisServer, prefix: str) -> None:
        self._redis = redis
        self._prefix = f"{{{prefix}}}:"

    async def missing(self, orders: Sequence[Order]) -> list[Order]:
        """Return the orders of known keys that have no record in Redis now."""
        orders = [order for order in orders if order.key]
        async with self._redis.client() as client:
            found: list[bool] = []
            for start in range(0, len(orders), AT_ONCE):
                found += await self._recorded(client, orders[start : start + AT_ONCE])
        return [order for order, is_there in zip(orders, found, strict=True) if not is_there]

    def evicted(self, order: Order, keys: Mapping[str, Sequence[float]]) -> set[float]:
        """Return when a record that an order needs was evicted."""
        mine = {order.key, *(f"lineage:{json.dumps(b.lineage)}" for b in order.browsers)}
        mine |= {f"of:{json.dumps(id_)}" for b in order.browsers for id_ in b.ids}
        return {at for key in mine for at in keys.get(self._prefix + key, ())}

    async def _recorded(self, client: Redis, orders: Sequence[Order]) -> list[bool]:
        """Return for each order whether Redis has its record."""
        if not orders:
            return []
        found = await client.mget([self._prefix + order.key for order in orders])
        return [text is not None and not str(text).startswith('[1,"renewed"') for text in found]

    @contextlib.asynccontextmanager
    async def watching(self, orders: Sequence[Order]) -> AsyncIterator[None]:
        """Record which orders are seen in Redis while the block runs."""
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
            # Redis is often away here.
            with contextlib.suppress(RedisError, OSError):
                recorded = await self._recorded(client, missing)
                now = asyncio.get_running_loop().time()
                for order, is_there in zip(missing, recorded, strict=True):
                    if is_there:
                        order.stored = now
                missing = [order for order in missing if order.stored is None]
            await asyncio.sleep(LOOK)
