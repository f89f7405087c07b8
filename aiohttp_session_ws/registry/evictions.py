"""
Evicts sockets, on this node or on another, to make room for newer ones.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from .._lineage import Subject
from .._tasks import BackgroundTasks
from ..close_codes import TOO_MANY_CONNECTIONS
from ..connections.connection import CLOSED, OPENING, TrackedConnection
from ..connections.manager import ConnectionManager
from ..sessions.encoding import decode, encode
from .cluster import Cluster, Place
from .questions import Body

__all__: list[str] = []

RETRY: Final = 1.0  # seconds until an unanswered request is repeated
TRIES: Final = 15  # times that it is repeated
MARGIN: Final = 0.5  # seconds, besides the close timeout, for the answer that a socket is gone


class Node(Protocol):
    """
    What :class:`Evictions` needs from a registry.
    """

    cluster: Cluster
    connections: ConnectionManager
    tasks: BackgroundTasks


class Evictions:
    """
    Closes sockets that have to make room, and asks other nodes to do so.

    Args:
        core: The registry's parts.

    Attributes:
        pending: Handshakes that wait for their places, each with a future that is done when it no
            longer waits.
    """

    def __init__(self, core: Node) -> None:
        self._core = core
        self.pending: dict[TrackedConnection, asyncio.Future[None]] = {}

    async def evict(
        self, others: Mapping[Subject, Sequence[Place]], *, by_hand: bool = True
    ) -> None:
        """
        Close the sockets that make room, here and on other nodes, and wait until they are gone.
        """
        here, own = self._core.cluster.instance, set[asyncio.Future[object]]()
        nodes: set[str] = set()
        for subject, places in others.items():
            numbers = {place.number for place in places if place.node == here}
            own |= self._evict_here(subject, numbers, by_hand=by_hand)
            nodes |= {place.node for place in places}
        nodes.discard(here)
        if nodes:
            encoded = [
                [kind, encode(value), [tuple(place) for place in places]]
                for (kind, value), places in others.items()
            ]
            body = {"places": encoded, "by_hand": by_hand}
            if not await self._request_eviction(body, nodes):
                again = self._retry_eviction(body, nodes)
                _ = self._core.tasks.spawn(again, "close elsewhere", contextvars.Context())
        if own:
            await asyncio.wait(own)

    async def _request_eviction(self, body: Body, nodes: Collection[str]) -> bool:
        wait = self._core.connections.timeouts.close + MARGIN
        return (await self._core.cluster.ask("evict", body, wait, nodes)).complete

    async def _retry_eviction(self, body: Body, nodes: Collection[str]) -> None:
        """
        Ask again until all have answered; a node that doesn't is dead, or recounts on reconnect.
        """
        for _ in range(TRIES):
            await asyncio.sleep(RETRY)
            if await self._request_eviction(body, nodes):
                return

    async def answer(self, body: Body) -> Body:
        """
        Close the sockets that make room for one of another node; answer when they are gone.
        """
        leaving = set[asyncio.Future[object]]()
        for kind, value, places in body["places"]:
            numbers = {number for node, number in places if node == self._core.cluster.instance}
            subject = Subject(kind, decode(value))
            leaving |= self._evict_here(subject, numbers, by_hand=body["by_hand"])
        if leaving:
            await asyncio.wait(leaving)
        return {}

    def _evict_here(
        self, subject: Subject, numbers: set[int], *, by_hand: bool
    ) -> set[asyncio.Future[Any]]:
        connections, leaving = self._core.connections, set[asyncio.Future[Any]]()
        for connection in connections.filed(subject) if numbers else ():
            if connection.admitted not in numbers or not (by_hand or connection.request):
                continue
            connections.evict(connection, TOO_MANY_CONNECTIONS)
            if connection in self.pending:  # done when those that make room for it are gone, too
                leaving.add(self.pending[connection])
            elif connection.state not in (OPENING, CLOSED):
                close = connection.close_order or TOO_MANY_CONNECTIONS
                leaving.add(connections.start_close(connection, close))
        return leaving
