"""
What the conversation object costs a message.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

from .peers import cookie, handshake
from .report import in_turns, line, median, ratio
from .server import HOST, Server, serving

SIZES: Final = ((32, 400), (65_536, 50))  # bytes of a message, messages of each client
CLIENTS: Final = 8
HEAD: Final = {32: b"\x82\xa0", 65_536: b"\x82\xff" + (65_536).to_bytes(8)}


async def _talk(server: Server, hello: bytes, size: int, count: int) -> None:
    """
    Send a message, and the next one when it is back.
    """
    reader, writer = await asyncio.open_connection(HOST, server.port, limit=2**18)
    writer.write(hello)
    await reader.readuntil(b"\r\n\r\n")
    frame = HEAD[size] + bytes(4 + size)  # masked with zeros
    for _ in range(count):
        writer.write(frame)
        await reader.readexactly(len(frame) - 4)  # a server masks nothing
    writer.close()


async def _per_second(server: Server, hello: bytes, size: int, count: int) -> tuple[float, float]:
    """
    Return how many messages went to and fro in a second, and what one cost in microseconds.
    """
    cpu, begin = await server.ask("cpu"), time.perf_counter()
    await asyncio.gather(*[_talk(server, hello, size, count) for _ in range(CLIENTS)])
    end, total = time.perf_counter(), CLIENTS * count
    return total / (end - begin), (await server.ask("cpu") - cpu) / total * 1e6


async def measure(rounds: int) -> None:
    """
    Echo by ``receive()`` and ``send()``; the floor is aiohttp's ``async for``.
    """
    hello = handshake("/talk", await cookie(1))
    async with serving("bare") as bare, serving("ours") as ours:
        for size, count in SIZES:
            arms = [partial(_per_second, server, hello, size, count) for server in (bare, ours)]
            floor, full = await in_turns(rounds, *arms)
            speed, cost = ([[r[i] for r in arm] for arm in (floor, full)] for i in (0, 1))
            line(
                f"echo, {size:,} B",
                f"{ratio(*speed):.2f} x",
                f"floor {median(speed[0]):,.0f} messages/s, with {median(speed[1]):,.0f};"
                f" CPU {ratio(*cost):.2f} x, floor {median(cost[0]):.1f} us; target >= 0.9 x",
            )
