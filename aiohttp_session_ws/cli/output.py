"""
The output of the operator's command line: tables for people, JSON for scripts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .._logging import fingerprint
from ..results import (
    CloseReport,
    ClusterStats,
    ConnectionInfo,
    Count,
    Nodes,
    Snapshot,
    Stats,
)

__all__: list[str] = []

MAX_WIDTH: Final = 60  # characters of one column


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The output of a command.

    Attributes:
        lines: The lines of its text.
        body: Its JSON object.
        notes: Reasons why it may be incomplete; with any, the exit code is 1.
    """

    lines: Sequence[str]
    body: dict[str, Any]
    notes: Sequence[str] = field(default=())

    def text(self, *, as_json: bool) -> str:
        """
        Return the text to print.
        """
        return json.dumps(self.body) if as_json else "\n".join(self.lines)


def show(text: str) -> None:
    """
    Print *text* to standard output, and flush it.
    """
    print(text, flush=True)  # noqa: T201  that's what it's for


def of_order(command: str, report: CloseReport, notes: Sequence[str], *, known: bool) -> Answer:
    """
    Describe the result of an order.
    """
    done = {"close": "told to reconnect", "end": "closed for good"}[command]
    lines = [
        f"{counted(report.sockets, 'socket')} {done},"
        f" {counted(report.handshakes, 'handshake')} refused;"
        f" {report.nodes_answered} of {counted(report.nodes_expected, 'process')} answered"
    ]
    body = {**asdict(report), "complete": report.complete, "known": known}
    return Answer(lines, body, notes)


def of_stats(stats: ClusterStats, notes: Sequence[str]) -> Answer:
    """
    Describe the figures of all processes.
    """
    total = stats.total
    lines = stats_table(stats)
    closes = sorted(total.closes.items(), key=lambda item: -item[1])
    rows = [[by, str(code), str(count)] for (by, code), count in closes]
    lines += ["", *table(["CLOSED BY", "CODE", "TIMES"], rows)] if rows else []
    refusals = sorted(total.refusals.items(), key=lambda item: -item[1])
    rows = [[word, str(count)] for word, count in refusals]
    lines += ["", *table(["REFUSED", "TIMES"], rows)] if rows else []
    body = {"nodes": [one.as_dict() for one in stats], "complete": not notes}
    return Answer(lines, body, notes)


def stats_table(stats: Iterable[Stats]) -> list[str]:
    """
    Return the lines of a table with the figures of each process.
    """
    heads = ["NODE", "OPEN", "OPENING", "STREAMS", "GIVEN", "HEARD", "FOUND LATE", "OUTBOX"]
    rows = [
        [
            one.node,
            *(str(n) for n in (one.open, one.opening, one.streams)),
            *(str(n) for n in (one.orders_given, one.orders_heard, one.orders_reconciled)),
            str(one.outbox),
            f"{one.outages}, {span(one.outage_seconds)}" if one.outages else "-",
            str(one.records),
        ]
        for one in stats
    ]
    return table([*heads, "OUTAGES", "RECORDS"], rows)


def of_count(count: Count, notes: Sequence[str]) -> Answer:
    """
    Describe the number of open sockets.
    """
    return Answer([str(int(count))], {"sockets": int(count), "complete": not notes}, notes)


def of_nodes(nodes: Nodes, notes: Sequence[str]) -> Answer:
    """
    Describe the processes.
    """
    infos = [asdict(node) for node in nodes]
    rows = [[str(value) for value in info.values()] for info in infos]
    lines = table(["NODE", "SOCKETS", "SESSIONS", "HANDSHAKES"], rows)
    return Answer(lines, {"nodes": infos, "complete": not notes}, notes)


def of_connections(found: Snapshot, notes: Sequence[str], *, show_ids: bool) -> Answer:
    """
    Describe open connections.
    """
    heads = ["SESSION", "IDENTITY", "NODE", "REMOTE", "PATH", "OPEN", "IDLE"]
    heads += ["ID", "WHO"] if show_ids else []
    now = time.time()
    lines = table(heads, [_row(info, now, show_ids=show_ids) for info in found])
    body = {
        "connections": [_describe(info, show_ids=show_ids) for info in found],
        "complete": not notes,
    }
    return Answer(lines, body, notes)


def _row(info: ConnectionInfo, now: float, *, show_ids: bool) -> list[str]:
    ids = [repr(info.session_ws_id), repr(info.identity)] if show_ids else []
    return [
        fingerprint(info.session_ws_id),
        "-" if info.identity is None else fingerprint(info.identity),
        info.node,
        info.remote or "-",
        info.path,
        span(now - info.opened_at),
        span(info.idle),
        *ids,
    ]


def _describe(info: ConnectionInfo, *, show_ids: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "socket": info.id,
        "session_hash": fingerprint(info.session_ws_id),
        "identity_hash": None if info.identity is None else fingerprint(info.identity),
        "node": info.node,
        "remote": info.remote,
        "path": info.path,
        "opened_at": info.opened_at,
        "idle": info.idle,
        "user_agent": info.user_agent,
    }
    if show_ids:
        described |= {"session": info.session_ws_id, "identity": info.identity}
    return described


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """
    Return the lines of a table.
    """
    cells = [list(heads), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _cell(text: str) -> str:
    """
    Return *text* safe for a terminal and not too wide: paths come from clients.
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= MAX_WIDTH else safe[: MAX_WIDTH - 1] + "…"


def span(seconds: float) -> str:
    """
    Format a duration in the largest unit of which it has at least two.
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def counted(number: int, what: str) -> str:
    """
    Format a number with its noun, in the plural unless it is 1.
    """
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}" if number == 1 else f"{number} {what}{plural}"
