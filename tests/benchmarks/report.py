"""
Format the figures: as a table for stdout, and as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .bench import Bench
from .rows import CURVES, ROWS, Row, Summary, sizes, summarize


def number(value: float) -> str:
    """
    Format a figure with about three digits.
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(bench: Bench) -> Iterator[str]:
    """
    Yield the lines of the table.
    """
    titles = {peer.name: peer.title for peer in bench.peers}
    yield f"{'':<42}{'median':>12}{'ratio':>9}  spread"
    for row in ROWS:
        for size in sizes(bench.readings, row.key):
            yield from _block(
                row, size, summarize(bench.readings, row.key, row.floor, size), titles
            )
    for row in ROWS:
        if row.key in CURVES:
            yield from _curve(bench, row, titles)
    for what, why in bench.left_out.items():
        yield f"\nleft out: {what}: {why.splitlines()[-1]}"


def _block(
    row: Row, size: int, summaries: Mapping[str, Summary], titles: Mapping[str, str]
) -> Iterator[str]:
    goal = f"  (goal: {row.goal})" if row.goal else ""
    yield f"\n{row.title.format(n=f'{size:,}')}, {row.unit}{goal}"
    for peer, summary in summaries.items():
        ratio = "" if summary.ratio is None else f"{summary.ratio:.2f}x"
        floor = "  the floor" if peer == row.floor else ""
        spread = floor or f"  {number(summary.low)} to {number(summary.high)}"
        rounds = "" if summary.rounds > 1 else ", once"
        title = titles.get(peer, peer)
        yield f"  {title:<40}{number(summary.median):>12}{ratio:>9}{spread}{rounds}"


def _curve(bench: Bench, row: Row, titles: Mapping[str, str]) -> Iterator[str]:
    key = f"curve:{row.key}"
    every = sizes(bench.readings, key)
    if not every:
        return
    yield f"\n{row.title.format(n='N')}, {row.unit}, N = {', '.join(f'{n:,}' for n in every)}"
    by_size = {size: summarize(bench.readings, key, row.floor, size) for size in every}
    for peer in dict.fromkeys(peer for summaries in by_size.values() for peer in summaries):
        cells = []
        for size in every:
            summary = by_size[size].get(peer)
            cells.append("-" if summary is None else number(summary.median))
        yield f"  {titles.get(peer, peer):<40}{''.join(f'{cell:>12}' for cell in cells)}"


def as_json(bench: Bench) -> str:
    """
    Return all figures as JSON, with the machine and the versions they were measured on.
    """
    packages = ("aiohttp", "aiohttp-session", "redis", "hiredis")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    document: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": versions,
        "plan": asdict(bench.plan),
        "rows": {row.key: asdict(row) for row in ROWS},
        "curves": list(CURVES),
        "peers": {peer.name: peer.title for peer in bench.peers},
        "left out": bench.left_out,
        "summaries": [
            {"row": key, "size": size, "peer": peer, **asdict(summary)}
            for row in ROWS
            for key in (row.key, f"curve:{row.key}")
            for size in sizes(bench.readings, key)
            for peer, summary in summarize(bench.readings, key, row.floor, size).items()
        ],
        "readings": [asdict(reading) for reading in bench.readings],
    }
    return json.dumps(document, indent=1)
