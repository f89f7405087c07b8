from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the random worlds be as many as one likes."""
    parser.addoption(
        "--worlds", type=int, default=500, help="how many random worlds test_worlds.py plays"
    )
