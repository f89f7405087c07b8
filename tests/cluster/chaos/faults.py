"""
A random schedule of what goes wrong, and the hand that does it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.support.node_process import NodeProcess
from tests.support.redis_servers import RedisServer

KILLED: Final = "redis killed"
LOST: Final = "redis killed, data lost"
FROZEN: Final = "redis frozen"
PUBSUB: Final = "pub/sub killed"
CLIENTS: Final = "all clients killed"
FLUSHED: Final = "redis flushed"
SCRIPTS: Final = "scripts flushed"
PAUSED: Final = "redis paused"
FULL: Final = "redis full"
NODE: Final = "node killed"
STOPPED: Final = "node frozen"

# What is done to Redis one after another; meanwhile nodes are killed, also one after another.
OF_REDIS: Final = (
    KILLED,
    LOST,
    FROZEN,
    PUBSUB,
    CLIENTS,
    FLUSHED,
    SCRIPTS,
    PAUSED,
    FULL,
)
OF_NODES: Final = (NODE, STOPPED)
DOWN: Final = {  # seconds at most
    KILLED: 4.0,
    LOST: 4.0,
    FROZEN: 6.0,
    PAUSED: 2.0,
    FULL: 3.0,
    NODE: 4.0,
    STOPPED: 4.0,
}
SHORTEST: Final = 0.05  # second
ENOUGH: Final = 6.0  # seconds in which any node finds its Redis again and tells it all


@dataclass(frozen=True)
class Fault:
    """
    One thing that goes wrong.

    Attributes:
        at: When, in seconds since the start.
        kind: One of the names above.
        seconds: How long until it is put right.
        node: Which node, if it is one.
    """

    at: float
    kind: str
    seconds: float = 0.0
    node: int = -1

    def __str__(self) -> str:
        which = f" {self.node}" if self.node >= 0 else ""
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.at:7.2f} s  {self.kind}{which}{lasting}"


def faults_of_redis(random: Random, seconds: float) -> Iterator[Fault]:
    """Plan what happens to Redis: every kind in turn, in an order drawn anew each time."""
    at = random.uniform(0.5, 1.5)
    while True:
        for kind in random.sample(OF_REDIS, len(OF_REDIS)):
            lasting = random.uniform(SHORTEST, DOWN[kind]) if kind in DOWN else 0.0
            if at + lasting > seconds:
                return
            yield Fault(at, kind, lasting)
            # Often the next one comes before everybody has recovered from this one.
            pause = random.choice([SHORTEST, 0.3, 1.0, 3.0, 6.0]) * random.uniform(0.5, 1.5)
            at += lasting + (max(pause, ENOUGH) if kind in (LOST, FLUSHED) else pause)


def faults_of_nodes(random: Random, seconds: float, nodes: int) -> Iterator[Fault]:
    """Plan which nodes are killed, never two at once nor soon: somebody has to remember."""
    at = random.uniform(1.0, 4.0)
    while True:
        kind = random.choice(OF_NODES)
        lasting = random.uniform(SHORTEST, DOWN[kind])
        if at + lasting > seconds:
            return
        yield Fault(at, kind, lasting, random.randrange(nodes))
        at += lasting + random.uniform(6.0, 12.0)


def schedule(seed: int, seconds: float, nodes: int) -> list[Fault]:
    """Return all that will go wrong, the same for the same arguments."""
    random = Random(seed)
    faults = [*faults_of_redis(random, seconds), *faults_of_nodes(random, seconds, nodes)]
    return sorted(faults, key=lambda fault: fault.at)


class Hand:
    """
    It makes the faults come true.

    Args:
        redis: What is killed and frozen.
        nodes: What is killed.
        say: Told of every deed.

    Attributes:
        done: How often it did what.
        deaths: When which process of a node was killed, by the event loop's clock.
    """

    def __init__(
        self, redis: RedisServer, nodes: Sequence[NodeProcess], say: Callable[[str], object]
    ) -> None:
        self._redis = redis
        self._nodes = nodes
        self._say = say
        self.done: dict[str, int] = dict.fromkeys([*OF_REDIS, *OF_NODES], 0)
        self.deaths: dict[int, float] = {}
        self._away: list[tuple[float, float]] = []  # when Redis was
        self._since = math.inf  # since when it is
        self._losses: list[float] = []  # when it lost its data

    async def carry_out(self, faults: Sequence[Fault]) -> None:
        """Do it all: what concerns Redis, and what concerns nodes beside it."""
        start = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._follow(start, [f for f in faults if f.node < 0]))
            both.create_task(self._follow(start, [f for f in faults if f.node >= 0]))

    def had_time(self, begin: float, end: float, enough: float = ENOUGH) -> bool:
        """Return whether Redis was there for a while in one go between two moments."""
        for away, back in [*self._away, (self._since, end)]:
            if min(away, end) - begin >= enough:
                return True
            begin = max(begin, back)
        return end - begin >= enough

    def lost_data(self, after: float) -> float:
        """Return when Redis lost its data next."""
        return next((at for at in self._losses if at >= after), math.inf)

    async def _follow(self, start: float, faults: Sequence[Fault]) -> None:
        loop = asyncio.get_running_loop()
        for fault in faults:
            await asyncio.sleep(max(0.0, start + fault.at - loop.time()))
            self._say(f"{loop.time() - start:7.2f} s  now: {fault.kind}")
            await self._do(fault)
            self.done[fault.kind] += 1

    async def _do(self, fault: Fault) -> None:
        if fault.node >= 0:
            await self._do_to_node(fault, self._nodes[fault.node])
        elif fault.kind in DOWN:
            loop = asyncio.get_running_loop()
            self._since = start = loop.time()
            await self._take_away(fault)
            self._away.append((start, loop.time()))
            self._since = math.inf
        else:
            await self._disturb(fault)

    async def _do_to_node(self, fault: Fault, node: NodeProcess) -> None:
        if fault.kind == STOPPED:
            node.freeze()
            await asyncio.sleep(fault.seconds)
            node.thaw()
            return
        self.deaths[node.pid] = asyncio.get_running_loop().time()
        node.kill()
        await asyncio.sleep(fault.seconds)
        await node.start()

    async def _take_away(self, fault: Fault) -> None:
        """Have no Redis, or one that takes nothing, for some time."""
        redis = self._redis
        if fault.kind == LOST:
            self._losses.append(asyncio.get_running_loop().time())
        if fault.kind == FROZEN:
            redis.freeze()
            await asyncio.sleep(fault.seconds)
            redis.thaw()
        elif fault.kind == PAUSED:
            await redis.cli("CLIENT", "PAUSE", int(fault.seconds * 1000))
            await asyncio.sleep(fault.seconds)
        elif fault.kind == FULL:
            await redis.cli("CONFIG", "SET", "maxmemory", 1)
            await asyncio.sleep(fault.seconds)
            await redis.cli("CONFIG", "SET", "maxmemory", 0)
        else:
            redis.kill()
            await asyncio.sleep(fault.seconds)
            await redis.restart(keep_data=fault.kind == KILLED)

    async def _disturb(self, fault: Fault) -> None:
        redis = self._redis
        if fault.kind in (PUBSUB, CLIENTS):
            await redis.kill_pubsub()
        if fault.kind == CLIENTS:
            await redis.kill_clients()
        if fault.kind == FLUSHED:
            self._losses.append(asyncio.get_running_loop().time())
            await redis.cli("FLUSHALL")
        if fault.kind == SCRIPTS:
            await redis.cli("SCRIPT", "FLUSH")
