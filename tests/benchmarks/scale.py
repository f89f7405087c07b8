"""
Measure the load that many nodes put on Redis, with simulated nodes.

``python -m tests.benchmarks.scale`` starts a Redis server and two bare connections for each node:
one runs the package's own scripts as a node does, one subscribes and drops all messages. It
measures the server's CPU time, of commands and of writes to sockets, and computes which share of
one core orders, heartbeats and rounds take in steady state, and what a blip costs in which all
nodes lose their subscriptions at once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import hiredis

from aiohttp_session_ws.close_codes import SESSION_ENDED
from aiohttp_session_ws.redis.encoder import Encoder
from aiohttp_session_ws.redis.entries import Argument, SubjectEntry
from aiohttp_session_ws.redis.io.scripts import FIND, HEARTBEAT, WRITE, Script
from aiohttp_session_ws.redis.membership import PULSE
from aiohttp_session_ws.redis.pace import TICK
from aiohttp_session_ws.redis.reconcile import AT_ONCE, ROUND
from aiohttp_session_ws.redis.rows import Shape

from .processes import HOST, RedisServer, progress, redis_server

TAG: Final = "{p}:"
KEYS: Final = 4  # looked up for a socket: of its lineage, its id (two), its identity
CHUNK: Final = 1000  # keys in one MGET
JITTER: Final = 0.001  # seconds that an order may be later than its tick
ENDS: Final = Shape(ends=True, kind="id", close=SESSION_ENDED, ttl=2_592_000.0)


class Connection(asyncio.Protocol):
    """
    A bare connection to Redis.
    """

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._deaf = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Keep the transport.
        """
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Resolve ``lost``.
        """
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """
        Resolve the futures of commands with their replies; drop messages.
        """
        if self._deaf:
            return
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if self._waiting:
                self._waiting.popleft().set_result(reply)

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """
        Send a command; return the future of its reply.
        """
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]  # any length
        return answer

    async def listen(self, channel: str) -> None:
        """
        Subscribe, and ignore all data that follows.
        """
        _ = await self.call("SUBSCRIBE", channel)
        self._deaf = True

    def close(self) -> None:
        """
        Close the connection.
        """
        self._transport.close()


async def connect(redis: RedisServer) -> Connection:
    """
    Connect as a node does.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, HOST, redis.port)
    _ = await connection.call("HELLO", 3)
    return connection


@dataclass(frozen=True, slots=True)
class Cost:
    """
    CPU time of the Redis server, in microseconds.

    Attributes:
        order: For one order, sent alone and received by all nodes.
        ticked: For one order, if several nodes send one at the same tick.
        rush: For one order, if a node sends a hundred in one message.
        beat: For a heartbeat.
        find: For a step of reading missed records, :data:`AT_ONCE` at most.
        look: For the look-up of one socket.
        connect: For a new connection that subscribes.
    """

    order: float
    ticked: float
    rush: float
    beat: float
    find: float
    look: float
    connect: float


