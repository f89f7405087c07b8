"""
No survivors: log-outs while Redis and nodes are killed, frozen and cut off at random.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cluster.chaos.faults import OF_NODES, OF_REDIS, OF_WAYS, schedule
from tests.cluster.chaos.world import JOURNALS, RATE, Chaos, Report, running
from tests.support.redis_servers import RedisServer

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10**9)
SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
NODES = int(os.environ.get("CHAOS_NODES", "3"))


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """Run a Redis that syncs to disk every second, as most do."""
    async with RedisServer("--appendfsync", "everysec") as server:
        yield server


@pytest.fixture
async def sessions() -> AsyncIterator[RedisServer]:
    """Run a Redis for sessions, which has no faults."""
    async with RedisServer("--appendonly", "no") as server:
        yield server


@pytest.mark.exhaustive
async def test_no_survivors(server: RedisServer, sessions: RedisServer, tmp_path: Path) -> None:
    """Random faults let no socket or cookie of an ended session live, and end no other session."""
    choose = random.Random(SEED)
    storage = ["--storage", choose.choice(["encrypted", "redis"]), "--sessions", sessions.url]
    options = [
        ["--on-outage", choose.choice(["refuse", "accept"]), *storage] for _ in range(NODES)
    ]
    if JOURNALS:
        options = [[*some, "--journal", f"{tmp_path / str(n)}"] for n, some in enumerate(options)]
    clocks = [choose.choice([0.0, 600.0, -600.0]) for _ in range(NODES)]
    faults = schedule(SEED, SECONDS, NODES)

    say = partial(print, flush=True)  # shown when the test fails, and with -s
    say(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} CHAOS_NODES={NODES} CHAOS_RATE={RATE:g}")
    say(*options, clocks, *faults, sep="\n")
    async with running(server, options, clocks) as (nodes, proxies):
        report = await Chaos(nodes, server, proxies, choose, say).run(SECONDS, faults)
        say(report)
        for node in nodes:
            say(node.tail(100))

    assert not report.failures()
    assert report.log_outs > len(report.apart)


class TestSchedule:
    def test_same_seed(self) -> None:
        """The same seed gives the same schedule."""
        assert schedule(5, 60, 3) == schedule(5, 60, 3) != schedule(6, 60, 3)

    @pytest.mark.parametrize("seed", range(20))
    def test_everything_happens(self, seed: int) -> None:
        """Three minutes have every kind of fault, and those of Redis don't overlap."""
        faults = schedule(seed, 180, 3)

        assert {fault.kind for fault in faults} >= {*OF_REDIS, *OF_NODES, *OF_WAYS}
        of_redis = [fault for fault in faults if fault.node < 0]
        for fault, following in pairwise(of_redis):
            assert fault.at + fault.seconds < following.at


class Meddler(Chaos):
    """Ends one session without recording that, and closes the sockets of another."""

    async def _log_outs(self, seconds: float) -> None:
        ended, closed = self._living()[:2]
        await ended.get(self.nodes[0], f"/end?id={ended.id}")
        await closed.get(self.nodes[0], f"/close?id={closed.id}")


class TestDriver:
    """The driver itself: it accepts what works, and reports what does not."""

    async def run(self, nodes: int, kind: type[Chaos] = Chaos) -> Report:
        """Run it without Redis: nodes in memory that don't know each other."""
        async with running(None, [[]] * nodes) as (processes, _):
            return await kind(processes, None, [], random.Random(1), print).run(2.0)

    async def test_content(self) -> None:
        """A single node gives a report without failures."""
        report = await self.run(1)

        assert not report.failures()
        assert report.log_outs

    async def test_sees_survivors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two nodes that don't know each other are reported for survivors and stale cookies."""
        monkeypatch.setattr("tests.cluster.chaos.world.SETTLE", 1.0)
        report = await self.run(2)

        # A report is untrue, too, if it was complete while a socket stayed open.
        assert (
            {"survivors", "revived"}
            <= report.failures().keys()
            <= {
                "survivors",
                "revived",
                "untrue",
            }
        )

    async def test_sees_what_nobody_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A living session that is ended, told to reconnect, or absent is reported."""
        monkeypatch.setattr("tests.cluster.chaos.world.SETTLE", 3.0)
        report = await self.run(1, Meddler)

        assert report.failures().keys() == {"wrong", "unasked", "absent"}
        assert [len(found) for found in report.failures().values()] == [1, 1, 1]
