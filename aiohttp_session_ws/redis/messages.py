"""
Wire format of records, orders and requests: encoding. No I/O.

A record is a JSON array of the version, its kind, the fields that the Lua script merges, in fixed
places, and the fields that it only copies. The same text is the value of a key and a part of a
message. A message has lines: ``<last number>:<count>``, written by the script, a JSON object with
the version and the sender, and then for each order a JSON array, or for many a row (:mod:`.rows`).
They are decoded line by line, so that the garbage collector never sees many objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final, NamedTuple, TypeAlias

from .._lineage import Subject
from ..close_codes import Close
from ..registry.order import Refresh
from ..sessions.encoding import encode
from ..sessions.records import Change, IdNote, LineageEnded, LineageRenewed, SubjectEnded

__all__: list[str] = []

VERSION: Final = 1

DATA: Final = "data"  # the channel of requests and pushes; that of answers ends with a node's name
#: Seconds to keep a close order: longer than any node misses messages without losing its
#: sockets.
CLOSE_TTL: Final = 3600.0
MAX_TTL: Final = 10 * 365 * 24 * 3600.0  # seconds; Redis accepts no infinite TTL

LOGIN: Final = 2  # a log-in, as a bit: the Lua script merges causes by bitwise or

WRITTEN_AGAIN: Final = b"],[],2]"  # the end of lines with records that Redis had lost


class CloseSession(NamedTuple):
    """
    A close order: the sockets of an id, an identity or a label are to reconnect.

    Attributes:
        subject: The id, identity or label.
        number: The unique number of the order, so that no node carries it out twice.
        at: When it was given, by the clock of all nodes.
        close: The close code and reason.
    """

    subject: Subject
    number: str
    at: float
    close: Close


Record: TypeAlias = Change | CloseSession


class PublishedOrder(NamedTuple):
    """
    An order as one node publishes it to the others.

    Attributes:
        changes: Records of ends and renewals.
        closes: Close orders for further sockets.
        close: The close code and reason; without one they depend on the changes.
        by: Who gave the order, for operators.
        request_number: The number of the request for reports, if they are asked for.
        refresh: The open sockets that stay open under another id and generation.
        held: Whether open sockets wait until the order is published again: the response that
            belongs to it hasn't been sent yet.
        written_back: Whether it consists of records that Redis had lost.
    """

    changes: tuple[Change, ...]
    closes: tuple[CloseSession, ...] = ()
    close: Close | None = None
    by: str | None = None
    request_number: str | None = None
    refresh: Refresh | None = None
    held: bool = False
    written_back: bool = False


def split(records: Iterable[Record]) -> tuple[list[Change], list[CloseSession]]:
    """
    Return the changes and the close orders among some records.
    """
    changes: list[Change] = []
    closes: list[CloseSession] = []
    for record in records:
        if isinstance(record, CloseSession):
            closes.append(record)
        else:
            changes.append(record)
    return changes, closes


class Stored(NamedTuple):
    """
    An encoded record.

    Attributes:
        key: Its key, without the prefix.
        ttl: Its time to live in milliseconds.
        text: The record as JSON.
    """

    key: str
    ttl: int
    text: str


def encode_record(record: Record) -> Stored:
    """
    Encode a record for Redis.

    Raises:
        TypeError: If its subject can't be encoded.
    """
    return _ENCODERS[type(record)](record)


def _ended(record: LineageEnded) -> Stored:
    token, at, carries, ttl, minor = record
    name = quote(token)
    text = f'[1,"ended",{at!r},{carries:d},{ttl!r},{minor:d},{name}]'
    return Stored("lineage:" + name, milliseconds(ttl), text)


def _renewed(record: LineageRenewed) -> Stored:
    token, generation, after, at, login, seen, ttl = record
    name, causes = quote(token), LOGIN * login
    text = f'[1,"renewed",{generation},{after},{at!r},{causes},{seen:d},{ttl!r},{name}]'
    return Stored("lineage:" + name, milliseconds(ttl), text)


def _before(record: SubjectEnded) -> Stored:
    subject, before, ttl = record
    text = f'[1,"before",{before!r},{ttl!r},{subject_text(subject)}]'
    return Stored("end:" + subject_key(subject), milliseconds(ttl), text)


def _note(record: IdNote) -> Stored:
    session_ws_id, token, began, ttl = record
    name, session = quote(token), encode(session_ws_id)
    text = f'[1,"note",{began!r},{ttl!r},{len(name)},{name},{session}]'
    return Stored("of:" + session, milliseconds(ttl), text)


def _close(record: CloseSession) -> Stored:
    subject, number, at, close = record
    how = f"{close.code},{quote(number)},{quote(close.reason)}"
    text = f'[1,"close",{at!r},{how},{subject_text(subject)}]'
    return Stored("close:" + subject_key(subject), milliseconds(CLOSE_TTL), text)


_ENCODERS: Final[dict[type, Callable[[Any], Stored]]] = {
    LineageEnded: _ended,
    LineageRenewed: _renewed,
    SubjectEnded: _before,
    IdNote: _note,
    CloseSession: _close,
}


def milliseconds(ttl: float) -> int:
    """
    Return a time to live in seconds as milliseconds for Redis.
    """
    return int(min(ttl, MAX_TTL) * 1000) + 1


def subject_key(subject: Subject) -> str:
    """
    Return the part of a key that names *subject*.
    """
    return f"{subject.kind}:{encode(subject.value)}"


def subject_text(subject: Subject) -> str:
    """
    Return *subject* as JSON.
    """
    return f'["{subject.kind}",{encode(subject.value)}]'


def order_text(order: PublishedOrder, changes: Iterable[str], closes: Iterable[str] = ()) -> str:
    """
    Return an order as JSON; its *changes* and *closes* are given as JSON.
    """
    _, _, close, by, request_number, refresh, held, written_back = order
    text = f"[[{','.join(changes)}],[{','.join(closes)}]"
    if close is None and by is None and request_number is None and refresh is None:
        return text + (",1]" if held else ",2]" if written_back else "]")
    how = "null" if close is None else f"[{close.code},{quote(close.reason)}]"
    text += f",{held:d},{how},{_optional(by)},{_optional(request_number)}"
    if refresh is not None:
        (token, generation, began), session_ws_id, until, was = refresh
        end = "null" if until == math.inf else repr(float(until))
        ids = f"{encode(session_ws_id)},{end},{encode(was)}"
        text += f",[{quote(token)},{generation},{began!r},{ids}]"
    return text + "]"


def is_written_again(body: bytes) -> bool:
    """
    Return whether a message holds nothing but records that Redis had lost.
    """
    if not body.endswith(WRITTEN_AGAIN):
        return False
    lines = body.split(b"\n")[1:]
    return all(line.startswith(b"[[") and line.endswith(WRITTEN_AGAIN) for line in lines)


def _optional(text: str | None) -> str:
    return "null" if text is None else quote(text)


def envelope(sender: str, orders: Iterable[str]) -> str:
    """
    Return a message with encoded orders, without the line of numbers.
    """
    return "\n".join((head_of(sender), *orders))


@lru_cache(16)
def head_of(sender: str) -> str:
    """
    Return the second line of a message: version and sender.
    """
    return f'{{"v":{VERSION},"from":{quote(sender)}}}'


def request_text(sender: str, number: str, body: dict[str, Any]) -> str:
    """
    Return a request to other nodes, or the answer to one, as JSON.
    """
    return json.dumps({"v": VERSION, "from": sender, "q": number, **body})


def keys_of_lookup(token: str, subjects: Sequence[Subject], *, closes: bool) -> list[str]:
    """
    Return the keys of all records that concern a session.

    Args:
        token: Its lineage.
        subjects: Its id, and its identity and labels as far as they are known.
        closes: Whether to include those of close orders.
    """
    keys = ["lineage:" + quote(token)]
    for subject in subjects:
        name = subject_key(subject)
        keys.append("end:" + name)
        if closes:
            keys.append("close:" + name)
        if subject.kind == "id":
            keys.append("of:" + name[len("id:") :])
    return keys
