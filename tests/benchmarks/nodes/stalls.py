"""
For how long a node's event loop does one thing, when there is much to do.
"""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp_session
from aiohttp import web
from aiohttp_session import SimpleCookieStorage
from aiohttp_session_ws.closing import SESSION_ENDED
from aiohttp_session_ws.redis.wire import Ended, Unit, envelope
from aiohttp_session_ws.redis.writer import BATCH
from redis.asyncio import Redis

from aiohttp_session_ws import session_ws_middleware, setup
from aiohttp_session_ws.redis import RedisSessionWSRegistry

from ..bookkeeping import Socket
from ..report import line, median
from .child import Child, Work, child

SOCKETS: Final = 20_000
ORDERS: Final = 10_000  # in a burst
KEPT: Final = 100_000  # orders that are written back
CHANNEL: Final = "aiohttp_session_ws:orders"
QUIET: Final = 0.3  # seconds with little to do, after which it is over


class Watched(Work):
    """
    A node that notes how long the iterations of its event loop are.
    """

    def __init__(self, registry: RedisSessionWSRegistry) -> None:
        self.registry = registry
        self.longest = self.longest_own = 0.0
        self._collected = 0.0
        gc.callbacks.append(self._collect)
        self._ids = [f"{number:032x}" for number in range(SOCKETS)]
        loop = asyncio.get_running_loop()
        # Nothing public tells where an iteration begins and ends.
        once = loop._run_once  # type: ignore[attr-defined]

        def timed() -> None:
            begin, self._collected = time.thread_time(), 0.0
            once()
            seconds = time.thread_time() - begin
            self.longest = max(self.longest, seconds)
            self.longest_own = max(self.longest_own, seconds - self._collected)

        loop._run_once = timed  # type: ignore[attr-defined]

    def _collect(self, phase: str, info: dict[str, int]) -> None:
        now = time.thread_time()
        self._collected += -now if phase == "start" else now

    def fill(self) -> None:
        """
        Register sockets by hand, as many as are missing.
        """
        for id_ in self._ids:
            if id_ not in self.registry:
                self.registry.register(id_, Socket())

    def remember(self) -> None:
        """
        Know of as many orders as a node keeps.
        """
        for _ in range(KEPT):
            self.registry._node.memory.add(Ended(uuid.uuid4().hex, time.time(), 3600.0))

    async def reconcile(self) -> None:
        """
        Ask Redis about all sockets.
        """
        await self.registry._learning.reconcile()

    def forget(self) -> None:
        """
        Begin to measure anew.
        """
        self.longest = self.longest_own = 0.0

    def worst(self) -> tuple[float, float]:
        """
        Return the CPU time of the longest iteration in milliseconds, and that of the longest
        without Python's garbage collector.
        """
        return self.longest * 1e3, self.longest_own * 1e3

    def waits(self) -> bool:
        """
        Tell whether something waits for Redis yet.
        """
        return len(self.registry._node.writer) > 0


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[Watched]:
    """
    Be a node that is watched.
    """
    registry = RedisSessionWSRegistry(url)
    app = web.Application()
    aiohttp_session.setup(app, SimpleCookieStorage())
    app.middlewares.append(session_ws_middleware)
    setup(app, registry)
    runner = web.AppRunner(app)
    await runner.setup()
    yield Watched(registry)


async def _idle(node: Child) -> None:
    busy = True
    while busy:
        before = await node.ask("cpu")
        await asyncio.sleep(QUIET)
        busy = await node.ask("cpu") - before > 0.1 * QUIET or await node.ask("waits")


async def _burst(redis: Redis, ids: list[str]) -> None:
    """
    Publish the ends of sessions.
    """
    now = time.time()
    units = [Unit((Ended(id_, now, 3600.0),), SESSION_ENDED).text() for id_ in ids]
    for start in range(0, len(units), BATCH):
        await redis.publish(CHANNEL, envelope("x/1", units[start : start + BATCH]))


async def _round(redis: Redis, node: Child, what: str) -> tuple[float, float]:
    await node.ask("fill")
    if what == "a new Redis":
        await node.ask("remember")
    await _idle(node)
    await node.ask("forget")
    match what:
        case "nothing":
            await asyncio.sleep(QUIET)
        case "reconcile":
            await node.ask("reconcile")
        case "reconnect":
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
            await asyncio.sleep(QUIET)
        case "a burst for nobody":
            await _burst(redis, [uuid.uuid4().hex for _ in range(ORDERS)])
        case "a burst for all":
            await _burst(redis, [f"{number:032x}" for number in range(ORDERS)])
        case "a new Redis":
            await redis.flushall()
            await asyncio.sleep(4)  # until the next sign of life
    await _idle(node)
    longest, own = await node.ask("worst")
    return longest, own


async def measure(url: str, rounds: int) -> None:
    """
    Watch a node with many sockets while orders come in numbers.
    """
    async with Redis.from_url(url) as redis, child(watched, url) as node:
        for what in (
            "nothing",
            "reconcile",
            "reconnect",
            "a burst for nobody",
            "a burst for all",
            "a new Redis",
        ):
            figures = [await _round(redis, node, what) for _ in range(min(5, rounds))]
            own = [pair[1] for pair in figures]
            line(
                f"longest turn, {what}",
                f"{max(own):.1f} ms",
                f"median {median(own):.1f} ms; with the garbage collector"
                f" {max(pair[0] for pair in figures):.1f} ms; target <= 50 ms",
            )
