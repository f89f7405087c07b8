"""
Connection limits over all nodes: each socket has a place under its id and under its identity.

Once the limits of this node admit a handshake, one Redis script takes its places; then the
sockets that have to make room are evicted, on any node. Other changes on this node (a socket is
gone, was filed under another id, or had an identity proven) are reported in the next iteration of
the event loop; all places are reported periodically, and after a report that may have been lost.
The places of a crashed node are dropped when it counts as dead. While Redis is unavailable, only
the limits of this node apply; excess sockets are closed once all places are reported.

All of this is inactive without ``Limits(scope="cluster")``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, Protocol

from .._lineage import Kind, Subject
from .._refused import Unavailable
from .._tasks import BackgroundTasks
from ..close_codes import TOO_MANY_CONNECTIONS
from ..connections.connection import OPEN, OPENING, TrackedConnection
from ..connections.limits import make_room
from ..connections.manager import ConnectionManager
from ..exceptions import HandshakeRefused
from ..options import Limits
from .cluster import Cluster, Held, Place, Taken
from .evictions import Evictions
from .questions import Body, Questions

__all__: list[str] = []

REPORT: Final = 120.0  # seconds between two full reports
RETRY: Final = 1.0  # seconds until a failed report is retried
PART: Final = 200  # subjects in one report
MAX_EMPTY: Final = 100_000  # subjects without sockets that are kept while Redis is unavailable
ALIVE_WAIT: Final = 0.5  # seconds in which a living node answers

#: Stands for the numbers that Redis has of a subject while they are unknown; none is ever -1.
UNKNOWN: Final = frozenset({-1})


class Node(Protocol):
    """
    The parts of a registry that :class:`Places` needs.
    """

    cluster: Cluster
    connections: ConnectionManager
    questions: Questions
    tasks: BackgroundTasks


def places_for(core: Node, limits: Limits) -> Places | None:
    """
    Return the :class:`Places` of a node, or ``None`` if no limit spans all nodes.
    """
    limited = limits.per_session is not None or limits.per_identity is not None
    if limits.scope == "cluster" and limited and core.cluster.remote:
        return Places(core, limits)
    return None


class Places:
    """
    Takes and reports the places of this node's sockets, and evicts those that make room.

    Args:
        core: The registry's parts.
        limits: The limits on connections.
    """

    def __init__(self, core: Node, limits: Limits) -> None:
        self._core = core
        self._evicts = limits.on_limit == "evict_oldest"
        self._own_limits = limits
        self._limits: dict[Kind, int] = {}
        if limits.per_session is not None:
            self._limits["id"] = limits.per_session
        if limits.per_identity is not None:
            self._limits["identity"] = limits.per_identity
        self._reported: dict[Subject, frozenset[int]] = {}  # the numbers that Redis has
        self._changed: dict[Subject, bool] = {}  # to report; whether to close the excess
        self._waiting: set[TrackedConnection] = set()  # handshakes that have no place yet
        self._evictions = Evictions(core)
        self._busy: dict[Subject, asyncio.Future[None]] = {}  # where a handshake takes a place
        self._reporting = False
        core.connections.watch(self._mark_changed)
        core.questions.add("evict", self._evictions.answer)
        core.questions.add("lives", self._answer_alive)

    def start(self) -> None:
        """
        Start the periodic full report.
        """
        self._reported.clear()
        self._changed.clear()
        _ = self._core.tasks.spawn(self._run(), "report places", contextvars.Context())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.7, 1.0) * REPORT)
            self.recount()

    def recount(self) -> None:
        """
        Report all places, and close the sockets in excess of a limit.
        """
        connections = self._core.connections
        if "id" in self._limits:
            for key in (*connections.open.keys(), *connections.opening.keys()):
                self._changed[Subject("id", key)] = True
        if "identity" in self._limits:
            for key in connections.identities.keys():  # noqa: SIM118  it is no mapping
                self._changed[Subject("identity", key)] = True
        self._changed.update(dict.fromkeys(self._reported, True))
        self._report_soon()

    # Handshakes

    async def take(self, connection: TrackedConnection) -> None:
        """
        Take the places of a handshake, and wait until the sockets that make room are closed.

        Raises:
            HandshakeRefused: If a limit is reached and no socket has to make room.
            aiohttp.web.HTTPServiceUnavailable: If it isn't known whether a limit is reached, since
                a node that holds places doesn't answer.
        """
        self._waiting.add(connection)
        done = asyncio.get_running_loop().create_future()
        self._evictions.pending[connection] = done
        try:
            await make_room(self._own_limits, self._core.connections, connection)
            limits = self._limits_of(connection)
            async with self._serialized(limits):
                if not limits or connection.rejected_with is not None:
                    return
                taken = await self._take(connection, limits)
            self._waiting.discard(connection)
            if taken is None:
                return  # Redis is unavailable: only the limits of this node apply
            if not taken.granted:
                await self._refuse(taken.others)
            elif any(taken.others.values()):
                await self._evictions.evict(taken.others)
        finally:
            self._waiting.discard(connection)
            del self._evictions.pending[connection]
            done.set_result(None)

    async def _take(
        self, connection: TrackedConnection, limits: Mapping[Subject, int]
    ) -> Taken | None:
        changed = {subject: self._changed.pop(subject, False) for subject in limits}
        report = self._report(changed)  # reaches Redis before the script
        number = connection.admitted
        taking = self._core.cluster.take_place(number, limits, evict=self._evicts)
        taken = None
        try:
            _, taken = await asyncio.gather(report, taking)
        finally:
            if taken is None:  # also if the task was cancelled: the outcome is unknown
                self._reported.update(dict.fromkeys(limits, UNKNOWN))
                self._changed.update(dict.fromkeys(limits, True))
            elif taken.granted:
                for subject in limits:
                    reported = self._reported.get(subject, frozenset())
                    self._reported[subject] = reported | {number}
        return taken

    def _limits_of(self, connection: TrackedConnection) -> dict[Subject, int]:
        found = {}
        if "id" in self._limits:
            found[Subject("id", connection.session_ws_id)] = self._limits["id"]
        if "identity" in self._limits and connection.identity is not None:
            found[Subject("identity", connection.identity)] = self._limits["identity"]
        return found

    @contextlib.asynccontextmanager
    async def _serialized(self, subjects: Iterable[Subject]) -> AsyncIterator[None]:
        """
        Serialize handshakes that take a place of the same subject, and defer its reports.
        """
        while busy := {self._busy[subject] for subject in subjects if subject in self._busy}:
            await asyncio.wait(busy)
        done = asyncio.get_running_loop().create_future()
        self._busy.update(dict.fromkeys(subjects, done))
        try:
            yield
        finally:
            for subject in subjects:
                del self._busy[subject]
            done.set_result(None)
            self._report_soon()

    async def _refuse(self, others: Mapping[Subject, Sequence[Place]]) -> None:
        nodes = {place.node for places in others.values() for place in places}
        nodes.discard(self._core.cluster.instance)
        if nodes and not (await self._core.cluster.ask("lives", {}, ALIVE_WAIT, nodes)).complete:
            text = "websocket refused: it isn't known whether there are too many connections"
            raise Unavailable("places", text)
        raise HandshakeRefused(TOO_MANY_CONNECTIONS)

    async def _answer_alive(self, body: Body) -> Body:
        """
        Answer the request whether this node is alive.
        """
        return {}

    # Reporting

    def _mark_changed(self, subject: Subject) -> None:
        """
        Mark a subject as changed when one of its connections is added or removed.
        """
        if subject.kind in self._limits:
            self._changed.setdefault(subject, False)
            self._report_soon()

    def _report_soon(self) -> None:
        if not self._reporting and self._changed.keys() - self._busy.keys():
            self._reporting = True
            _ = self._core.tasks.spawn(self._report_all(), "report places", contextvars.Context())

    async def _report_all(self) -> None:
        """
        Report changed subjects until none is left.
        """
        try:
            await asyncio.sleep(0)  # collect further changes of this iteration
            while free := self._changed.keys() - self._busy.keys():
                part = [*free][:PART]
                if not await self._report({s: self._changed.pop(s) for s in part}):
                    await asyncio.sleep(RETRY)
        finally:
            self._reporting = False

    async def _report(self, subjects: Mapping[Subject, bool]) -> bool:
        """
        Report the places of some subjects; return whether Redis has taken the report.
        """
        held = []
        for subject, enforced in subjects.items():
            ages = self._ages(subject)
            reported = self._reported.get(subject, frozenset())
            if enforced or reported != ages.keys():
                held.append(Held(subject, self._limits[subject.kind], ages))
                self._reported[subject] = frozenset(ages)
        if not held:
            return True
        excess = await self._core.cluster.report_places(held, evict=self._evicts)
        for subject, _, ages in held:
            if not ages and (excess is not None or len(self._reported) > MAX_EMPTY):
                self._reported.pop(subject, None)
            elif excess is None:
                self._reported[subject] = UNKNOWN
                self._changed[subject] = True
        others = {subject: over for subject, over in (excess or {}).items() if subjects[subject]}
        if any(others.values()):
            evicting = self._evictions.evict(others, by_hand=False)
            _ = self._core.tasks.spawn(evicting, "close excess sockets", contextvars.Context())
        return excess is not None

    def _ages(self, subject: Subject) -> dict[int, float]:
        """
        Return the age in seconds of each socket of a subject, by its number.
        """
        now, found = time.monotonic(), {}
        for connection in filter(self._counts, self._core.connections.filed(subject)):
            if not connection.admitted:
                connection.admitted = self._core.connections.admit()
            found[connection.admitted] = now - connection.started
        return found

    def _counts(self, connection: TrackedConnection) -> bool:
        """
        Return whether a connection has a place.

        With ``on_limit="evict_oldest"`` a closing socket has none, since the handshake that
        replaces it waits until it is gone; with ``"refuse"`` it has one until it is gone.
        """
        if connection in self._waiting:
            return False
        if connection.state is OPENING:
            return bool(connection.admitted) and connection.rejected_with is None
        return not self._evicts or (connection.close_order is None and connection.state is OPEN)
