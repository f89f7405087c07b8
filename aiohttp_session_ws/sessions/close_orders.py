"""
Recent close orders, which a handshake may have missed while its session was loaded.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Final, TypeAlias

from .._lineage import Kind, Subject

__all__: list[str] = []

#: Seconds that close orders are kept: a handshake that takes longer may have missed any.
HANDSHAKE_LIMIT: Final = 60.0

_Times: TypeAlias = dict[Kind, dict[Hashable, float]]


class CloseOrders:
    """
    The time of the last close order for each subject, by the event loop's clock.

    A handshake that is in the index is rejected directly. This is for one that is still
    loading its session, so that its id is not known yet.

    Orders are kept in two lots, the older of which is dropped as a whole once it is obsolete:
    that makes it cheap to add thousands at once.

    Attributes:
        latest: When the latest order was given.
    """

    def __init__(self) -> None:
        self._newer, self._older = _no_times(), _no_times()
        self._begun = -math.inf  # when the newer lot was begun
        self._all_at = self.latest = -math.inf

    def add(self, subject: Subject, now: float) -> None:
        """
        Record a close order for *subject* that is given at *now*.
        """
        self._begin_lot(now)
        kind, value = subject
        times = self._newer[kind]
        if times.get(value, now) <= now:  # an order of another node may arrive late
            times[value] = now

    def add_many(self, kind: Kind, values: Iterable[Hashable], times: Iterable[float]) -> None:
        """
        Record close orders for many ids, identities or labels, and when each was given.
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
            self._newer, self._older = _no_times(), self._newer
            self._begun = now

    def add_all(self, now: float) -> None:
        """
        Record a close order for all sockets.
        """
        self.latest = max(self.latest, now)
        self._all_at = now

    def missed(self, subject: Subject, started: float, now: float) -> bool:
        """
        Return whether a handshake that began at *started* may have missed an order for *subject*.
        """
        if now - started >= HANDSHAKE_LIMIT or self._all_at >= started:
            return True
        kind, value = subject
        newer, older = self._newer[kind], self._older[kind]
        return newer.get(value, -math.inf) >= started or older.get(value, -math.inf) >= started


def _no_times() -> _Times:
    return {"id": {}, "identity": {}, "label": {}}
