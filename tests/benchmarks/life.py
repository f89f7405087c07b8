"""
Measure the stages of a server: handshakes, broadcasts, closing of sessions, shutdown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from .bench import Bench, Plan
from .peers import Client, Peer
from .processes import Broken, Child

#: The stages; each may be left out.
STAGES = frozenset({"handshakes", "memory", "broadcast", "close", "shutdown"})


def names(base: str, count: int) -> list[str]:
    """
    Return the ids of *count* sessions.
    """
    return [f"{base}{number}" for number in range(count)]


def scaling(bench: Bench, peer: Peer, number: int) -> None:
    """
    Measure the stages with growing numbers of sockets.
    """
    for size in bench.plan.curve:
        life(bench, peer, number, size)


def life(bench: Bench, peer: Peer, number: int, size: int = 0) -> None:
    """
    Measure one server: open sockets, send to them, close some sessions, and shut down.

    Args:
        bench: The run.
        peer: The peer whose server is measured.
        number: The round.
        size: How many sockets; 0 for the number in the plan.
    """
    curve, size = bool(size), size or bench.plan.sockets
    wanted = STAGES if curve else bench.only
    many = size // 10
    groups = [f"many{n}" for n in range(bench.plan.groups)]
    singles = names("s", size - many * len(groups))
    warm, later = names("warm", 50), names("later", 200)

    def note(row: str, value: float, *, sized: bool = True) -> None:
        row = f"curve:{row}" if curve else row
        bench.note(row, peer.name, number, value, size if sized else 0)

    with bench.serving(peer) as (server, client):
        peer.visit(client, server, [*warm, *singles, *groups, *later])
        peer.connect(client, server, warm, "warm")
        time.sleep(0.3)
        memory, cpu = server.memory(), server.cpu()
        fresh = singles[: bench.plan.fresh]
        opened = peer.connect(client, server, fresh, "single")
        if opened.count < len(fresh):
            raise Broken(f"{opened.count} of {len(fresh)} handshakes")
        if "handshakes" in wanted and not curve:
            note("handshakes", opened.count / opened.seconds, sized=False)
            note("handshake-cpu", (server.cpu() - cpu) / opened.count, sized=False)
        peer.connect(client, server, singles[len(fresh) :], "single")
        for group in groups:
            peer.connect(client, server, [group] * many, group)
        time.sleep(0.5)
        if "memory" in wanted:
            note("memory", (server.memory() - memory) / size / 1024)
        if curve:
            cpu = server.cpu()
            peer.connect(client, server, later, "later")
            note("next-handshake-cpu", (server.cpu() - cpu) / len(later))
        if "broadcast" in wanted:
            for row, value in broadcast(server, client, groups, size):
                note(row, value)
        if "close" in wanted:
            for row, value in close_some(bench.plan, server, client, singles, groups, many):
                note(row, value)
        if "shutdown" in wanted:
            left = server.ask("count")["open"]
            cpu = server.cpu()
            last, _ = closed(server, client, "single", "shutdown")
            note("shutdown", last / 1e3)
            note("shutdown-cpu", (server.cpu() - cpu) / left)


def broadcast(
    server: Child, client: Client, groups: Sequence[str], size: int
) -> Iterator[tuple[str, float]]:
    """
    Broadcast a text several times; yield the rows and their medians.
    """
    times, costs = [], []
    for turn in range(4):
        cpu = server.cpu()
        begin = server.ask("broadcast", size=100)["begin"]
        answers = [
            client.ask("wait_messages", group=group, timeout=60.0)
            for group in ("warm", "single", *groups)
        ]
        if missing := sum(answer["missing"] for answer in answers):
            raise Broken(f"{missing} sockets didn't get a broadcast")
        if turn:  # the first turn is for warming up
            times.append((max(answer["last"] for answer in answers) - begin) / 1e6)
            costs.append((server.cpu() - cpu) / size)
        time.sleep(0.1)
    yield "broadcast", statistics.median(times)
    yield "broadcast-cpu", statistics.median(costs)


def close_some(
    plan: Plan,
    server: Child,
    client: Client,
    singles: Sequence[str],
    groups: Sequence[str],
    many: int,
) -> Iterator[tuple[str, float]]:
    """
    Close sessions of one socket, then sessions of many; yield the rows and their medians.
    """
    ones = singles[:: max(1, len(singles) // plan.ones)][: plan.ones]
    yield "close-one", closed_each(server, client, "single", "close_sessions", ones, 0.02)
    time.sleep(0.3)
    lasts, firsts, costs = [], [], []
    for group in groups:
        time.sleep(0.2)
        before = server.cpu()
        last, first = closed(server, client, group, "close_session", sid=group)
        time.sleep(0.3)
        lasts.append(last / 1e3)
        firsts.append(first / 1e3)
        costs.append((server.cpu() - before) / many)
    yield "close-many", statistics.median(lasts)
    yield "close-many-first", statistics.median(firsts)
    yield "close-many-cpu", statistics.median(costs)


def closed(
    server: Child, client: Client, group: str, op: str, **arguments: str
) -> tuple[float, float]:
    """
    Close a group of sockets; return the microseconds to the last close and to the first.
    """
    server.send(op, **arguments)
    answer = client.ask("wait_closed", group=group, timeout=120.0)
    begin = server.answer()["begin"]
    if answer["missing"]:
        raise Broken(f"{answer['missing']} sockets weren't closed")
    return (answer["last"] - begin) / 1e3, (answer["first"] - begin) / 1e3


def closed_each(
    server: Child, client: Client, group: str, op: str, sids: Sequence[str], pause: float
) -> float:
    """
    Close sessions one by one; return the median of the microseconds until each is closed.
    """
    begins: list[int] = server.ask(op, sids=sids, pause=pause)["begins"]
    answer = client.ask("wait_closed", group=group, timeout=20.0, sids=sids)
    if answer["missing"]:
        raise Broken(f"{answer['missing']} sockets weren't closed")
    ends: dict[str, int] = client.ask("closed", group=group)["closed"]
    times = [(ends[sid] - begin) / 1e3 for sid, begin in zip(sids, begins, strict=True)]
    return statistics.median(times)
