"""
Zero survivors: log-outs while Redis and nodes are killed, frozen and cut off, at random.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest
from chaos import Chaos, Report, running
from faults import schedule
from redis_server import RedisServer

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 10**9)
SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
NODES = int(os.environ.get("CHAOS_NODES", "3"))


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    """A Redis that syncs as most do: every second, whatever it has answered meanwhile."""
    async with RedisServer("--appendfsync", "everysec") as server:
        yield server


async def test_no_survivors(server: RedisServer) -> None:
    """After any faults, what was ended is gone everywhere, and nothing else is."""
    choose = random.Random(SEED)
    policies = [["--on-outage", choose.choice(["refuse", "accept"])] for _ in range(NODES)]
    faults = schedule(SEED, SECONDS, NODES)
    say = print  # shown when the test fails, and with -s
    say(f"\nCHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} CHAOS_NODES={NODES}", *policies)
    say(*faults, sep="\n")
    async with running(server, policies) as nodes:
        report = await Chaos(nodes, server, choose, say).run(SECONDS, faults)
        say(report)
        for node in nodes:
            say(node.tail(100))

    assert not report.failures()
    assert len(report.apart) <= report.log_outs / 10


class TestDriver:
    """The driver itself: it is content with what works, and sees what does not."""

    async def run(self, nodes: int, seconds: float = 2.0) -> Report:
        """Run it without Redis: nodes in memory, which know nothing of each other."""
        async with running(None, [[]] * nodes) as processes:
            return await Chaos(processes, None, random.Random(1), print).run(seconds)

    async def test_content(self) -> None:
        """One node needs nobody to know what is ended."""
        report = await self.run(1)

        assert not report.failures()
        assert report.log_outs

    async def test_sees_survivors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two nodes that don't know each other leave survivors, and take stale cookies."""
        monkeypatch.setattr("chaos.SETTLE", 1.0)
        report = await self.run(2)

        assert report.failures().keys() == {"survivors", "revived"}
