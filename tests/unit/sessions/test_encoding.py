"""
The encoding of ids, identities and labels as JSON.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

import pytest

from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.sessions.encoding import decode, encode


class Role(enum.StrEnum):
    ADMIN = "admin"


@pytest.mark.parametrize(
    "subject", ["ann", "", "\ud800 é \x00", 7, -(2**70), ("shop", 7), (), ((), ("a", (1,)))]
)
def test_round_trip(subject: Hashable) -> None:
    """A value is decoded as it was encoded, tuples included, and the text is ASCII."""
    text = encode(subject)

    assert decode(text) == subject
    assert text.isascii()


def test_subject() -> None:
    """A label, whose value is a pair in a pair, is decoded as it was encoded."""
    label = Subject("label", ("sid", "x"))

    assert Subject(*decode(encode(label))) == label  # type: ignore[misc]


@pytest.mark.parametrize(("one", "other"), [(True, 1), (Role.ADMIN, "admin"), ((True,), (1,))])
def test_equal_subjects_are_one(one: Hashable, other: Hashable) -> None:
    """Values that are equal in Python have the same text."""
    assert encode(one) == encode(other)


@pytest.mark.parametrize("subject", [None, 1.5, b"x", frozenset("x"), ("x", None), object()])
def test_anything_else(subject: Hashable) -> None:
    """A value that can't be encoded raises a TypeError that names the type."""
    part = subject[1] if isinstance(subject, tuple) else subject
    with pytest.raises(TypeError, match=rf"a {type(part).__name__} can't .* str, int or tuples"):
        encode(subject)


@pytest.mark.parametrize("text", ["null", "1.5", '{"a":1}', "[null]", "nonsense"])
def test_foreign_text(text: str) -> None:
    """A text that ``encode()`` doesn't produce raises a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is json's
        decode(text)
