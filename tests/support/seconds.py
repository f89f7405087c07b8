"""
A clock that advances only when a test sets it.
"""

from __future__ import annotations


class Seconds:
    """
    A replacement for any clock function that returns seconds.

    Attributes:
        now: The seconds that it returns.
    """

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
