"""
The one door to what is inside a registry.

Tests observe a registry from outside: by what a client gets, by public methods and by logs. What
has no outside (that nothing is left behind, that a handshake is held up) is asked here. No other
test touches a name with an underscore that isn't its own.
"""

from __future__ import annotations

from typing import Any

from aiohttp_session_ws import SessionWSRegistry
from aiohttp_session_ws.registry.core import Core
from aiohttp_session_ws.registry.registry import core_of

from .clients import until


def inspect(registry: SessionWSRegistry) -> Core:
    """Return what a registry is made of: its core."""
    return core_of(registry)


def connections(registry: SessionWSRegistry) -> list[Any]:
    """Return the open connections, in the order of their opening."""
    return sorted(
        inspect(registry).connections.open, key=lambda connection: connection.opened_at or 0.0
    )


def opening(registry: SessionWSRegistry) -> list[Any]:
    """Return the handshakes under way."""
    return list(inspect(registry).connections.opening)


def idle(registry: SessionWSRegistry) -> bool:
    """Tell whether no task of a registry runs."""
    return not inspect(registry).tasks


async def quiet(registry: SessionWSRegistry) -> None:
    """Wait until no task of a registry runs."""
    await until(lambda: idle(registry))


def left_handlers(registry: SessionWSRegistry) -> list[Any]:
    """Return the connections that are gone while their handlers run."""
    return inspect(registry).connections.orphans()


def records(registry: SessionWSRegistry) -> int:
    """Return how many records a registry keeps of what has ended."""
    return len(inspect(registry).records)
