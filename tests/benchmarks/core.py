"""
Run the benchmarks as a script, ``python tests/benchmarks/core.py``.

For ``python -m tests.benchmarks`` no dependency may bring a package ``tests`` of its own,
as aiohttp-security 0.5 does: it would hide this one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[:1] = [str(TESTS), str(TESTS.parent)]
    importlib.import_module("benchmarks.__main__").main()
