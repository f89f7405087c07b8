"""
What it costs to open a websocket and let it close.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from .peers import connect, cookie, handshake
from .report import in_turns, line, median, ratio
from .server import Server, serving

CLIENTS: Final = 8  # at a time
EACH: Final = 50  # handshakes of each of them per round


async def _visit(server: Server, hello: bytes) -> None:
    for _ in range(EACH):
        peer = await connect(server, hello)
        peer.close()
        await peer.ended


async def _round(server: Server, hellos: list[bytes]) -> tuple[float, float]:
    """
    Return handshakes per second, and the server's CPU time of one in microseconds.
    """
    cpu, begin = await server.ask("cpu"), time.perf_counter()
    await asyncio.gather(*[_visit(server, hello) for hello in hellos])
    seconds = time.perf_counter() - begin
    count = CLIENTS * EACH
    return count / seconds, (await server.ask("cpu") - cpu) / count * 1e6


async def measure(rounds: int) -> None:
    """
    Have clients come and go on two servers.
    """
    hellos = [handshake("/receive", await cookie(number)) for number in range(CLIENTS)]
    async with serving("bare") as bare, serving("ours") as ours:
        arms = [partial(_round, server, hellos) for server in (bare, ours)]
        floor, full = await in_turns(rounds, *arms)
    for name, unit, target, index in (
        ("handshakes per second", "/s", ">= 95 %", 0),
        ("handshakes, CPU each", "us", "<= 105 %", 1),
    ):
        a, b = [r[index] for r in floor], [r[index] for r in full]
        details = f"floor {median(a):,.0f} {unit}, with {median(b):,.0f} {unit}"
        line(name, f"{ratio(a, b):.1%}", f"{details}; target {target}")
