"""
Close orders that a handshake may have missed while its session was loaded.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from .._lineage import Subject

__all__: list[str] = []

#: The longest handshake that is believed, in seconds: close orders are kept so long.
HANDSHAKE_LIMIT: Final = 60.0


class CloseOrders:
    """
    When the sockets of each subject were last ordered to close, by the event loop's clock.

    A handshake that is in the index is rejected directly. This is for one that is still
    loading its session, so that its id is not known yet.

    Attributes:
        latest: When the latest of all was given.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[Subject, float] = OrderedDict()  # the oldest first
        self._all = self.latest = -math.inf

    def add(self, subject: Subject, now: float) -> None:
        """
        Note an order about *subject* that is given at *now*.
        """
        last = self._last
        self.latest = max(self.latest, now)
        last[subject] = now
        last.move_to_end(subject)
        while last[first := next(iter(last))] <= now - HANDSHAKE_LIMIT:
            del last[first]

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
        last = max(self._last.get(subject, -math.inf), self._all)
        return last >= started or now - started >= HANDSHAKE_LIMIT
