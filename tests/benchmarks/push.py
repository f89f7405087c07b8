"""
What it costs to push a message to many sockets.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from .peers import Manner, connect_all, cookie, handshake
from .report import in_turns, line, median, ratio
from .server import serving

SOCKETS: Final = 1000


async def measure(rounds: int) -> None:
    """
    Push to healthy sockets, and to as many of which one has stopped; the floor is a bare
    loop over the same healthy sockets.
    """
    hellos = [handshake("/receive", await cookie(number)) for number in range(SOCKETS - 1)]
    healthy: list[tuple[bytes, Manner]] = [(hello, "reads") for hello in hellos]
    last = await cookie(SOCKETS)
    async with serving("ours") as well, serving("ours") as ill:
        peers = await connect_all(well, [*healthy, (handshake("/receive", last), "reads")])
        peers += await connect_all(ill, [*healthy, (handshake("/flood", last), "stopped")])
        for server in (well, ill):
            await server.wait_ready(SOCKETS)
        arms = [partial(well.ask, "send"), partial(well.ask, "push"), partial(ill.ask, "push")]
        floor, full, stuck = await in_turns(rounds, *arms)
        for peer in peers:
            peer.abort()
    for name, figures in (("healthy", full), ("one stuck", stuck)):
        line(
            f"broadcast(), {SOCKETS:,}, {name}",
            f"{ratio(floor, figures):.2f} x",
            f"floor {median(floor):.1f} us, with {median(figures):.1f} us; target <= 1.3 x",
        )
