"""
Inject faults, and record when each of them began and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from tests.support.node_process import NodeProcess
from tests.support.processes import PATIENCE, free_port
from tests.support.proxy import Proxy
from tests.support.redis_servers import RedisServer, redis_version

from . import faults as kinds
from .faults import Fault
from .knowledge import Life, Span, Timeline

#: Faults during which Redis does not answer, and those during which it refuses writes.
AWAY = (kinds.KILLED, kinds.LOST, kinds.FROZEN, kinds.PAUSED, kinds.LOADING, kinds.BUSY)
REFUSING = (kinds.FULL, kinds.MISCONF, kinds.READONLY)
NUMBERS = ("}:recent", "}:seq", "}:floor", "}:marks")  # keys that map numbers to orders
STILL = 0.2  # seconds of delay that count as a stall
KEPT = 0.98  # of the memory is left to Redis when it evicts
SHORT = 0.1  # seconds
AGAIN = 0.2  # seconds between two resets
USLEEP = 60  # microseconds that the shortest sleep of Redis takes
RECORD = 120  # bytes of a command in its file, roughly


class Hand:
    """
    Injects the faults.

    Args:
        redis: The server that is killed and frozen.
        nodes: The nodes that are killed.
        proxies: The connection of each node to Redis.
        say: Called with a line for each action.
        journals: Whether the nodes have journals.

    Attributes:
        done: The number of faults of each kind.
        timeline: When which processes and servers were available.
        evicted: The keys that Redis has evicted, and when.
        stalled: Seconds for which this process stalled, and with it the proxies.
        logs: The last output of processes that were killed.
    """

    def __init__(
        self,
        redis: RedisServer,
        nodes: Sequence[NodeProcess],
        proxies: Sequence[Proxy],
        say: Callable[[str], object],
        *,
        journals: bool = False,
    ) -> None:
        self._redis = redis
        self._nodes = nodes
        self._proxies = proxies
        self._say = say
        self.done: dict[str, int] = {}
        self.timeline = Timeline(journals=journals)
        self.evicted: dict[str, list[float]] = {}
        self.stalled = 0.0
        self.logs: dict[int, str] = {}
        self._lives: dict[int, Life] = {}
        self._broken: list[list[Span]] = [[] for _ in nodes]  # the connection of each node

    def begin(self) -> None:
        """Record the first processes of the nodes."""
        for number in range(len(self._nodes)):
            self._born(number)

    def died(self, pid: int) -> float:
        """Return when a process of a node was killed; infinity if it wasn't."""
        return self._lives[pid].died

    async def carry_out(self, faults: Sequence[Fault]) -> None:
        """Inject all faults: those of Redis, nodes and networks in parallel."""
        start = asyncio.get_running_loop().time()
        watching = asyncio.create_task(self._watch(), name="watch this process")
        try:
            await self._carry_out(start, faults)
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Record stalls of this process: a busy machine may not schedule it in time."""
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            await asyncio.sleep(SHORT)
            late = loop.time() - begin - SHORT
            if late > STILL:
                self.stalled += late
                self.timeline.away.append((begin, loop.time()))

    async def _carry_out(self, start: float, faults: Sequence[Fault]) -> None:
        async with asyncio.TaskGroup() as all_:
            for some in (kinds.OF_NODES, kinds.OF_WAYS, (*kinds.OF_REDIS, kinds.EVICTED)):
                mine = [fault for fault in faults if fault.kind in some]
                all_.create_task(self._follow(start, mine))

    async def _follow(self, start: float, faults: Sequence[Fault]) -> None:
        loop = asyncio.get_running_loop()
        for fault in faults:
            await asyncio.sleep(max(0.0, start + fault.at - loop.time()))
            self._say(f"{loop.time() - start:7.2f} s  now: {fault.kind}")
            if fault.kind in kinds.OF_NODES:
                await self._do_to_node(fault)
            elif fault.kind in kinds.OF_WAYS:
                await self._do_to_way(fault)
            else:
                await self._do_to_redis(fault)
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # Nodes

    def _born(self, number: int) -> None:
        pid = self._nodes[number].pid
        self._lives[pid] = life = Life(pid, number, self._now(), broken=self._broken[number])
        self.timeline.lives.append(life)

    async def _do_to_node(self, fault: Fault) -> None:
        node = self._nodes[fault.node]
        life = self._lives[node.pid]
        if fault.kind == kinds.STOPPED:
            begin = self._now()
            node.freeze()
            await asyncio.sleep(fault.seconds)
            node.thaw()
            life.broken.append((begin, self._now()))
            return
        if fault.kind == kinds.RESTARTED:
            await node.stop()
        life.died = self._now()
        self.logs[node.pid] = node.tail()
        node.kill()
        await asyncio.sleep(fault.seconds)
        await node.start()
        self._born(fault.node)

    # The connection between a node and Redis

    async def _do_to_way(self, fault: Fault) -> None:
        proxy = self._proxies[fault.node]
        begin = self._now()
        if fault.kind in (kinds.DEAF, kinds.MUTE):
            proxy.black_hole(up=fault.kind == kinds.MUTE, down=fault.kind == kinds.DEAF)
            await asyncio.sleep(fault.seconds)
        elif fault.kind == kinds.SLOW:
            proxy.delay = 0.25
            await asyncio.sleep(fault.seconds)
        elif fault.kind == kinds.TORN:
            proxy.tears = True
            await asyncio.sleep(fault.seconds)
        else:
            for _ in range(1 + int(fault.seconds / AGAIN)):
                proxy.cut()
                await asyncio.sleep(AGAIN)
        proxy.heal()
        if fault.kind != kinds.SLOW:
            self._broken[fault.node].append((begin, self._now()))

    # Redis

    async def _do_to_redis(self, fault: Fault) -> None:
        begin = self._now()
        if fault.kind in AWAY:
            await self._take_away(fault)
            self.timeline.away.append((begin, self._now()))
        elif fault.kind in REFUSING:
            await self._refuse(fault)
            self.timeline.refusing.append((begin, self._now()))
        else:
            await self._disturb(fault)

    async def _take_away(self, fault: Fault) -> None:
        """Make Redis unavailable for some time."""
        redis, seconds = self._redis, fault.seconds
        if fault.kind == kinds.FROZEN:
            redis.freeze()
            await asyncio.sleep(seconds)
            redis.thaw()
        elif fault.kind == kinds.PAUSED:
            await redis.cli("CLIENT", "PAUSE", int(seconds * 1000))
            await asyncio.sleep(seconds)
        elif fault.kind == kinds.BUSY:
            await self._keep_busy(seconds)
        else:
            lost = fault.kind == kinds.LOST
            (self.timeline.lost if lost else self.timeline.killed).append(self._now())
            redis.kill()
            if fault.kind == kinds.LOADING:
                await self._load(seconds)
            else:
                await asyncio.sleep(seconds)
                await redis.restart(keep_data=not lost)

    async def _keep_busy(self, seconds: float) -> None:
        """Run a slow script: other clients are answered BUSY."""
        redis = self._redis
        await redis.cli("CONFIG", "SET", "lua-time-limit", 50)
        script = asyncio.create_task(redis.cli("EVAL", "while true do end", 0))
        await asyncio.sleep(seconds)
        async with asyncio.timeout(PATIENCE):
            while not script.done():
                with contextlib.suppress(RedisError):
                    await redis.cli("SCRIPT", "KILL")
                await asyncio.wait({script}, timeout=SHORT)
        await asyncio.gather(script, return_exceptions=True)

    async def _load(self, seconds: float) -> None:
        """Start Redis so that it loads its data for some time, and answers LOADING."""
        redis = self._redis
        size = sum(path.stat().st_size for path in redis.folder.rglob("*") if path.is_file())
        each = seconds * 1e6 / (1 + size / RECORD)
        delay = int(each - USLEEP) if each > 2 * USLEEP else -max(1, int(USLEEP / max(each, 0.1)))
        command = redis.command
        redis.command = [*command, "--key-load-delay", str(delay)]
        if redis_version() >= (7,):  # before, it answers LOADING only after each 2 MB
            redis.command += ["--loading-process-events-interval-bytes", "1024"]
        try:
            await redis.start()
        finally:
            redis.command = command

    async def _refuse(self, fault: Fault) -> None:
        """Make Redis refuse writes, but answer reads."""
        redis = self._redis
        in_the_way = redis.folder / "dump.rdb" / "in the way"
        if fault.kind == kinds.FULL:
            await redis.cli("CONFIG", "SET", "maxmemory", 1)
        elif fault.kind == kinds.READONLY:
            await redis.cli("REPLICAOF", "127.0.0.1", free_port())
        else:
            if in_the_way.parent.is_file():  # saved when it was flushed or stopped
                in_the_way.parent.unlink()
            in_the_way.mkdir(parents=True, exist_ok=True)
            await redis.cli("CONFIG", "SET", "save", "3600 1")
            await redis.cli("BGSAVE")
        await asyncio.sleep(fault.seconds)
        if fault.kind == kinds.FULL:
            await redis.cli("CONFIG", "SET", "maxmemory", 0)
        elif fault.kind == kinds.READONLY:
            await redis.cli("REPLICAOF", "NO", "ONE")
        else:
            await redis.cli("CONFIG", "SET", "save", "")
            in_the_way.rmdir()
            in_the_way.parent.rmdir()

    async def _disturb(self, fault: Fault) -> None:
        redis = self._redis
        match fault.kind:
            case kinds.PUBSUB:
                await redis.kill_pubsub()
            case kinds.NORMAL:
                await redis.kill_clients()
            case kinds.CLIENTS:
                await redis.kill_pubsub()
                await redis.kill_clients()
            case kinds.FLUSHED:
                self.timeline.lost.append(self._now())
                await redis.cli("FLUSHALL")
            case kinds.SCRIPTS:
                await redis.cli("SCRIPT", "FLUSH")
            case kinds.EVICTED:
                await self._evict()
            case kinds.TINY:
                await redis.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 1 1")
                await asyncio.sleep(fault.seconds)
                limit = "pubsub 33554432 8388608 60"
                await redis.cli("CONFIG", "SET", "client-output-buffer-limit", limit)

    async def _evict(self) -> None:
        """Make Redis evict a few of its keys at random."""
        redis = self._redis
        before = await redis.cli("KEYS", "*")
        memory = await redis.cli("INFO", "memory")
        await redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        await redis.cli("CONFIG", "SET", "maxmemory", int(memory["used_memory"] * KEPT))
        await redis.cli("PING")
        await redis.cli("CONFIG", "SET", "maxmemory", 0)
        await redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
        gone = {*before} - {*await redis.cli("KEYS", "*")}
        now = self._now()
        self.timeline.evicting.append(now)
        if any(key.endswith(NUMBERS) for key in gone):
            self.timeline.unlisted.append(now)
        self._say(f"{len(gone)} of {len(before)} keys are gone")
        for key in gone:
            self.evicted.setdefault(key, []).append(now)
