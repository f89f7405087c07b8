"""
What other nodes publish, on its way in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

from .._logging import OncePerMinute, describe_error, log
from .apply import Applier
from .decoding import read_message, read_numbers, read_order
from .messages import PublishedOrder, envelope
from .pace import Pace
from .recent import HeardNumbers, RecentOrders
from .rows import One, OneReader, is_row, read_row

__all__: list[str] = []

TURN: Final = 0.004  # seconds of orders that are carried out before others have their turn
FEW: Final = 50  # orders that are carried out without looking at the time


class Inbound:
    """
    Hears orders, and notices what it hasn't heard.

    Args:
        instance: The name of this node.
        applier: Lets orders take effect.
        numbers: What was heard.
        recent: Keeps what was heard, in case Redis loses it.
        unrecorded: Called when an order is heard that Redis has refused to record.
        report: Called with the sender and an order that a report is asked of.
        doubt: Called when numbers don't follow each other.
        unreadable: Called with the first and the last number, 0 if it has none, of a message
            that can't be read, and with zeros if an order failed: what it was to close is found
            by what is recorded.
        pace: Counts what is heard.
    """

    def __init__(
        self,
        instance: str,
        applier: Applier,
        numbers: HeardNumbers,
        recent: RecentOrders,
        unrecorded: Callable[[], None],
        report: Callable[[str, PublishedOrder], None],
        doubt: Callable[[], None],
        unreadable: Callable[[int, int], None],
        pace: Pace,
    ) -> None:
        self._applier = applier
        self._numbers = numbers
        self._recent = recent
        self._unrecorded = unrecorded
        self._report = report
        self._doubt = doubt
        self._unreadable = unreadable
        self._pace = pace
        self._own = envelope(instance, [""]).encode()
        self._ones = OneReader()
        self._logged = OncePerMinute()

    def hear(self, data: bytes) -> Awaitable[None] | None:
        """
        Carry out the orders of a message.

        Returns:
            What to wait for, if there is so much that others must have their turn meanwhile.
        """
        one = self._ones.read(data)
        if one is not None:
            self._hear_one(one, data)
            return None
        self._pace.count()
        head = read_numbers(data)
        if head is None:
            self._cannot_read(0, 0)
            return None
        first, last, body = head
        if last and not self._numbers.hear(first, last):
            self._doubt()
        if body.startswith(self._own):
            return None  # it has taken effect when it was given
        message = read_message(body)
        if message is None:
            self._cannot_read(first, last)
            return None
        sender, lines = message
        self._recent.add(sender, body)
        if not last:
            self._unrecorded()
        acts = self._acts(sender, lines, body, first, last)
        for number, act in enumerate(acts, 1):
            self._act(act)
            if number == FEW:
                return self._go_on(acts)
        return None

    def _hear_one(self, one: One, data: bytes) -> None:
        """
        Carry out the order of a message that has one: its close frames come before all else.
        """
        try:
            self._applier.carry_out_one(one.shape, one.at, one.value, one.sender, one.first)
        except Exception as exc:  # noqa: BLE001  whatever it is
            self._note_failed(exc)
        self._pace.count()
        if not self._numbers.hear(one.last, one.last):
            self._doubt()
        self._recent.add(one.sender, data[data.index(b"\n") + 1 :])

    async def _go_on(self, acts: Iterator[Callable[[], None]]) -> None:
        """
        Carry out what is left of a message, with turns for others in between.
        """
        turn = time.monotonic() + TURN
        for act in acts:
            self._act(act)
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN

    def _acts(
        self, sender: str, lines: Sequence[str], body: bytes, first: int, last: int
    ) -> Iterator[Callable[[], None]]:
        """
        Return what carries out the lines of a message one after another, each line in its turn.
        """
        readable = True
        for line in lines:
            acts = self._carry_out(sender, line, body if len(lines) == 1 else None)
            readable = readable and acts is not None
            yield from acts or (_nothing,)
        if not readable:
            self._cannot_read(first, last)

    def _carry_out(
        self, sender: str, line: str, body: bytes | None
    ) -> Sequence[Callable[[], None]] | None:
        """
        Carry out an order, or what can be done at once of a row.

        Args:
            sender: Who has sent it.
            line: Its line.
            body: The message, if it has no other line.

        Returns:
            What is left to do; ``None`` if it can't be read.
        """
        if is_row(line):
            row = read_row(line)
            if row is None:
                return None
            if body is not None:
                self._ones.learn(body, sender, row)
            try:
                return self._applier.carry_out_row(row, sender)
            except Exception as exc:  # noqa: BLE001  whatever it is
                self._note_failed(exc)
                return ()
        order = read_order(line)
        if order is None:
            return None
        if order.question is None:
            return [partial(self._applier.carry_out_soon, order, sender)]
        return [partial(self._report, sender, order)]

    def _act(self, act: Callable[[], None]) -> None:
        """
        Carry out an order; if it fails, that keeps no other from being carried out.
        """
        try:
            act()
        except Exception as exc:  # noqa: BLE001  whatever it is
            self._note_failed(exc)

    def _note_failed(self, exc: Exception) -> None:
        if self._logged.allows(type(exc).__name__):
            # No traceback, which may hold an id.
            log.error("an order of another node failed: %s", describe_error(exc))
        self._unreadable(0, 0)

    def _cannot_read(self, first: int, last: int) -> None:
        if self._logged.allows("unreadable"):
            log.warning(
                "a message on our channel can't be read, of another version or not ours: open"
                " sockets are checked by what is recorded"
            )
        self._unreadable(first, last)


def _nothing() -> None:
    """
    Stand for a line without anything left to do.
    """
