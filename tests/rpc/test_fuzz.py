"""A short run of ``python -m tests.fuzz``, which CI does for longer."""

from __future__ import annotations

import pytest

from tests.fuzz import run


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [1, 2])
def test_fuzz(seed: int) -> None:
    """The fuzzer's run ends without an error, over many connections and messages."""
    fire = run(4000, seed)

    assert fire.heard > 100
    assert fire.connections > 10
