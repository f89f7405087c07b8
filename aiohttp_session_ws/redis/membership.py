"""
Heartbeats: membership of the cluster, clock measurement, detection of missed and lost records.

A little over 300 lines long: all of it evaluates heartbeats, or stands in for them while Redis
refuses writes.
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
from .clock import RedisClock
from .heartbeat import HeartbeatReply, differs, read_heartbeat
from .io.commands import Commands
from .io.connect import REDIS_ERRORS, reason
from .io.scripts import HEARTBEAT, HEARTBEAT_TTL, LEAVE
from .messages import DATA, MAX_TTL, request_text
from .recent import ReceivedNumbers

__all__: list[str] = []

PULSE: Final = 3.0  # seconds between two heartbeats
PROBE: Final = 0.5  # seconds between two heartbeats while Redis is away
SILENT: Final = 3600.0  # seconds without a heartbeat until a node is no longer a member
MARKS: Final = 200  # heartbeats to compare with the state of a server that has restarted
LATELY: Final = 60.0  # seconds; if a server has lost more, all records are compared
NONE_SHARED: Final = 0, 0.0
ON_ITS_WAY: Final = 0.5  # seconds that a message may take to arrive after its number was given


class Membership:
    """
    Sends the heartbeats of a node, and evaluates the answers.

    Args:
        commands: The connection for commands.
        instance: The node's own name.
        clock: Measured with each heartbeat.
        numbers: The numbers of the received records.
        node: This node.
        answered: Called after each heartbeat that was answered.
        failed: Called with the reason after each heartbeat that wasn't answered, or with an error.
        missed: Called when numbers are missing.
        lost: Called with true when Redis has lost its data or gone back to an old state, with
            false when it may have lost the writes of the last minute.
        server_changed: Called when another server has answered, or the same one has restarted.
        evicted: Called when Redis has evicted keys, ours or those of others.

    Attributes:
        serves: Whether the node holds sockets, so that other nodes send requests to it.
        members: The nodes that have sent a heartbeat within an hour, and haven't stopped.
        known: Whether the members are known.
        takes_writes: Whether Redis accepted the writes of the last heartbeat.
        first_heartbeat: Set after the first heartbeat, answered or failed.
    """

    def __init__(
        self,
        commands: Commands,
        instance: str,
        clock: RedisClock,
        numbers: ReceivedNumbers,
        node: LocalNode,
        answered: Callable[[], None],
        failed: Callable[[str], None],
        missed: Callable[[], None],
        lost: Callable[[bool], None],
        server_changed: Callable[[], None],
        evicted: Callable[[], None],
    ) -> None:
        self.serves = False
        self.members: frozenset[str] = frozenset()
        self.known = self.takes_writes = False
        self.first_heartbeat = asyncio.Event()
        self._commands = commands
        self._instance = instance
        self._joined_message = request_text(instance, "", {"do": "joined"}) + "\n"
        self._clock = clock
        self._numbers = numbers
        self._node = node
        self._answered = answered
        self._failed = failed
        self._missed = missed
        self._lost = lost
        self._server_changed = server_changed
        self._evicted = evicted
        self._logged = OncePerMinute()
        self._due = asyncio.Event()
        self._subscribed_at = self._last_heartbeat_sent = -math.inf
        self._last: HeartbeatReply | None = None
        self._version: tuple[str, str, str] | None = None
        self._unlisted_until: dict[str, float] = {}  # members that Redis doesn't list
        self._stopped_but_listed: set[str] = set()  # stopped nodes that Redis still lists
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)  # time, last number

    @property
    def may_have_missed(self) -> bool:
        """
        Whether orders may have been missed: no heartbeat that was sent since the subscription to
        orders has been answered yet.
        """
        return self._subscribed_at >= self._last_heartbeat_sent

    def subscribed(self) -> None:
        """
        Record that orders were subscribed to: what was published before may have been missed.
        """
        self._subscribed_at = time.monotonic()
        self._due.set()

    def heartbeat_soon(self) -> None:
        """
        Send the next heartbeat at once.
        """
        self._due.set()

    def add_unlisted(self, names: Collection[str]) -> None:
        """
        Add nodes to the members: Redis may refuse writes, and then doesn't list them.
        """
        until = time.monotonic() + SILENT
        self._unlisted_until |= {name: until for name in names if name not in self.members}
        self.members = self.members.union(self._unlisted_until)

    def add_listed(self, name: str) -> None:
        """
        Add a newly listed node before the next heartbeat finds it: Redis may lose its list.
        """
        self.members |= {name}

    def remove_stopped(self, name: str) -> None:
        """
        Remove a stopped node from the members, and from the list once Redis accepts writes again.
        """
        self._stopped_but_listed.add(name)
        self._unlisted_until.pop(name, None)
        self.members -= {name}

    async def run(self) -> None:
        """
        Send heartbeats until cancelled.
        """
        while True:
            self._due.clear()
            pause = PULSE
            try:
                await self._heartbeat()
            except REDIS_ERRORS as exc:
                pause = PROBE
                self._failed(reason(exc))
            else:
                if not self._clock.known or self._clock.was_set_back:
                    pause = PROBE  # the answer was late, or Redis' clock was set back
            self.first_heartbeat.set()
            try:
                async with asyncio.timeout(random.uniform(0.7, 1.0) * pause):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def heartbeat_now(self) -> None:
        """
        Send a heartbeat now, to detect what was missed or lost.
        """
        try:
            await self._heartbeat()
        except REDIS_ERRORS as exc:
            log.debug("the last heartbeat failed: %s", reason(exc))

    async def leave(self) -> bool:
        """
        Remove this node from the list in Redis, so that no request waits for it; return false if
        that failed, so that the other nodes have to be notified.
        """
        if not (self.serves and self._commands.available):
            return True
        self.serves = False  # otherwise the next heartbeat would list it again
        try:
            await self._commands.run_script(LEAVE, 1, self._commands.prefix, self._instance)
        except REDIS_ERRORS as exc:
            log.debug("this node could not be removed from the list of nodes: %s", reason(exc))
            return False
        return True

    async def living(self) -> list[str]:
        """
        Return the nodes with a heartbeat within :data:`~.io.scripts.HEARTBEAT_TTL`.

        All nodes get the same order: they share out the write-back by it.

        Raises:
            RedisUnavailable: If Redis is away.
        """
        since = self._clock.now() - HEARTBEAT_TTL
        nodes = self._commands.prefix + "nodes"
        found = await self._commands.call("ZRANGEBYSCORE", nodes, f"{since:.6f}", "+inf")
        return sorted(name.decode() for name in found)

    async def listed(self) -> frozenset[str]:
        """
        Return the nodes that are listed in Redis, without those known to have stopped.

        Raises:
            RedisUnavailable: If Redis is away.
        """
        found = await self._commands.call("ZRANGE", self._commands.prefix + "nodes", 0, -1)
        return frozenset(name.decode() for name in found) - self._stopped_but_listed

    async def _heartbeat(self) -> None:
        last_known, sent = self._numbers.last, time.monotonic()
        answer = await self._commands.run_script(
            HEARTBEAT,
            1,
            self._commands.prefix,
            self._instance,
            "1" if self.serves else "0",
            secrets.token_hex(8),
            f"{self._clock.ahead:.6f}" if self._clock.known else "",
            math.ceil(min(self._node.own_ttl, MAX_TTL)),
            probe=True,
            repeat=False,
        )
        received = time.monotonic()
        reply = read_heartbeat(answer).completed_by(self._last)
        self._node.keep_ends(reply.ttl)
        self._clock.measure(reply.time, sent, received, reply.ahead)
        if reply.joined:
            await self._notify_joined()
        if self._stopped_but_listed and not reply.refused:
            left = tuple(self._stopped_but_listed)  # more nodes may stop meanwhile
            await self._commands.run_script(LEAVE, 1, self._commands.prefix, *left)
            self._stopped_but_listed.difference_update(left)
        if self._version != (reply.epoch, reply.server, reply.members):
            await self._read_members(reply)
        if reply.has_evicted_since(self._last):
            self._evicted()
        self.takes_writes = not reply.refused
        self._answered()
        known = self._last
        changed = known is not None and differs(known.server, reply.server)
        self._compare(reply, last_known, await self._last_shared() if changed else NONE_SHARED)
        self._last_heartbeat_sent = sent
        if known is not None and reply.is_other_server(known):
            self._server_changed()  # else subscribers needn't reconnect, and would miss messages
        elif reply.is_of_replica():
            self._commands.link.drop("the server is a replica")  # there may be another primary

    async def _notify_joined(self) -> None:
        """
        Notify the other nodes that this one is listed now.
        """
        line = self._commands.link.line
        if line is None:
            return
        try:
            await self._commands.call("PUBLISH", line.channel(DATA), self._joined_message)
        except REDIS_ERRORS as exc:
            log.debug("the other nodes could not be notified of this one: %s", reason(exc))

    async def _read_members(self, reply: HeartbeatReply) -> None:
        """
        Read the members; those from before Redis lost its data, or the list, stay members.
        """
        version, now = (reply.epoch, reply.server, reply.members), time.monotonic()
        members = self.members
        found = await self.listed()
        joined = self.members - members  # while the list was read
        lost = self._version is not None and (reply.joined or self._version[:2] != version[:2])
        if lost:
            self._unlisted_until |= dict.fromkeys(self.members, now + SILENT)
        self._unlisted_until = {
            name: until
            for name, until in self._unlisted_until.items()
            if until > now and name not in found
        }
        self.members = found.union(joined, self._unlisted_until)
        self._version, self.known = version, True

    async def _last_shared(self) -> tuple[int, float]:
        """
        Return the last number that stands for the same record as before on a server that has
        restarted, and when it was the last one; zeros if there is none.

        The server may have gone back to an older state, and given later numbers a second time.
        Redis marks each number with the time at which it was reached, which then is a later one.
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

    def _compare(self, reply: HeartbeatReply, last_known: int, shared: tuple[int, float]) -> None:
        """
        Compare the answer to a heartbeat with *last_known*, the last number when it was sent.

        If this is another server, everything after the *shared* number may have been missed.
        """
        known, self._last = self._last, reply
        if known is not None and (reply.last < last_known or differs(known.epoch, reply.epoch)):
            if self._logged.allows("lost"):
                log.warning("Redis has lost data: records and recent orders are written back")
            self._numbers.rewind(0, reply.last)
            self._marks.clear()
            self._commands.link.drop("it has lost data")
            self._lost(True)
        elif known is not None and differs(known.server, reply.server):
            # Another server, or the same one restarted, or one that was a replica meanwhile: its
            # last writes may be lost, and their numbers may stand for other records by now.
            number, at = shared
            self._numbers.rewind(min(number, reply.last), reply.last)
            self._marks.clear()
            self._lost(not number or reply.time - at > LATELY)
        elif self.may_have_missed:
            self._numbers.extend_to(reply.last)
        elif self._numbers.last < reply.last:
            # The message may still be on its way.
            _ = asyncio.get_running_loop().call_later(ON_ITS_WAY, self._extend_numbers, reply.last)
        self._marks.append((reply.time, reply.last))
        if self._numbers.missing:
            self._missed()

    def _extend_numbers(self, last: int) -> None:
        if self._last is None:
            return
        self._numbers.extend_to(min(last, self._last.last))  # it may be another server by now
        if self._numbers.missing:
            self._missed()
