"""
Measure RPC: the server's CPU per call, the memory of a joined session, and publishing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from .bench import Bench
from .environments import PROGRAMS
from .peers import Peer
from .processes import CLIENT, Broken, Child

WARM: Final = 300  # sockets that are open before memory is read
JOINED: Final = 2_000  # sockets that are opened between two readings
SUBSCRIBERS: Final = 1_000


@contextmanager
def serving(bench: Bench, peer: Peer) -> Iterator[tuple[Child, Child]]:
    """
    Run a server, and the process of its callers.
    """
    with ExitStack() as stack:
        server = peer.start(pinned=bench.plan.pinned)
        stack.callback(server.stop)
        caller = Child([sys.executable, "-m", "programs.caller"], {}, PROGRAMS)
        stack.callback(caller.stop)
        if bench.plan.pinned:
            caller.pin(CLIENT)
        yield server, caller


def dialect_of(peer: Peer) -> str:
    """
    Return the dialect of a peer's server.
    """
    return "wamp" if "wamp" in peer.name else "wsrpc"


def calls(bench: Bench, peer: Peer, number: int) -> None:
    """
    Measure calls over one connection: with 100 in flight, and one after another.
    """
    with serving(bench, peer) as (server, caller):
        load = {"port": server.port, "dialect": dialect_of(peer)}
        caller.ask("call", in_flight=100, seconds=0.5, **load)  # for warming up
        for row, in_flight in (("call-cpu", 100), ("call-one-cpu", 1)):
            cpu = server.cpu()
            answer = caller.ask("call", in_flight=in_flight, seconds=bench.plan.echo, **load)
            bench.note(row, peer.name, number, (server.cpu() - cpu) / answer["count"])


def joined(bench: Bench, peer: Peer, number: int) -> None:
    """
    Measure the memory of a joined session, less that of a ``WebSocket`` that only reads.
    """
    sizes = []
    for path, dialect in (("/plain", "plain"), ("/ws", dialect_of(peer))):
        with serving(bench, peer) as (server, caller):
            sockets = {"port": server.port, "path": path, "dialect": dialect}
            read = []
            for count in (WARM, JOINED):
                caller.ask("open", count=count, **sockets)
                time.sleep(1.0)  # until work left by opening them is done
                server.ask("collect")
                read.append(server.memory())
            sizes.append((read[1] - read[0]) / JOINED / 1024)
    bench.note("joined-memory", peer.name, number, sizes[1] - sizes[0])


def published(bench: Bench, peer: Peer, number: int) -> None:
    """
    Compare publishing to subscribers with broadcasting the same bytes to as many sockets.
    """
    with serving(bench, peer) as (server, caller):
        for path, dialect in (("/ws", "subscribed"), ("/plain", "plain")):
            caller.ask("open", port=server.port, path=path, dialect=dialect, count=SUBSCRIBERS)
        answer = server.ask("publish", turns=30)
        if answer["sockets"] != SUBSCRIBERS:
            raise Broken(f"{answer['sockets']} of {SUBSCRIBERS} sockets")
        ratio = min(answer["publish"]) / min(answer["broadcast"])
        bench.note("publish", peer.name, number, ratio, SUBSCRIBERS)
