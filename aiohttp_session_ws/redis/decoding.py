"""
Decode messages and records from Redis, which may be of another version or foreign. No I/O.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from .._lineage import LAST_GENERATION, Lineage, Subject
from ..close_codes import Close
from ..registry.order import Refresh
from ..sessions.encoding import subject_of
from ..sessions.records import Change, IdNote, LineageEnded, LineageRenewed, SubjectEnded
from .messages import LOGIN, VERSION, CloseSession, PublishedOrder, Record

__all__: list[str] = []

#: Exceptions that decoding foreign data may raise.
DECODE_ERRORS: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
)

_read: Final = json.JSONDecoder().raw_decode  # loads() would check its argument first

_BY_LOGIN: Final = {bits: bool(bits & LOGIN) for bits in range(4)}


def read_numbers(data: bytes) -> tuple[int, int, bytes] | None:
    """
    Return the first and the last number of a message, and its body.

    Both numbers are 0 if it has none, because Redis refused to record it; the result is ``None``
    for foreign data.
    """
    head, line_feed, body = data.partition(b"\n")
    last, colon, count = head.partition(b":")
    if not (line_feed and colon and last.isdigit() and count.isdigit() and len(head) < 40):
        return None
    return int(last) - int(count) + 1 if int(count) else 0, int(last), body


def read_message(body: bytes) -> tuple[str, list[str]] | None:
    """
    Return the sender of a message, and its orders as text; ``None`` if it can't be read.

    The sender is empty if a Lua script decided on the order: for an end that it derived, or for
    one by :meth:`~.cluster.RedisCluster.end_others`.
    """
    try:
        head, *orders = body.decode().split("\n")
        return _sender(head), orders
    except DECODE_ERRORS:
        return None


@lru_cache(256)  # one for each node
def _sender(head: str) -> str:
    message = json.loads(head)
    if message["v"] != VERSION:
        raise ValueError("unsupported version")
    return name(message["from"])


def read_order(text: str) -> PublishedOrder | None:
    """
    Return an order of a message, ``None`` if it can't be read.
    """
    try:
        body, end = _read(text)
        return _order(body) if end == len(text) else None
    except DECODE_ERRORS:
        return None


def read_record(data: bytes | str) -> Record | None:
    """
    Return the record that a key holds, ``None`` if it can't be read.
    """
    try:
        return _record(json.loads(data))
    except DECODE_ERRORS:
        return None


def read_records(values: Iterable[bytes | None]) -> tuple[list[Record], bool]:
    """
    Return the records that some keys hold, and whether all of them can be read.
    """
    found = [read_record(value) for value in values if value is not None]
    return [record for record in found if record is not None], None not in found


def name(value: object) -> str:
    """
    Return *value* as the name of a node; it must be encodable, as part of a channel's name.
    """
    text = str(value)
    _ = text.encode()
    return text


def _order(body: list[Any]) -> PublishedOrder:
    texts, closing, *rest = body
    changes = tuple([_change(text) for text in texts])
    closes = tuple([_close_session(text) for text in closing]) if closing else ()
    if not rest:
        return PublishedOrder(changes, closes)
    held, close, by, request_number, *refresh = (
        (*rest, None, None, None) if len(rest) == 1 else rest
    )
    if len(refresh) > 1:
        raise ValueError("unsupported version")
    return PublishedOrder(
        changes,
        closes,
        None if close is None else close_of(*close),
        None if by is None else str(by),
        None if request_number is None else str(request_number),
        _refresh(*refresh[0]) if refresh else None,
        held == 1,
        held == 2,
    )


def _refresh(
    token: Any, generation: Any, began: Any, session_ws_id: Any, until: Any, was: Any
) -> Refresh:
    lineage = Lineage(str(token), _generation(generation), _time(began))
    end = math.inf if until is None else _time(until)
    return Refresh(lineage, subject_of(session_ws_id), end, subject_of(was))


def _record(body: list[Any]) -> Record:
    return _close_session(body) if body[1] == "close" else _change(body)


def _change(body: list[Any]) -> Change:
    if body[0] != VERSION:
        raise ValueError("unsupported version")
    return _CHANGES[body[1]](*body[2:])


def _ended(at: Any, carries: Any, ttl: Any, minor: Any, token: Any) -> LineageEnded:
    return LineageEnded(_text(token), _time(at), bool(carries), ttl_of(ttl), bool(minor))


def _renewed(
    generation: Any, after: Any, at: Any, by: Any, seen: Any, ttl: Any, token: Any
) -> LineageRenewed:
    return LineageRenewed(
        _text(token),
        _generation(generation),
        _generation(after),
        _time(at),
        _BY_LOGIN[by],
        bool(seen),
        ttl_of(ttl),
    )


def _before(before: Any, ttl: Any, subject: Any) -> SubjectEnded:
    return SubjectEnded(_subject(subject), _time(before), ttl_of(ttl))


def _note(began: Any, ttl: Any, length: Any, token: Any, session_ws_id: Any) -> IdNote:
    return IdNote(subject_of(session_ws_id), _text(token), _time(began), ttl_of(ttl))


_CHANGES: Final[dict[str, Callable[..., Change]]] = {
    "ended": _ended,
    "renewed": _renewed,
    "before": _before,
    "note": _note,
}


def _close_session(body: list[Any]) -> CloseSession:
    if body[0] != VERSION or body[1] != "close":
        raise ValueError("unsupported version, or not a close order")
    _, _, at, code, number, reason, subject = body
    return CloseSession(_subject(subject), str(number), _time(at), close_of(code, reason))


@lru_cache(16)  # most are one of a few
def close_of(code: object, reason: object) -> Close:
    """
    Return the close code and the reason with which sockets are closed.

    Raises:
        ValueError: If they are invalid.
    """
    if type(code) is not int:
        raise ValueError("a close code must be an integer")
    return Close(code, str(reason))


def _generation(value: object) -> int:
    if type(value) is not int or not 0 <= value <= LAST_GENERATION:
        raise ValueError("a generation must be an integer >= 0")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a token must be a string")
    return value


def _time(value: Any) -> float:
    time = value if type(value) is float else float(value)
    if not math.isfinite(time):
        raise ValueError("a time must be a finite number of seconds")
    return time


def ttl_of(value: Any) -> float:
    """
    Return a time to live in seconds.

    Raises:
        ValueError: If it isn't a finite number > 0.
    """
    ttl = value if type(value) is float else float(value)
    if not 0 < ttl < math.inf:
        raise ValueError("a TTL must be a finite number of seconds > 0")
    return ttl


def _subject(body: list[Any]) -> Subject:
    kind, value = body
    if kind not in ("id", "identity", "label"):
        raise ValueError("unknown kind of subject")
    return Subject(kind, subject_of(value))
