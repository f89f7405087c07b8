"""
The entries of the outbox. No I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, TypeAlias

from .messages import PublishedOrder
from .rows import Shape, to_published_order

__all__: list[str] = []

Argument: TypeAlias = "str | int | bytes"


class PendingEntry:
    """
    An order that waits until Redis has recorded it.

    Entries hold few objects: there may be a million, and the garbage collector visits each.

    Attributes:
        published: Whether it was published.
        stored: Whether Redis has recorded it.
        alone: Whether it failed or took too long, so that it is sent without others.
    """

    __slots__ = ("_waiter", "alone", "published", "stored")

    def __init__(self) -> None:
        self.published = self.stored = self.alone = False
        self._waiter: asyncio.Future[None] | None = None

    def finish(self) -> None:
        """
        Mark it as recorded by Redis, and end all waits for that.
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


class Entry(PendingEntry):
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
        How many records the order makes.
        """
        return len(self.order.changes) + len(self.order.closes)

    def as_published_order(self, sender: str) -> PublishedOrder:
        """
        Return the order.
        """
        return self.order


class SubjectEntry(PendingEntry):
    """
    An order about one subject and nothing else, so that it can be part of a row of such orders.

    Attributes:
        shape: The fields that orders of one row share.
        at: When it was given, by the shared clock.
        value: The id, identity or label.
        number: Its number among the close orders of this node; 0 if it is an end.
    """

    __slots__ = ("at", "number", "shape", "value")

    #: How many records the order makes.
    size: Final = 1

    def __init__(self, shape: Shape, at: float, value: Hashable, number: int = 0) -> None:
        # Without super(), to save time: there may be very many.
        self.published = self.stored = self.alone = False
        self._waiter = None
        self.shape = shape
        self.at = at
        self.value = value
        self.number = number

    def as_published_order(self, sender: str) -> PublishedOrder:
        """
        Return the order in its general form; *sender* is the name of this node.
        """
        return to_published_order(self.shape, sender, self.number, self.at, self.value)


AnyEntry: TypeAlias = Entry | SubjectEntry
