"""
What was missed is read, and what Redis has lost is written again.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from .._logging import log
from ..connections.connection import TrackedConnection
from ..registry.cluster import LocalNode
from ..sessions.records import Change, Records
from .apply import Applier
from .decoding import read_message, read_record
from .io.commands import CHUNK, Commands
from .io.connect import TROUBLE, reason
from .io.outbox import Entry, Outbox
from .io.scripts import FIND
from .lookup import Lookup, keys_of_connection
from .membership import PULSE, Membership
from .messages import CloseSession, Record, encode, envelope, order_text
from .recent import HeardNumbers, RecentOrders

__all__: list[str] = []

ROUND: Final = 1800.0  # seconds between two looks at all connections, come what may
SOON: Final = 0.01  # seconds in which more of the same trouble is collected
PAUSE: Final = 1.0  # seconds after a failure
AT_ONCE: Final = 250  # records that are read by number, or written again, in one step


class Reconciler:
    """
    Finds the orders that this node has missed, and writes again what Redis has lost.

    Args:
        node: This node.
        instance: Its name.
        commands: Redis.
        outbox: What waits to be recorded.
        membership: Who else lives.
        lookup: What is recorded of a session.
        applier: Lets what is found take effect.
        numbers: What was heard.
        recent: What was ordered lately.
    """

    def __init__(
        self,
        node: LocalNode,
        instance: str,
        commands: Commands,
        outbox: Outbox,
        membership: Membership,
        lookup: Lookup,
        applier: Applier,
        numbers: HeardNumbers,
        recent: RecentOrders,
    ) -> None:
        self._node = node
        self._instance = instance
        self._commands = commands
        self._outbox = outbox
        self._membership = membership
        self._lookup = lookup
        self._applier = applier
        self._numbers = numbers
        self._recent = recent
        self._wake = asyncio.Event()
        self._all = False  # all connections are to be looked at
        self._trouble = asyncio.Event()  # Redis may have lost something

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
        self._numbers.missing.append((first, last))
        self._numbers.missing.sort()
        self._wake.set()

    def lost(self) -> None:
        """
        Write soon what Redis has lost.
        """
        self._trouble.set()

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

    async def run_write_back(self) -> None:
        """
        Write again what Redis has lost, until cancelled; once for each trouble.
        """
        while True:
            await self._trouble.wait()
            self._trouble.clear()
            try:
                await self._write_back(lambda sender: sender == self._instance, lambda key: True)
                # By then all that live have said so, also to a Redis that has forgotten them.
                await asyncio.sleep(2 * PULSE)
                await self._write_back_of_gone()
            except TROUBLE as exc:
                log.debug("what is lost can't be written now: %s", reason(exc))
                await asyncio.sleep(PAUSE)
                self._trouble.set()

    async def write_records(self, changes: Iterable[Change]) -> None:
        """
        Write what a node knew when it started, and Redis doesn't.
        """
        some: dict[str, list[Record]] = {}
        for change in changes:
            some.setdefault(encode(change).key, []).append(change)
            if len(some) >= AT_ONCE:
                _ = await self._write_missing(some)
                some = {}
        _ = await self._write_missing(some)

    # What was missed

    async def _catch_up(self) -> None:
        while self._numbers.missing:
            first, last = self._numbers.missing[0]
            if first <= self._membership.floor:
                self._all = True
            await self._find(first, last)
        if self._all:
            self._all = False
            try:
                await self._look_at([*self._node.connections.open, *self._opening()])
            except TROUBLE:
                self._all = True
                raise
        if self._lookup.unchecked and self._commands.available:
            unchecked = [c for c in self._lookup.unchecked if not c.removed]
            await self._look_at(unchecked)
            self._lookup.unchecked.difference_update(unchecked)
            self._lookup.unchecked -= {c for c in self._lookup.unchecked if c.removed}

    def _opening(self) -> Iterable[TrackedConnection]:
        return self._node.connections.handshakes()

    async def _find(self, first: int, last: int) -> None:
        """
        Read the records of some numbers, some at a time.
        """
        prefix = self._commands.prefix
        reached, *found = await self._commands.run_script(FIND, 1, prefix, first, last, AT_ONCE)
        texts: list[str] = []
        changes: list[Change] = []
        closes: list[CloseSession] = []
        for key, value in zip(found[::2], found[1::2], strict=False):
            record = None if value is None else read_record(value)
            if record is None:
                if value is not None:
                    self._refuse_all_of(key)
                continue
            if isinstance(record, CloseSession):
                closes.append(record)
            else:
                changes.append(record)
                texts.append(value.decode())
        self._applier.learn(changes, closes)
        if changes:
            self._recent.add("", envelope("", [order_text(texts)]).encode())
        _ = self._numbers.find(first, int(float(reached)))

    def _refuse_all_of(self, key: bytes) -> None:
        """
        Have the sockets reconnect of which a record can't be read.
        """
        name = key.decode(errors="replace").removeprefix(self._commands.prefix)
        for connection in [*self._node.connections.open, *self._opening()]:
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

    # What is lost

    async def _write_back_of_gone(self) -> None:
        """
        Write again what nodes have ordered that are gone, shared out among those that live.
        """
        living = await self._membership.living()
        if self._instance not in living:
            return  # no heartbeat has come through
        mine = living.index(self._instance)

        def is_mine(key: str) -> bool:
            # Two for each, for their lists may differ for a moment.
            owner = zlib.crc32(key.encode()) % len(living)
            return mine in (owner, (owner + 1) % len(living))

        alive = frozenset(living)
        await self._write_back(lambda sender: sender not in alive, is_mine)

    async def _write_back(
        self, is_meant: Callable[[str], bool], is_mine: Callable[[str], bool]
    ) -> None:
        """
        Write again what is missing of the messages of some senders: read first.
        """
        some: dict[str, list[Record]] = {}
        written = 0
        for body in self._recent.of(is_meant):
            for order in read_message(body).orders:
                for record in (*order.changes, *order.closes):
                    key = encode(record).key
                    if is_mine(key):
                        some.setdefault(key, []).append(record)
            if len(some) >= AT_ONCE:
                written += await self._write_missing(some)
                some = {}
            await asyncio.sleep(0)
        written += await self._write_missing(some)
        if written:
            log.warning("Redis has lost %d records that this node knew; they are back", written)

    async def _write_missing(self, some: dict[str, list[Record]]) -> int:
        missing: list[Record] = []
        keys = list(some)
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            for key, value in zip(chunk, await self._commands.read(chunk), strict=True):
                missing += [record for record in some[key] if _says_more(record, value)]
        for start in range(0, len(missing), AT_ONCE):
            await self._outbox.wait_empty()  # new orders go first
            records = missing[start : start + AT_ONCE]
            closes = [record for record in records if isinstance(record, CloseSession)]
            changes = [record for record in records if not isinstance(record, CloseSession)]
            if closes:  # nobody is to carry them out now
                _ = self._outbox.put(Entry(closes, quiet=True))
            if changes:
                _ = self._outbox.put(Entry(changes))
        return len(missing)


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


def _says_more(record: Record, value: bytes | None) -> bool:
    """
    Tell whether a record says more than what Redis has under its key.
    """
    if value is None:
        return True
    known = read_record(value)
    if known is None or isinstance(record, CloseSession) or isinstance(known, CloseSession):
        return False  # of another version, or another order by now
    records = Records()
    _ = records.merge(known)
    return records.merge(record)
