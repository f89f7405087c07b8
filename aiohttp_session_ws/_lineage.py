"""
Names for what a connection and a record have in common: a lineage, and a subject of orders.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Hashable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__: list[str] = []

Kind: TypeAlias = Literal["id", "identity", "label"]

#: The largest generation that is believed: Redis' Lua counts exactly up to here.
LAST_GENERATION: Final = 2**53


class Lineage(NamedTuple):
    """
    A session from its beginning, or its last log-in, to its end.

    Attributes:
        token: Its random name. Not a secret, and of no use to anybody else.
        generation: Raised by each renewal.
        began: When it began, in seconds since the epoch.
    """

    token: str
    generation: int
    began: float

    def renewed(self, generation: int) -> Lineage:
        """
        Return the same lineage with another generation.
        """
        return Lineage(self.token, generation, self.began)

    @classmethod
    def parse(cls, value: object) -> Lineage | None:
        """
        Read a lineage from a session, ``None`` if *value* isn't one: a cookie may be forged.
        """
        if type(value) is not list or len(value) != 3:
            return None
        token, generation, began = value
        if (
            type(token) is str
            and type(generation) is int
            and type(began) in NUMBERS
            and 0 <= generation <= LAST_GENERATION
            and 0 <= began < math.inf
        ):
            return _make(cls, value)  # quicker than cls(...)
        return None


NUMBERS: Final = frozenset({int, float})
_make: Final[Callable[[type[Lineage], list[Any]], Lineage]] = tuple.__new__


def new_lineage(began: float) -> Lineage:
    """
    Return a lineage with a random token.
    """
    return Lineage(secrets.token_hex(16), 0, began)


class Subject(NamedTuple):
    """
    What an order can be about besides a lineage.

    Attributes:
        kind: A session ws id, an identity, or a label.
        value: Which one; a label's is a pair of its name and its value.
    """

    kind: Kind
    value: Hashable
