"""
What a handshake asks of Redis, and what that costs beside a registry in memory.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis

from ..peers import cookie, handshake
from ..report import in_turns, line, median, ratio
from ..server import HOST
from .child import Child, child
from .latency import Listener
from .roles import node

CLIENTS: Final = 8  # at a time
EACH: Final = 25  # handshakes of each of them per round


async def _visit(port: int, hello: bytes) -> list[float]:
    """
    Return the milliseconds of some handshakes, one after the other.
    """
    loop = asyncio.get_running_loop()
    milliseconds = []
    for _ in range(EACH):
        begin = time.perf_counter()
        _, listener = await loop.create_connection(lambda: Listener(hello), HOST, port)
        await listener.opened
        milliseconds.append((time.perf_counter() - begin) * 1e3)
        listener.transport.abort()
    return milliseconds


async def _round(port: int, hellos: list[bytes]) -> tuple[float, float]:
    """
    Return the milliseconds of a handshake alone, and how many there are in a second.
    """
    alone = median(await _visit(port, hellos[0]))
    begin = time.perf_counter()
    await asyncio.gather(*[_visit(port, hello) for hello in hellos])
    return alone, len(hellos) * EACH / (time.perf_counter() - begin)


async def _commands(redis: Redis) -> dict[str, int]:
    info: dict[str, Any] = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in info.items()}


async def _count(redis: Redis, port: int, hello: bytes) -> dict[str, float]:
    """
    Return how many commands of each kind one handshake needs.
    """
    before = await _commands(redis)
    await _visit(port, hello)
    after = await _commands(redis)
    # The node's sign of life goes on, and is not of a handshake.
    pulse = {"eval", "time", "zscore", "zadd", "zremrangebyscore", "zrangebyscore", "info"}
    counts = {name: (calls - before.get(name, 0)) / EACH for name, calls in after.items()}
    return {name: each for name, each in counts.items() if each and name not in pulse}


async def measure(url: str, rounds: int) -> None:
    """
    Have clients come and go on a node with Redis, and on one without.
    """
    hellos = [handshake("/ws", await cookie(number)) for number in range(CLIENTS)]
    async with AsyncExitStack() as stack:
        nodes: list[Child] = [
            await stack.enter_async_context(child(node, where)) for where in (None, url)
        ]
        memory, ours = [await one.ask("port") for one in nodes]
        redis = await stack.enter_async_context(Redis.from_url(url))
        arms = [partial(_round, port, hellos) for port in (memory, ours)]
        floor, full = await in_turns(rounds, *arms)
        counts = await _count(redis, ours, hellos[0])
    commands = ", ".join(f"{each:g} {name.upper()}" for name, each in counts.items())
    line("commands of a handshake", commands, "target 1 MGET")
    for name, unit, index, digits in (
        ("handshake alone", "ms", 0, 2),
        ("handshakes per second", "/s", 1, 0),
    ):
        a, b = [figure[index] for figure in floor], [figure[index] for figure in full]
        details = f"in memory {median(a):,.{digits}f} {unit}, with {median(b):,.{digits}f} {unit}"
        line(name, f"{ratio(a, b):.2f} x", f"{details}; {CLIENTS if index else 1} at a time")
