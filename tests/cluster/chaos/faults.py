"""
A random schedule of faults, which ``hand.py`` injects. No I/O.

There are faults of Redis, of nodes, and of the connection between a node and Redis. The three
kinds occur in parallel; faults of the same kind follow each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

KILLED: Final = "redis killed"
LOST: Final = "redis killed, data lost"
FROZEN: Final = "redis frozen"
PUBSUB: Final = "pub/sub killed"
NORMAL: Final = "normal clients killed"
CLIENTS: Final = "all clients killed"
FLUSHED: Final = "redis flushed"
SCRIPTS: Final = "scripts flushed"
PAUSED: Final = "redis paused"
FULL: Final = "redis full (OOM)"
MISCONF: Final = "redis can't save (MISCONF)"
READONLY: Final = "redis is a replica (READONLY)"
LOADING: Final = "redis loads (LOADING)"
BUSY: Final = "redis runs a script (BUSY)"
TINY: Final = "tiny pub/sub buffers"
EVICTED: Final = "records evicted"

NODE: Final = "node killed"
STOPPED: Final = "node frozen"
RESTARTED: Final = "node restarted"

DEAF: Final = "nothing comes from redis"
MUTE: Final = "nothing goes to redis"
SLOW: Final = "redis 250 ms away"
TORN: Final = "half of a write, then reset"
RESET: Final = "connections reset"

OF_REDIS: Final = (
    *(KILLED, LOST, FROZEN, PUBSUB, NORMAL, CLIENTS, FLUSHED, SCRIPTS, PAUSED),
    *(FULL, MISCONF, READONLY, LOADING, BUSY, TINY),
)
OF_NODES: Final = (NODE, STOPPED, RESTARTED)
OF_WAYS: Final = (DEAF, MUTE, SLOW, TORN, RESET)
#: Evictions for each round of the other faults; a Redis should be configured not to evict.
EVICTIONS: Final = 5 if os.environ.get("CHAOS_EVICTION") else 0
#: Whether data is lost and nodes are killed before all have recovered from the last fault.
DENSE: Final = bool(os.environ.get("CHAOS_DENSE"))

DOWN: Final = {  # seconds at most
    KILLED: 4.0,
    LOST: 4.0,
    FROZEN: 6.0,
    PAUSED: 2.0,
    FULL: 3.0,
    MISCONF: 3.0,
    READONLY: 3.0,
    LOADING: 3.0,
    BUSY: 3.0,
    TINY: 6.0,
    NODE: 4.0,
    STOPPED: 4.0,
    RESTARTED: 1.0,
    DEAF: 5.0,
    MUTE: 5.0,
    SLOW: 8.0,
    TORN: 1.0,
    RESET: 1.0,
}
LONGEST: Final = 15.0  # seconds at most of a rare, long freeze of Redis or a node
SELDOM: Final = 0.1  # the probability of that
SHORTEST: Final = 0.05  # second
REST: Final = 8.0  # seconds after a loss of data, unless it is dense
PAUSES: Final = (2.0, 6.0) if DENSE else (6.0, 12.0)  # seconds between two faults of nodes
CALM: Final = 0.3  # of the run before a node is killed: no report is complete for an hour then


@dataclass(frozen=True)
class Fault:
    """
    One fault.

    Attributes:
        at: Its begin, in seconds since the start.
        kind: One of the names above.
        seconds: Its duration.
        node: The number of the node that is affected, by itself or by its network; else -1.
    """

    at: float
    kind: str
    seconds: float = 0.0
    node: int = -1

    def __str__(self) -> str:
        which = f" {self.node}" if self.node >= 0 else ""
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.at:7.2f} s  {self.kind}{which}{lasting}"


def in_turn(random: Random, kinds: Sequence[str]) -> Iterator[str]:
    """Yield all kinds in a random order, again and again."""
    while True:
        yield from random.sample(kinds, len(kinds))


def duration(random: Random, kind: str) -> float:
    """Draw the duration of a fault, in seconds."""
    if kind not in DOWN:
        return 0.0
    seldom = kind in (FROZEN, STOPPED) and random.random() < SELDOM
    return random.uniform(SHORTEST, LONGEST if seldom else DOWN[kind])


def faults_of_redis(random: Random, seconds: float) -> Iterator[Fault]:
    """Plan the faults of Redis."""
    at = random.uniform(0.5, 1.5)
    for kind in in_turn(random, (*OF_REDIS, *[EVICTED] * EVICTIONS)):
        lasting = duration(random, kind)
        if at + lasting > seconds:
            return
        yield Fault(at, kind, lasting)
        # Often the next fault begins before all nodes have recovered from this one.
        pause = random.choice([SHORTEST, 0.3, 1.0, 3.0, 6.0]) * random.uniform(0.5, 1.5)
        rests = kind in (LOST, FLUSHED) and not DENSE
        at += lasting + (max(pause, REST) if rests else pause)


def faults_of_nodes(random: Random, seconds: float, nodes: int) -> Iterator[Fault]:
    """Plan which nodes are killed, frozen and restarted, one at a time."""
    at = random.uniform(1.0, 4.0)
    for kind in in_turn(random, OF_NODES):
        if kind == NODE and at < CALM * seconds:
            continue
        lasting = duration(random, kind)
        if at + lasting > seconds:
            return
        yield Fault(at, kind, lasting, random.randrange(nodes))
        at += lasting + random.uniform(*PAUSES)


def faults_of_ways(random: Random, seconds: float, nodes: int) -> Iterator[Fault]:
    """Plan the network faults of nodes, one at a time."""
    at = random.uniform(2.0, 6.0)
    for kind in in_turn(random, OF_WAYS):
        lasting = duration(random, kind)
        if at + lasting > seconds:
            return
        yield Fault(at, kind, lasting, random.randrange(nodes))
        at += lasting + random.uniform(*PAUSES)


def schedule(seed: int, seconds: float, nodes: int) -> list[Fault]:
    """Return all faults of a run; the same arguments give the same faults."""
    random = Random(seed)
    faults = [
        *faults_of_redis(random, seconds),
        *faults_of_nodes(random, seconds, nodes),
        *faults_of_ways(random, seconds, nodes),
    ]
    return sorted(faults, key=lambda fault: fault.at)
