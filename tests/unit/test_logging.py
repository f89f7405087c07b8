"""
Fingerprints of secrets, descriptions of errors and a rate limit, for the log.
"""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from aiohttp_session_ws._logging import OncePerMinute, describe_error, fingerprint
from tests.support.seconds import Seconds


@pytest.mark.parametrize("subject", ["secret", ("secret", 1), "\ud800secret", 7])
def test_fingerprint(subject: Hashable) -> None:
    """A fingerprint is equal for equal subjects, differs for another, and hides its subject."""
    assert fingerprint(subject) == fingerprint(subject)
    assert fingerprint(subject) != fingerprint("another")
    assert "secret" not in fingerprint(subject)
    assert len(fingerprint(subject)) == 12


def test_describe_error() -> None:
    """An error is described by its type and its place, without its message."""
    try:
        raise KeyError("secret")
    except KeyError as exc:
        described = describe_error(exc)

    assert described.startswith(f"KeyError at {__file__}:")
    assert "secret" not in described
    assert describe_error(KeyError("secret")) == "KeyError"


def test_once_per_minute() -> None:
    """Of each kind, one line a minute is allowed."""
    clock = Seconds()
    limit = OncePerMinute(clock=clock)

    assert [limit.allows("a"), limit.allows("a"), limit.allows("b")] == [True, False, True]
    clock.now += 59.9
    assert not limit.allows("a")
    clock.now += 0.1
    assert limit.allows("a")
    assert not limit.allows("a")


def test_once_per_minute_is_bounded() -> None:
    """The number of remembered kinds is bounded: after many others, the first is allowed again."""
    limit = OncePerMinute(clock=Seconds())
    for number in range(2000):
        limit.allows(number)

    assert limit.allows(0)
