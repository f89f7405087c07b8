"""
What was published lately: which numbers were heard, and what to write again after a loss. No I/O.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .messages import is_written_again

__all__: list[str] = []

KEPT: Final = 3600.0  # seconds
AGAIN_KEPT: Final = 120.0  # seconds, of what was written again
LARGEST: Final = 64 << 20  # bytes of messages
BLOCK: Final = 1024  # close orders of one node that are remembered together
MOST: Final = 10_000  # such blocks


class HeardNumbers:
    """
    Which numbers of the sequence in Redis this node has heard.

    Redis numbers each record and publishes it in the same step, so that a number that is left
    out stands for a message that was missed.

    Attributes:
        last: The greatest number that was heard or is missing.
        missing: First and last of what is missing, in ascending order.
    """

    def __init__(self) -> None:
        self.last = 0
        self.missing: list[tuple[int, int]] = []

    def hear(self, first: int, last: int) -> bool:
        """
        Note the numbers of a message; tell whether they go on from what was heard.

        If not, some are missing, or Redis has lost the sequence and counts from another start.
        """
        if first == self.last + 1:
            self.last = last
            return True
        if last <= self.last:
            return self.find(first, last)
        if first > self.last + 1:
            self.missing.append((self.last + 1, first - 1))
        else:
            _ = self.find(first, self.last)
        self.last = last
        return False

    def reach(self, last: int) -> None:
        """
        Note that Redis has counted up to *last*: what wasn't heard of that is missing.
        """
        if last > self.last:
            self.missing.append((self.last + 1, last))
            self.last = last

    def find(self, first: int, last: int) -> bool:
        """
        Note that what was missing of these numbers was found; tell whether any was missing.
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

    def lose(self, first: int, last: int) -> None:
        """
        Note that what was heard under these numbers is missing all the same.
        """
        self.missing = sorted([*self.missing, (first, last)])

    def rewind(self, first: int, last: int) -> None:
        """
        Take what lies behind *first* for missing, up to *last*, which Redis has counted up to.
        """
        self.missing = [(low, min(high, first)) for low, high in self.missing if low <= first]
        self.last = min(self.last, first)  # what lies between was perhaps not heard
        self.reach(last)


class Heard(NamedTuple):
    """
    A message that was published lately.

    Attributes:
        at: When it was heard, by the clock of :class:`RecentOrders`.
        sender: Which node has sent it.
        body: The message without its numbers.
    """

    at: float
    sender: str
    body: bytes


class _Messages:
    """
    Messages that are kept for a time, as long as they aren't too much.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.messages: deque[Heard] = deque()
        self._size = 0

    def add(self, message: Heard) -> None:
        self.messages.append(message)
        self._size += len(message.body)

    def prune(self, now: float) -> None:
        messages, oldest = self.messages, now - self.seconds
        while messages and (self._size > LARGEST or messages[0].at < oldest):
            self._size -= len(messages.popleft().body)


class RecentOrders:
    """
    The messages of the last hour, to be written again if Redis loses its data.

    They are kept as bytes: the garbage collector would look at each object in them. What was
    written again is remembered elsewhere: it is kept for two minutes, in case a Redis that starts
    has lost its last seconds, or there would be more of it after each loss.

    Args:
        clock: Seconds that never go back.
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
        kept.add(Heard(now, sender, body))
        self._given.prune(now)
        self._again.prune(now)

    def of(self, is_meant: Callable[[str], bool], *, again: bool = False) -> Iterator[bytes]:
        """
        Return the messages of the senders that are meant, the oldest first; and then, if
        *again*, what was written again lately.
        """
        now = self._clock()
        for kept in (self._given, self._again) if again else (self._given,):
            for message in tuple(kept.messages):
                if message.at >= now - kept.seconds and is_meant(message.sender):
                    yield message.body


class SeenOrders:
    """
    The close orders that were carried out here, by their numbers.

    A number is the name of the node that gave the order, and how many it had given by then.
    They are kept as bits, :data:`BLOCK` of a node together, for they come in rows.

    Args:
        instance: The name that is this node's own.
        clock: Seconds that never go back.
    """

    def __init__(self, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._instance = instance
        self._clock = clock
        self._count = 0
        # Bits, and when the last one was set; the oldest first.
        self._blocks: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def new(self) -> str:
        """
        Return a number for an order that is being carried out here.
        """
        return f"{self._instance}/{self.count()}"

    def count(self) -> int:
        """
        Return how many orders were given here, with one that is given now; all of them are known.
        """
        self._count += 1
        return self._count

    def add(self, number: str) -> bool:
        """
        Note that an order has come; tell whether it is the first time.
        """
        return self.add_one(*_parts(number))

    def add_one(self, instance: str, number: int) -> bool:
        """
        Note that an order of a node has come; tell whether it is the first time.
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
        Note that a row of orders of one node has come; return those that had come before.
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
        Forget what is too old or too much; what has come now stays.
        """
        blocks, oldest = self._blocks, now - KEPT
        while len(blocks) > MOST or blocks[next(iter(blocks))][1] < oldest:
            _ = blocks.popitem(last=False)

    def has(self, number: str) -> bool:
        """
        Tell whether an order has come.
        """
        instance, count = _parts(number)
        if instance == self._instance:
            return count <= self._count
        bits, _ = self._blocks.get((instance, count // BLOCK), (0, 0.0))
        return bool(bits >> count % BLOCK & 1)


def _parts(number: str) -> tuple[str, int]:
    """
    Return the node that gave a number, and which of its it is; of another version, it is one
    of its own.
    """
    instance, _, count = number.rpartition("/")
    if count.isdecimal() and count.isascii() and len(count) < 20:
        return instance, int(count)
    return number, 0
