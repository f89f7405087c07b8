"""
Build the arguments of the Lua scripts that write queued orders. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quote

from .._lineage import Lineage, Subject
from ..sessions.clock import PENDING
from ..sessions.encoding import encode
from ..sessions.records import Change
from .entries import AnyEntry, Argument, Entry, SubjectEntry
from .messages import (
    CLOSE_TTL,
    PublishedOrder,
    Record,
    Stored,
    encode_record,
    envelope,
    head_of,
    milliseconds,
    order_text,
    subject_key,
)
from .rows import Shape, cell_text, head_of_row, row_text

__all__: list[str] = []


class Encoder:
    """
    Turns entries of the outbox into arguments of the Lua scripts.

    Args:
        prefix: The prefix of all keys, without the braces around it.
        sender: The name of this node.
        resolve: Returns a record with its time, which it may have been made without; ``None``
            while the time isn't known.
    """

    def __init__(
        self, prefix: str, sender: str, resolve: Callable[[Record], Record | None]
    ) -> None:
        self._tag = f"{{{prefix}}}:"
        self._sender = sender
        self._numbers_of = quote(sender)[:-1]  # the prefix of the numbers of close orders
        self._resolve = resolve
        self._head = head_of(sender)
        self._shape: Shape | None = None  # of the last order that was sent alone
        self._line = self._key = self._text = self._how = self._tail = ""  # its parts
        self._ttl = 0

    def arguments(self, entries: Sequence[AnyEntry], channel: str) -> list[Argument] | None:
        """
        Return the arguments of the script that writes; ``None`` if a record's time isn't known.

        Args:
            entries: The entries to write.
            channel: The channel on which to publish them.
        """
        if len(entries) == 1 and type(entries[0]) is SubjectEntry and entries[0].at < PENDING:
            return self._arguments_of_one(entries[0], channel)
        message = Message(self._sender)
        records: list[Stored] = []
        for entry in entries:
            if type(entry) is SubjectEntry and entry.at < PENDING:
                message.add(entry)
                continue
            order = entry.as_published_order(self._sender)
            some = self._encoded((*order.changes, *order.closes))
            if some is None:
                return None
            records += some
            texts, count = [stored.text for stored in some], len(order.changes)
            message.add_line(order_text(order, texts[:count], texts[count:]))
        body, rows = message.finish()
        args: list[Argument] = [1 + len(records), self._tag]
        args += [self._tag + stored.key for stored in records]
        # If Redis refuses to write, the message is published without numbers, unless all
        # entries were published so before.
        news = not all(entry.published for entry in entries)
        args += [channel, body, "1" if news else "", self._numbers_of]
        args += [len(rows), *[place for row in rows for place in row]]
        for stored in records:
            args += [stored.ttl, stored.text]
        return args

    def _arguments_of_one(self, entry: SubjectEntry, channel: str) -> list[Argument]:
        """
        Return the same for an order that is sent alone, as most are, in fewer steps.
        """
        shape, value = entry.shape, entry.value
        if shape is not self._shape:
            self._set_shape(shape)
        at, name = repr(entry.at), quote(value) if type(value) is str else encode(value)
        number = entry.number if not shape.ends else ""
        body = f"{self._line}{number}\t{at}\t{name}".encode()
        text = f"{self._text}{at}{self._how}{number}{self._tail}{name}]]"
        news, begin = "" if entry.published else "1", len(self._head) + 2
        args: list[Argument] = [1, self._tag, channel, body, news, self._numbers_of]
        args += [1, begin, len(body), self._key + name, text, self._ttl]
        if shape.ends:
            args.append(f"of:{name}")
        return args

    def _set_shape(self, shape: Shape) -> None:
        """
        Prepare the parts that orders of a shape share.
        """
        ends, kind, close, ttl = shape
        self._shape = shape
        self._line = f"{self._head}\n{head_of_row(shape)}"
        if ends:
            self._key, self._ttl = f"end:{kind}:", milliseconds(ttl)
            self._text, self._how, self._tail = '[1,"before",', f",{ttl!r}", f',["{kind}",'
            return
        self._key, self._ttl = f"close:{kind}:", milliseconds(CLOSE_TTL)
        self._text, self._how = '[1,"close",', f",{close.code},{self._numbers_of}/"
        self._tail = f'",{quote(close.reason)},["{kind}",'

    def end_others_arguments(
        self,
        changes: tuple[Change, ...],
        channel: str,
        lineage: Lineage,
        subjects: Sequence[Subject],
        since: float,
        grace: float,
        deadline: float,
    ) -> list[Argument]:
        """
        Return the arguments of the script that writes only if a session is alive.

        Args:
            changes: The records to write.
            channel: The channel on which to publish them, unless Redis refuses to write.
            lineage: The lineage of the session that has to be alive.
            subjects: Its id, identity and labels.
            since: From when on an end of the identity concerns the session.
            grace: Seconds in which an older generation is replaced though no request has come
                with the newer one.
            deadline: Until when, by the shared clock, they may be written.
        """
        entry = Entry(PublishedOrder(changes, held=True))
        entry.published = True
        written = self.arguments([entry], channel)
        assert written is not None, "the time is known"
        count, *args = written
        keys = [f"{self._tag}lineage:{quote(lineage.token)}"]
        keys += [f"{self._tag}end:{subject_key(subject)}" for subject in subjects]
        args[int(count) : int(count)] = keys
        args += [repr(deadline), repr(lineage.generation), repr(lineage.began)]
        args += [repr(grace), repr(since)]
        return [int(count) + len(keys), *args, len(keys)]

    def _encoded(self, records: Sequence[Record]) -> list[Stored] | None:
        found = []
        for record in records:
            resolved = self._resolve(record)
            if resolved is None:
                return None
            found.append(encode_record(resolved))
        return found


class Message:
    """
    Builds a message: a line for each order or row, in the sequence in which they are added.

    Args:
        sender: The name of the sending node.
    """

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self._lines: list[str] = []
        self._rows: list[int] = []  # the indexes of lines that hold rows
        self._shape: Shape | None = None  # of the current row
        self._next = 0  # its next number
        self._first = 0
        self._cells: list[str] = []

    def add(self, entry: SubjectEntry) -> None:
        """
        Add an order to the current row, or begin another one.
        """
        shape, number = entry.shape, entry.number
        if shape is not self._shape or number != self._next:
            self._end_row()
            self._shape, self._first = shape, number
        self._next = number + 1 if number else 0
        self._cells.append(cell_text(entry.at, entry.value))

    def add_line(self, line: str) -> None:
        """
        Add an order on a line of its own.
        """
        self._end_row()
        self._lines.append(line)

    def _end_row(self) -> None:
        if self._shape is not None:
            self._rows.append(len(self._lines))
            self._lines.append(row_text(self._shape, self._first, self._cells))
            self._shape, self._cells = None, []

    def finish(self) -> tuple[bytes, list[tuple[int, int]]]:
        """
        Return the message and, counted from 1, the positions of the first and the last byte of
        each row.
        """
        self._end_row()
        text = envelope(self._sender, self._lines)
        rows, end, done = [], text.index("\n"), 0
        for number in self._rows:
            end += sum([len(line) + 1 for line in self._lines[done:number]])
            start, end, done = end + 2, end + 1 + len(self._lines[number]), number + 1
            rows.append((start, end))
        return text.encode(), rows


def body_of(arguments: Sequence[Argument]) -> bytes:
    """
    Return the message among the arguments of a script.
    """
    body = arguments[int(arguments[0]) + 2]
    assert isinstance(body, bytes), "the script gets a message"
    return body


def is_published(arguments: Sequence[Argument]) -> bool:
    """
    Return whether the script publishes the message even if Redis refuses to record it.
    """
    return arguments[int(arguments[0]) + 3] == "1"
