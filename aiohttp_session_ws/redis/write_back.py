"""
Write-back of records that Redis has lost: only on evidence of a loss, only what is missing.

Nodes may be killed during a write-back, so the remaining ones must cover all that they know.
Therefore each step covers the orders of all senders, except for the first: it covers those of this
node, the only ones that may be known to no other.

Over 300 lines long: what to compare, in which steps, and how it is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Final, TypeVar

from .._logging import OncePerMinute, log
from ..sessions.records import Records
from .decoding import read_message, read_record
from .entries import Entry
from .io.commands import Commands
from .io.connect import REDIS_ERRORS, reason
from .io.outbox import Outbox
from .io.scripts import HEARTBEAT_TTL
from .membership import PULSE, Membership
from .messages import (
    VERSION,
    CloseSession,
    PublishedOrder,
    Record,
    Stored,
    encode_record,
    split,
)
from .recent import RecentOrders
from .rows import read_orders

__all__: list[str] = []

T = TypeVar("T")

PAUSE: Final = 0.3  # seconds after a failure
FEW: Final = 100_000  # records times nodes up to which nothing is shared out
OWNERS: Final = 3  # nodes that each record of another node is assigned to
AT_ONCE: Final = 250  # keys that are read, or records that are written, in one step
#: Seconds between two parts for each living node, where much is not shared out: all nodes together
#: take a fifth of Redis' time to find that nothing is missing.
SLOWLY: Final = 0.002
REST: Final = 2e-5  # seconds for each record and node until evicted keys are written again
CLOSE_ORDER: Final = f'[{VERSION},"close",'  # occurs in the text of an order with a close order

#: Seconds before each step for the orders of other nodes. They are shared out once most nodes have
#: sent a heartbeat, and once all have, also to a Redis that has forgotten them. In the last step
#: each node covers all that it knows, for those that had a share may have started lately, and not
#: know it, or have died.
STEPS: Final = (0.4, PULSE, HEARTBEAT_TTL)


class WriteBack:
    """
    Writes again what Redis has lost: each node its own orders, those of others shared out.

    When a server has restarted, the orders published lately are compared with it, for it may have
    lost its last seconds. When it has lost its data, so are all records of this node.

    Args:
        instance: The name of this node.
        commands: The connection for commands.
        outbox: The queue of orders to Redis; nothing is written again before it is idle.
        membership: The members of the cluster.
        recent: The recently published messages.
        records: All records of this node.

    Attributes:
        evicted: Whether Redis has evicted keys, perhaps ours.
    """

    def __init__(
        self,
        instance: str,
        commands: Commands,
        outbox: Outbox,
        membership: Membership,
        recent: RecentOrders,
        records: Records,
    ) -> None:
        self._instance = instance
        self._commands = commands
        self._outbox = outbox
        self._membership = membership
        self._recent = recent
        self._records = records
        self._loss_reported = asyncio.Event()  # Redis may have lost something
        self._all = self._busy = self.evicted = False  # _all: compare all records
        self._reached = 0  # position in the records where a step was cut short
        self._rests_until = 0.0
        self._logged = OncePerMinute()

    def resume_after_rest(self) -> None:
        """
        Write again what was evicted, after a rest; called with each heartbeat.
        """
        if self.evicted and not self._busy and time.monotonic() >= self._rests_until:
            self.evicted = False
            self.lost(everything=True)

    def lost(self, *, everything: bool = False) -> None:
        """
        Schedule a write-back: of the orders of the last hour, or of all records too.
        """
        self._all = self._all or everything
        self._loss_reported.set()

    async def run(self) -> None:
        """
        Write again what Redis has lost, once for each report of a loss, until cancelled.
        """
        while True:
            self._busy = False
            await self._loss_reported.wait()
            self._loss_reported.clear()
            everything, self._all = self._all, False
            self._busy = True
            finished = await self._write_all(everything=everything)
            rest = REST * (len(self._records) + len(self._recent))
            self._rests_until = time.monotonic() + rest * len(self._membership.members)
            self._all = self._all or (everything and not finished)

    async def _write_all(self, *, everything: bool) -> bool:
        """
        Write again what is missing, step by step; return whether that was finished: another loss
        interrupts it, and then it begins with the first step.
        """
        try:
            own = self._published(lambda sender: sender == self._instance, again=not everything)
            await self.write(own)
            for step, seconds in enumerate(STEPS, 1):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds * random.uniform(1.0, 1.5)):
                        await self._loss_reported.wait()
                if self._loss_reported.is_set():
                    break
                if await self._write_share(everything=everything, shared=step < len(STEPS)):
                    return True
        except REDIS_ERRORS as exc:
            log.debug("the write-back failed, starting again: %s", reason(exc))
        return False

    async def finish(self, timeout: float) -> None:
        """
        Write what is missing when this node stops, for *timeout* seconds at most, if a write-back
        is due or running: other nodes may not know it.
        """
        if not (self._busy or self.evicted or self._loss_reported.is_set()):
            return
        self._loss_reported.clear()
        try:
            async with asyncio.timeout(timeout):
                await self.write(self._records)
                await self.write(self._published(lambda sender: True))
        except REDIS_ERRORS as exc:
            log.warning("the write-back was unfinished when this node stopped: %s", reason(exc))

    async def write(
        self,
        records: Iterable[Record],
        is_mine: Callable[[str], bool] = lambda key: True,
        pause: float = 0.0,
    ) -> None:
        """
        Write those of some records that Redis lacks: part by part, each of which is read first.

        Args:
            records: The records.
            is_mine: Returns for the key of a record whether this node is to write it.
            pause: Seconds after each part.
        """
        some: dict[str, dict[Record, Stored]] = {}
        written = 0
        for number, record in enumerate(records):
            stored = encode_record(record)
            if is_mine(stored.key):
                some.setdefault(stored.key, {})[record] = stored
            if len(some) >= AT_ONCE:
                written += await self._retry(partial(self._write_missing, some))
                some = {}
                await asyncio.sleep(pause)
            elif number % AT_ONCE == 0:
                await asyncio.sleep(0)
        if some:
            written += await self._retry(partial(self._write_missing, some))
        if written and self._logged.allows("lacks"):
            log.warning("Redis lacks %d records: this node writes them back", written)

    def take_over(self, body: bytes) -> list[Record]:
        """
        Queue the orders that another node couldn't get recorded before it stopped; return their
        records.

        Args:
            body: The message that the other node would have published.
        """
        records = [*_records_of(body)]
        self._put(records)
        return records

    # What may be missing

    def _published(
        self,
        is_meant: Callable[[str], bool],
        *,
        closes_only: bool = False,
        again: bool = False,
    ) -> Iterator[Record]:
        """
        Yield the records of recent orders of some senders, or only of those that close; with
        *again* also of those that wrote records again.
        """
        for body in self._recent.of(is_meant, again=again):
            yield from _records_of(body, closes_only=closes_only)

    async def _write_share(self, *, everything: bool, shared: bool) -> bool:
        """
        Write again this node's share of the orders of others, and of all records if *everything*;
        all of it if that is little, or not *shared*.

        Returns:
            Whether it was all.
        """
        living = await self._retry(self._membership.living)
        size = len(self._recent) + (len(self._records) if everything else 0)
        few = size * len(living) <= FEW or self._instance not in living
        whole = few or not shared
        mine = 0 if whole else living.index(self._instance)
        pause = 0.0 if few or shared else SLOWLY * len(living)

        def is_mine(key: str) -> bool:
            # Several nodes for each record: one that started lately doesn't know it.
            return whole or (mine - zlib.crc32(key.encode())) % len(living) < OWNERS

        if everything:
            await self.write(self._in_turn(), is_mine, pause)
        # The records include all changes, but no close orders.
        others = self._published(
            lambda sender: sender != self._instance, closes_only=everything, again=not everything
        )
        await self.write(others, is_mine, pause)
        return whole

    def _in_turn(self) -> Iterator[Record]:
        """
        Yield all records of this node, beginning where the last step was cut short: otherwise
        each would begin with the same ones, and perhaps never reach the rest.
        """
        begin, count = self._reached, len(self._records) or 1
        for number, record in enumerate(
            chain(islice(self._records, begin, None), islice(self._records, begin))
        ):
            self._reached = (begin + number - AT_ONCE) % count
            yield record
        self._reached = 0

    # What is missing

    async def _retry(self, step: Callable[[], Awaitable[T]]) -> T:
        """
        Await a step, and retry it until it succeeds.

        A write-back that restarted with its first record after each failure might never reach the
        last one while Redis is away now and then.

        Raises:
            REDIS_ERRORS: If it fails and there was another loss: the write-back begins again.
        """
        while True:
            try:
                return await step()
            except REDIS_ERRORS as exc:
                if self._loss_reported.is_set():
                    raise
                log.debug("a step of the write-back failed, retrying: %s", reason(exc))
                await asyncio.sleep(PAUSE)

    async def _write_missing(self, some: dict[str, dict[Record, Stored]]) -> int:
        missing: list[Record] = []
        values = await self._commands.read([*some])
        for records, value in zip(some.values(), values, strict=True):
            missing += [
                record for record, stored in records.items() if _adds_to(record, stored, value)
            ]
        for start in range(0, len(missing), AT_ONCE):
            await self._outbox.wait_idle()  # new orders go first
            self._put(missing[start : start + AT_ONCE])
        return len(missing)

    def _put(self, records: Iterable[Record]) -> None:
        changes, closes = split(records)
        for close in closes:  # nodes that have missed it carry it out now
            self._outbox.put(Entry(PublishedOrder((), (close,))))
        if changes:
            self._outbox.put(Entry(PublishedOrder(tuple(changes), written_back=True)))


def _records_of(body: bytes, *, closes_only: bool = False) -> Iterator[Record]:
    """
    Yield the records of the orders of a message, or only of those that close.
    """
    sender, lines = read_message(body) or ("", [])
    for line in lines:
        if not closes_only or line.startswith("closes") or CLOSE_ORDER in line:
            for order in read_orders(line, sender) or ():
                yield from order.changes
                yield from order.closes


def _adds_to(record: Record, stored: Stored, value: bytes | None) -> bool:
    """
    Return whether a record would change what Redis has under its key.
    """
    if value is None:
        return True
    if value == stored.text.encode():
        return False
    known = read_record(value)
    if isinstance(record, CloseSession):
        return isinstance(known, CloseSession) and record.at > known.at
    if known is None or isinstance(known, CloseSession):
        return False  # of another version
    records = Records()
    _ = records.merge(known)
    return records.merge(record)
