"""
Time that passes when a test says so, for what begins and ends: graces, not timeouts.
"""

from __future__ import annotations

import time

import pytest

from aiohttp_session_ws.sessions.clock import Clock


class Wall:
    """
    The wall clock of the registries that a test makes.

    Only the clock that judges sessions goes by it: timeouts, heartbeats and what
    aiohttp-session notes go by the real ones.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        # The defaults of the arguments: whoever makes a clock without a word gets this one.
        defaults = Clock.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "wall", self.read)

    def read(self) -> float:
        """Return the seconds since the epoch."""
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds

    def set_back(self, seconds: float) -> None:
        """Set the clock back, as a correction would."""
        self._ahead -= seconds
