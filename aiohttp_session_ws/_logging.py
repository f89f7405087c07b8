"""
The package's logger, and what may stand in its lines.
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

_KINDS: Final = 1000  # of lines that are remembered at a time


def fingerprint(subject: Hashable) -> str:
    """
    Return what an id or an identity is called in logs: the same for the same.

    It doesn't tell the id. Of an identity that is easy to guess it can be found out.
    """
    return hashlib.blake2b(repr(subject).encode("utf-8", "replace"), digest_size=6).hexdigest()


def describe_error(exc: BaseException) -> str:
    """
    Return what may be logged of an application's or a storage's error.

    That is its type and where it was raised, not what it says, which may be a session's key.
    """
    frames = [*traceback.walk_tb(exc.__traceback__)]
    if not frames:
        return type(exc).__name__
    frame, line = frames[-1]
    return f"{type(exc).__name__} at {frame.f_code.co_filename}:{line}"


class OncePerMinute:
    """
    A rate limit for log lines: one of each kind in a minute.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Bounded: a kind may be something that a client has sent.
        self._logged: ExpiringDict[Hashable, bool] = ExpiringDict(_KINDS, 60.0, clock=clock)

    def allows(self, kind: Hashable) -> bool:
        """
        Tell whether a line of this *kind* may be logged now, and count it as logged.
        """
        if kind in self._logged:
            return False
        self._logged.put(kind, True)
        return True
