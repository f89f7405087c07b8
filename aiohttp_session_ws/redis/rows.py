"""
Rows of orders: most are about one subject and say nothing else. No I/O.

A row is a line of a message that begins with its kind and has tabs between its fields: what all of
its orders share, then the time and the subject of each. Redis' script makes the records of it, so
that nothing is sent twice, and a node that holds nothing of it reads it by a few calls, without an
object for each order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from typing import Final, NamedTuple

from .._lineage import Kind, Subject
from ..close_codes import Close
from ..sessions.encoding import encode, subject_of
from ..sessions.records import SubjectEnded
from .decoding import WRONG, close_of, read_order, ttl_of
from .messages import CLOSE_TTL, CloseSession, PublishedOrder, milliseconds

__all__: list[str] = []

KNOWN: Final = 1000  # beginnings of messages: some of each node
LONGEST: Final = 1000  # bytes of a message with one order that is looked at more closely

#: A message with one order, as most are: the number of its record, what it has in common with
#: others, the number of the order or how long it is kept, when it was given, and its subject.
_one: Final = re.compile(
    rb"([0-9]{1,19}):1\n([^\n]+\n[^\n]+)\t([0-9.]{1,19})\t([0-9]{1,19}\.[0-9]{1,19})"
    rb'\t"([ !#-\[\]-~]*)"'
).fullmatch
_make: Final[Callable[[type[One], tuple[int, str, Shape, int, float, str]], One]] = tuple.__new__

_KINDS: Final[dict[str, Kind]] = {"id": "id", "identity": "identity", "label": "label"}


class Shape(NamedTuple):
    """
    What orders of one subject each have in common if they can be a row.

    Attributes:
        ends: Whether the subjects end; else their sockets are to reconnect.
        kind: Ids, identities or labels.
        close: With what sockets are closed.
        ttl: Seconds to keep the ends after they were last met; 0 if they are none.
    """

    ends: bool
    kind: Kind
    close: Close
    ttl: float


class Row(NamedTuple):
    """
    Orders of one shape that were given one after another.

    Attributes:
        shape: What they have in common.
        first: The number of the first one of its node's close orders; 0 if they are ends.
        times: When each was given, by the one clock.
        values: Which ids, identities or labels.
    """

    shape: Shape
    first: int
    times: Sequence[float]
    values: Sequence[Hashable]


def row_text(shape: Shape, first: int, cells: Iterable[str]) -> str:
    """
    Return a row of orders as a line of a message.

    Args:
        shape: What they have in common.
        first: The number of the first, if they are close orders.
        cells: Of each what :func:`cell_text` returns.
    """
    head = head_of_row(shape)
    return "\t".join((head if shape.ends else f"{head}{first}", *cells))


@lru_cache(16)  # most are one of a few
def head_of_row(shape: Shape) -> str:
    """
    Return what a row begins with; in one of close orders the number of the first comes next.
    """
    ends, kind, close, ttl = shape
    how = f"{close.code}\t{quote(close.reason)}"
    if ends:
        return f"ends\t{kind}\t{how}\t{milliseconds(ttl)}\t{ttl!r}"
    return f"closes\t{kind}\t{how}\t{milliseconds(CLOSE_TTL)}\t"


def cell_text(at: float, value: Hashable) -> str:
    """
    Return one order of a row.
    """
    return f"{at!r}\t{quote(value) if type(value) is str else encode(value)}"


def read_orders(line: str, sender: str) -> list[PublishedOrder] | None:
    """
    Return the orders of a line of a message, ``None`` if it can't be read.

    Args:
        line: The line.
        sender: Who has sent the message.
    """
    if is_row(line):
        row = read_row(line)
        return None if row is None else list(orders_of(row, sender))
    order = read_order(line)
    return None if order is None else [order]


def is_row(line: str) -> bool:
    """
    Tell whether a line of a message holds a row of orders.
    """
    return not line.startswith("[")


def read_row(line: str) -> Row | None:
    """
    Return a row of orders, ``None`` if it can't be read.
    """
    try:
        return _row(line.split("\t"))
    except WRONG:
        return None


class One(NamedTuple):
    """
    A message with one order and nothing else, as most have.

    Attributes:
        last: The number of its record.
        sender: Who has sent it.
        shape: The shape of its row.
        first: The number of the order among its node's close orders; 0 if it is an end.
        at: When it was given, by the one clock.
        value: Which id, identity or label.
    """

    last: int
    sender: str
    shape: Shape
    first: int
    at: float
    value: str


class OneReader:
    """
    Reads messages with one order, by what they have in common with one that was read before.

    A message ends with the time and the subject of its order. What stands before these is the
    same for all of one sender and one shape, but for the number of a close order; so it is read
    once. What isn't exactly so is left to who reads messages of any kind.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, Shape, bytes]] = {}

    def learn(self, body: bytes, sender: str, row: Row) -> None:
        """
        Keep what a message begins with that has a row of one order, and nothing else.
        """
        if len(row.values) == 1 and type(row.values[0]) is str:
            if len(self._known) >= KNOWN:
                self._known.clear()
            head, rest, _, _ = body.rsplit(b"\t", 3)
            self._known[head] = sender, row.shape, rest if row.shape.ends else b""

    def read(self, data: bytes) -> One | None:
        """
        Return the order of a message, ``None`` if it isn't one that begins as another did.
        """
        found = _one(data) if len(data) <= LONGEST else None
        if found is None:
            return None
        last, head, rest, at, value = found.groups()
        known = self._known.get(head)
        if known is None:
            return None
        sender, shape, lasts = known
        if not shape.ends:
            first = int(rest) if rest.isdigit() else -1
        else:
            first = 0 if rest == lasts else -1
        if first < 0:
            return None
        return _make(One, (int(last), sender, shape, first, float(at), value.decode()))


