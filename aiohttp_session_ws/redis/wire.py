"""
What goes to Redis and comes from it: orders, as records and as messages. No I/O.

A record and the order in a message are the same JSON object, with a version in it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import ClassVar, Final, NamedTuple, TypeAlias

from ..closing import Close

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

VERSION: Final = 1
#: For how many seconds a close order is recorded: longer than any node misses messages
#: without losing its sockets.
CLOSE_TTL: Final = 3600.0


@dataclass(slots=True)
class Known:
    """
    What all orders have.

    Attributes:
        came: When this process came to know of it, by the clock of its memory. Not beside it:
            the garbage collector would look at an object more for each order.
    """

    came: float = field(default=0.0, init=False, repr=False, compare=False)


@dataclass(slots=True)
class Ended(Known):
    """
    A session has ended.
    """

    session_ws_id: Hashable
    at: float
    ttl: float

    op: ClassVar = "end"

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"rev:{as_json(self.session_ws_id)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        return (
            f'{{"v":1,"do":"end","id":{as_json(self.session_ws_id)}'
            f',"at":{self.at:.3f},"ttl":{self.ttl}}}'
        )


@dataclass(slots=True)
class Moved(Known):
    """
    A session was given other ids.
    """

    session_ws_id: Hashable
    to: tuple[Hashable, ...]
    at: float
    ttl: float

    op: ClassVar = "move"

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"rev:{as_json(self.session_ws_id)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        # Each of them is JSON in JSON: Redis' script merges them, and must not change them.
        to = ",".join(quote(as_json(id_)) for id_ in self.to)
        return (
            f'{{"v":1,"do":"move","id":{as_json(self.session_ws_id)},"to":[{to}]'
            f',"at":{self.at:.3f},"ttl":{self.ttl}}}'
        )


@dataclass(slots=True)
class Closed(Known):
    """
    The sockets of a session are to come back.
    """

    session_ws_id: Hashable
    number: str

    op: ClassVar = "set"
    ttl: ClassVar = CLOSE_TTL

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"close:{as_json(self.session_ws_id)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        return (
            f'{{"v":1,"do":"close","id":{as_json(self.session_ws_id)},"n":{quote(self.number)}}}'
        )


@dataclass(slots=True)
class EndedIdentity(Known):
    """
    The sessions of an identity have ended.
    """

    identity: Hashable
    before: float
    left_out: tuple[Hashable, ...]
    ttl: float

    op: ClassVar = "identity"

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"identity:{as_json(self.identity)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        out = ",".join(map(as_json, self.left_out))
        return (
            f'{{"v":1,"do":"end identity","who":{as_json(self.identity)}'
            f',"before":{self.before!r},"out":[{out}],"ttl":{self.ttl}}}'
        )


@dataclass(slots=True)
class ClosedIdentity(Known):
    """
    The sockets of an identity are to come back.
    """

    identity: Hashable
    number: str

    op: ClassVar = "set"
    ttl: ClassVar = CLOSE_TTL

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"close-identity:{as_json(self.identity)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        return (
            f'{{"v":1,"do":"close identity","who":{as_json(self.identity)}'
            f',"n":{quote(self.number)}}}'
        )


@dataclass(slots=True)
class Lifted(Known):
    """
    An id is alive again: it is not made for one session only.
    """

    session_ws_id: Hashable

    op: ClassVar = "lift"
    ttl: ClassVar = 1.0

    def key(self) -> str:
        """
        Return its key in Redis, without the prefix.
        """
        return f"rev:{as_json(self.session_ws_id)}"

    def text(self) -> str:
        """
        Return it as JSON.
        """
        return f'{{"v":1,"do":"lift","id":{as_json(self.session_ws_id)}}}'


Order: TypeAlias = Ended | Moved | Closed | EndedIdentity | ClosedIdentity | Lifted


class Unit(NamedTuple):
    """
    Orders that were given together.

    Attributes:
        orders: The orders; without any, nodes are to look whether they missed some.
        close: With what the sockets are closed.
        question: Under which number to report, if that is asked for.
    """

    orders: tuple[Order, ...]
    close: Close | None = None
    question: str | None = None

    def text(self) -> str:
        """
        Return it as JSON.
        """
        return unit_text([order.text() for order in self.orders], self.close, self.question)


def as_json(subject: Hashable) -> str:
    """
    Return an id or an identity as JSON: the same for what is equal in Python.

    Raises:
        TypeError: If other processes couldn't read it.
    """
    return quote(subject) if type(subject) is str else json.dumps(_plain(subject))


def _plain(subject: object) -> object:
    if isinstance(subject, str):
        return str.__str__(subject)
    if isinstance(subject, int) or (isinstance(subject, float) and subject.is_integer()):
        return int(subject)
    if subject is None or (isinstance(subject, float) and math.isfinite(subject)):
        return subject
    if isinstance(subject, tuple):
        return [_plain(part) for part in subject]
    raise TypeError(
        f"other processes can't be told of a {type(subject).__name__}: let ids and identities"
        " be str, int or tuples of such"
    )


def unit_text(orders: Iterable[str], close: Close | None, question: str | None) -> str:
    """
    Return a unit as JSON, of orders that are JSON already.
    """
    text = f'{{"orders":[{",".join(orders)}]'
    if close is not None:
        text += f',"code":{close.code},"reason":{quote(close.reason)}'
    if question is not None:
        text += f',"q":{quote(question)}'
    return text + "}"


def envelope(sender: str, units: Iterable[str]) -> str:
    """
    Return a message that carries the texts of units.
    """
    return f'{envelope_start(sender)},"units":[{",".join(units)}]}}'


def envelope_start(sender: str) -> str:
    """
    Return what all messages of a sender begin with.
    """
    return f'{{"v":{VERSION},"from":{quote(sender)}'
