"""
What it costs to file a socket and take it out again, by hand and by ``session_ws``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

from aiohttp_session_ws import Connection, SessionWSRegistry

from .report import cpu_microseconds, in_turns, line, median

SIZES: Final = (1, 100, 10_000)  # sockets per session
CALLS: Final = 10_000  # per round
ID: Final = "0123456789abcdef"


class Socket:
    """
    Something that can be closed.
    """

    def close(self) -> None:
        """
        Nothing is left open.
        """


async def _repeat(once: Callable[[], object]) -> float:
    async def work() -> None:
        for _ in range(CALLS):
            once()

    return await cpu_microseconds(work, CALLS)


def _floor(others: list[Socket]) -> Callable[[], object]:
    """
    A dictionary of sets, as simple as it can be.
    """
    registry: dict[Hashable, set[Socket]] = {}
    if others:
        registry[ID] = set(others)
    socket = Socket()

    def once() -> None:
        registry.setdefault(ID, set()).add(socket)
        sockets = registry[ID]
        sockets.discard(socket)
        if not sockets:
            del registry[ID]

    return once


def _by_hand(others: list[Socket]) -> Callable[[], object]:
    registry = _registry(others)
    socket = Socket()

    def once() -> None:
        registry.register(ID, socket)
        registry.unregister(ID, socket)

    return once


def _by_session_ws(others: list[Socket]) -> Callable[[], object]:
    sockets = _registry(others)._sockets
    connection = Connection(ID, Socket())

    def once() -> None:
        sockets.opened(connection)
        sockets.open.discard(ID, connection.ws)

    return once


def _registry(others: list[Socket]) -> SessionWSRegistry:
    registry = SessionWSRegistry()
    for socket in others:
        registry.register(ID, socket)
    return registry


async def measure(rounds: int) -> None:
    """
    File one more socket of a session that has some already.
    """
    for size in SIZES:
        others = [Socket() for _ in range(size - 1)]
        makers = (_floor, _by_hand, _by_session_ws)
        arms = [partial(_repeat, make(others)) for make in makers]
        floor, by_hand, by_session_ws = map(median, await in_turns(rounds, *arms))
        details = f"floor {floor:.2f} us; target <= 1 us"
        line(f"register + unregister, {size:,}", f"{by_hand:.2f} us", details)
        line(f"session_ws's own index, {size:,}", f"{by_session_ws:.2f} us", details)
