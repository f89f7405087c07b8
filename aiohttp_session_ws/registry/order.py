"""
The order: records of what has ended or was renewed, and the subjects whose sockets are to close.
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
    Keep the open sockets of a renewed lineage, under its new id and next generation.

    Attributes:
        lineage: The lineage with its next generation.
        session_ws_id: The new id.
        until: When the session no longer belongs to its identity, by the wall clock.
        was: The previous id; objects registered by hand are filed under that one only.
    """

    lineage: Lineage
    session_ws_id: Hashable
    until: float = math.inf
    was: Hashable = None


class Order(NamedTuple):
    """
    Records and close instructions that take effect together.

    Attributes:
        changes: Records of what has ended or was renewed.
        closes: Further subjects, whose sockets are to reconnect.
        close: The close code and reason; ``None`` to choose them by each session's status.
        by: Who gave the order, for operators.
        refresh: The renewal whose open sockets are kept instead of being closed.
    """

    changes: tuple[Change, ...] = ()
    closes: tuple[Subject, ...] = ()
    close: Close | None = None
    by: str | None = None
    refresh: Refresh | None = None
