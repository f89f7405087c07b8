"""
What is ordered: who has ended or was renewed, and whose sockets are to close.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

from .._lineage import Lineage, Subject
from ..close_codes import Close
from ..sessions.records import Change

__all__: list[str] = []


class Refresh(NamedTuple):
    """
    The open sockets of a lineage go on under another id and its next generation.

    Attributes:
        lineage: The lineage with that generation.
        session_ws_id: The id.
        until: When the session no longer belongs to its identity, by the wall clock.
        was: The id before: what was registered by hand is filed under that only.
    """

    lineage: Lineage
    session_ws_id: Hashable
    until: float = math.inf
    was: Hashable = None


class Order(NamedTuple):
    """
    What is ordered at one time.

    Attributes:
        changes: What has ended or was renewed.
        closes: Whose sockets are to reconnect besides.
        close: With what sockets are closed; without one it depends on what became of each.
        by: Who gave the order, for operators.
        refresh: Which open sockets go on in place of being closed.
    """

    changes: tuple[Change, ...] = ()
    closes: tuple[Subject, ...] = ()
    close: Close | None = None
    by: str | None = None
    refresh: Refresh | None = None
