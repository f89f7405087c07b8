"""
Print what many processes cost.

Nothing is asserted: figures depend on the machine and on what else it does. Each stands
beside its floor, and the two were measured in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, TypeAlias

from tests.support.redis_servers import RedisServer

from . import flood, handshakes, hearing, latency, outbox, requests, stalls

Benchmark: TypeAlias = Callable[[str, int], Coroutine[None, None, None]]

BENCHMARKS: Final[Mapping[str, Benchmark]] = {
    "latency": latency.measure,
    "outbox": outbox.measure,
    "hearing": hearing.measure,
    "handshakes": handshakes.measure,
    "requests": requests.measure,
    "stalls": stalls.measure,
    "flood": flood.measure,
}


async def _run(name: str, rounds: int, options: list[str]) -> None:
    async with RedisServer(*options) as server:
        await BENCHMARKS[name](server.url, rounds)


def main() -> None:
    """
    Run the benchmarks that the command line asks for, all by default.
    """
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/cluster.py", description=__doc__
    )
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default: 15")
    parser.add_argument(
        "--aof", action="store_true", help="Redis writes a file, and syncs it every second"
    )
    options = parser.parse_args()
    logging.getLogger("aiohttp_session_ws").setLevel(logging.ERROR)
    redis = ["--appendfsync", "everysec"] if options.aof else ["--appendonly", "no"]
    for name in options.only or BENCHMARKS:
        asyncio.run(_run(name, max(1, options.rounds), redis))


if __name__ == "__main__":
    main()
