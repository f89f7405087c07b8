"""
What Redis has lost is written again: only on evidence, and only what is missing.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Iterable
from typing import Final

from .._logging import log
from ..sessions.records import Change, Records
from .decoding import read_message, read_record
from .entries import Entry
from .io.commands import CHUNK, Commands
from .io.connect import TROUBLE, reason
from .io.outbox import Outbox
from .membership import PULSE, Membership
from .messages import CloseSession, Record, encode
from .recent import RecentOrders
from .rows import read_orders

__all__: list[str] = []

PAUSE: Final = 1.0  # seconds after a failure
FEW: Final = 2000  # messages that are not worth sharing out
OWNERS: Final = 3  # nodes that see to each order of another
AT_ONCE: Final = 250  # records that are written again in one step


class WriteBack:
    """
    Writes again what Redis has lost: each node its own orders, those of nodes that are gone
    shared out among the living.

    Args:
        instance: The name of this node.
        commands: Redis.
        outbox: What waits to be recorded; nothing is written again while something does.
        membership: Who else lives.
        recent: What was ordered lately.
    """

    def __init__(
        self,
        instance: str,
        commands: Commands,
        outbox: Outbox,
        membership: Membership,
        recent: RecentOrders,
    ) -> None:
        self._instance = instance
        self._commands = commands
        self._outbox = outbox
        self._membership = membership
        self._recent = recent
        self._trouble = asyncio.Event()  # Redis may have lost something

    def lost(self) -> None:
        """
        Write soon what Redis has lost.
        """
        self._trouble.set()

    async def run(self) -> None:
        """
        Write again what Redis has lost, until cancelled; once for each trouble.
        """
        while True:
            await self._trouble.wait()
            self._trouble.clear()
            try:
                await self._write_all()
            except TROUBLE as exc:
                log.debug("what is lost can't be written now: %s", reason(exc))
                await asyncio.sleep(PAUSE)
                self._trouble.set()

    async def _write_all(self) -> None:
        await self._write_back(lambda sender: sender == self._instance, lambda key: True)
        # Others are about to write theirs, and most have said by then that they live.
        await asyncio.sleep(random.uniform(0.5, 1.0))
        living = frozenset([*await self._membership.living(), self._instance])
        await self._write_share(lambda sender: sender not in living)
        # By then all have, also to a Redis that has forgotten them; and who has died in between
        # has perhaps not written his.
        await asyncio.sleep(PULSE * random.uniform(1.0, 1.5))
        await self._write_share(lambda sender: sender != self._instance)

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

    async def _write_share(self, is_meant: Callable[[str], bool]) -> None:
        """
        Write again this node's share of what others have ordered: all of it if it is little.
        """
        living = await self._membership.living()
        few = len(self._recent) <= FEW or self._instance not in living
        mine = 0 if few else living.index(self._instance)

        def is_mine(key: str) -> bool:
            # Some for each, for a node that started lately doesn't know it.
            return few or (mine - zlib.crc32(key.encode())) % len(living) < OWNERS

        await self._write_back(is_meant, is_mine)

    async def _write_back(
        self, is_meant: Callable[[str], bool], is_mine: Callable[[str], bool]
    ) -> None:
        """
        Write again what is missing of the messages of some senders: read first.
        """
        some: dict[str, list[Record]] = {}
        written = 0
        for body in self._recent.of(is_meant):
            sender, lines = read_message(body) or ("", [])
            for line in lines:
                for order in read_orders(line, sender) or ():
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
