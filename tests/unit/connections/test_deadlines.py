"""
The heap of deadlines, and its one timer.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextvars import ContextVar
from typing import Any

import pytest
from aiohttp_session import Session
from hypothesis import given, strategies as st

from aiohttp_session_ws import Expiry, SessionWSRegistry
from aiohttp_session_ws.connection import Connection
from aiohttp_session_ws.deadlines import LONGEST, Alarm, Deadline, Deadlines
from tests.support import until

MANY = 100_000


def new(deadlines: Deadlines, due: float) -> Deadline:
    """Queue a deadline of a connection of its own."""
    deadline = Deadline(deadlines, Connection("id", None))
    deadlines.put(deadline, due)
    return deadline


def drain(deadlines: Deadlines, now: float) -> list[Deadline]:
    """Take out all that is due."""
    return list(iter(lambda: deadlines.pop(now), None))


class TestHeap:
    def test_in_order(self) -> None:
        """They come out in the order in which they are due, and no sooner."""
        deadlines = Deadlines()
        third, first, second = (new(deadlines, due) for due in (3.0, 1.0, 2.0))

        assert deadlines.pop(0.5) is None
        assert deadlines.first == 1.0
        assert drain(deadlines, 2.0) == [first, second]
        assert drain(deadlines, 9.0) == [third]

    def test_moved(self) -> None:
        """One that is put off comes when it is due then; a sooner time is not taken."""
        deadlines = Deadlines()
        moved, other = new(deadlines, 1.0), new(deadlines, 2.0)
        deadlines.put(moved, 3.0)
        deadlines.put(other, 0.5)

        assert drain(deadlines, 2.5) == [other]
        assert drain(deadlines, 3.0) == [moved]

    def test_cancelled(self) -> None:
        """One that is cancelled doesn't come, keeps no connection, and is counted once."""
        deadlines = Deadlines()
        kept, gone, popped = (new(deadlines, due) for due in (3.0, 2.0, 1.0))
        assert deadlines.pop(1.0) is popped
        for deadline in (gone, gone, popped):
            deadline.cancel()
            deadlines.put(deadline, 1.0)

        assert gone.connection is popped.connection is None
        assert drain(deadlines, 9.0) == [kept]
        assert not deadlines

    def test_hurry(self) -> None:
        """All are made due soon, but for those that were due sooner."""
        deadlines = Deadlines()
        late, moved, soon = new(deadlines, 900.0), new(deadlines, 4.0), new(deadlines, 5.0)
        deadlines.put(moved, 800.0)
        deadlines.hurry(10.0)

        assert drain(deadlines, 5.0) == [soon]
        assert set(drain(deadlines, 10.1)) == {late, moved}

    def test_a_million(self) -> None:
        """A million sockets that come and go leave a heap of twice those that are there."""
        deadlines = Deadlines()
        there = [new(deadlines, 1e9) for _ in range(100)]
        longest = 0
        for n in range(1_000_000):
            place = n % 100
            there[place].cancel()
            there[place] = new(deadlines, n)
            longest = max(longest, len(deadlines))

        assert longest <= 200

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["new", "new", "new", "move", "cancel", "pop", "hurry"]),
                st.integers(0, 9),
                st.integers(0, 50),
            ),
            min_size=20,
        )
    )
    def test_any_history(self, steps: list[tuple[str, int, int]]) -> None:
        """In order, never one lost, never one that is gone, never more than twice as long."""
        deadlines = Deadlines()
        live: list[Deadline] = []
        now = 0.0
        for step, which, seconds in steps:
            chosen = live[which % len(live)] if live else None
            if step == "new":
                live.append(new(deadlines, now + seconds))
            elif step == "move" and chosen is not None:
                deadlines.put(chosen, now + seconds)
            elif step == "cancel" and chosen is not None:
                chosen.cancel()
                live.remove(chosen)
            elif step == "hurry":
                deadlines.hurry(now)
            elif step == "pop":
                now += seconds
                expected = sorted(deadline.due for deadline in live if deadline.due <= now)
                popped = drain(deadlines, now)
                assert [deadline.due for deadline in popped] == expected
                for deadline in popped:
                    if which % 2:
                        deadline.cancel()
                        live.remove(deadline)
                    deadlines.put(deadline, now + which)
            assert deadlines._dead == len(deadlines) - len(live)
            assert len(deadlines) <= 2 * len(live)
            assert set(deadlines) == {deadline.connection for deadline in live}
        assert set(drain(deadlines, 1e9)) == set(live)


class Clocks:
    """Two clocks that go when a test says so."""

    def __init__(self) -> None:
        self.loop = 1000.0
        self.wall = 2_000_000.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def alarm_of(clocks: Clocks, rung: list[bool]) -> Alarm:
    """Return an alarm that notes what it says when it rings."""
    return Alarm(rung.append, clock=lambda: clocks.loop, wall=lambda: clocks.wall)


class TestAlarm:
    async def test_rings(self, clocks: Clocks) -> None:
        """It rings when it was set to, once."""
        rung: list[bool] = []
        alarm_of(clocks, rung).set(clocks.loop)
        await until(lambda: rung)

        assert rung == [False]

    async def test_in_no_context(self, clocks: Clocks) -> None:
        """What it calls doesn't know who has set it."""
        variable: ContextVar[str] = ContextVar("variable", default="nobody")
        seen: list[str] = []
        alarm = Alarm(
            lambda _: seen.append(variable.get()),
            clock=lambda: clocks.loop,
            wall=lambda: clocks.wall,
        )
        variable.set("me")
        alarm.set(clocks.loop)
        await until(lambda: seen)

        assert seen == ["nobody"]

    async def test_the_earliest_counts(self, clocks: Clocks) -> None:
        """It is set to an earlier time, not to a later one, and never for long."""
        alarm = alarm_of(clocks, [])
        times = []
        for at in (1e9, 1020.0, 1030.0, 1010.0):
            alarm.set(at)
            times.append(alarm._at)
        alarm.stop()

        assert times == [clocks.loop + LONGEST, 1020.0, 1020.0, 1010.0]

    @pytest.mark.parametrize(
        ("loop", "wall", "jumped"),
        [(60, 60, False), (60, 60.9, False), (1, 3600, True), (60, 0, True), (1, -3600, True)],
    )
    async def test_the_clocks(
        self, clocks: Clocks, loop: float, wall: float, *, jumped: bool
    ) -> None:
        """It tells when they have gone apart."""
        rung: list[bool] = []
        alarm = alarm_of(clocks, rung)
        alarm.set(2000.0)
        clocks.loop += loop
        clocks.wall += wall
        alarm.ring()
        alarm.set(3000.0)
        alarm.ring()

        assert rung == [jumped, False]


class TestHundredThousand:
    async def test_one_timer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many sockets cost one timer of the loop, and less than 20 MB."""
        registry = SessionWSRegistry(expiry=Expiry(max_lifetime=1e6))
        connections = [Connection(n, None) for n in range(MANY)]
        now = asyncio.get_running_loop().time()
        for connection in connections:
            connection.opened_at = connection.started = now
        session = Session(None, data={"created": 1, "session": {}}, new=False, max_age=10**10)
        timers: list[asyncio.TimerHandle] = []
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            timers.append(call_at(*args, **kwargs))
            return timers[-1]

        monkeypatch.setattr(loop, "call_at", counted)
        gc.collect()
        tracemalloc.start()
        for connection in connections:
            registry._checker.watch(connection, session)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        registry._checker.stop()

        assert len(timers) == 1
        assert timers[0].cancelled()
        assert size < 20e6, size
        assert all(connection.deadline for connection in connections)
