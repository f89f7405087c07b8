"""
What this node has missed is read, and takes effect late.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Final

from .._logging import log
from ..connections.connection import TrackedConnection
from ..registry.cluster import LocalNode
from .apply import Applier
from .decoding import read_record
from .io.commands import CHUNK, Commands
from .io.connect import TROUBLE, reason
from .io.scripts import FIND
from .lookup import Lookup, keys_of_connection
from .messages import PublishedOrder, Record, encode_record, envelope, order_text, split
from .recent import HeardNumbers, RecentOrders

__all__: list[str] = []

ROUND: Final = 1800.0  # seconds between two looks at all connections, come what may
SOON: Final = 0.01  # seconds in which more of the same trouble is collected
PAUSE: Final = 1.0  # seconds after a failure
AT_ONCE: Final = 500  # records that are read by number in one step


class Reconciler:
    """
    Finds the orders that this node has missed.

    Args:
        node: This node.
        commands: Redis.
        lookup: What is recorded of a session.
        applier: Lets what is found take effect.
        numbers: What was heard.
        recent: What was ordered lately.

    Attributes:
        found: How many records were found that had been missed.
    """

    def __init__(
        self,
        node: LocalNode,
        commands: Commands,
        lookup: Lookup,
        applier: Applier,
        numbers: HeardNumbers,
        recent: RecentOrders,
    ) -> None:
        self._node = node
        self._commands = commands
        self._lookup = lookup
        self._applier = applier
        self._numbers = numbers
        self._recent = recent
        self.found = 0
        self._wake = asyncio.Event()
        self._all = False  # all connections are to be looked at

    def missed(self) -> None:
        """
        Read soon what is missing.
        """
        self._wake.set()

    def look_at_all(self) -> None:
        """
        Look soon at all connections.
        """
        self._all = True
        self._wake.set()

    def unreadable(self, first: int, last: int) -> None:
        """
        Look soon at what a message was about that can't be read.
        """
        if not last:
            self.look_at_all()
            return
        self._numbers.lose(first, last)
        self._wake.set()

    async def run(self) -> None:
        """
        Read what was missed, until cancelled.
        """
        while True:
            try:
                async with asyncio.timeout(random.uniform(0.8, 1.0) * ROUND):
                    await self._wake.wait()
            except TimeoutError:
                self._all = True
            await asyncio.sleep(SOON)
            self._wake.clear()
            try:
                await self._catch_up()
            except TROUBLE as exc:
                log.debug("what was missed can't be read now: %s", reason(exc))
                await asyncio.sleep(PAUSE)
                self._wake.set()
            except Exception:
                self._wake.set()
                raise  # and it is logged, and started again

    # What was missed

    async def _catch_up(self) -> None:
        while self._numbers.missing:
            await self._find(*self._numbers.missing[0])
        if self._lookup.unchecked and self._commands.available:
            self._lookup.unchecked, self._all = False, True
        if self._all:
            self._all = False
            try:
                await self._look_at(self._connections())
            except Exception:
                self._all = True
                raise

    def _connections(self) -> list[TrackedConnection]:
        connections = self._node.connections
        return [*connections.open, *connections.handshakes()]

    async def _find(self, first: int, last: int) -> None:
        """
        Read the records of some numbers, some at a time.
        """
        prefix = self._commands.prefix
        reached, floor, *found = await self._commands.run_script(
            FIND, 1, prefix, first, last, AT_ONCE
        )
        if first <= int(float(floor)):
            self._all = True
        records: list[Record] = []
        for key, value in zip(found[::2], found[1::2], strict=False):
            if value is None:
                continue
            record = read_record(value)
            if record is None:
                self._refuse_all_of(key)
            else:
                records.append(record)
        self.found += len(records)
        self._applier.learn(records)
        changes, _ = split(records)
        if changes:
            texts = [encode_record(change).text for change in changes]
            order = order_text(PublishedOrder(tuple(changes), again=True), texts)
            self._recent.add("", envelope("", [order]).encode())
        _ = self._numbers.find(first, int(float(reached)))

    def _refuse_all_of(self, key: bytes) -> None:
        """
        Have the sockets reconnect of which a record can't be read.
        """
        name = key.decode(errors="replace").removeprefix(self._commands.prefix)
        for connection in self._connections():
            if name in keys_of_connection(connection):
                self._applier.refuse(connection)

    async def _look_at(self, connections: Sequence[TrackedConnection]) -> None:
        """
        Look up what is recorded of some connections.
        """
        for chunk, keys in _chunks(connections):
            values = iter(await self._commands.read([key for some in keys for key in some]))
            for connection, some in zip(chunk, keys, strict=True):
                found = [next(values) for _ in some]
                if not connection.removed:
                    self._lookup.take(connection, found)
            await asyncio.sleep(0)


def _chunks(
    connections: Sequence[TrackedConnection],
) -> Iterator[tuple[list[TrackedConnection], list[list[str]]]]:
    chunk: list[TrackedConnection] = []
    keys: list[list[str]] = []
    size = 0
    for connection in connections:
        some = keys_of_connection(connection)
        if size + len(some) > CHUNK:
            yield chunk, keys
            chunk, keys, size = [], [], 0
        chunk.append(connection)
        keys.append(some)
        size += len(some)
    if chunk:
        yield chunk, keys
