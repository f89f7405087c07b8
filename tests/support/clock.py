"""
A wall clock that tests advance, for the times and graces of sessions, not for timeouts.
"""

from __future__ import annotations

import time

import pytest

from aiohttp_session_ws.sessions.clock import Clock


class Wall:
    """
    The wall clock of all registries that a test creates.

    Only the clock that judges sessions uses it: timeouts, heartbeats and the timestamps of
    aiohttp-session use the real clocks.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        # The argument's default: a Clock that is created without arguments uses this one.
        defaults = Clock.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "wall", self.read)

    def read(self) -> float:
        """Return the seconds since the epoch."""
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self._ahead += seconds

    def set_back(self, seconds: float) -> None:
        """Set the clock back, as a correction would."""
        self._ahead -= seconds
