"""
A benchmark run: its plan, the order of its measurements, and its readings.

Measurements alternate, round by round and peer by peer (A B C A B C), so that a slow minute
of the machine affects all peers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from .environments import Unavailable
from .peers import Client, Peer
from .processes import Broken, Child, RedisServer, progress
from .rows import Reading


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How much is measured.

    Attributes:
        rounds: How often each peer is measured.
        sockets: How many sockets are open.
        curve: The numbers of open sockets for the scaling curves.
        fresh: How many handshakes are measured on a new server.
        ones: How many sessions are closed one by one.
        groups: How many sessions of many sockets are closed.
        idle: Seconds without traffic: a heartbeat interval, or a multiple of it.
        echo: Seconds of echoing.
        orders: How many single orders between nodes are timed.
        flood: How many orders a burst has that measures throughput and CPU.
        burst: How many orders a burst has that measures the longest turn of the event loop.
        calls: Rounds of the measurements without sockets, in one process.
        records: How many recorded ends a registry has.
        pinned: Whether servers are pinned to one core, and clients to another.
    """

    rounds: int = 5
    sockets: int = 10_000
    curve: tuple[int, ...] = (100, 1_000, 10_000, 19_000)
    fresh: int = 2_000
    ones: int = 60
    groups: int = 3
    idle: float = 60.0
    echo: float = 2.0
    orders: int = 300
    flood: int = 20_000
    burst: int = 60_000
    calls: int = 15
    records: int = 1_000_000
    pinned: bool = True


@dataclass(slots=True)
class Bench:
    """
    A benchmark run.

    Attributes:
        plan: How much is measured.
        peers: The servers to measure.
        only: The names of what to measure.
        redis: A Redis server, if there is one.
        readings: All figures so far.
        left_out: What was not measured, and why.
    """

    plan: Plan
    peers: Sequence[Peer]
    only: frozenset[str]
    redis: RedisServer | None
    readings: list[Reading] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self, parts: Mapping[str, tuple[Measure, frozenset[str]]]) -> None:
        """
        Measure all peers, alternating.

        Args:
            parts: The parts that peers take part in: the function that measures a part, and
                the names in ``only`` that require it.
        """
        for number in range(self.plan.rounds):
            for part, (measure, wanted_by) in parts.items():
                for peer in self.peers:
                    if self.only & wanted_by and part in peer.parts:
                        self.try_to(part, peer, measure, number)

    def try_to(self, part: str, peer: Peer, measure: Measure, number: int) -> None:
        """
        Measure a part of one peer once; if that fails, leave it out from then on.
        """
        key = f"{part} of {peer.title}"
        if key in self.left_out:
            return
        progress(f"round {number + 1}: {key}")
        try:
            if self.redis is not None:
                self.redis.flush()
            elif peer.clustered or part == "cluster":
                raise Unavailable("there is no redis-server")
            measure(self, peer, number)
        except (Broken, Unavailable, OSError) as error:
            self.left_out[key] = str(error)
            progress(f"left out: {key}: {error}")

    def note(self, row: str, peer: str, number: int, value: float, size: int = 0) -> None:
        """
        Record a figure of a row and a peer, in a round, with *size* sockets.
        """
        self.readings.append(Reading(row, peer, size, number, value))

    @contextmanager
    def serving(self, peer: Peer, *options: str) -> Iterator[tuple[Child, Client]]:
        """
        Run a server, and the process of its clients.
        """
        with ExitStack() as stack:
            redis = self.redis if peer.clustered else None
            server = peer.start(redis, *options, pinned=self.plan.pinned)
            stack.callback(server.stop)
            client = Client(pinned=self.plan.pinned)
            stack.callback(client.stop)
            yield server, client


#: Measures a peer in a round.
Measure: TypeAlias = Callable[[Bench, Peer, int], None]
