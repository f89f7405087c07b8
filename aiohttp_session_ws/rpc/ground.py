"""
What calls stand on, of the layers below: the one place that knows how it is to be had.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, cast

from aiohttp import web

from ..connections.connection import Connection, TrackedConnection
from ..handlers.serve import Hook, converse
from ..options import Timeouts
from ..registry.registry import SessionWSRegistry, core_of
from ..results import Delivery
from ..typing import WebSocketOptions
from ..web.setup import registry_from

__all__ = [
    "disprove",
    "now",
    "on_relay",
    "prove",
    "push",
    "registry_from",
    "relay",
    "serve",
    "timeouts",
]


async def serve(
    request: web.Request, handler: Hook, options: WebSocketOptions
) -> web.StreamResponse:
    """
    Serve a websocket, without the hooks of endpoints that talk text.
    """
    return await converse(request, handler, options, hooks=False)


def push(
    registry: SessionWSRegistry, connections: Iterable[Connection], data: str | bytes
) -> Delivery:
    """
    Push to connections of this process, through their queues.
    """
    tracked = cast("Iterable[TrackedConnection]", connections)  # there are no others
    sockets, missed = core_of(registry).connections.push(tracked, data, by_endpoint=True)
    return Delivery(sockets, complete=not missed)


def timeouts(registry: SessionWSRegistry) -> Timeouts:
    """
    Return how long peers and handlers are waited for.
    """
    return core_of(registry).timeouts


def now(registry: SessionWSRegistry) -> Any:
    """
    Return the time as :func:`prove` wants it.
    """
    ask = getattr(registry, "now", None)
    return None if ask is None else ask()


async def prove(
    registry: SessionWSRegistry, connection: Connection, identity: Hashable, since: Any
) -> None:
    """
    File a connection under an identity that its client has proven.
    """
    file = getattr(registry, "prove", None)
    if file is not None:
        await file(connection, identity, since=since)


async def disprove(registry: SessionWSRegistry, connection: Connection) -> None:
    """
    Take that back.
    """
    forget = getattr(registry, "disprove", None)
    if forget is not None:
        await forget(connection)


def on_relay(
    registry: SessionWSRegistry, name: str, receiver: Callable[[bytes], Awaitable[object]]
) -> None:
    """
    Let *receiver* have what other processes relay by *name*.
    """
    listen = getattr(registry, "on_relay", None)
    if listen is not None:
        listen(name)(receiver)


async def relay(registry: SessionWSRegistry, name: str, data: bytes) -> Delivery:
    """
    Send *data* to the same endpoint on all other nodes.
    """
    tell = getattr(registry, "relay", None)
    if tell is None:
        return Delivery()
    delivery: Delivery = await tell(name, data)
    return delivery
