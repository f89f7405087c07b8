"""
A run: what is measured, how much of it, in which order, and what was read.

Everything goes in turns, round by round and peer by peer (A B C A B C), so that a slow minute
of the machine meets all alike.
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
        rounds: How often each is measured.
        sockets: How many are open.
        curve: How many are open one time after another, for the scaling curves.
        fresh: How many handshakes a new server is measured with.
        ones: How many sessions are closed one by one.
        groups: How many sessions of many sockets are closed.
        idle: Seconds of doing nothing: as long as a heartbeat, or a multiple.
        echo: Seconds of echoing.
        orders: How many orders are timed between nodes.
        flood: How many orders are given in a burst.
        burst: How many when the longest turn of the event loop is looked for.
        calls: Rounds within the one process of what needs no sockets.
        records: How many ends a registry knows.
        pinned: Whether servers have a core of their own, and clients another.
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
    One run.

    Attributes:
        plan: How much is measured.
        peers: Who is.
        only: What is.
        redis: A Redis server, if there is one.
        readings: What was read.
        left_out: Why something was not measured.
    """

    plan: Plan
    peers: Sequence[Peer]
    only: frozenset[str]
    redis: RedisServer | None
    readings: list[Reading] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self, parts: Mapping[str, tuple[Measure, frozenset[str]]]) -> None:
        """
        Measure, in turns.

        Args:
            parts: What peers take part in: how it is measured, and for which of ``only``.
        """
        for number in range(self.plan.rounds):
            for part, (measure, wanted_by) in parts.items():
                for peer in self.peers:
                    if self.only & wanted_by and part in peer.parts:
                        self.try_to(part, peer, measure, number)

    def try_to(self, part: str, peer: Peer, measure: Measure, number: int) -> None:
        """
        Measure one peer once; what fails is left out from then on.
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
        Keep a figure: of a row and a peer, in a round, with so many sockets.
        """
        self.readings.append(Reading(row, peer, size, number, value))

    @contextmanager
    def serving(self, peer: Peer, *options: str) -> Iterator[tuple[Child, Client]]:
        """
        Run a server and its clients.
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
