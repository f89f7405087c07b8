"""
What calls stand on, of the layers below: one place that knows how it is to be had.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any

from aiohttp import web

from ..connection import Connection
from ..handshake import WebSocketOptions
from ..helpers import registry_from
from ..hooks import WebSocketHook, converse
from ..push import Delivery
from ..registry import SessionWSRegistry

__all__ = ["disprove", "on_relay", "prove", "push", "registry_from", "relay", "serve"]


async def serve(
    request: web.Request, handler: WebSocketHook, options: WebSocketOptions
) -> web.StreamResponse:
    """
    Serve a websocket, without the hooks of endpoints that talk text.
    """
    return await converse(request, handler, options, hooks=False)


async def push(
    registry: SessionWSRegistry, connections: Iterable[Connection], data: str | bytes
) -> Delivery:
    """
    Push to connections of this process, through their queues.
    """
    return await registry.push(connections, data)


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
