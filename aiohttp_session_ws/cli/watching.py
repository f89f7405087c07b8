"""
The command ``watch``: a screen of figures that is redrawn at an interval.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

from ..redis import RedisSessionWSRegistry
from ..results import ClusterStats, Stats
from .arguments import Options
from .output import counted, show, stats_table, table

__all__: list[str] = []

CLEAR: Final = "\x1b[H\x1b[2J"  # ANSI: cursor home, erase the screen


async def watch(registry: RedisSessionWSRegistry, options: Options) -> ClusterStats:
    """
    Draw screens until interrupted, or until ``--times`` of them are drawn.

    Returns:
        The figures of the last screen.
    """
    before: ClusterStats | None = None
    for number in count(1):
        stats = await registry.cluster_stats()
        _draw(stats, before, options)
        if number == options.times:
            break
        before = stats
        await asyncio.sleep(options.every)
    return stats


def _draw(stats: ClusterStats, before: ClusterStats | None, options: Options) -> None:
    if options.json:
        nodes = [one.as_dict() for one in stats]
        show(json.dumps({"at": time.time(), "complete": stats.complete, "nodes": nodes}))
        return
    columns, lines = shutil.get_terminal_size()
    text = [line[:columns] for line in screen(stats, before, options.every)]
    if sys.stdout.isatty():
        show(CLEAR + "\n".join(text[: lines - 1]))
    else:
        show("\n".join([*text, ""]))


def screen(stats: ClusterStats, before: ClusterStats | None, every: float) -> list[str]:
    """
    Return the lines of a screen.

    Args:
        stats: The present figures.
        before: The figures of the previous screen; ``None`` for the first one.
        every: Seconds between two screens.
    """
    total = stats.total
    sure = "" if stats.complete else " (not all processes answered)"
    at = time.strftime("%H:%M:%S")
    lines = [
        f"{at}  {total.open} open, {total.opening} opening,"
        f" {counted(len(stats), 'process')}{sure}",
        "",
        *stats_table(stats),
    ]
    if before is None:
        return lines
    total, was = _comparable(stats, before)
    closes = _growth(total.closes, was.closes)
    refusals = _growth(total.refusals, was.refusals)
    orders = max(0, total.orders_given - was.orders_given)
    rows = [[f"closed by {by} with {code}", str(n)] for (by, code), n in closes.items()]
    rows += [[f"refused: {word}", str(n)] for word, n in refusals.items()]
    rows += [["orders", str(orders)]] if orders else []
    news = table([f"WITHIN {every:g} S", "TIMES"], rows)
    return [*lines, "", *news]


def _comparable(stats: ClusterStats, before: ClusterStats) -> tuple[Stats, Stats]:
    """
    Return the sums of present and previous figures over the processes that can be compared.

    A process that has gone is left out of the previous sum. A process that is only in the present
    figures counts if the previous ones were complete: then it has started, and counted, since.
    """
    here, known = ({one.node for one in look} for look in (stats, before))
    now = (one for one in stats if one.node in known or before.complete)
    was = (one for one in before if one.node in here)
    return ClusterStats(now).total, ClusterStats(was).total


def _growth(now: Mapping[Any, int], before: Mapping[Any, int]) -> dict[Any, int]:
    """
    Return the counters that have grown, and by how much.
    """
    news = {key: number - before.get(key, 0) for key, number in now.items()}
    return {key: number for key, number in news.items() if number > 0}
