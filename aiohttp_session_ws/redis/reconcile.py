"""
Reconciliation: finds the orders that this node has missed, and applies them late.
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
from .io.connect import REDIS_ERRORS, reason
from .io.scripts import FIND
from .lookup import Lookup, keys_of_connection
from .messages import PublishedOrder, Record, encode_record, envelope, order_text, split
from .recent import ReceivedNumbers, RecentOrders

__all__: list[str] = []

ROUND: Final = 1800.0  # seconds between two look-ups of all connections, in any case
SOON: Final = 0.01  # seconds to wait for further causes, which are handled together
PAUSE: Final = 1.0  # seconds after a failure
AT_ONCE: Final = 500  # records that are read by number in one step


class Reconciler:
    """
    Finds the orders that this node has missed.

    Args:
        node: This node.
        commands: The connection for commands.
        lookup: Applies the records of a connection.
        applier: Applies the records that are found by number.
        numbers: The numbers of the received records.
        recent: The recently published messages.

    Attributes:
        found: The count of missed records that were found.
    """

    def __init__(
        self,
        node: LocalNode,
        commands: Commands,
        lookup: Lookup,
        applier: Applier,
        numbers: ReceivedNumbers,
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
        self._all = False  # whether all connections are to be looked up

    def missed(self) -> None:
        """
        Schedule the reading of missing numbers.
        """
        self._wake.set()

    def check_all_connections(self) -> None:
        """
        Schedule a look-up of all connections.
        """
        self._all = True
        self._wake.set()

    def unreadable(self, first: int, last: int) -> None:
        """
        Schedule the reading of the records of an unreadable message; if it has no numbers, a
        look-up of all connections.
        """
        if not last:
            self.check_all_connections()
            return
        self._numbers.mark_missing(first, last)
        self._wake.set()

    async def run(self) -> None:
        """
        Read what was missed whenever that is scheduled, until cancelled.
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
            except REDIS_ERRORS as exc:
                log.debug("missed orders can't be read, retrying: %s", reason(exc))
                await asyncio.sleep(PAUSE)
                self._wake.set()
            except Exception:
                self._wake.set()
                raise  # the supervisor logs it, and starts this again

    # What was missed

    async def _catch_up(self) -> None:
        while self._numbers.missing:
            await self._read_numbers(*self._numbers.missing[0])
        if self._lookup.unchecked and self._commands.available:
            self._lookup.unchecked, self._all = False, True
        if self._all:
            self._all = False
            try:
                await self._check(self._connections())
            except Exception:
                self._all = True
                raise

    def _connections(self) -> list[TrackedConnection]:
        connections = self._node.connections
        return [*connections.open, *connections.handshakes()]

    async def _read_numbers(self, first: int, last: int) -> None:
        """
        Read and apply the first records of a range of numbers, :data:`AT_ONCE` or little more.
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
                self._make_reconnect(key)
            else:
                records.append(record)
        self.found += len(records)
        self._applier.apply_missed(records)
        changes, _ = split(records)
        if changes:
            texts = [encode_record(change).text for change in changes]
            order = order_text(PublishedOrder(tuple(changes), written_back=True), texts)
            self._recent.add("", envelope("", [order]).encode())
        _ = self._numbers.mark_found(first, int(float(reached)))

    def _make_reconnect(self, key: bytes) -> None:
        """
        Make the sockets reconnect that an unreadable record concerns.
        """
        name = key.decode(errors="replace").removeprefix(self._commands.prefix)
        for connection in self._connections():
            if name in keys_of_connection(connection):
                self._applier.make_reconnect(connection)

    async def _check(self, connections: Sequence[TrackedConnection]) -> None:
        """
        Read the records of some connections, and apply them.
        """
        for chunk, keys in _chunks(connections):
            values = iter(await self._commands.read([key for some in keys for key in some]))
            for connection, some in zip(chunk, keys, strict=True):
                found = [next(values) for _ in some]
                if not connection.removed:
                    self._lookup.apply_values(connection, found)
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