def orders_of(row: Row, sender: str) -> Iterator[PublishedOrder]:
    """
    Return the orders of a row one by one.

    Args:
        row: The row.
        sender: Who has given them.
    """
    shape, first, times, values = row
    for number, (at, value) in enumerate(zip(times, values, strict=True), first):
        yield spell_out(shape, sender, number, at, value)


def spell_out(
    shape: Shape, sender: str, number: int, at: float, value: Hashable
) -> PublishedOrder:
    """
    Return an order of a row as one that says all that an order can.

    Args:
        shape: What it has in common with others.
        sender: Who has given it.
        number: Its number among its node's close orders, if it is one.
        at: When it was given, by the one clock.
        value: Which id, identity or label.
    """
    ends, kind, close, ttl = shape
    subject = Subject(kind, value)
    if ends:
        return PublishedOrder((SubjectEnded(subject, at, ttl),), (), close)
    return PublishedOrder((), (CloseSession(subject, f"{sender}/{number}", at, close),))


def _row(fields: list[str]) -> Row:
    what, kind, code, reason, _, rest, *cells = fields
    shape = _shape(what, kind, code, reason, rest if what == "ends" else "")
    times = list(map(float, cells[::2]))
    found = json.loads(f"[{','.join(cells[1::2])}]")
    if len(times) != len(found) or not (times and math.isfinite(sum(times))):
        raise ValueError("each order has a time and a subject")
    values = found if set(map(type, found)) == {str} else list(map(subject_of, found))
    return Row(shape, 0 if shape.ends else _number(rest), times, values)


@lru_cache(16)  # most are one of a few
def _shape(what: str, kind: str, code: str, reason: str, ttl: str) -> Shape:
    if what not in ("ends", "closes") or kind not in _KINDS:
        raise ValueError("another kind of order or subject")
    close = close_of(int(code), json.loads(reason))
    return Shape(what == "ends", _KINDS[kind], close, ttl_of(ttl) if what == "ends" else 0.0)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError("a number of an order is a whole number")
    return int(text)
