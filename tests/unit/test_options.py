"""
The options of a registry: an invalid one raises an error that names it.
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
        """A negative, infinite or NaN timeout raises a ValueError that names the option."""
        with pytest.raises(ValueError, match=f"{name} is a number of seconds >= 0"):
            Timeouts(**{name: seconds})

    @pytest.mark.parametrize("name", SECONDS)
    @pytest.mark.parametrize("seconds", ["1", None, True, [1]])
    def test_type(self, name: str, seconds: Any) -> None:
        """A timeout that isn't a number raises a TypeError that names the option."""
        with pytest.raises(TypeError, match=f"{name} is a number of seconds, not"):
            Timeouts(**{name: seconds})

    def test_zero(self) -> None:
        """Every timeout except that of the handshake may be 0."""
        assert Timeouts(**dict.fromkeys({*SECONDS} - {"handshake"}, 0)).close == 0
        with pytest.raises(ValueError, match="handshake"):
            Timeouts(handshake=0)


class TestCounts:
    @pytest.mark.parametrize(("group", "name"), COUNTS)
    @pytest.mark.parametrize("number", [0, -1])
    def test_value(self, group: type, name: str, number: int) -> None:
        """A limit that isn't positive raises a ValueError that names the option."""
        with pytest.raises(ValueError, match=f"{name} is a number > 0"):
            group(**{name: number})

    @pytest.mark.parametrize(("group", "name"), COUNTS)
    @pytest.mark.parametrize("number", [1.5, "3", True])
    def test_type(self, group: type, name: str, number: Any) -> None:
        """A limit that isn't an int raises a TypeError that names the option."""
        with pytest.raises(TypeError, match=f"{name} is a number > 0"):
            group(**{name: number})

    def test_on_limit(self) -> None:
        """An unknown ``on_limit`` raises a ValueError that lists both values."""
        with pytest.raises(ValueError, match="'evict_oldest' or 'refuse'"):
            Limits(on_limit="evict")  # type: ignore[arg-type]  # that's the test

    def test_scope(self) -> None:
        """The default scope of limits is the process; an unknown one raises a ValueError."""
        assert Limits().scope == "process"
        with pytest.raises(ValueError, match="'process' or 'cluster'"):
            Limits(scope="node")  # type: ignore[arg-type]  # that's the test

    def test_patience(self) -> None:
        """The patience may be 0 seconds; a negative number raises a ValueError."""
        PushQueue(patience=0)
        with pytest.raises(ValueError, match="patience is a number of seconds >= 0"):
            PushQueue(patience=-1)

    def test_defaults(self) -> None:
        """The defaults of a push queue are 256 messages, 1 MiB and a patience of 5 seconds."""
        assert PushQueue() == PushQueue(messages=256, bytes=1_048_576, patience=5.0)


class TestExpiry:
    names = ("revalidate_every", "max_lifetime", "revocation_ttl", "renewal_grace")

    @pytest.mark.parametrize("name", names)
    @pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.inf, math.nan])
    def test_value(self, name: str, seconds: float) -> None:
        """A duration that isn't positive and finite raises a ValueError that names the option."""
        with pytest.raises(ValueError, match=f"{name} is a number of seconds > 0"):
            Expiry(**{name: seconds})

    @pytest.mark.parametrize("name", names)
    @pytest.mark.parametrize("seconds", ["1", True, [1]])
    def test_type(self, name: str, seconds: Any) -> None:
        """A duration that isn't a number raises a TypeError that names the option."""
        with pytest.raises(TypeError, match=f"{name} is a number of seconds, not"):
            Expiry(**{name: seconds})

    def test_none(self) -> None:
        """The interval of checks and the longest lifetime may be None, other durations may not."""
        assert Expiry(revalidate_every=None, max_lifetime=None).revocation_ttl
        for name in ("revocation_ttl", "renewal_grace"):
            nothing: dict[str, Any] = {name: None}
            with pytest.raises(TypeError, match=name):
                Expiry(**nothing)

    def test_ttl(self) -> None:
        """
        An end is kept for an hour longer than the storage keeps sessions; if that time is unknown,
        for ``revocation_ttl``, which is thirty days by default.
        """
        assert Expiry().ttl(None) == 30 * 24 * 3600
        assert Expiry(revocation_ttl=5).ttl(None) == 5
        assert Expiry(revocation_ttl=5).ttl(60) == 3660
        assert Expiry(revocation_ttl=5).ttl(0) == 3600
