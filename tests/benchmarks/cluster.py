"""
Measure two nodes and a Redis server: node A orders the close of sockets on node B.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Final

from .bench import Bench
from .life import closed_each, names
from .peers import Client, Peer
from .processes import Broken, Child

PAUSE: Final = 0.005  # seconds between two orders that are timed


def cluster(bench: Bench, peer: Peer, number: int) -> None:
    """
    Time single orders up to the close frame at the client, then a burst of orders for unknown
    sessions. Nothing is pinned: there are more processes than cores.
    """
    redis = bench.redis
    assert redis is not None
    with ExitStack() as stack:
        options = ("--turns",) if _tells_turns(peer) else ()
        giver = peer.start(redis, pinned=False)
        stack.callback(giver.stop)
        hearer = peer.start(redis, *options, pinned=False)
        stack.callback(hearer.stop)
        client = Client(pinned=False)
        stack.callback(client.stop)
        warm, timed = names("warm", 40), names("s", bench.plan.orders)
        peer.visit(client, hearer, [*warm, *timed, "marker", "last"])
        peer.visit(client, giver, ["first"])
        # Some servers subscribe with their first socket.
        peer.connect(client, giver, ["first"], "first")
        groups = {"warm": warm, "timed": timed, "marker": ["marker"], "last": ["last"]}
        for group, sids in groups.items():
            peer.connect(client, hearer, sids, group)
        if peer.name == "sio-redis":
            giver.ask("know", **hearer.ask("socket_ids"))
        time.sleep(0.5)
        closed_each(giver, client, "warm", "orders", warm, PAUSE)
        latency = closed_each(giver, client, "timed", "orders", timed, PAUSE)
        bench.note("order-latency", peer.name, number, latency)
        _flood(bench, peer, number, client, giver, hearer)
        if options:
            _burst(bench, peer, number, client, giver, hearer)


def _tells_turns(peer: Peer) -> bool:
    return peer.name.startswith(("ours", "before"))


def _flood(
    bench: Bench, peer: Peer, number: int, client: Client, giver: Child, hearer: Child
) -> None:
    count = bench.plan.flood
    assert bench.redis is not None
    before = giver.cpu(), hearer.cpu(), bench.redis.cpu()
    giver.send("flood", count=count, marker="marker")
    answer = client.ask("wait_closed", group="marker", timeout=120.0)
    begin = giver.answer()["begin"]
    if answer["missing"]:
        raise Broken("the last of many orders didn't arrive")
    bench.note("orders", peer.name, number, count / ((answer["last"] - begin) / 1e9))
    bench.note("orders-giver-cpu", peer.name, number, (giver.cpu() - before[0]) / count)
    bench.note("orders-hearer-cpu", peer.name, number, (hearer.cpu() - before[1]) / count)
    bench.note("orders-redis-cpu", peer.name, number, (bench.redis.cpu() - before[2]) / count)


def _burst(
    bench: Bench, peer: Peer, number: int, client: Client, giver: Child, hearer: Child
) -> None:
    """
    Measure the longest turn of the receiver's event loop during a burst of orders.

    A full garbage collection runs before: one within the burst, no matter what triggers it,
    would spend its time on older objects, which are the application's.
    """
    hearer.ask("collect")
    hearer.ask("longest_turn")
    giver.send("flood", count=bench.plan.burst, marker="last", name="burst")
    missing = client.ask("wait_closed", group="last", timeout=120.0)["missing"]
    giver.answer()
    if missing:
        raise Broken("the last of a burst of orders didn't arrive")
    longest = hearer.ask("longest_turn")["longest"]
    bench.note("burst-turn", peer.name, number, longest / 1e6, bench.plan.burst)
