"""
The facet of a registry for operators: figures, and a rolling restart.
"""

from __future__ import annotations

from typing import Final

from ..results import ClusterStats, Stats
from .core import Core
from .questions import Body

__all__: list[str] = []

WAIT: Final = 1.0  # seconds for the answers of other nodes


class Operations:
    """
    What has happened, on this process and on all.
    """

    _core: Core

    def stats(self) -> Stats:
        """
        Return what this process has counted, and what it holds; may be called in any thread.
        """
        return stats_of(self._core)

    async def cluster_stats(self) -> ClusterStats:
        """
        Return the figures of all processes, which are asked at this moment.
        """
        core = self._core
        core.expect_loop()
        answers = await core.cluster.ask("stats", {}, WAIT)
        stats = [Stats.from_dict(body) for body in answers.bodies]
        if core.cluster.serves:
            stats.append(stats_of(core))
        return ClusterStats(stats, complete=answers.complete)

    async def drain(self, window: float) -> None:
        """
        Close all sockets of this process little by little, for a rolling restart.

        New handshakes get 503 at once. Open sockets are closed with 1012, in random order over
        *window* seconds, so that their clients don't all reconnect at the same time. Other
        requests are served, and orders given meanwhile are told in place of 1012. May be
        awaited twice.

        Args:
            window: Seconds.
        """
        self._core.expect_loop()
        await self._core.drain(window)


def add_answers(core: Core) -> None:
    """
    Let a registry answer what others ask with these methods.
    """

    async def stats(body: Body) -> Body:
        return stats_of(core).as_dict()

    core.questions.add("stats", stats)


def stats_of(core: Core) -> Stats:
    """
    Return what a process has counted.
    """
    connections, figures = core.connections, core.cluster.figures()
    counters = connections.counters
    return Stats(
        node=core.cluster.name,
        open=connections.open.size,
        opening=connections.opening.size,
        streams=counters.streams,
        records=len(core.records),
        outbox=figures.outbox,
        orders_given=counters.given,
        orders_heard=counters.heard,
        orders_reconciled=figures.reconciled,
        outages=figures.outages,
        outage_seconds=figures.outage_seconds,
        closes={(str(by), code): count for (by, code), count in counters.closes().items()},
        refusals=counters.refusals.copy(),
    )
