"""
What an idle websocket keeps in memory.
"""

from __future__ import annotations

import resource
from functools import partial
from typing import Final

from .peers import connect_all, cookie, handshake
from .report import difference, in_turns, line, median
from .server import Kind, serving

MOST: Final = 2000  # sockets
ROUNDS: Final = 3  # at most; each starts servers of its own


async def _bytes_each(kind: Kind, count: int, per_session: int, path: str) -> float:
    """
    Return what each of *count* sockets added to a server that had some before.
    """
    warm = count // 10
    cookies = [await cookie(n) for n in range(-(-(count + warm) // per_session))]
    hellos = [handshake(path, cookies[n // per_session]) for n in range(count + warm)]
    async with serving(kind, traced=True) as server:
        peers = await connect_all(server, [(hello, "answers") for hello in hellos[:warm]])
        await server.wait_ready(warm)
        before = await server.ask("memory")
        peers += await connect_all(server, [(hello, "answers") for hello in hellos[warm:]])
        await server.wait_ready(count + warm)
        result = (await server.ask("memory") - before) / count
        for peer in peers:
            peer.abort()
        return result


async def measure(rounds: int) -> None:
    """
    Count the bytes of Python's allocator, which aiohttp's own objects come from too.
    """
    count = min(MOST, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) * 10 // 11)
    what = [
        ("idle socket, 1 per session", "/receive", 1, 1024),
        ("idle socket, 10 per session", "/receive", 10, 1024),
        ("idle WebSocket", "/talk", 1, 3072),
        ("idle WebSocket, busy handler", "/busy", 1, 3072),
    ]
    for name, path, per_session, target in what:
        kinds: tuple[Kind, ...] = ("bare", "ours")
        arms = [partial(_bytes_each, kind, count, per_session, path) for kind in kinds]
        floor, full = await in_turns(min(rounds, ROUNDS), *arms, warm_up=0)
        line(
            name,
            f"{difference(floor, full):+,.0f} B",
            f"floor {median(floor):,.0f} B, with {median(full):,.0f} B; target <= +{target:,} B;"
            f" {count:,} sockets",
        )
