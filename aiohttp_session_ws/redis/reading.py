"""
Reading what comes from Redis: it may be of another version, or of somebody else. No I/O.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final

from ..closing import Close
from ..ids import as_tuple
from .wire import (
    VERSION,
    Closed,
    ClosedIdentity,
    Ended,
    EndedIdentity,
    Lifted,
    Moved,
    Order,
    Unit,
    as_json,
)

__all__: list[str] = []

#: What reading something foreign may raise.
WRONG: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


def name(value: object) -> str:
    """
    Return the name of a node, which is to be part of a channel's.
    """
    text = str(value)
    _ = text.encode()
    return text


def read_envelope(data: bytes | str) -> tuple[str, list[Unit]] | None:
    """
    Return the sender and the units of a message, ``None`` if it isn't one of ours.
    """
    try:
        body = json.loads(data)
        if body["v"] != VERSION:
            return None
        return name(body["from"]), [_unit(unit) for unit in body["units"]]
    except WRONG:
        return None


def read_record(data: bytes | str) -> Order | None:
    """
    Return the order that a record keeps, ``None`` if it isn't one of ours.
    """
    try:
        return _order(json.loads(data))
    except WRONG:
        return None


def _unit(body: dict[str, Any]) -> Unit:
    known = [_order(order) for order in body["orders"]]
    orders = tuple([order for order in known if order is not None])
    code, question = body.get("code"), body.get("q")
    close = None if code is None else _close(int(code), str(body.get("reason", "")))
    return Unit(orders, close, None if question is None else str(question))


@lru_cache(16)  # most are one of a few
def _close(code: int, reason: str) -> Close:
    return Close(code, reason)


def _order(body: dict[str, Any]) -> Order | None:
    """
    Return an order, ``None`` if it is of another version or kind.
    """
    if body["v"] != VERSION:
        return None
    match body["do"]:
        case "end":
            return Ended(_subject(body["id"]), float(body["at"]), _ttl(body))
        case "move":
            to = tuple(_subject(json.loads(id_)) for id_ in body["to"])
            return Moved(_subject(body["id"]), to, float(body["at"]), _ttl(body))
        case "close":
            return Closed(_subject(body["id"]), str(body["n"]))
        case "end identity":
            out = tuple(_subject(id_) for id_ in body["out"])
            before = float(body["before"])
            if not math.isfinite(before):
                raise ValueError("a time is a number of seconds")
            return EndedIdentity(_subject(body["who"]), before, out, _ttl(body))
        case "close identity":
            return ClosedIdentity(_subject(body["who"]), str(body["n"]))
        case "lift":
            return Lifted(_subject(body["id"]))
    return None


def _subject(value: Any) -> Hashable:
    if type(value) is str:
        return value
    subject: Hashable = as_tuple(value)
    hash(subject)
    if subject is None:
        raise ValueError("nobody")
    _ = as_json(subject)  # or what is told of it could not be told on
    return subject


def _ttl(body: dict[str, Any]) -> float:
    ttl = float(body["ttl"])
    if not 0 < ttl < math.inf:
        raise ValueError("a ttl is a number of seconds > 0")
    return ttl
