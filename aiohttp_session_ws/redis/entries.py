"""
What waits in the outbox. No I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Final, TypeAlias

from .._lineage import Subject
from ..close_codes import Close
from ..registry.order import Refresh
from ..sessions.records import SubjectEnded
from .messages import CloseSession, Record
from .rows import Shape

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
        changes: What has ended or was renewed.
        closes: Whose sockets are to reconnect besides.
        close: With what sockets are closed.
        by: Who gave it.
        question: Under which number to report.
        refresh: Which open sockets go on in place of being closed.
        held: Whether open sockets wait for the order to come again.
        again: Whether it is nothing but records that Redis had lost.
    """

    __slots__ = ("again", "by", "changes", "close", "closes", "held", "question", "refresh")

    def __init__(
        self,
        changes: Sequence[Record],
        closes: Sequence[Record] = (),
        close: Close | None = None,
        by: str | None = None,
        question: str | None = None,
        refresh: Refresh | None = None,
        *,
        held: bool = False,
        again: bool = False,
    ) -> None:
        super().__init__()
        self.changes = changes
        self.closes = closes
        self.close = close
        self.by = by
        self.question = question
        self.refresh = refresh
        self.held = held
        self.again = again

    @property
    def size(self) -> int:
        """
        How many records it makes.
        """
        return len(self.changes) + len(self.closes)

    def spelled_out(self, sender: str) -> Entry:
        """
        Return it as one that says all that an order can; *sender* is the name of this node.
        """
        return self


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

    def spelled_out(self, sender: str) -> Entry:
        """
        Return it as one that says all that an order can; *sender* is the name of this node.
        """
        ends, kind, close, ttl = self.shape
        subject = Subject(kind, self.value)
        if ends:
            return Entry([SubjectEnded(subject, self.at, ttl)], close=close)
        return Entry((), [CloseSession(subject, f"{sender}/{self.number}", self.at, close)])


AnyEntry: TypeAlias = Entry | Single
