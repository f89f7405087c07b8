"""
Measure a server's longest turn of the event loop while many sockets are closed.

All other work waits for that long.
"""

from __future__ import annotations

import time

from .bench import Bench
from .life import closed, names
from .peers import Client, Peer
from .processes import Broken, Child

SETTLED = 2.0  # seconds until all handlers have ended


def turns(bench: Bench, peer: Peer, number: int) -> None:
    """
    End an identity with many sessions of one socket each, then close one session of many.
    """
    size = bench.plan.sockets
    with bench.serving(peer, "--turns", "--identify") as (server, client):
        for row, op, each in (
            ("identity-turn", "end_visitors", names("s", size)),
            ("session-turn", "close_session", ["many"] * size),
        ):
            peer.visit(client, server, sorted(set(each)))
            opened = peer.connect(client, server, each, row)
            if opened.count < size:
                raise Broken(f"{opened.count} of {size} handshakes")
            longest = _longest_turn(server, client, row, op)
            bench.note(row, peer.name, number, longest / 1e6, size)


def _longest_turn(server: Child, client: Client, group: str, op: str) -> int:
    """
    Close a group of sockets; return the CPU time of the longest turn meanwhile, in nanoseconds.

    A full garbage collection runs before: one meanwhile, no matter what triggers it, would spend
    its time on older objects.
    """
    server.ask("collect")
    time.sleep(0.5)
    server.ask("longest_turn")
    arguments = {"sid": "many"} if op == "close_session" else {}
    closed(server, client, group, op, **arguments)
    time.sleep(SETTLED)
    longest: int = server.ask("longest_turn")["longest"]
    return longest
