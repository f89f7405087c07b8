"""
Receive the orders that other nodes publish, carry them out, and detect missed ones.
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
from .recent import ReceivedNumbers, RecentOrders
from .rows import SingleOrderDecoder, SingleOrderMessage, is_row, read_row

__all__: list[str] = []

TURN: Final = 0.004  # seconds of carrying out orders before other tasks may run
FEW: Final = 50  # orders that are carried out without checking the time


class Inbound:
    """
    Receives orders, and detects missed ones by their numbers.

    Args:
        instance: The name of this node.
        applier: Applies the orders.
        numbers: The numbers that were received.
        recent: Keeps the messages, in case Redis loses their records.
        unrecorded: Called when an order is received that Redis has refused to record.
        report: Called with the sender and an order that asks for a report.
        gap_detected: Called when numbers aren't consecutive.
        unreadable: Called with the first and the last number of a message that can't be read, 0
            if it has none, and with zeros if an order failed: the sockets that it was to close
            are then found by the records.
        pace: Counts the messages.
    """

    def __init__(
        self,
        instance: str,
        applier: Applier,
        numbers: ReceivedNumbers,
        recent: RecentOrders,
        unrecorded: Callable[[], None],
        report: Callable[[str, PublishedOrder], None],
        gap_detected: Callable[[], None],
        unreadable: Callable[[int, int], None],
        pace: Pace,
    ) -> None:
        self._applier = applier
        self._numbers = numbers
        self._recent = recent
        self._unrecorded = unrecorded
        self._report = report
        self._gap_detected = gap_detected
        self._unreadable = unreadable
        self._pace = pace
        self._own = envelope(instance, [""]).encode()
        self._single_orders = SingleOrderDecoder()
        self._logged = OncePerMinute()

    def receive(self, data: bytes) -> Awaitable[None] | None:
        """
        Carry out the orders of a message.

        Returns:
            If there are so many that other tasks must run meanwhile, an awaitable for the rest.
        """
        one = self._single_orders.read(data)
        if one is not None:
            self._receive_single(one, data)
            return None
        self._pace.count()
        head = read_numbers(data)
        if head is None:
            self._report_unreadable(0, 0)
            return None
        first, last, body = head
        if last and not self._numbers.receive(first, last):
            self._gap_detected()
        if body.startswith(self._own):
            return None  # it took effect here when it was given
        message = read_message(body)
        if message is None:
            self._report_unreadable(first, last)
            return None
        sender, lines = message
        self._recent.add(sender, body)
        if not last:
            self._unrecorded()
        steps = self._steps(sender, lines, body, first, last)
        for number, step in enumerate(steps, 1):
            self._run_step(step)
            if number == FEW:
                return self._run_rest(steps)
        return None

    def _receive_single(self, one: SingleOrderMessage, data: bytes) -> None:
        """
        Carry out a message with one order; its close frames are written before anything else.
        """
        try:
            self._applier.carry_out_one(one.shape, one.at, one.value, one.sender, one.first)
        except Exception as exc:  # noqa: BLE001  whatever it is
            self._log_failed(exc)
        self._pace.count()
        if not self._numbers.receive(one.last, one.last):
            self._gap_detected()
        self._recent.add(one.sender, data[data.index(b"\n") + 1 :])

    async def _run_rest(self, steps: Iterator[Callable[[], None]]) -> None:
        """
        Carry out the rest of a message, and let other tasks run in between.
        """
        turn = time.monotonic() + TURN
        for step in steps:
            self._run_step(step)
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN

    def _steps(
        self, sender: str, lines: Sequence[str], body: bytes, first: int, last: int
    ) -> Iterator[Callable[[], None]]:
        """
        Yield callables that carry out a message line by line; each line is read when it is due.
        """
        readable = True
        for line in lines:
            steps = self._carry_out(sender, line, body if len(lines) == 1 else None)
            readable = readable and steps is not None
            yield from steps or (_nothing,)
        if not readable:
            self._report_unreadable(first, last)

    def _carry_out(
        self, sender: str, line: str, body: bytes | None
    ) -> Sequence[Callable[[], None]] | None:
        """
        Read a line of a message; of a row, carry out what can be done for all orders together.

        Args:
            sender: The node that sent the message.
            line: The line.
            body: The message, if it has no other line.

        Returns:
            Callables that carry out what is left; ``None`` if the line can't be read.
        """
        if is_row(line):
            row = read_row(line)
            if row is None:
                return None
            if body is not None:
                self._single_orders.remember(body, sender, row)
            try:
                return self._applier.carry_out_row(row, sender)
            except Exception as exc:  # noqa: BLE001  whatever it is
                self._log_failed(exc)
                return ()
        order = read_order(line)
        if order is None:
            return None
        if order.request_number is None:
            return [partial(self._applier.carry_out_soon, order, sender)]
        return [partial(self._report, sender, order)]

    def _run_step(self, step: Callable[[], None]) -> None:
        """
        Carry out an order; an error in it doesn't stop the others.
        """
        try:
            step()
        except Exception as exc:  # noqa: BLE001  whatever it is
            self._log_failed(exc)

    def _log_failed(self, exc: Exception) -> None:
        if self._logged.allows(type(exc).__name__):
            # No traceback, which may hold an id.
            log.error(
                "an order of another node could not be applied (%s): open sockets are checked"
                " against the records",
                describe_error(exc),
            )
        self._unreadable(0, 0)

    def _report_unreadable(self, first: int, last: int) -> None:
        if self._logged.allows("unreadable"):
            log.warning(
                "a message on our channel can't be read (another version, or foreign): open"
                " sockets are checked against the records"
            )
        self._unreadable(first, last)


def _nothing() -> None:
    """
    Do nothing, for a line of which nothing is left to do.
    """
