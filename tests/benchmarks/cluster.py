"""
Run the benchmarks of many processes as a script, ``python tests/benchmarks/cluster.py``.

They start a Redis server and processes of their own, and end them.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path[:1] = [str(TESTS), str(TESTS.parent)]
    importlib.import_module("benchmarks.nodes.__main__").main()
