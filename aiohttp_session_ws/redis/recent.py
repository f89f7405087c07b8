"""
Recently published orders: received numbers, and messages to write again after a loss. No I/O.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .messages import is_written_again

__all__: list[str] = []

KEPT: Final = 3600.0  # seconds
AGAIN_KEPT: Final = 120.0  # seconds, for records that were written again
LARGEST: Final = 64 << 20  # bytes of messages
BLOCK: Final = 1024  # close orders of one node that share an integer of bits
MOST: Final = 10_000  # such blocks


class ReceivedNumbers:
    """
    The numbers of records that this node has received.

    Redis numbers each record and publishes it in the same step, so that a gap in the numbers
    stands for a missed message.

    Attributes:
        last: The greatest number that was received or is missing.
        missing: The first and last number of each gap, in ascending order.
    """

    def __init__(self) -> None:
        self.last = 0
        self.missing: list[tuple[int, int]] = []

    def receive(self, first: int, last: int) -> bool:
        """
        Add the numbers of a message; return whether they follow the last one, or fill a gap.

        If not, some are missing, or Redis has lost the sequence and counts from another start.
        """
        if first == self.last + 1:
            self.last = last
            return True
        if last <= self.last:
            return self.mark_found(first, last)
        if first > self.last + 1:
            self.missing.append((self.last + 1, first - 1))
        else:
            _ = self.mark_found(first, self.last)
        self.last = last
        return False

    def extend_to(self, last: int) -> None:
        """
        Mark all numbers up to *last* as missing that haven't been received: Redis has given them.
        """
        if last > self.last:
            self.missing.append((self.last + 1, last))
            self.last = last

    def mark_found(self, first: int, last: int) -> bool:
        """
        Mark numbers as found; return whether any of them was missing.
        """
        found = False
        rest: list[tuple[int, int]] = []
        for low, high in self.missing:
            if high < first or low > last:
                rest.append((low, high))
                continue
            found = True
            if low < first:
                rest.append((low, first - 1))
            if high > last:
                rest.append((last + 1, high))
        self.missing = rest
        return found

    def mark_missing(self, first: int, last: int) -> None:
        """
        Mark received numbers as missing, for their message can't be read.
        """
        self.missing = sorted([*self.missing, (first, last)])

    def rewind(self, first: int, last: int) -> None:
        """
        Mark all numbers after *first* as missing, up to *last*, the last one given by Redis.
        """
        self.missing = [(low, min(high, first)) for low, high in self.missing if low <= first]
        self.last = min(self.last, first)  # those in between may not have been received
        self.extend_to(last)


class ReceivedMessage(NamedTuple):
    """
    A recently published message.

    Attributes:
        at: When it was received, by the clock of :class:`RecentOrders`.
        sender: The node that has sent it.
        body: The message without its numbers.
    """

    at: float
    sender: str
    body: bytes


class _Messages:
    """
    Messages that are kept for a time, bounded by their size.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.messages: deque[ReceivedMessage] = deque()
        self._size = 0

    def add(self, message: ReceivedMessage) -> None:
        self.messages.append(message)
        self._size += len(message.body)

    def prune(self, now: float) -> None:
        messages, oldest = self.messages, now - self.seconds
        while messages and (self._size > LARGEST or messages[0].at < oldest):
            self._size -= len(messages.popleft().body)


class RecentOrders:
    """
    The messages of the last hour, to be written again if Redis loses its data.

    They are kept as bytes: the garbage collector would visit each object in them. Messages that
    wrote records again are kept for two minutes only, in case a Redis that restarts has lost its
    last seconds: the records are remembered elsewhere, and each loss would add more messages.

    Args:
        clock: Monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given = _Messages(KEPT)
        self._again = _Messages(AGAIN_KEPT)

    def __len__(self) -> int:
        return len(self._given.messages)

    def add(self, sender: str, body: bytes) -> None:
        """
        Keep a message.
        """
        now = self._clock()
        kept = self._again if is_written_again(body) else self._given
        kept.add(ReceivedMessage(now, sender, body))
        self._given.prune(now)
        self._again.prune(now)

    def of(self, is_meant: Callable[[str], bool], *, again: bool = False) -> Iterator[bytes]:
        """
        Return the messages of the senders that *is_meant* accepts, the oldest first; then, with
        *again*, those of the last minutes that wrote records again.
        """
        now = self._clock()
        for kept in (self._given, self._again) if again else (self._given,):
            for message in tuple(kept.messages):
                if message.at >= now - kept.seconds and is_meant(message.sender):
                    yield message.body


class SeenOrders:
    """
    The close orders that were carried out here, by their numbers.

    A number is the name of the node that gave the order, and the count of its close orders by
    then. They are kept as bits, :data:`BLOCK` of a node together, since they come in rows.

    Args:
        instance: This node's own name.
        clock: Monotonic time in seconds.
    """

    def __init__(self, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._instance = instance
        self._clock = clock
        self._count = 0
        # Bits, and when a block was last used; the oldest first.
        self._blocks: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def new(self) -> str:
        """
        Return the number of a new order of this node, which counts as seen.
        """
        return f"{self._instance}/{self.count()}"

    def count(self) -> int:
        """
        Count a new order of this node, and return the count; all its own orders count as seen.
        """
        self._count += 1
        return self._count

    def add(self, number: str) -> bool:
        """
        Add the number of an order; return whether it is new.
        """
        return self.add_one(*_parts(number))

    def add_one(self, instance: str, number: int) -> bool:
        """
        Add the number of an order of a node; return whether it is new.
        """
        if instance == self._instance:
            return number > self._count
        blocks, now = self._blocks, self._clock()
        key, bit = (instance, number // BLOCK), 1 << number % BLOCK
        block = blocks.get(key)
        if block is None:
            blocks[key] = bit, now
            self._forget(now)
            return True
        bits, _ = block
        blocks[key] = bits | bit, now
        blocks.move_to_end(key)
        return not bits & bit

    def add_row(self, instance: str, first: int, length: int) -> set[int]:
        """
        Add the numbers of a row of orders of one node; return those that were seen before.
        """
        if instance == self._instance:
            return set(range(first, min(first + length, self._count + 1)))
        known: set[int] = set()
        now, number, end = self._clock(), first, first + length
        while number < end:
            block, offset = divmod(number, BLOCK)
            count = min(BLOCK - offset, end - number)
            bits = ((1 << count) - 1) << offset
            before, _ = self._blocks.pop((instance, block), (0, 0.0))
            if before & bits:
                known.update(n for n in range(number, number + count) if before >> n % BLOCK & 1)
            self._blocks[instance, block] = before | bits, now
            number += count
        self._forget(now)
        return known

    def _forget(self, now: float) -> None:
        """
        Drop blocks that are too old or too many; those that were just used stay.
        """
        blocks, oldest = self._blocks, now - KEPT
        while len(blocks) > MOST or blocks[next(iter(blocks))][1] < oldest:
            _ = blocks.popitem(last=False)

    def has(self, number: str) -> bool:
        """
        Return whether an order was seen.
        """
        instance, count = _parts(number)
        if instance == self._instance:
            return count <= self._count
        bits, _ = self._blocks.get((instance, count // BLOCK), (0, 0.0))
        return bool(bits >> count % BLOCK & 1)


def _parts(number: str) -> tuple[str, int]:
    """
    Split a number into the node that gave it and its count; one of another version counts as a
    node of its own.
    """
    instance, _, count = number.rpartition("/")
    if count.isdecimal() and count.isascii() and len(count) < 20:
        return instance, int(count)
    return number, 0