class Stage:
    """
    A Redis server and its simulated nodes.

    Args:
        redis: The server.
        nodes: The number of nodes.
    """

    def __init__(self, redis: RedisServer, nodes: int) -> None:
        self.redis = redis
        self.nodes = nodes
        self.senders: list[Connection] = []
        self.listeners: list[Connection] = []
        self._encoders = [Encoder("p", f"node{n}/abcdef01", lambda r: r) for n in range(nodes)]
        self._count = itertools.count(1)

    async def open(self) -> None:
        """
        Connect all nodes.
        """
        self.senders = [await connect(self.redis) for _ in range(self.nodes)]
        self.listeners = [await connect(self.redis) for _ in range(self.nodes)]
        for listener in self.listeners:
            await listener.listen("orders")
        for script in (WRITE, FIND, HEARTBEAT):
            _ = await self.senders[0].call("SCRIPT", "LOAD", script.text)

    def run(self, node: int, script: Script, *args: Argument) -> asyncio.Future[Any]:
        """
        Run a script on the connection of a node.
        """
        return self.senders[node].call("EVALSHA", script.digest, *args)

    async def order(self, size: int = 1) -> None:
        """
        Send an order from a random node, or several in one message.
        """
        node = random.randrange(self.nodes)
        ended = [
            SubjectEntry(ENDS, 1_763_740_000.5 + number / 1e6, f"{number:032x}")
            for number in itertools.islice(self._count, size)
        ]
        args = self._encoders[node].arguments(ended, "orders")
        assert args is not None
        _ = await self.run(node, WRITE, *args)

    async def beat(self) -> None:
        """
        Send a heartbeat from a random node.
        """
        node = random.randrange(self.nodes)
        _ = await self.run(node, HEARTBEAT, 1, TAG, f"node{node}/abcdef01", "1", "epoch")

    async def find(self) -> None:
        """
        Read the latest records, as missed ones, from a random node.
        """
        last = next(self._count) - 1
        node, first = random.randrange(self.nodes), max(1, last - AT_ONCE)
        _ = await self.run(node, FIND, 1, TAG, first, last, AT_ONCE)

    async def look(self) -> None:
        """
        Look up the keys of some sockets, from a random node.
        """
        keys = [f"{TAG}end:id:{number}" for number in range(CHUNK)]
        _ = await self.senders[random.randrange(self.nodes)].call("MGET", *keys)

    async def reconnect(self) -> None:
        """
        Replace the subscription of the first node in the list by a new one.
        """
        self.listeners.pop(0).close()
        self.listeners.append(await connect(self.redis))
        await self.listeners[-1].listen("orders")

    async def cpu_of(self, act: Callable[[], Awaitable[None]], times: int) -> float:
        """
        Return Redis' CPU time of one *act*, in microseconds: the least of five series.
        """
        series = []
        for _ in range(5):
            before = self.redis.cpu()
            for _ in range(times):
                await act()
            series.append((self.redis.cpu() - before) / times)
        return min(series)

    async def measure(self, together: int) -> Cost:
        """
        Measure each operation of nodes separately.

        Args:
            together: How many nodes send an order at the same tick.
        """

        async def late() -> None:
            await asyncio.sleep(random.uniform(0.0, JITTER))
            await self.order()

        async def tick() -> None:
            await asyncio.gather(*[late() for _ in range(together)])

        await self.open()
        rush = await self.cpu_of(lambda: self.order(100), 40)
        cost = Cost(
            order=await self.cpu_of(self.order, 400),
            ticked=await self.cpu_of(tick, 100) / together,
            rush=rush / 100,
            beat=await self.cpu_of(self.beat, 400),
            find=await self.cpu_of(self.find, 40),
            look=await self.cpu_of(self.look, 40) / CHUNK * KEYS,
            connect=await self.cpu_of(self.reconnect, 200),
        )
        for connection in (*self.senders, *self.listeners):
            connection.close()
        return cost


def report(cost: Cost, nodes: int, sockets: int, orders: float, blip: float) -> list[str]:
    """
    Return the lines of a report.

    Args:
        cost: The costs, measured with this number of nodes.
        nodes: The number of nodes.
        sockets: The number of sockets of each node.
        orders: The number of orders of all nodes per second.
        blip: Seconds in which no node receives anything.
    """
    beats = nodes / (0.85 * PULSE)
    looks = nodes * sockets / (0.9 * ROUND)
    steady = {
        f"{orders:,.0f} orders/s, each alone": orders * cost.order,
        f"the same at ticks of {TICK * 1000:.0f} ms": orders * cost.ticked,
        f"the same in rows of 100: {orders / 100:,.0f} messages/s": orders * cost.rush,
        f"{beats:,.0f} heartbeats/s": beats * cost.beat,
        f"{looks:,.0f} sockets looked up/s, a round in {ROUND / 60:.0f} min": looks * cost.look,
    }
    steps = max(1, -(-int(blip * orders) // AT_ONCE))
    blips = {
        f"{nodes:,} subscriptions made anew": nodes * cost.connect,
        f"{nodes:,} heartbeats": nodes * cost.beat,
        f"{nodes:,} x {blip * orders:,.0f} orders read": nodes * steps * cost.find,
    }
    lines = [f"{nodes} nodes with {sockets:,} sockets each; microseconds of Redis' CPU:"]
    lines += [f"  {name:<10}{getattr(cost, name):>12,.1f}" for name in Cost.__slots__]
    lines.append("steady state, of one core:")
    lines += [f"  {name:<60}{part / 1e4:>8.2f} %" for name, part in steady.items()]
    lines.append(f"a blip of {blip:g} s on all nodes, seconds of one core:")
    lines += [f"  {name:<60}{part / 1e6:>8.3f} s" for name, part in blips.items()]
    everything = nodes * sockets * cost.look / 1e6
    lines.append(f"  {'if all is lost: all sockets looked up':<60}{everything:>8.1f} s")
    return lines


def main() -> None:
    """
    Measure, and print a report for each number of nodes.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--sockets", type=int, default=50_000, help="on each node")
    parser.add_argument("--orders", type=float, default=1000.0, help="per second, of all nodes")
    parser.add_argument("--blip", type=float, default=1.0, help="seconds")
    given = parser.parse_args()
    with redis_server() as redis:
        if redis is None:
            sys.exit("there is no redis-server")
        for nodes in given.nodes:
            redis.flush()
            progress(f"{nodes} nodes")
            together = max(1, round(given.orders * TICK))
            cost = asyncio.run(Stage(redis, nodes).measure(together))
            for line in report(cost, nodes, given.sockets, given.orders, given.blip):
                sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
