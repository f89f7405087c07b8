"""
Close orders that a handshake may have missed while its session was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Final, TypeAlias

from .._lineage import Kind, Subject

__all__: list[str] = []

#: The longest handshake that is believed, in seconds: close orders are kept so long.
HANDSHAKE_LIMIT: Final = 60.0

_Times: TypeAlias = dict[Kind, dict[Hashable, float]]


class CloseOrders:
    """
    When the sockets of each subject were last ordered to close, by the event loop's clock.

    A handshake that is in the index is rejected directly. This is for one that is still
    loading its session, so that its id is not known yet.

    Orders are kept in two lots, of which the older goes as a whole once it is too old to matter:
    so thousands can be noted at once.

    Attributes:
        latest: When the latest of all was given.
    """

    def __init__(self) -> None:
        self._newer, self._older = _nothing(), _nothing()
        self._begun = -math.inf  # when the newer lot was
        self._all = self.latest = -math.inf

    def add(self, subject: Subject, now: float) -> None:
        """
        Note an order about *subject* that is given at *now*.
        """
        self._begin_lot(now)
        kind, value = subject
        times = self._newer[kind]
        if times.get(value, now) <= now:  # one of another node may come late
            times[value] = now

    def add_many(self, kind: Kind, values: Iterable[Hashable], times: Iterable[float]) -> None:
        """
        Note orders about many ids, identities or labels, and when each was given.
        """
        found = dict(zip(values, times, strict=True))
        self._begin_lot(max(found.values(), default=-math.inf))
        newer = self._newer[kind]
        if not newer.keys().isdisjoint(found):
            found = {value: max(at, newer.get(value, at)) for value, at in found.items()}
        newer.update(found)

    def _begin_lot(self, now: float) -> None:
        if now > self.latest:
            self.latest = now
        if now >= self._begun + HANDSHAKE_LIMIT:
            self._newer, self._older = _nothing(), self._newer
            self._begun = now

    def add_all(self, now: float) -> None:
        """
        Note an order about all sockets.
        """
        self.latest = max(self.latest, now)
        self._all = now

    def missed(self, subject: Subject, started: float, now: float) -> bool:
        """
        Tell whether a handshake that began at *started* may have missed an order.
        """
        if now - started >= HANDSHAKE_LIMIT or self._all >= started:
            return True
        kind, value = subject
        newer, older = self._newer[kind], self._older[kind]
        return newer.get(value, -math.inf) >= started or older.get(value, -math.inf) >= started


def _nothing() -> _Times:
    return {"id": {}, "identity": {}, "label": {}}
