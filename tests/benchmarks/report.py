"""
Measuring in turns, and the lines of the table.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def in_turns(
    rounds: int, *arms: Callable[[], Awaitable[T]], warm_up: int = 1
) -> list[list[T]]:
    """
    Measure A B A B ..., so that a slow minute of the machine meets all arms alike.

    Args:
        rounds: How often.
        *arms: What is measured.
        warm_up: How many rounds go before and don't count.

    Returns:
        For each arm, what it returned in each round.
    """
    results: list[list[T]] = [[] for _ in arms]
    for _ in range(warm_up + rounds):
        for arm, result in zip(arms, results, strict=True):
            result.append(await arm())
    return [result[warm_up:] for result in results]


async def cpu_microseconds(work: Callable[[], Awaitable[None]], times: int) -> float:
    """
    Return the CPU time of one of the *times* things that *work* does, without the garbage
    collector, as ``timeit`` measures.
    """
    gc.collect()
    gc.disable()
    try:
        begin = time.process_time()
        await work()
        return (time.process_time() - begin) / times * 1e6
    finally:
        gc.enable()


def difference(floor: Sequence[float], ours: Sequence[float]) -> float:
    """
    Return the median of what a round added to its floor.
    """
    return statistics.median(b - a for a, b in zip(floor, ours, strict=True))


def ratio(floor: Sequence[float], ours: Sequence[float]) -> float:
    """
    Return the median of how many times its floor a round was.
    """
    return statistics.median(b / a for a, b in zip(floor, ours, strict=True))


def median(values: Iterable[float]) -> float:
    """
    Return the middle one.
    """
    return statistics.median(values)


def line(name: str, figure: str, details: str) -> None:
    """
    Print a line of the table.
    """
    print(f"{name:<32}{figure:>14}  ({details})", flush=True)
