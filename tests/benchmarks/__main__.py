"""
Print what the package costs.

Nothing is asserted: figures depend on the machine and on what else it does. Each stands
beside its floor, and the two were measured in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, TypeAlias

from . import bookkeeping, closing, echo, handshakes, memory, middleware, push

Benchmark: TypeAlias = Callable[[int], Coroutine[None, None, None]]

BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "middleware": middleware.measure,
    "bookkeeping": bookkeeping.measure,
    "handshakes": handshakes.measure,
    "memory": memory.measure,
    "closing": closing.measure,
    "push": push.measure,
    "echo": echo.measure,
}


def main() -> None:
    """
    Run the benchmarks that the command line asks for, all by default.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default: 15")
    options = parser.parse_args()
    # Aborted sockets are part of the measurement, and no news.
    logging.getLogger("aiohttp_session_ws").setLevel(logging.ERROR)
    for name in options.only or BENCHMARKS:
        asyncio.run(BENCHMARKS[name](max(1, options.rounds)))


if __name__ == "__main__":
    main()
