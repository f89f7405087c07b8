"""
A clock that stands still until a test lets time pass.
"""

from __future__ import annotations


class Seconds:
    """
    Stands in for any clock that is called for seconds.

    Attributes:
        now: What it says.
    """

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
