"""
The time in a journal: timestamps of the next process are later, however this one ends.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aiohttp_session_ws.registry.core import Core
from aiohttp_session_ws.registry.registry import SessionWSRegistry
from aiohttp_session_ws.sessions.clock import RESERVED, Clock
from aiohttp_session_ws.sessions.journal import Journal
from tests.support import until
from tests.support.inspect import inspect
from tests.support.seconds import Seconds


async def times_after(path: Path, wall: float) -> Clock:
    """Return the clock of a process that starts with a journal at a time of the wall clock."""
    clock, journal = Clock(wall=Seconds(wall), monotonic=Seconds()), Journal(path)
    await journal.start(clock.now)
    clock.start_after(journal.last_time)
    await journal.stop()
    return clock


def set_clocks(core: Core, wall: Seconds, monotonic: Seconds) -> Clock:
    """Replace the wall clock and the monotonic clock of a process."""
    clock = core.clock
    clock.wall, clock.monotonic = wall, monotonic
    clock.start_after(wall())
    return clock


@pytest.mark.parametrize("kill", [True, False])
async def test_set_back(kill: bool, tmp_path: Path) -> None:
    """If the wall clock is set back between two processes, timestamps of the second are later."""
    path, copy = tmp_path / "ends.db", tmp_path / "copy.db"
    registry = SessionWSRegistry(journal=path)
    core = inspect(registry)
    wall, monotonic = Seconds(4e9), Seconds()
    clock = set_clocks(core, wall, monotonic)
    await core.start()
    journal = core.journal
    assert journal is not None
    for _ in range(3):  # nothing has ended, so nothing else is written
        wall.now += 20.0
        monotonic.now += 20.0
        commits = journal.commits
        begun = clock.begin_time()
        await until(lambda: journal.commits > commits)  # noqa: B023
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    await core.stop()

    after = await times_after(copy if kill else path, wall() - 70.0)

    assert begun < after.end_time() <= begun + (RESERVED + 0.01 if kill else 0.01)
    earlier = after.now()
    assert isinstance(after.monotonic, Seconds)
    after.monotonic.now += 7.0
    assert after.now() == pytest.approx(earlier + 7.0)
