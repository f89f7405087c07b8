"""
What waits in the outbox. No I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, TypeAlias

from .messages import PublishedOrder
from .rows import Shape, spell_out

__all__: list[str] = []

Argument: TypeAlias = "str | int | bytes"


class Waiting:
    """
    An order that waits until Redis has recorded it.

    There may be a million, and the garbage collector looks at every object in them.

    Attributes:
        published: Whether it was published.
        stored: Whether Redis has recorded it.
        alone: Whether it took too long, so that no other is sent with it.
    """

    __slots__ = ("_waiter", "alone", "published", "stored")

    def __init__(self) -> None:
        self.published = self.stored = self.alone = False
        self._waiter: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """
        Note that Redis has recorded it.
        """
        self.published = self.stored = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout: float) -> None:
        """
        Wait until Redis has recorded it, for *timeout* seconds at most.
        """
        if not self.stored:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._waiter}, timeout=timeout)


class Entry(Waiting):
    """
    An order to record and to publish.

    Attributes:
        order: The order.
    """

    __slots__ = ("order",)

    def __init__(self, order: PublishedOrder) -> None:
        super().__init__()
        self.order = order

    @property
    def size(self) -> int:
        """
        How many records it makes.
        """
        return len(self.order.changes) + len(self.order.closes)

    def spelled_out(self, sender: str) -> PublishedOrder:
        """
        Return the order.
        """
        return self.order


class Single(Waiting):
    """
    An order about one subject that says nothing else, so that it can be sent in a row of such.

    Attributes:
        shape: What it has in common with others of its row.
        at: When it was given, by the one clock.
        value: Which id, identity or label.
        number: How many close orders this node had given with it; 0 if it is an end.
    """

    __slots__ = ("at", "number", "shape", "value")

    #: How many records it makes.
    size: Final = 1

    def __init__(self, shape: Shape, at: float, value: Hashable, number: int = 0) -> None:
        # Not by super(): there may be very many.
        self.published = self.stored = self.alone = False
        self._waiter = None
        self.shape = shape
        self.at = at
        self.value = value
        self.number = number

    def spelled_out(self, sender: str) -> PublishedOrder:
        """
        Return the order as one that says all that an order can; *sender* is the name of this node.
        """
        return spell_out(self.shape, sender, self.number, self.at, self.value)


AnyEntry: TypeAlias = Entry | Single
