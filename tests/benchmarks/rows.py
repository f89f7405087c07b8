"""
The rows of the table, their readings, and summaries of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """
    A measured quantity.

    Attributes:
        key: Its name in the JSON.
        title: Its name in the table; ``{n}`` is the number of sockets.
        unit: The unit of the figures.
        floor: The peer that ratios are to; empty if the figures stand alone.
        goal: The project's own goal.
    """

    key: str
    title: str
    unit: str
    floor: str
    goal: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """
    One figure of one peer in one round.
    """

    row: str
    peer: str
    size: int
    round: int
    value: float


@dataclass(frozen=True, slots=True)
class Summary:
    """
    All rounds of one peer in one row.

    Attributes:
        median: The median of the figures.
        ratio: The median of the ratios to the floor of the same round; ``None`` without a floor.
        low: The least of these ratios; without a floor, of the figures.
        high: The greatest of them.
        rounds: How many rounds were measured.
    """

    median: float
    ratio: float | None
    low: float
    high: float
    rounds: int


ROWS: Final[Sequence[Row]] = (
    Row("middleware", "middleware, on top of a handler", "us", "", "<= 3.4 us"),
    Row("register", "register() by hand", "ns", "dictionary", "<= 250 ns"),
    Row("unregister", "unregister() by hand", "ns", "dictionary", "<= 250 ns"),
    Row("end", "an end beside {n} others", "us", ""),
    Row("ends", "the same, to one beside 1,000", "x", "", "1.0"),
    Row("handshakes", "handshakes", "/s", "aiohttp", ">= 0.97x"),
    Row("handshake-cpu", "a handshake, CPU", "us", "aiohttp", "<= 1.05x"),
    Row("memory", "memory of an idle socket, {n}", "KiB", "aiohttp", "<= 1.03x"),
    Row("idle-cpu", "CPU of {n} idle sockets", "ms/s", "aiohttp", "<= 1.15x"),
    Row("echo-cpu", "echo, CPU per message", "us", "aiohttp", "1.00x"),
    Row("echo", "echo, 16 in flight", "/s", "aiohttp"),
    Row("broadcast-cpu", "broadcast to {n}, CPU per socket", "us", "aiohttp", "<= 0.75x"),
    Row("broadcast", "broadcast to {n}, to the last one", "ms", "aiohttp"),
    Row("close-one", "close 1 of {n}, order to frame", "us", "raw", "<= 1.4x"),
    Row("close-many", "close a tenth of {n}, to the last frame", "ms", "raw", "<= 1.1x"),
    Row("close-many-first", "the same, to the first frame", "ms", "raw", "<= 1 ms"),
    Row("close-many-cpu", "the same, CPU per socket", "us", "raw", "<= 100 us"),
    Row("identity-turn", "end {n} sessions of one identity, longest turn", "ms", "", "<= 5 ms"),
    Row("session-turn", "close {n} sockets of a session, longest turn", "ms", "", "<= 5 ms"),
    Row("shutdown", "shutdown of {n}, to the last frame", "ms", "raw", "<= 1.6x"),
    Row("shutdown-cpu", "shutdown of {n}, CPU per socket", "us", "raw", "<= 100 us"),
    Row("next-handshake-cpu", "one more handshake at {n}, CPU", "us", "aiohttp"),
    Row("order-latency", "order on A to frame at B", "us", "raw", "<= 1.5x"),
    Row("orders", "orders for nobody's sessions", "/s", "raw", ">= 80,000 /s"),
    Row("orders-giver-cpu", "an order, CPU of who gives it", "us", "raw", "<= 10 us"),
    Row("orders-hearer-cpu", "an order, CPU of who hears it", "us", "raw", "<= 6 us"),
    Row("orders-redis-cpu", "an order, CPU of Redis", "us", "raw"),
    Row("burst-turn", "{n} orders in a burst, longest turn of who hears", "ms", "", "<= 50 ms"),
    Row("call-cpu", "a call, 100 in flight, CPU", "us", "calls", "<= 1.55x, 1/3 of others"),
    Row("call-one-cpu", "a call, one after another, CPU", "us", "calls", "<= 2/3 of others"),
    Row("joined-memory", "memory of who has joined, above a WebSocket", "KiB", "", "<= 4, 3"),
    Row("publish", "publish to {n}, to broadcast() of the same", "x", "", "<= 1.2"),
)
#: Costs per operation, also measured at growing numbers of sockets: as row ``curve:KEY``.
CURVES: Final = (
    *("next-handshake-cpu", "memory", "broadcast-cpu"),
    *("close-one", "close-many-cpu", "shutdown-cpu"),
)


def sizes(readings: Iterable[Reading], row: str) -> list[int]:
    """
    Return the numbers of sockets that a row was measured with.
    """
    return sorted({one.size for one in readings if one.row == row})


def summarize(
    readings: Sequence[Reading], row: str, floor_name: str, size: int
) -> dict[str, Summary]:
    """
    Summarize the rounds of each peer, in the order in which peers were measured.
    """
    values: dict[str, dict[int, float]] = {}
    for one in readings:
        if one.row == row and one.size == size:
            values.setdefault(one.peer, {})[one.round] = one.value
    floor = values.get(floor_name, {})
    result = {}
    for peer, rounds in values.items():
        ratios = [value / floor[n] for n, value in rounds.items() if floor.get(n)]
        spread = ratios or list(rounds.values())
        result[peer] = Summary(
            statistics.median(rounds.values()),
            statistics.median(ratios) if ratios else None,
            min(spread),
            max(spread),
            len(rounds),
        )
    return result
