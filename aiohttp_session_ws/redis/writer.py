"""
The outbox of a node: orders that wait until Redis has taken them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from ..exceptions import RedisAway
from ..records import blame
from .store import Store
from .wire import Order, Unit, envelope, unit_text

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

DEPTH: Final = 1_000_000  # jobs
LONGEST: Final = 0.25  # seconds between two tries; soon after Redis is back it may go again
BATCH: Final = 500  # orders in one round trip
ORDERS: Final = "orders"  # the channel


class Job:
    """
    Orders to record, and what to tell of them.

    There may be a million, and the garbage collector looks at every object in them: so it
    keeps what is in a unit, and not the unit.

    Attributes:
        orders: The orders.
        told: Whether they are told now.
        close: With what the sockets are closed.
        question: Under which number to report.
        stored: Whether Redis has taken them.
    """

    __slots__ = ("_waiter", "close", "orders", "question", "stored", "told")

    def __init__(self, orders: Sequence[Order], unit: Unit | None) -> None:
        self.told = unit is not None
        self.orders = orders if unit is None else unit.orders
        self.close = None if unit is None else unit.close
        self.question = None if unit is None else unit.question
        self.stored = False
        self._waiter: asyncio.Future[None] | None = None

    def done(self) -> None:
        """
        Note that Redis has taken it.
        """
        self.stored = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout: float) -> None:
        """
        Wait until Redis has taken it, for *timeout* seconds at most.
        """
        if not self.stored:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._waiter}, timeout=timeout)


class Writer:
    """
    Writes orders to Redis, in their order and until it has taken them. To write one again
    does no harm.

    Args:
        store: Redis.
        sender: The name of this node.
        found: Called with an order and what was recorded in its place before.
    """

    def __init__(self, store: Store, sender: str, found: Callable[[Order, bytes], None]) -> None:
        self._store = store
        self._sender = sender
        self._found = found
        self._jobs: deque[Job] = deque()
        self._batch: list[Job] = []  # on its way
        self._lost = 0
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._jobs) + len(self._batch)

    def put(self, orders: Sequence[Order], unit: Unit | None = None) -> Job:
        """
        Write *orders*, and tell what *unit* says.
        """
        job = Job(orders, unit)
        if len(self._jobs) >= DEPTH:
            self._jobs.popleft()
            if self._lost % 10_000 == 0:
                log.error("more than %d orders wait for Redis; the oldest are lost", DEPTH)
            self._lost += 1
        self._jobs.append(job)
        self._wake.set()
        self._empty.clear()
        return job

    async def run(self) -> None:
        """
        Write until cancelled.
        """
        tries = 0
        while True:
            if not self._batch and not self._jobs:
                self._empty.set()
                self._wake.clear()
                await self._wake.wait()
            size = sum(len(job.orders) for job in self._batch)
            while self._jobs and size < BATCH:
                self._batch.append(self._jobs.popleft())
                size += max(1, len(self._batch[-1].orders))
            try:
                await self._write()
            except RedisAway:
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST, 0.05 * 2**tries))
                tries = min(tries + 1, 10)
            else:
                tries = 0

    async def _write(self) -> None:
        batch = self._batch
        orders = [order for job in batch for order in job.orders]
        texts = [order.text() for order in orders]
        # What is told of an order is what is recorded of it.
        known = iter(texts)
        units = []
        for job in batch:
            told = list(islice(known, len(job.orders)))
            if job.told:
                units.append(unit_text(told, job.close, job.question))
        message = envelope(self._sender, units) if units else None
        olds = await self._store.write(orders, texts, ORDERS, message)
        self._batch = []
        for job in batch:
            job.done()
        for order, old in zip(orders, olds, strict=True):
            if old is not None:
                try:
                    self._found(order, old)
                except Exception as exc:  # noqa: BLE001  what is stored is stored
                    log.error("a record could not be looked at: %s", blame(exc))  # noqa: TRY400  no traceback, which may hold an id

    async def drain(self, timeout: float) -> int:
        """
        Wait until all is written, for *timeout* seconds at most; return what is left.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            pass
        return len(self)
