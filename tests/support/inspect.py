"""
Access to the internals of a registry, for tests.

Tests observe a registry from outside: by what a client receives, by public methods and by logs.
What can't be observed that way (that nothing is left behind, that a handshake is suspended) is
read here. No other test module uses private names of the package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from aiohttp import ClientWebSocketResponse

from aiohttp_session_ws import SessionWSRegistry, WebSocket
from aiohttp_session_ws.connections.connection import State, TrackedConnection
from aiohttp_session_ws.connections.send_queue import SendQueue
from aiohttp_session_ws.handlers.reader import Reader
from aiohttp_session_ws.handlers.websocket import reader_of
from aiohttp_session_ws.registry.core import Core
from aiohttp_session_ws.registry.registry import core_of

from .clients import until


def inspect(registry: SessionWSRegistry) -> Core:
    """Return the core of a registry."""
    return core_of(registry)


def connections(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the open connections, in the order of their opening."""
    return sorted(
        inspect(registry).connections.open, key=lambda connection: connection.opened_at or 0.0
    )


def opening(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the handshakes in progress."""
    return list(inspect(registry).connections.opening)


def idle(registry: SessionWSRegistry) -> bool:
    """Return whether no task of a registry runs."""
    return not inspect(registry).tasks


async def quiet(registry: SessionWSRegistry) -> None:
    """Wait until no task of a registry runs."""
    await until(lambda: idle(registry))


def left_handlers(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the closed connections whose handlers still run."""
    return inspect(registry).connections.orphans()


def transport_of(ws: ClientWebSocketResponse) -> asyncio.Transport | None:
    """Return the transport of a client's socket, to pause or abort it; ``None`` once closed."""
    connection = ws._response.connection
    transport = None if connection is None else connection.transport
    return transport if isinstance(transport, asyncio.Transport) else None


def records(registry: SessionWSRegistry) -> int:
    """Return how many records of ends and renewals a registry keeps."""
    return len(inspect(registry).records)


def is_closing(connection: TrackedConnection) -> bool:
    """Return whether the close of a connection has begun."""
    return connection.state in (State.CLOSING, State.CLOSED)


def waiting(connection: TrackedConnection) -> list[bytes]:
    """Return the payloads that are queued for a connection and not sent yet."""
    queue = connection.send_queue
    return [payload for payload, _ in queue._queue] if isinstance(queue, SendQueue) else []


def patience_of(connection: TrackedConnection) -> asyncio.TimerHandle | None:
    """Return the timer that runs while the send queue of a connection is full."""
    queue = connection.send_queue
    return queue._deadline if isinstance(queue, SendQueue) else None


def _reader(ws: WebSocket) -> Reader:
    reader = reader_of(ws)
    assert reader is not None, "not connected"
    return reader


def read_ahead(ws: WebSocket) -> list[str | bytes]:
    """Return the messages that were read while the handler didn't receive."""
    return _reader(ws)._queue or []


def bytes_ahead(ws: WebSocket) -> int:
    """Return the size of these messages."""
    return _reader(ws)._size


def reading(ws: WebSocket) -> asyncio.Task[None] | None:
    """Return the task that reads ahead for the handler, running or done."""
    return _reader(ws)._ahead_task


def looks_later(ws: WebSocket) -> bool:
    """Return whether a check for a busy handler is scheduled."""
    timer = _reader(ws)._busy_timer
    return timer is not None and not timer.cancelled()


def tick(registry: SessionWSRegistry) -> None:
    """Run the registry's check of its connections now, not after a second."""
    manager = inspect(registry).connections
    if manager._ticker is not None:
        manager._ticker.cancel()
        manager._tick()


def checks(registry: SessionWSRegistry) -> dict[Hashable, asyncio.Task[None]]:
    """Return the revalidations in progress, by session ws id."""
    return inspect(registry).revalidator._running


def ticks(registry: SessionWSRegistry) -> bool:
    """Return whether the next check of the connections is scheduled."""
    return inspect(registry).connections._ticker is not None
