"""
The options of a registry: a wrong one is found at construction, by its name.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from aiohttp_session_ws.options import Expiry, Limits, PushQueue, Timeouts

SECONDS = ["close", "handler_grace", "response", "handshake", "drain", "outbox"]
COUNTS = [
    *[(Limits, name) for name in ("per_session", "per_identity", "total")],
    *[(PushQueue, name) for name in ("messages", "bytes")],
]


class TestTimeouts:
    @pytest.mark.parametrize("name", SECONDS)
    @pytest.mark.parametrize("seconds", [-1, -0.1, math.inf, math.nan])
    def test_value(self, name: str, seconds: float) -> None:
        """Seconds are neither negative nor infinite."""
        with pytest.raises(ValueError, match=f"{name} is a number of seconds >= 0"):
            Timeouts(**{name: seconds})

    @pytest.mark.parametrize("name", SECONDS)
    @pytest.mark.parametrize("seconds", ["1", None, True, [1]])
    def test_type(self, name: str, seconds: Any) -> None:
        """What is no number is a type error."""
        with pytest.raises(TypeError, match=f"{name} is a number of seconds, not"):
            Timeouts(**{name: seconds})

    def test_zero(self) -> None:
        """Who doesn't want to wait doesn't; but every handshake takes some time."""
        assert Timeouts(**dict.fromkeys({*SECONDS} - {"handshake"}, 0)).close == 0
        with pytest.raises(ValueError, match="handshake"):
            Timeouts(handshake=0)


class TestCounts:
    @pytest.mark.parametrize(("group", "name"), COUNTS)
    @pytest.mark.parametrize("number", [0, -1])
    def test_value(self, group: type, name: str, number: int) -> None:
        """There is room for something."""
        with pytest.raises(ValueError, match=f"{name} is a number > 0"):
            group(**{name: number})

    @pytest.mark.parametrize(("group", "name"), COUNTS)
    @pytest.mark.parametrize("number", [1.5, "3", True])
    def test_type(self, group: type, name: str, number: Any) -> None:
        """What is no whole number is a type error."""
        with pytest.raises(TypeError, match=f"{name} is a number > 0"):
            group(**{name: number})

    def test_on_limit(self) -> None:
        """What happens at the limit is one of two."""
        with pytest.raises(ValueError, match="'evict_oldest' or 'refuse'"):
            Limits(on_limit="evict")  # type: ignore[arg-type]  # that's the test

    def test_scope(self) -> None:
        """Limits are about a process, or about all."""
        assert Limits().scope == "process"
        with pytest.raises(ValueError, match="'process' or 'cluster'"):
            Limits(scope="node")  # type: ignore[arg-type]  # that's the test

    def test_patience(self) -> None:
        """Patience is a number of seconds, and may be none."""
        PushQueue(patience=0)
        with pytest.raises(ValueError, match="patience is a number of seconds >= 0"):
            PushQueue(patience=-1)

    def test_defaults(self) -> None:
        """A queue that is right for most."""
        assert PushQueue() == PushQueue(messages=256, bytes=1_048_576, patience=5.0)


class TestExpiry:
    names = ("revalidate_every", "max_lifetime", "revocation_ttl", "renewal_grace")

    @pytest.mark.parametrize("name", names)
    @pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.inf, math.nan])
    def test_value(self, name: str, seconds: float) -> None:
        """A time to live is positive and has an end."""
        with pytest.raises(ValueError, match=f"{name} is a number of seconds > 0"):
            Expiry(**{name: seconds})

    @pytest.mark.parametrize("name", names)
    @pytest.mark.parametrize("seconds", ["1", True, [1]])
    def test_type(self, name: str, seconds: Any) -> None:
        """What is no number is a type error."""
        with pytest.raises(TypeError, match=f"{name} is a number of seconds, not"):
            Expiry(**{name: seconds})

    def test_none(self) -> None:
        """Checks and the longest life may be left out; what is remembered has an end."""
        assert Expiry(revalidate_every=None, max_lifetime=None).revocation_ttl
        for name in ("revocation_ttl", "renewal_grace"):
            nothing: dict[str, Any] = {name: None}
            with pytest.raises(TypeError, match=name):
                Expiry(**nothing)

    def test_ttl(self) -> None:
        """
        An end is remembered for an hour longer than a storage keeps sessions; thirty days, or
        as long as was chosen, if that says nothing.
        """
        assert Expiry().ttl(None) == 30 * 24 * 3600
        assert Expiry(revocation_ttl=5).ttl(None) == 5
        assert Expiry(revocation_ttl=5).ttl(60) == 3660
        assert Expiry(revocation_ttl=5).ttl(0) == 3600
