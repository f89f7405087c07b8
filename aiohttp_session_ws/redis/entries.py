"""
What waits in the outbox, and what Redis' script gets of it. No I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .._lineage import Lineage, Subject
from ..close_codes import Close
from ..registry.cluster import Refresh
from .messages import Record, Stored, encode, envelope, keys_of_lookup, order_text

__all__: list[str] = []

Argument: TypeAlias = "str | int | bytes"


class Entry:
    """
    An order to record and to publish.

    There may be a million, and the garbage collector looks at every object in them.

    Attributes:
        changes: What has ended or was renewed.
        closes: Whose sockets are to reconnect besides.
        close: With what sockets are closed.
        by: Who gave it.
        question: Under which number to report.
        refresh: Which open sockets go on in place of being closed.
        held: Whether open sockets wait for the order to come again.
        quiet: Whether it is recorded only.
        published: Whether it was published.
        stored: Whether Redis has recorded it.
        alone: Whether it took too long, so that no other is sent with it.
    """

    __slots__ = (
        "_waiter",
        "alone",
        "by",
        "changes",
        "close",
        "closes",
        "held",
        "published",
        "question",
        "quiet",
        "refresh",
        "stored",
    )

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
        quiet: bool = False,
    ) -> None:
        self.changes = changes
        self.closes = closes
        self.close = close
        self.by = by
        self.question = question
        self.refresh = refresh
        self.held = held
        self.quiet = quiet
        self.published = self.stored = self.alone = False
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self.changes) + len(self.closes)

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


class Encoder:
    """
    Makes of entries what the script gets.

    Args:
        prefix: What all keys begin with, in braces.
        sender: The name of this node.
        resolve: Gives a record its time, which it may have been made without; ``None`` while
            the time isn't known.
    """

    def __init__(
        self, prefix: str, sender: str, resolve: Callable[[Record], Record | None]
    ) -> None:
        self._tag = f"{{{prefix}}}:"
        self._sender = sender
        self._resolve = resolve

    def arguments(self, entries: Sequence[Entry], channel: str) -> list[Argument] | None:
        """
        Return what the script gets that writes; ``None`` if a record's time isn't known.

        Args:
            entries: What it writes.
            channel: Where it publishes that.
        """
        quiet: list[Stored] = []
        told: list[Stored] = []
        texts: list[str] = []
        news = True
        for entry in entries:
            changes, closes = self._encoded(entry.changes), self._encoded(entry.closes)
            if changes is None or closes is None:
                return None
            if entry.quiet:
                quiet += changes
                quiet += closes
                continue
            told += changes
            told += closes
            news = news and not entry.published
            texts.append(
                order_text(
                    [stored.text for stored in changes],
                    [stored.text for stored in closes],
                    entry.close,
                    entry.by,
                    entry.question,
                    entry.refresh,
                    held=entry.held,
                )
            )
        body = envelope(self._sender, texts).encode() if texts else b""
        records = [*quiet, *told]
        args: list[Argument] = [1 + len(records), self._tag]
        args += [self._tag + stored.key for stored in records]
        # What was published without a number isn't published so again.
        args += [channel, body, "1" if news and body else "", len(quiet)]
        for stored in records:
            args += [stored.ttl, stored.text]
        return args

    def to_judge(
        self,
        entry: Entry,
        channel: str,
        lineage: Lineage,
        subjects: Sequence[Subject],
        since: float,
        grace: float,
    ) -> list[Argument]:
        """
        Return what the script gets that judges a session before it writes.

        Args:
            entry: What it writes.
            channel: Where it publishes that.
            lineage: Of the session that has to be alive.
            subjects: Its id, identity and labels.
            since: Up to when an end of the identity or a label would concern it.
            grace: Seconds in which an older generation is replaced though none has come with
                the newer one.
        """
        count, *args = self.arguments([entry], channel) or [0]
        keys = [self._tag + key for key in keys_of_lookup(lineage.token, subjects, closes=False)]
        keys = [key for key in keys if not key.startswith(self._tag + "of:")]
        args[int(count) : int(count)] = keys
        args += [repr(lineage.generation), repr(lineage.began), repr(grace), repr(since)]
        return [int(count) + len(keys), *args, len(keys)]

    def _encoded(self, records: Sequence[Record]) -> list[Stored] | None:
        found = []
        for record in records:
            resolved = self._resolve(record)
            if resolved is None:
                return None
            found.append(encode(resolved))
        return found


def body_of(arguments: Sequence[Argument]) -> bytes:
    """
    Return the message that the script gets among its arguments, empty if there is none.
    """
    body = arguments[int(arguments[0]) + 2]
    return body if isinstance(body, bytes) else b""
