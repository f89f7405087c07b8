"""
Random worlds: whatever happens, the promise holds, and no living browser loses its session.

``pytest tests/promise/test_worlds.py --worlds 20000`` runs more of them. A failure reports its
seed, the shortest plan that still causes the same violation, and the trace of that plan.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import Expiry
from aiohttp_session_ws._lineage import Lineage
from aiohttp_session_ws.connections.index import ConnectionIndex
from aiohttp_session_ws.redis import RedisSessionWSRegistry
from aiohttp_session_ws.registry import deferred
from aiohttp_session_ws.registry.core import Core
from aiohttp_session_ws.registry.draining import Drainer
from aiohttp_session_ws.registry.effects import Effects
from aiohttp_session_ws.registry.order import Order, Refresh
from aiohttp_session_ws.sessions.journal import Journal
from aiohttp_session_ws.sessions.records import (
    Change,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from aiohttp_session_ws.sessions.status import ALIVE
from tests.promise.world import disks
from tests.promise.world.oracle import Violation
from tests.promise.world.plans import make_world, shrink
from tests.promise.world.steps import Config, Step
from tests.promise.world.world import play

GROUPS = 10  # several processes can share the work


def tell(seed: int, port: int, violations: Sequence[Violation]) -> str:
    """Describe a world that broke the promise."""

    def broken(config: Config, steps: Sequence[Step]) -> list[Violation]:
        return play(config, steps, port)[0]

    config, steps = make_world(seed)
    shortest = shrink(config, steps, broken)
    _, trace = play(config, shortest, port)
    lines = [f"seed {seed}: {violations[0]}", f"shortest: {config}", *map(repr, shortest)]
    return "\n".join([*lines, "trace:", *trace])


@pytest.mark.parametrize("group", range(GROUPS))
def test_the_promise_holds_in_random_worlds(
    group: int, redis_port: int, pytestconfig: pytest.Config
) -> None:
    """Ended sessions stay ended, and living ones are served, in worlds of random steps."""
    for seed in range(group, pytestconfig.getoption("--worlds", 500), GROUPS):
        violations, _ = play(*make_world(seed), redis_port)
        assert not violations, tell(seed, redis_port, violations)


# Mutations to test the oracle. Each breaks one rule of the model.


def without_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced generation is given up at once, while the newer cookie is on its way."""
    monkeypatch.setattr("tests.promise.world.world.EXPIRY", Expiry(renewal_grace=1e-6))


def renewals_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal changes the time at which its lineage began."""

    def renewed(self: Lineage, generation: int) -> Lineage:
        return Lineage(self.token, generation, time.time())

    monkeypatch.setattr(Lineage, "renewed", renewed)


def ends_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a lineage is not recorded."""
    merge = Records.merge

    def forgetful(self: Records, change: Change) -> bool:
        return False if isinstance(change, LineageEnded) else merge(self, change)

    monkeypatch.setattr(Records, "merge", forgetful)


def nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request with the newest generation does not mark it seen."""
    merge = Records.merge

    def blind(self: Records, change: Change) -> bool:
        if isinstance(change, LineageRenewed):
            change = change._replace(seen=False)
        return merge(self, change)

    monkeypatch.setattr(Records, "merge", blind)


def cancelled_requests_are_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose client disconnects is not settled."""
    bare: Callable[..., Coroutine[Any, Any, None]] = deferred.settle

    async def unless_cancelled(*args: Any) -> None:
        if not isinstance(sys.exc_info()[1], asyncio.CancelledError):
            await bare(*args)

    monkeypatch.setattr("aiohttp_session_ws.web.middleware.settle", unless_cancelled)


def orders_pass_streams_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order closes websockets but not streams."""
    concerned = getattr(Effects, "_concerned")  # noqa: B009  not ours to name

    def sockets(self: Effects, order: Order, before: float | None) -> dict[Any, bool]:
        found = concerned(self, order, before)
        return {c: told for c, told in found.items() if isinstance(c.ws, web.WebSocketResponse)}

    monkeypatch.setattr(Effects, "_concerned", sockets)


def kept_sockets_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that keeps its sockets files them under a lineage that is never ended."""

    def lose(self: Effects, refresh: Refresh) -> None:
        connections = getattr(self, "_connections")  # noqa: B009  not ours to name
        for connection in connections.of_lineage(refresh.lineage.token):
            lineage = Lineage("lost", refresh.lineage.generation, refresh.lineage.began)
            connections.refile(connection, "lost", lineage)

    monkeypatch.setattr(Effects, "_refresh", lose)


def orders_miss_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are not filed under proven identities."""

    def file_nowhere(self: ConnectionIndex, connection: Any, identity: Any, since: float) -> None:
        """Do not file the connection."""

    monkeypatch.setattr(ConnectionIndex, "file_proven", file_nowhere)


def proofs_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof is accepted although its identity ended meanwhile."""
    status_of = Core.status_of

    def blind(self: Core, connection: Any) -> Any:
        return ALIVE if connection.proven is not None else status_of(self, connection)

    monkeypatch.setattr(Core, "status_of", blind)


def labels_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a label is not recorded."""
    merge = Records.merge

    def forgetful(self: Records, change: Change) -> bool:
        if isinstance(change, SubjectEnded) and change.subject.kind not in ("id", "identity"):
            return False
        return merge(self, change)

    monkeypatch.setattr(Records, "merge", forgetful)


def journals_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process starts without the records in its journal."""
    start = disks.START

    async def forget(journal: Journal, *args: Any) -> list[Change]:
        await start(journal, *args)
        return []

    monkeypatch.setattr(disks, "START", forget)


def journals_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged records are not written to the journal."""

    def merge(self: Effects, changes: Iterable[Change]) -> list[Change]:
        records = getattr(self, "_records")  # noqa: B009  not ours to name
        return list(filter(records.merge, changes))

    monkeypatch.setattr(Effects, "merge", merge)


def drains_close_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is drained leaves its sockets open."""

    async def nothing(self: Drainer) -> None:
        """Close nothing."""

    monkeypatch.setattr(Drainer, "_drain", nothing)


def cut_off_nodes_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that can't reach Redis opens sockets all the same."""
    accepting = functools.partial(RedisSessionWSRegistry, on_outage="accept")
    monkeypatch.setattr("tests.promise.world.world.RedisSessionWSRegistry", accepting)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mutate", "seed"),  # and the first world that detected it when this was written
    [
        (without_grace, 33),
        (renewals_begin_anew, 1),
        (ends_are_forgotten, 3),
        (nobody_is_seen, 7),
        (cancelled_requests_are_not_settled, 93),
        (orders_pass_streams_by, 10),
        (kept_sockets_are_lost, 103),
        (orders_miss_proofs, 16),
        (proofs_are_not_judged, 16),
        (labels_end_nothing, 28),
        (journals_are_not_read, 3),
        (journals_are_not_written, 3),
        (drains_close_nothing, 34),
        (cut_off_nodes_accept, 339),
    ],
)
def test_the_oracle_notices_what_is_broken(
    mutate: Callable[[pytest.MonkeyPatch], None],
    seed: int,
    redis_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oracle detects each mutation within 500 worlds."""
    mutate(monkeypatch)
    worlds = (play(*make_world(one), redis_port) for one in (seed, *range(500)))
    assert any(violations for violations, _ in worlds)
