"""
What a registry counts while it works: each is an addition to a number that is there already.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Literal, TypeAlias

__all__: list[str] = []

By: TypeAlias = Literal["order", "handler", "client"]

KINDS: Final[tuple[By, ...]] = ("order", "handler", "client")


class Counters:
    """
    Numbers that only grow, but for ``streams``. They may be read from any thread.

    Attributes:
        streams: How many streams there are.
        refusals: How many handshakes were refused, by the word for why.
    """

    __slots__ = ("_closes", "refusals", "streams")

    def __init__(self) -> None:
        self.streams = 0
        self.refusals: dict[str, int] = {}
        self._closes: dict[By, defaultdict[int, int]] = {by: defaultdict(int) for by in KINDS}

    def closed(self, by: By, code: int) -> None:
        """
        Count a socket that was closed.
        """
        self._closes[by][code] += 1

    def refused(self, why: str) -> None:
        """
        Count a handshake that was refused.
        """
        self.refusals[why] = self.refusals.get(why, 0) + 1

    def closes(self) -> dict[tuple[By, int], int]:
        """
        Return how many were closed, by whom and with which code.
        """
        # Copies first: another thread may be counting.
        found = [(by, codes.copy()) for by, codes in self._closes.items()]
        return {(by, code): count for by, codes in found for code, count in codes.items()}
