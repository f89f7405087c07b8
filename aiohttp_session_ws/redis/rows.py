"""
Compact encoding of orders in rows: most have one subject and nothing else. No I/O.

A row is a line of a message, with tabs between its fields: its kind, what all of its orders share,
then the time and the subject of each. The Lua script makes the records of the row, so that nothing
is sent twice, and a node without sockets of these subjects decodes it by a few calls, without an
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
from .decoding import DECODE_ERRORS, close_of, read_order, ttl_of
from .messages import CLOSE_TTL, CloseSession, PublishedOrder, milliseconds

__all__: list[str] = []

KNOWN: Final = 1000  # heads of messages: a few of each node
MAX_FAST_SIZE: Final = 1000  # bytes; a longer message is left to the general decoder

#: A message with one order, as most are: the number of its record, what it has in common with
#: others, the number of a close order or the TTL of an end, the time, and the subject.
_match_single: Final = re.compile(
    rb"([0-9]{1,19}):1\n([^\n]+\n[^\n]+)\t([0-9.]{1,19})\t([0-9]{1,19}\.[0-9]{1,19})"
    rb'\t"([ !#-\[\]-~]*)"'
).fullmatch
_make: Final[
    Callable[
        [type[SingleOrderMessage], tuple[int, str, Shape, int, float, str]], SingleOrderMessage
    ]
] = tuple.__new__

_KINDS: Final[dict[str, Kind]] = {"id": "id", "identity": "identity", "label": "label"}


class Shape(NamedTuple):
    """
    The fields that all orders of a row have in common.

    Attributes:
        ends: Whether they are ends of the subjects; else they are close orders.
        kind: The kind of the subjects: ids, identities or labels.
        close: The close code and reason.
        ttl: Seconds to keep an end after its last hit; 0 for close orders.
    """

    ends: bool
    kind: Kind
    close: Close
    ttl: float


class Row(NamedTuple):
    """
    Successive orders of one shape.

    Attributes:
        shape: The fields that they have in common.
        first: The number of the first one among its node's close orders; 0 for ends.
        times: When each was given, by the clock of all nodes.
        values: The id, identity or label of each.
    """

    shape: Shape
    first: int
    times: Sequence[float]
    values: Sequence[Hashable]


def row_text(shape: Shape, first: int, cells: Iterable[str]) -> str:
    """
    Encode a row of orders as a line of a message.

    Args:
        shape: The fields that they have in common.
        first: The number of the first, if they are close orders.
        cells: The orders, encoded by :func:`cell_text`.
    """
    head = head_of_row(shape)
    return "\t".join((head if shape.ends else f"{head}{first}", *cells))


@lru_cache(16)  # there are few in practice
def head_of_row(shape: Shape) -> str:
    """
    Encode the head of a row; for close orders the number of the first one has to be appended.
    """
    ends, kind, close, ttl = shape
    how = f"{close.code}\t{quote(close.reason)}"
    if ends:
        return f"ends\t{kind}\t{how}\t{milliseconds(ttl)}\t{ttl!r}"
    return f"closes\t{kind}\t{how}\t{milliseconds(CLOSE_TTL)}\t"


def cell_text(at: float, value: Hashable) -> str:
    """
    Encode one order of a row.
    """
    return f"{at!r}\t{quote(value) if type(value) is str else encode(value)}"


def read_orders(line: str, sender: str) -> list[PublishedOrder] | None:
    """
    Decode the orders of a line of a message; ``None`` if it can't be read.

    Args:
        line: The line.
        sender: The node that has sent the message.
    """
    if is_row(line):
        row = read_row(line)
        return None if row is None else list(orders_of(row, sender))
    order = read_order(line)
    return None if order is None else [order]


def is_row(line: str) -> bool:
    """
    Return whether a line of a message holds a row of orders.
    """
    return not line.startswith("[")


def read_row(line: str) -> Row | None:
    """
    Decode a row of orders; ``None`` if it can't be read.
    """
    try:
        return _row(line.split("\t"))
    except DECODE_ERRORS:
        return None


class SingleOrderMessage(NamedTuple):
    """
    A message with a row of one order and nothing else, as most are.

    Attributes:
        last: The number of its record.
        sender: The node that has sent it.
        shape: The shape of its row.
        first: The number of the order among its node's close orders; 0 for an end.
        at: When it was given, by the clock of all nodes.
        value: The id, identity or label.
    """

    last: int
    sender: str
    shape: Shape
    first: int
    at: float
    value: str


class SingleOrderDecoder:
    """
    Fast decoder for messages with one order, which decodes equal heads of messages once.

    A message ends with the time and the subject of its order. What stands before these is the
    same for all of one sender and one shape, but for the number of a close order; so it is decoded
    once. Any other message is left to the general decoder.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, Shape, bytes]] = {}

    def remember(self, body: bytes, sender: str, row: Row) -> None:
        """
        Remember the head of a message, if its *row*, the only one, has one order.
        """
        if len(row.values) == 1 and type(row.values[0]) is str:
            if len(self._known) >= KNOWN:
                self._known.clear()
            head, rest, _, _ = body.rsplit(b"\t", 3)
            self._known[head] = sender, row.shape, rest if row.shape.ends else b""

    def read(self, data: bytes) -> SingleOrderMessage | None:
        """
        Decode a message with one order; ``None`` if it isn't one, or its head isn't known yet.
        """
        found = _match_single(data) if len(data) <= MAX_FAST_SIZE else None
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
        return _make(
            SingleOrderMessage, (int(last), sender, shape, first, float(at), value.decode())
        )


def orders_of(row: Row, sender: str) -> Iterator[PublishedOrder]:
    """
    Yield the orders of a row one by one.

    Args:
        row: The row.
        sender: The node that has given them.
    """
    shape, first, times, values = row
    for number, (at, value) in enumerate(zip(times, values, strict=True), first):
        yield to_published_order(shape, sender, number, at, value)


def to_published_order(
    shape: Shape, sender: str, number: int, at: float, value: Hashable
) -> PublishedOrder:
    """
    Convert an order of a row to a :class:`~.messages.PublishedOrder`.

    Args:
        shape: The fields that it has in common with others.
        sender: The node that has given it.
        number: Its number among its node's close orders, if it is one.
        at: When it was given, by the clock of all nodes.
        value: The id, identity or label.
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
        raise ValueError("each order must have a time and a subject")
    values = found if set(map(type, found)) == {str} else list(map(subject_of, found))
    return Row(shape, 0 if shape.ends else _number(rest), times, values)


@lru_cache(16)  # there are few in practice
def _shape(what: str, kind: str, code: str, reason: str, ttl: str) -> Shape:
    if what not in ("ends", "closes") or kind not in _KINDS:
        raise ValueError("unknown kind of order or subject")
    close = close_of(int(code), json.loads(reason))
    return Shape(what == "ends", _KINDS[kind], close, ttl_of(ttl) if what == "ends" else 0.0)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError("the number of an order must be an integer")
    return int(text)
