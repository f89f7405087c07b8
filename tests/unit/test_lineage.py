"""
Parsing of the lineage that a session carries, from a cookie that may be forged.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from aiohttp_session_ws._lineage import LAST_GENERATION, Lineage

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4),
)


def test_round_trip() -> None:
    """A lineage written as JSON is parsed as an equal lineage."""
    lineage = Lineage("token", 3, 1_900_000_000.25)

    assert Lineage.parse(json.loads(json.dumps(list(lineage)))) == lineage


@pytest.mark.parametrize(
    "value",
    [
        None,
        "token",
        [],
        ["token", 1],
        ["token", 1, 2.0, 3],
        ("token", 1, 2.0),
        [b"token", 1, 2.0],
        ["token", 1.0, 2.0],
        ["token", True, 2.0],
        ["token", -1, 2.0],
        ["token", LAST_GENERATION + 1, 2.0],
        ["token", 1, -1],
        ["token", 1, True],
        ["token", 1, "2"],
        ["token", 1, math.nan],
        ["token", 1, math.inf],
        ["token", [1], 2.0],
    ],
)
def test_garbage(value: object) -> None:
    """A value that isn't a valid lineage is parsed as None."""
    assert Lineage.parse(value) is None


@given(values)
def test_never_raises(value: Any) -> None:
    """Any value is parsed as None or as the lineage that equals it; nothing is raised."""
    lineage = Lineage.parse(value)

    assert lineage is None or list(lineage) == value
