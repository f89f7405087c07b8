"""
How long ``close_all()`` takes when some peers don't play along.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from .peers import Manner, connect_all, cookie, handshake
from .report import in_turns, line, median
from .server import Kind, serving

SOCKETS: Final = 1000
BAD: Final = 10  # of each sort: 1 %
ROUNDS: Final = 3  # at most; each starts servers of its own


async def _seconds(kind: Kind, hellos: list[tuple[bytes, Manner]]) -> float:
    """
    Return how long a server takes to close all sockets.
    """
    async with serving(kind) as server:
        peers = await connect_all(server, hellos)
        await server.wait_ready(len(hellos))
        seconds = await server.ask("close")
        for peer in peers:
            peer.abort()
        return seconds


async def measure(rounds: int) -> None:
    """
    Close healthy sockets, bare and with the package; then some that are not.
    """
    cookies = [await cookie(number) for number in range(SOCKETS)]
    healthy: list[tuple[bytes, Manner]] = [(handshake("/receive", c), "answers") for c in cookies]
    # Half of the mute ones have a handler that doesn't look at its socket.
    mixed = healthy[2 * BAD :]
    mixed += [(handshake("/receive", c), "mute") for c in cookies[: BAD // 2]]
    mixed += [(handshake("/wait", c), "mute") for c in cookies[BAD // 2 : BAD]]
    mixed += [(handshake("/flood", c), "stopped") for c in cookies[BAD : 2 * BAD]]
    arms = [
        partial(_seconds, "bare", healthy),
        partial(_seconds, "ours", healthy),
        partial(_seconds, "ours", mixed),
    ]
    bare, ours, stuck = map(median, await in_turns(min(rounds, ROUNDS), *arms, warm_up=0))
    floor = f"floor, bare and all healthy: {bare:.2f} s"
    line(f"close_all(), {SOCKETS:,} healthy", f"{ours:.2f} s", floor)
    line(
        f"close_all(), {2 * BAD / SOCKETS:.0%} mute or stuck",
        f"{stuck:.2f} s",
        f"{floor}; target <= 3 s, the close timeout and the handlers' grace",
    )
