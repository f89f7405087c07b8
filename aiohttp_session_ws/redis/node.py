"""
This process among the others: its connections to Redis, its clock, and who else lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from ..exceptions import RedisAway
from ..records import blame
from .client import LIMIT, MakeClient, end_tasks
from .listener import Handlers, Listener
from .mailbox import Mailbox
from .memory import KEPT, Memory, Numbers
from .store import Store
from .wire import Order, Unit
from .writer import Writer

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

PULSE: Final = 3.0  # seconds between two signs of life
COUNTS: Final = 15.0  # seconds that one counts
DRIFT: Final = 1e-4  # how much faster or slower one clock may be than another
RECONCILE: Final = 30.0  # seconds between two looks for orders that were missed
PROBE: Final = 0.5  # seconds between two tries while Redis is away
ALWAYS: Final = 60.0  # seconds; orders as young as that are written back after any trouble


def default_name() -> str:
    """
    Return a name for this process.
    """
    return f"{socket.gethostname()}:{os.getpid()}"


class Node:
    """
    What this process has of its own towards the others.

    Args:
        make: Makes a client.
        prefix: What all keys and channels begin with.
        name: How it is called.
        found: Called with an order and what was recorded in its place before.
        changed: Called when it may be connected, or not any more.

    Attributes:
        name: How it is called.
        instance: The name that is its own, also after a restart.
        members: Who lives, as far as Redis knows.
        memory: What was ordered lately.
        numbers: The close orders that were carried out.
        unheard: Of how many seconds there may be orders that this process hasn't heard of.
        missed: Set when orders may have been missed.
        deaf_until: When orders began to be heard without a gap, by the event loop's clock;
            infinite while they aren't.
    """

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        name: str,
        found: Callable[[Order, bytes], None],
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.instance = f"{name}/{secrets.token_hex(4)}"
        self.store = Store(make, prefix, self._store_changed)
        self.writer = Writer(self.store, self.instance, found)
        self.mailbox = Mailbox(self.store)
        self.members: list[str] = []
        self.memory = Memory()
        self.numbers = Numbers(self.instance)
        self.unheard = 0.0
        self.missed = asyncio.Event()
        self.deaf_until = math.inf
        self._make = make
        self._prefix = prefix
        self._changed = changed
        self._member = False
        self._heard_until = -math.inf  # when this process became deaf
        self._beat_at: float | None = None  # by Redis' clock
        self._beating = asyncio.Lock()
        self._hurry = asyncio.Event()  # the next beat is due
        self._data_heard = False  # questions, answers and pushes
        self._why_deaf = "not yet"
        self._tried = asyncio.Event()  # it is known whether Redis is there
        self._tasks: set[asyncio.Task[None]] = set()
        # Redis' clock is at least, and at most, so many seconds before this process's.
        self._low = self._high = time.time() - time.monotonic()
        self._measured = -math.inf

    @property
    def connected(self) -> bool:
        """
        Whether Redis answers, and orders are heard.
        """
        return not self.store.away and self.deaf_until < math.inf

    @property
    def running(self) -> bool:
        """
        Whether it was started, and not stopped.
        """
        return bool(self._tasks)

    @property
    def why(self) -> str:
        """
        Why it is not connected, for messages.
        """
        return self.store.why or f"it can't be subscribed to: {self._why_deaf}"

    def earliest(self) -> float:
        """
        Return the time by Redis' clock, or a little less.
        """
        return time.monotonic() + self._low

    def latest(self) -> float:
        """
        Return the time by Redis' clock, or a little more.
        """
        return time.monotonic() + self._high

    # Its life

    async def start(
        self,
        control: Handlers,
        data: Handlers,
        reconcile: Callable[[], Coroutine[Any, Any, None]],
        *,
        member: bool,
    ) -> None:
        """
        Connect; return when that is done, or has failed.

        Args:
            control: By channel, what hears orders and answers.
            data: By channel, what hears all else.
            reconcile: Called when orders may have been missed.
            member: Whether it counts among those that hold sockets.
        """
        self._member = member

        for run in (
            Listener(self._make, self._prefix, control, self._subscribed, self._lost).run,
            Listener(self._make, self._prefix, data, self._data_subscribed, self._data_lost).run,
            self.writer.run,
            self.mailbox.run,
            self._pulse,
            partial(self._watch, reconcile),
        ):
            self._tasks.add(asyncio.create_task(_for_ever(run)))
        try:
            async with asyncio.timeout(2 * LIMIT):
                await self._tried.wait()
        except TimeoutError:
            pass

    async def stop(self, drain: float) -> None:
        """
        Leave: let Redis take what waits for it, for *drain* seconds at most.
        """
        left = await self.writer.drain(drain)
        if left:
            log.error("%d orders are lost: Redis didn't take them before the process ended", left)
        async with self._beating:
            if self._member and not self.store.away:
                try:
                    await self.store.leave(self.instance)
                except RedisAway:
                    log.debug("Redis went away before it was told that this node leaves")
            self._member = False  # later beats don't count
        await end_tasks(self._tasks)
        self._tasks.clear()
        await self.store.stop()
        self.deaf_until = math.inf

    # What was ordered lately

    def _write_back(self, age: float) -> None:
        orders = self.memory.since(age)
        for start in range(0, len(orders), 100):
            _ = self.writer.put(orders[start : start + 100])

    def look_back(self, age: float) -> None:
        """
        Look soon for orders of the last *age* seconds that this process may not have heard.
        """
        self.unheard = max(self.unheard, min(KEPT, age))
        self.missed.set()

    # What happens to its connections

    def _subscribed(self) -> None:
        self.deaf_until = now = asyncio.get_running_loop().time()
        gap = max(0.0, now - self._heard_until)
        self._heard_until = math.inf
        if self._member:
            self._write_back(ALWAYS)
            self.look_back(gap + ALWAYS)
        self._report()

    def _data_subscribed(self) -> None:
        self._data_heard = True
        self._report()

    def _data_lost(self, why: str) -> None:
        self._data_heard = False

    def _lost(self, why: str) -> None:
        self._why_deaf = why
        if self.deaf_until < math.inf:
            self.deaf_until, self._heard_until = math.inf, asyncio.get_running_loop().time()
            log.warning("orders of other processes can't be heard: %s", why)
        self._hurry.set()
        self._report()

    def _store_changed(self) -> None:
        if self.store.away:
            log.warning("Redis is away: %s", self.store.why)
        else:
            self._write_back(ALWAYS)
            self.missed.set()
        self._hurry.set()
        self._report()

    def _report(self) -> None:
        if self.connected and self._data_heard:
            self._tried.set()
        self._changed()

    async def _pulse(self) -> None:
        while True:
            self._hurry.clear()
            try:
                await self.beat()
            except RedisAway:
                self._tried.set()
                # Nobody hurries it: the next may be as late as the last.
                await asyncio.sleep(random.uniform(0.5, 1.0) * PROBE)
                continue
            try:
                async with asyncio.timeout(random.uniform(0.8, 1.0) * PULSE):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    async def beat(self) -> None:
        """
        Give a sign of life, and learn who else lives.

        Raises:
            RedisAway: If that can't be done.
        """
        async with self._beating:
            await self._beat()

    async def _beat(self) -> None:
        began = time.monotonic()
        at, was, members = await self.store.pulse(
            self.instance, member=self._member, counts=COUNTS
        )
        self._set_clock(at - time.monotonic(), at - began)
        self.members = members
        if self._beat_at is not None and (was is None or abs(was - self._beat_at) > 0.001):
            # It has forgotten my last sign of life, or has taken one that I don't know of and
            # may have forgotten all before.
            log.warning("Redis may have lost data; what was ordered lately is written back")
            self._write_back(KEPT)
            _ = self.writer.put((), Unit(()))
        self._beat_at = at if self._member else None

    def _set_clock(self, low: float, high: float) -> None:
        """
        Note how much Redis' clock is before this process's, at least and at most.
        """
        now = time.monotonic()
        drift = (now - self._measured) * DRIFT
        # What was measured before may be more exact; but not if a clock was set meanwhile.
        self._low, self._high = max(low, self._low - drift), min(high, self._high + drift)
        if self._low > self._high:
            self._low, self._high = low, high
        self._measured = now

    async def _watch(self, reconcile: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """
        Reconcile when orders may have been missed, and now and then.
        """
        while True:
            try:
                async with asyncio.timeout(random.uniform(0.8, 1.0) * RECONCILE):
                    await self.missed.wait()
            except TimeoutError:
                pass
            self.missed.clear()
            with contextlib.suppress(RedisAway):  # they are looked for when it is back
                await reconcile()


async def _for_ever(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """
    Let what runs until it is cancelled do so, whatever else comes in between.
    """
    while True:
        try:
            await run()
        except Exception as exc:  # noqa: BLE001  ours, or the application's
            log.error("a task of the registry failed, and goes on: %s", blame(exc))  # noqa: TRY400  no traceback, which may hold an id
        await asyncio.sleep(PROBE)
