"""
The two value types that identify sessions in connections, records and orders.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Hashable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__: list[str] = []

Kind: TypeAlias = Literal["id", "identity", "label"]

#: The largest generation that is accepted: Lua in Redis counts exactly up to here.
LAST_GENERATION: Final = 2**53


class Lineage(NamedTuple):
    """
    A session from its beginning, or its last log-in, to its end.

    Attributes:
        token: Its random name. It is not a secret: it gives access to nothing.
        generation: A number that each renewal raises.
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
        Parse a lineage from a session, ``None`` if *value* isn't one: a cookie may be forged.
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
            return _make(cls, value)  # faster than cls(...)
        return None


NUMBERS: Final = frozenset({int, float})
_make: Final[Callable[[type[Lineage], list[Any]], Lineage]] = tuple.__new__


def new_lineage(began: float) -> Lineage:
    """
    Return a lineage with a random token and generation 0.
    """
    return Lineage(secrets.token_hex(16), 0, began)


class Subject(NamedTuple):
    """
    What an order or a record applies to, if not to a lineage.

    Attributes:
        kind: Whether it is a session ws id, an identity, or a label.
        value: The id or identity itself; for a label the pair of its name and its value.
    """

    kind: Kind
    value: Hashable
