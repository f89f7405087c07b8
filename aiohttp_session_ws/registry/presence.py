"""
Presence: detects the first and the last socket of each identity over all nodes.

Each node tracks which nodes have sockets of which identities. It scans its own sockets once a
second and publishes the changes with a sequence number; a node that has missed a number, or is
new, requests the full list. An identity without a socket counts as present for some more seconds,
since pages are reloaded. The identities of a node that is no longer alive are removed; not while
Redis is unavailable, nor right after that, since some nodes reconnect before others.

Runs only if ``on_first`` or ``on_last`` has a receiver when the application starts.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Final, Protocol

from .._tasks import BackgroundTasks
from ..connections.manager import ConnectionManager
from ..sessions.encoding import decode, encode
from ..signals import PresenceDetails, Signals
from .cluster import Cluster
from .questions import WAIT, Body

__all__: list[str] = []

SCAN_EVERY: Final = 1.0  # seconds between two scans of this node's sockets
LINGER: Final = 5.0  # seconds within which a reloaded page should have reconnected
CHECK_EVERY: Final = 5.0  # seconds between two checks of the other nodes
RECONNECT_TIME: Final = 5.0  # seconds after an outage until all nodes should have reconnected
HERE: Final = ""  # stands for this node among the nodes of an identity


class Node(Protocol):
    """
    The parts of a registry that :class:`Presence` needs.
    """

    cluster: Cluster
    connections: ConnectionManager
    signals: Signals
    tasks: BackgroundTasks


class Presence:
    """
    Tracks which nodes have sockets of each identity, and sends ``on_first`` and ``on_last``.

    Args:
        core: The registry's parts.
    """

    def __init__(self, core: Node) -> None:
        self._core = core
        self._on = False
        self._begin()

    def _begin(self) -> None:
        self._nodes: dict[Hashable, set[str]] = {}  # nodes by identity
        self._seen: dict[Hashable, float] = {}  # this node's identities, and when last present
        self._others: dict[str, set[Hashable]] = {}  # identities by node, for other nodes
        self._last_numbers: dict[str, int] = {}  # the last sequence number received of each node
        self._incomplete: set[str] = set()  # nodes to request the full list of
        self._number = 0
        self._check_at = 0.0
        self._unavailable_at = -math.inf  # when the living nodes last couldn't be determined
        self._events: deque[tuple[bool, PresenceDetails]] = deque()
        self._sending = False

    def start(self) -> None:
        """
        Start tracking if one of the two signals has a receiver.
        """
        signals = self._core.signals
        self._on = bool(signals.on_first or signals.on_last) and self._core.cluster.serves
        if self._on:
            self._begin()
            _ = self._core.tasks.spawn(self._run(), "presence", contextvars.Context())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SCAN_EVERY)
            await self._scan()
            if self._core.cluster.remote and time.monotonic() >= self._check_at:
                self._check_at = time.monotonic() + CHECK_EVERY
                await self._check_nodes()

    # This node

    async def _scan(self) -> None:
        """
        Compare this node's sockets with those of the last scan, and publish the changes.
        """
        now, seen = time.monotonic(), self._seen
        present = self._present()
        came = [identity for identity in present if identity not in seen]
        seen.update(dict.fromkeys(present, now))
        left = []
        if len(seen) > len(present):
            left = [identity for identity, at in seen.items() if at <= now - LINGER]
        for identity in left:
            del seen[identity]
        if came or left:
            self._change(HERE, came, left)
            await self._publish(came, left)

    def _present(self) -> set[Hashable]:
        found = set()
        for connection in self._core.connections.open:
            if connection.identity is not None:
                found.add(connection.identity)
            if connection.sparse is not None and connection.proven is not None:
                found.add(connection.proven[0])
        return found

    async def _publish(self, came: Iterable[Hashable] = (), left: Iterable[Hashable] = ()) -> None:
        """
        Publish changes to the other nodes; without any, only the current sequence number.
        """
        if not self._core.cluster.remote:
            return
        body = {"came": [*map(encode, came)], "left": [*map(encode, left)]}
        self._number += bool(body["came"] or body["left"])
        _ = await self._core.cluster.ask("presence", {"number": self._number, **body}, 0)

    # Other nodes

    async def _check_nodes(self) -> None:
        """
        Remove dead nodes, and request the full list of nodes whose changes were missed.
        """
        living, now = await self._core.cluster.living(), time.monotonic()
        if living is None:
            self._unavailable_at = now
        else:
            if now - self._unavailable_at >= RECONNECT_TIME:
                for node in self._others.keys() - living:
                    self._change(node, (), self._others.pop(node))
                    self._last_numbers.pop(node, None)
            self._incomplete |= living - self._last_numbers.keys()
            self._incomplete &= living
        if self._incomplete:
            asked, self._incomplete = self._incomplete, set()
            answers = await self._core.cluster.ask("present", {"of": sorted(asked)}, WAIT)
            for body in answers.bodies:
                if "number" in body:
                    self._replace(str(body["from"]), body)
        await self._publish()

    async def respond(self, body: Body) -> Body:
        """
        Answer another node's request for all identities of this node.
        """
        name = self._core.cluster.instance
        if not self._on or name not in body["of"]:
            return {}
        return {"number": self._number, "all": [encode(identity) for identity in self._seen]}

    async def receive(self, body: Body) -> Body:
        """
        Apply the changes published by another node.
        """
        node, number = str(body["from"]), int(body["number"])
        if not self._on:
            return {}
        came, left = _identities(body["came"]), _identities(body["left"])
        last = self._last_numbers.get(node)
        if last is None or number != last + bool(came or left):
            self._incomplete.add(node)  # a number was missed
            self._check_at = 0.0
            return {}
        self._last_numbers[node] = number
        self._others[node].difference_update(left)
        self._others[node].update(came)
        self._change(node, came, left)
        return {}

    def _replace(self, node: str, body: Body) -> None:
        """
        Replace the identities of another node by its full list.
        """
        before, now = self._others.get(node, set()), {*_identities(body["all"])}
        self._others[node], self._last_numbers[node] = now, int(body["number"])
        self._change(node, now - before, before - now, news=False)

    # Events

    def _change(
        self,
        node: str,
        came: Iterable[Hashable],
        left: Iterable[Hashable],
        *,
        news: bool = True,
    ) -> None:
        for identity in came:
            nodes = self._nodes.setdefault(identity, set())
            if not nodes:
                self._events.append((True, self._details(identity, node, news=news)))
            nodes.add(node)
        for identity in left:
            nodes = self._nodes.get(identity, set())
            nodes.discard(node)
            if not nodes and self._nodes.pop(identity, None) is not None:
                self._events.append((False, self._details(identity, node, news=news)))
        if self._events and not self._sending:
            self._sending = True
            _ = self._core.tasks.spawn(
                self._send(), "send on_first, on_last", contextvars.Context()
            )

    def _details(self, identity: Hashable, node: str, *, news: bool) -> PresenceDetails:
        name = self._core.cluster.name if node == HERE else node.rpartition("/")[0]
        return PresenceDetails(identity, name, news)

    async def _send(self) -> None:
        signals = self._core.signals
        try:
            while self._events:
                first, details = self._events.popleft()
                await (signals.on_first if first else signals.on_last).send(details)
        finally:
            self._sending = False


def _identities(texts: Iterable[str]) -> list[Hashable]:
    return [decode(text) for text in texts]
