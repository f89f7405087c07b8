"""
The one door to what is inside a registry.

Tests observe a registry from outside: by what a client gets, by public methods and by logs. What
has no outside (that nothing is left behind, that a handshake is held up) is asked here. No other
test touches a name with an underscore that isn't its own.
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
    """Return what a registry is made of: its core."""
    return core_of(registry)


def connections(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the open connections, in the order of their opening."""
    return sorted(
        inspect(registry).connections.open, key=lambda connection: connection.opened_at or 0.0
    )


def opening(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the handshakes under way."""
    return list(inspect(registry).connections.opening)


def idle(registry: SessionWSRegistry) -> bool:
    """Tell whether no task of a registry runs."""
    return not inspect(registry).tasks


async def quiet(registry: SessionWSRegistry) -> None:
    """Wait until no task of a registry runs."""
    await until(lambda: idle(registry))


def left_handlers(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the connections that are gone while their handlers run."""
    return inspect(registry).connections.orphans()


def transport_of(ws: ClientWebSocketResponse) -> asyncio.Transport | None:
    """Return the transport of a client's socket, to be paused or cut; ``None`` once it is gone."""
    connection = ws._response.connection
    transport = None if connection is None else connection.transport
    return transport if isinstance(transport, asyncio.Transport) else None


def records(registry: SessionWSRegistry) -> int:
    """Return how many records a registry keeps of what has ended."""
    return len(inspect(registry).records)


def is_closing(connection: TrackedConnection) -> bool:
    """Tell whether the engine has begun to close a connection."""
    return connection.state in (State.CLOSING, State.CLOSED)


def waiting(connection: TrackedConnection) -> list[bytes]:
    """Return what was pushed to a connection and is not sent yet."""
    queue = connection.send_queue
    return [payload for payload, _ in queue._queue] if isinstance(queue, SendQueue) else []


def patience_of(connection: TrackedConnection) -> asyncio.TimerHandle | None:
    """Return the timer that runs while the queue of a connection is full."""
    queue = connection.send_queue
    return queue._overdue if isinstance(queue, SendQueue) else None


def _reader(ws: WebSocket) -> Reader:
    reader = reader_of(ws)
    assert reader is not None, "not connected"
    return reader


def read_ahead(ws: WebSocket) -> list[str | bytes]:
    """Return what was read while nobody received."""
    return _reader(ws)._queue or []


def bytes_ahead(ws: WebSocket) -> int:
    """Return the size of that."""
    return _reader(ws)._size


def reading(ws: WebSocket) -> asyncio.Task[None] | None:
    """Return the task that reads, or has read, in the handler's place."""
    return _reader(ws)._ahead


def looks_later(ws: WebSocket) -> bool:
    """Tell whether it will be looked whether the handler is busy."""
    timer = _reader(ws)._busy
    return timer is not None and not timer.cancelled()


def tick(registry: SessionWSRegistry) -> None:
    """Let the second pass after which a registry looks at its connections."""
    manager = inspect(registry).connections
    if manager._ticker is not None:
        manager._ticker.cancel()
        manager._tick()


def checks(registry: SessionWSRegistry) -> dict[Hashable, asyncio.Task[None]]:
    """Return the ids whose sessions are being checked."""
    return inspect(registry).revalidator._running


def ticks(registry: SessionWSRegistry) -> bool:
    """Tell whether a timer runs for the next look at its connections."""
    return inspect(registry).connections._ticker is not None
