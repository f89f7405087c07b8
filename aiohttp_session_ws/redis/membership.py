"""
This node among the others: heartbeats, the clock, who else lives, and what was missed or lost.

A little over 300 lines long: all of it is what heartbeats tell, or can't while Redis refuses them.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from redis.exceptions import ResponseError

from .._logging import OncePerMinute, log
from ..registry.cluster import LocalNode
from .beat import Beat, differs, read_beat
from .clock import RedisClock
from .io.commands import Commands
from .io.connect import TROUBLE, reason
from .io.scripts import HEARTBEAT, LEAVE, LIVING
from .messages import DATA, LONGEST, question_text
from .recent import HeardNumbers

__all__: list[str] = []

PULSE: Final = 3.0  # seconds between two heartbeats
PROBE: Final = 0.5  # seconds between two while Redis is away
SILENT: Final = 3600.0  # seconds until a node that has not said that it stops is forgotten
MARKS: Final = 200  # heartbeats that are compared with what a server that has started knows
LATELY: Final = 60.0  # seconds; what a server has lost of more than that is looked for everywhere
NONE_SHARED: Final = 0, 0.0
ON_ITS_WAY: Final = 0.5  # seconds that a message may take after its number was given


class Membership:
    """
    The heartbeats of a node, and what they tell.

    Args:
        commands: Redis.
        instance: The node's own name.
        clock: Measured with each heartbeat.
        numbers: What was heard.
        node: This node.
        answered: Called after each heartbeat that was answered.
        failed: Called after each that wasn't, or with an error, with the reason.
        missed: Called when numbers are missing.
        lost: Called when Redis has lost its data or gone back to an old state, or, with false, may
            have lost what it got in the last minute.
        moved: Called when another server has answered, or the same has started.
        evicted: Called when Redis has evicted keys, ours or those of others.

    Attributes:
        serves: Whether the node holds sockets, so that the others ask it.
        members: Who has given a sign of life within an hour, and hasn't stopped.
        known: Whether the members are known.
        takes_writes: Whether Redis took the last heartbeat.
        beaten: Set after the first heartbeat, or the first that failed.
    """

    def __init__(
        self,
        commands: Commands,
        instance: str,
        clock: RedisClock,
        numbers: HeardNumbers,
        node: LocalNode,
        answered: Callable[[], None],
        failed: Callable[[str], None],
        missed: Callable[[], None],
        lost: Callable[[bool], None],
        moved: Callable[[], None],
        evicted: Callable[[], None],
    ) -> None:
        self.serves = False
        self.members: frozenset[str] = frozenset()
        self.known = self.takes_writes = False
        self.beaten = asyncio.Event()
        self._commands = commands
        self._instance = instance
        self._joins = question_text(instance, "", {"do": "joined"}) + "\n"
        self._clock = clock
        self._numbers = numbers
        self._node = node
        self._answered = answered
        self._failed = failed
        self._missed = missed
        self._lost = lost
        self._moved = moved
        self._evicted = evicted
        self._logged = OncePerMinute()
        self._due = asyncio.Event()
        self._subscribed_at = self._asked_at = -math.inf
        self._last: Beat | None = None
        self._version: tuple[str, str, str] | None = None
        self._lapsed: dict[str, float] = {}  # members that Redis doesn't list, until when
        self._left: set[str] = set()  # who has stopped, and Redis couldn't note it
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)  # when which number was last

    @property
    def behind(self) -> bool:
        """
        Whether Redis has perhaps counted more than this node knows of: it hasn't said how much
        since orders can be heard.
        """
        return self._subscribed_at >= self._asked_at

    def subscribed(self) -> None:
        """
        Note that what was published before this moment has perhaps not been heard.
        """
        self._subscribed_at = time.monotonic()
        self._due.set()

    def hurry(self) -> None:
        """
        Let the next heartbeat be at once.
        """
        self._due.set()

    def meet(self, names: Collection[str]) -> None:
        """
        Note who is there, for Redis perhaps refuses to list them.
        """
        until = time.monotonic() + SILENT
        self._lapsed |= {name: until for name in names if name not in self.members}
        self.members = self.members.union(self._lapsed)

    def joined(self, name: str) -> None:
        """
        Note who has just come to be listed, before a heartbeat tells: Redis may lose its list.
        """
        self.members |= {name}

    def part(self, name: str) -> None:
        """
        Note who has stopped though Redis refuses to note it; it is told when it doesn't any more.
        """
        self._left.add(name)
        self._lapsed.pop(name, None)
        self.members -= {name}

    async def run(self) -> None:
        """
        Give signs of life until cancelled.
        """
        while True:
            self._due.clear()
            pause = PULSE
            try:
                await self._beat()
            except TROUBLE as exc:
                pause = PROBE
                self._failed(reason(exc))
            else:
                if not self._clock.known or self._clock.was_set_back:
                    pause = PROBE  # the answer was too late to tell the time, or tells a wrong one
            self.beaten.set()
            try:
                async with asyncio.timeout(random.uniform(0.7, 1.0) * pause):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def look(self) -> None:
        """
        Find out now what was missed or lost.
        """
        try:
            await self._beat()
        except TROUBLE as exc:
            log.debug("the last heartbeat failed: %s", reason(exc))

    async def leave(self) -> bool:
        """
        Tell that this node stops, so that nobody waits for it; tell whether Redis has noted it.
        """
        if not (self.serves and self._commands.available):
            return True
        self.serves = False  # or the next heartbeat would list it again
        try:
            await self._commands.run_script(LEAVE, 1, self._commands.prefix, self._instance)
        except TROUBLE as exc:
            log.debug("Redis could not be told that this node stops: %s", reason(exc))
            return False
        return True

    async def living(self) -> list[str]:
        """
        Return who has given a sign of life lately, in an order that is the same for all.

        Raises:
            RedisUnavailable: If that can't be found out.
        """
        since = self._clock.now() - LIVING
        nodes = self._commands.prefix + "nodes"
        found = await self._commands.call("ZRANGEBYSCORE", nodes, f"{since:.6f}", "+inf")
        return sorted(name.decode() for name in found)

    async def listed(self) -> frozenset[str]:
        """
        Return who has given a sign of life to this Redis, and hasn't stopped.

        Raises:
            RedisUnavailable: If that can't be found out.
        """
        found = await self._commands.call("ZRANGE", self._commands.prefix + "nodes", 0, -1)
        return frozenset(name.decode() for name in found) - self._left

    async def _beat(self) -> None:
        heard, sent = self._numbers.last, time.monotonic()
        answer = await self._commands.run_script(
            HEARTBEAT,
            1,
            self._commands.prefix,
            self._instance,
            "1" if self.serves else "0",
            secrets.token_hex(8),
            f"{self._clock.ahead:.6f}" if self._clock.known else "",
            math.ceil(min(self._node.own_ttl, LONGEST)),
            probe=True,
            repeat=False,
        )
        received = time.monotonic()
        beat = read_beat(answer).after(self._last)
        self._node.keep_ends(beat.ttl)
        self._clock.measure(beat.time, sent, received, beat.ahead)
        if beat.joined:
            await self._tell_joined()
        if self._left and not beat.refused:
            left = tuple(self._left)  # others may stop while Redis notes it
            await self._commands.run_script(LEAVE, 1, self._commands.prefix, *left)
            self._left.difference_update(left)
        if self._version != (beat.epoch, beat.server, beat.members):
            await self._learn_members(beat)
        if beat.has_evicted_since(self._last):
            self._evicted()
        self.takes_writes = not beat.refused
        self._answered()
        known = self._last
        changed = known is not None and differs(known.server, beat.server)
        self._compare(beat, heard, await self._last_shared() if changed else NONE_SHARED)
        self._asked_at = sent
        if known is not None and beat.is_elsewhere(known):
            self._moved()  # else whoever listens is at the right one, and would miss something
        elif beat.is_of_replica():
            self._commands.link.drop("the server is a replica")  # there may be another primary

    async def _tell_joined(self) -> None:
        """
        Tell the others that this node has come to be listed.
        """
        line = self._commands.link.line
        if line is None:
            return
        try:
            await self._commands.call("PUBLISH", line.channel(DATA), self._joins)
        except TROUBLE as exc:
            log.debug("nobody could be told that this node has started: %s", reason(exc))

    async def _learn_members(self, beat: Beat) -> None:
        """
        Learn who the members are; who was one before Redis lost its data, or the list, still is.
        """
        version, now = (beat.epoch, beat.server, beat.members), time.monotonic()
        members = self.members
        found = await self.listed()
        joined = self.members - members  # meanwhile
        lost = self._version is not None and (beat.joined or self._version[:2] != version[:2])
        if lost:
            self._lapsed |= dict.fromkeys(self.members, now + SILENT)
        self._lapsed = {
            name: until
            for name, until in self._lapsed.items()
            if until > now and name not in found
        }
        self.members = found.union(joined, self._lapsed)
        self._version, self.known = version, True

    async def _last_shared(self) -> tuple[int, float]:
        """
        Return the last number that stands for the same record as before on a server that has
        started, and when it was the last one; 0 if none does.

        It has perhaps gone back to an older state and given numbers anew since. Each was marked
        with the time when it was reached, which then is a later one.
        """
        marks, name = tuple(self._marks), self._commands.prefix + "marks"
        try:
            times = await self._commands.call("ZMSCORE", name, *[last for _, last in marks])
        except ResponseError:
            return NONE_SHARED
        pairs = zip(marks, times, strict=True)
        known = [
            (last, at) for (at, last), time in pairs if time is not None and float(time) <= at
        ]
        return max(known, default=NONE_SHARED)

    def _compare(self, beat: Beat, heard: int, shared: tuple[int, float]) -> None:
        """
        Compare what Redis says with the greatest number that was *heard* when it was asked.

        All after what is *shared* was perhaps missed if this is another server.
        """
        known, self._last = self._last, beat
        if known is not None and (beat.last < heard or differs(known.epoch, beat.epoch)):
            if self._logged.allows("lost"):
                log.warning("Redis has lost data; what was ordered lately is written again")
            self._numbers.rewind(0, beat.last)
            self._marks.clear()
            self._commands.link.drop("it has lost data")
            self._lost(True)
        elif known is not None and differs(known.server, beat.server):
            # Another server, or the same one restarted, or one that was a replica meanwhile: what
            # it got last is perhaps lost, and its numbers may stand for other records by now.
            number, at = shared
            self._numbers.rewind(min(number, beat.last), beat.last)
            self._marks.clear()
            self._lost(not number or beat.time - at > LATELY)
        elif self.behind:
            self._numbers.reach(beat.last)
        elif self._numbers.last < beat.last:
            # Perhaps it is on its way.
            _ = asyncio.get_running_loop().call_later(ON_ITS_WAY, self._reach, beat.last)
        self._marks.append((beat.time, beat.last))
        if self._numbers.missing:
            self._missed()

    def _reach(self, last: int) -> None:
        if self._last is None:
            return
        self._numbers.reach(min(last, self._last.last))  # it may be another server by now
        if self._numbers.missing:
            self._missed()
