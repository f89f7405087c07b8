"""
The registry's methods for operators: statistics, closing and rechecking connections, draining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import asdict
from typing import Final

from .._lineage import Subject
from ..close_codes import RECONNECT, Close, as_close
from ..connections.connection import OPEN, OPENING
from ..options import Timeouts
from ..results import CloseReport, ClusterStats, Stats
from ..sessions.encoding import decode, encode
from .core import Core
from .judging import Effect
from .questions import WAIT, Body
from .settings import expect

__all__: list[str] = []

PART: Final = 500  # connections scanned between two yields to the event loop


class Operations:
    """
    Statistics and maintenance, for this process and for the whole cluster.
    """

    _core: Core

    def stats(self) -> Stats:
        """
        Return the counters and current totals of this process; may be called from any thread.
        """
        return stats_of(self._core)

    async def close_connection(
        self,
        connection_id: str,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 5.0,
    ) -> CloseReport:
        """
        Close one connection, on whichever process it is; its session may reconnect.

        Waits until the connection is closed.

        Args:
            connection_id: The connection's own id, as returned by ``connections()``.
            close: The close code, 4403 by default.
            reason: The close reason.
            wait: Seconds to wait for the process that has it, if there are other processes.

        Returns:
            A report of one socket, or of none if it is gone already.

        Raises:
            TypeError: If *connection_id* is not a string.
        """
        core = self._core
        core.expect_loop()
        _ = expect(connection_id, str, "connection_id")
        close_order = as_close(close, reason, RECONNECT)
        report = await close_here(core, connection_id, close_order)
        if report.sockets:
            return report
        body = {"id": connection_id, "code": close_order.code, "reason": close_order.reason}
        answers = await core.cluster.ask("close", body, wait)
        for found in answers.bodies:
            if found.get("sockets"):
                return CloseReport(1, int(found["aborted"]), int(found["cancelled"]))
        return CloseReport(
            nodes_expected=1 + answers.expected, nodes_answered=1 + answers.answered
        )

    async def recheck(self, identity: Hashable, *, wait: float = 0.0) -> CloseReport:
        """
        Run the periodic check for all sockets of an identity now, after its rights have changed.

        Each session is loaded again, and ``identify``, ``labels`` and ``authorize`` are called.
        Waits until this process is done.

        Args:
            identity: The identity whose sockets to check.
            wait: Seconds to wait for the reports of other nodes, if there are any.

        Returns:
            How many sockets the check closes, and how many processes have reported.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of(identity)
        body = {"identity": encode(identity)} if core.cluster.remote else {}
        answers, here = await asyncio.gather(
            core.cluster.ask("recheck", body, wait), recheck_here(core, subject)
        )
        there = sum(int(answer.get("sockets", 0)) for answer in answers.bodies)
        return CloseReport(
            here + there, nodes_expected=1 + answers.expected, nodes_answered=1 + answers.answered
        )

    async def cluster_stats(self) -> ClusterStats:
        """
        Request and return the statistics of all processes.
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
        Close all sockets of this process gradually, for a rolling restart.

        New handshakes get 503 at once. Open sockets are closed with 1012, in random order over
        *window* seconds, so that their clients don't all reconnect at the same time. Other
        requests are still served, and a socket that an order closes meanwhile gets the order's
        close code instead of 1012. May be awaited twice.

        Args:
            window: Seconds over which the sockets are closed.

        Raises:
            TypeError: If *window* is not a number.
            ValueError: If it is negative or infinite.
        """
        self._core.expect_loop()
        _ = Timeouts(drain=window)  # for its validation of the argument
        await self._core.drainer.drain(window)


async def close_here(core: Core, connection_id: str, close: Close) -> CloseReport:
    """
    Close a connection of this process by its own id; do nothing if this process doesn't have it.
    """
    connections = list(core.connections.open)
    for start in range(0, len(connections), PART):
        part = connections[start : start + PART]
        found = [connection for connection in part if connection.id == connection_id]
        if found:
            return await core.effects.carry_out(Effect(((close, tuple(found)),)))
        await asyncio.sleep(0)  # each part takes a while
    return CloseReport()


async def recheck_here(core: Core, subject: Subject) -> int:
    """
    Check the sockets of an identity on this process; return how many the check closes.
    """
    connections = []
    for connection in core.connections.of_subject(subject):
        if connection.state is OPENING:
            # It may have been authorized with the previous rights: check it once it is open.
            connection.check_at = 0.0
        elif connection.state is OPEN:
            connections.append(connection)
    await core.revalidator.check_now(connections)
    return sum(connection.close_order is not None for connection in connections)


def add_answers(core: Core) -> None:
    """
    Register the answers to other nodes' requests.
    """

    async def close(body: Body) -> Body:
        close_order = Close(int(body["code"]), str(body["reason"]))
        report = await close_here(core, str(body["id"]), close_order)
        return {**asdict(report), "settles": bool(report.sockets)}

    async def recheck(body: Body) -> Body:
        if core.identifier.identify is None:
            return {"unresolved": True}
        subject = Subject("identity", decode(body["identity"]))
        return {"sockets": await recheck_here(core, subject)}

    core.questions.add("presence", core.presence.receive)
    core.questions.add("present", core.presence.respond)
    core.questions.add("close", close)
    core.questions.add("recheck", recheck)

    async def stats(body: Body) -> Body:
        return stats_of(core).as_dict()

    core.questions.add("stats", stats)


def stats_of(core: Core) -> Stats:
    """
    Return the statistics of this process.
    """
    connections, figures = core.connections, core.cluster.figures()
    counters = connections.counters
    return Stats(
        node=core.cluster.name,
        open=connections.open.size,
        opening=connections.opening.size,
        streams=counters.streams,
        records=core.records.held,
        outbox=figures.outbox,
        orders_given=core.announcer.orders_given,
        orders_heard=core.announcer.orders_heard,
        orders_reconciled=figures.reconciled,
        outages=figures.outages,
        outage_seconds=figures.outage_seconds,
        closes={(str(by), code): count for (by, code), count in counters.closes().items()},
        refusals=counters.refusals.copy(),
    )
