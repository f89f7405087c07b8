"""
The counters of a registry; counting an event is one addition to an existing number.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Literal, TypeAlias

__all__: list[str] = []

By: TypeAlias = Literal["order", "handler", "client"]

KINDS: Final[tuple[By, ...]] = ("order", "handler", "client")


class Counters:
    """
    Numbers that only grow, except ``streams``. They may be read from any thread.

    Attributes:
        streams: How many streams there are.
        refusals: How many handshakes were refused, by reason.
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
        Return how many sockets were closed, by initiator and close code.
        """
        # Copies first: another thread may be counting.
        found = [(by, codes.copy()) for by, codes in self._closes.items()]
        return {(by, code): count for by, codes in found for code, count in codes.items()}
