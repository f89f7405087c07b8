"""
The package's logger, and helpers that keep secrets and floods out of its lines.
"""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections.abc import Callable, Hashable
from typing import Final

from ._expiring import ExpiringDict

__all__: list[str] = []

log: Final = logging.getLogger("aiohttp_session_ws")

_MAX_KINDS: Final = 1000  # kinds of lines that are remembered at a time


def fingerprint(subject: Hashable) -> str:
    """
    Return a short hash that stands for an id or an identity in logs.

    The id can't be recovered from it. An identity that is easy to guess can be, by trying.
    """
    return hashlib.blake2b(repr(subject).encode("utf-8", "replace"), digest_size=6).hexdigest()


def describe_error(exc: BaseException) -> str:
    """
    Describe an error of the application or the storage by its type and where it was raised.

    Its message is not logged, since it may contain the key of a session.
    """
    frames = [*traceback.walk_tb(exc.__traceback__)]
    if not frames:
        return type(exc).__name__
    frame, line = frames[-1]
    return f"{type(exc).__name__} at {frame.f_code.co_filename}:{line}"


class OncePerMinute:
    """
    A rate limit for log lines: one of each kind per minute.

    Args:
        clock: Returns seconds that never go back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Bounded, since a kind may be chosen by a client.
        self._logged: ExpiringDict[Hashable, bool] = ExpiringDict(_MAX_KINDS, 60.0, clock=clock)

    def allows(self, kind: Hashable) -> bool:
        """
        Return whether a line of this *kind* may be logged now; if so, count it as logged.
        """
        if kind in self._logged:
            return False
        self._logged.put(kind, True)
        return True
