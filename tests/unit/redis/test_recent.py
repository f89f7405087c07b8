"""
The numbers that were received, the recent messages, and the orders that were carried out.
"""

from __future__ import annotations

import random

import pytest

from aiohttp_session_ws.close_codes import SESSION_ENDED
from aiohttp_session_ws.redis import recent
from aiohttp_session_ws.redis.messages import PublishedOrder, envelope, order_text
from aiohttp_session_ws.redis.recent import ReceivedNumbers, RecentOrders, SeenOrders
from aiohttp_session_ws.redis.rows import Shape, cell_text, row_text


class TestReceivedNumbers:
    def test_in_order(self) -> None:
        """Consecutive numbers leave nothing missing."""
        numbers = ReceivedNumbers()
        assert numbers.receive(1, 1)
        assert numbers.receive(2, 500)
        assert (numbers.last, numbers.missing) == (500, [])

    def test_gap(self) -> None:
        """Numbers that are skipped are missing until they are found."""
        numbers = ReceivedNumbers()
        assert not numbers.receive(10, 12)
        assert numbers.missing == [(1, 9)]
        assert numbers.mark_found(4, 6)
        assert numbers.missing == [(1, 3), (7, 9)]
        assert numbers.receive(1, 3)
        assert numbers.mark_found(1, 99)
        assert not numbers.missing

    def test_backwards(self) -> None:
        """A number received twice is reported: Redis may count from another start."""
        numbers = ReceivedNumbers()
        numbers.receive(1, 100)
        assert not numbers.receive(5, 5)
        numbers.rewind(0, 7)
        assert (numbers.last, numbers.missing) == (7, [(1, 7)])

    def test_rewind(self) -> None:
        """``rewind()`` marks received numbers as missing that another server may have reused."""
        numbers = ReceivedNumbers()
        numbers.receive(1, 100)
        numbers.rewind(90, 95)
        assert (numbers.last, numbers.missing) == (95, [(91, 95)])

    def test_rewind_forward(self) -> None:
        """``rewind()`` beyond the last number marks all those between as missing, too."""
        numbers = ReceivedNumbers()
        numbers.receive(1, 100)
        numbers.rewind(103, 105)
        assert (numbers.last, numbers.missing) == (105, [(101, 105)])

    def test_random(self) -> None:
        """In whatever order numbers come, exactly those that have not come are missing."""
        rng = random.Random(3)
        for _ in range(300):
            numbers, heard, last = ReceivedNumbers(), set[int](), 0
            for _ in range(rng.randrange(1, 12)):
                first = rng.randrange(1, 30)
                end = first + rng.randrange(4)
                if rng.random() < 0.7:
                    numbers.receive(first, end)
                    last = max(last, end)
                    heard |= set(range(first, end + 1))
                else:
                    numbers.extend_to(end)
                    last = max(last, end)
            missing = {n for low, high in numbers.missing for n in range(low, high + 1)}
            assert missing == set(range(1, last + 1)) - heard


class TestRecentOrders:
    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The oldest messages are dropped when they are too large in total, or too old."""
        monkeypatch.setattr(recent, "LARGEST", 10)
        now = [0.0]
        orders = RecentOrders(lambda: now[0])
        for n in range(5):
            orders.add(f"node {n % 2}", b"1234")
        assert len(orders) == 2
        now[0] = recent.KEPT + 1
        assert list(orders.of(lambda sender: True)) == []
        orders.add("a", b"new")
        assert len(orders) == 1

    def test_of(self) -> None:
        """``of()`` returns the messages of the chosen senders, the oldest first."""
        orders = RecentOrders()
        for n, sender in enumerate("abab"):
            orders.add(sender, str(n).encode())
        assert list(orders.of(lambda sender: sender == "b")) == [b"1", b"3"]

    def test_written_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A message that only writes records again is dropped after minutes, before all others."""
        shape = Shape(ends=True, kind="id", close=SESSION_ENDED, ttl=60.0)
        genuine = row_text(shape, 0, [cell_text(1.0, (("x",), (), 2))])
        order = PublishedOrder((), written_back=True)
        again = order_text(order, ['[1,"ended",1.0,0,60.0,0,1,"x"]'])
        now = [0.0]
        orders = RecentOrders(lambda: now[0])
        bodies = [
            envelope("a/1", lines).encode() for lines in ([genuine], [again, genuine], [again])
        ]
        for body in bodies:
            assert body.endswith(b"],[],2]")
            orders.add("a/1", body)
        assert list(orders.of(lambda sender: True, again=True)) == bodies
        assert list(orders.of(lambda sender: True)) == bodies[:2]
        now[0] = recent.AGAIN_KEPT + 1
        assert list(orders.of(lambda sender: True, again=True)) == bodies[:2]
        orders.add("a/1", bodies[2])
        assert list(orders.of(lambda sender: True, again=True)) == bodies
        monkeypatch.setattr(recent, "LARGEST", 2 * len(bodies[2]))
        for _ in range(5):
            orders.add("a/1", bodies[2])
        assert list(orders.of(lambda sender: True, again=True)) == [bodies[1], *2 * [bodies[2]]]


class TestSeenOrders:
    def test_once(self) -> None:
        """An order of another node is new once, an order of this node never."""
        seen = SeenOrders("a/1")
        number = seen.new()
        assert number.startswith("a/1/")
        assert not seen.add(number)
        assert seen.add("b/1/1")
        assert not seen.add("b/1/1")
        assert seen.has("b/1/1")
        assert not seen.has("c/1/1")
        assert not seen.has("b/1/2")

    def test_row(self) -> None:
        """``add_row()`` returns which orders of a row were seen before, also across blocks."""
        seen = SeenOrders("a/1")
        assert seen.add_row("b", 10, 3000) == set()
        assert seen.add_row("b", 0, 12) == {10, 11}
        assert seen.add_row("b", 3000, 100) == set(range(3000, 3010))
        assert seen.has("b/3099")
        assert not seen.has("b/3100")
        assert not seen.add("b/2000")

    @pytest.mark.parametrize("number", ["", "x", "a/x", "a/-1", "a/\u0663", "a/" + "9" * 30])
    def test_foreign(self, number: str) -> None:
        """An order whose number has the format of another version is new once, too."""
        seen = SeenOrders("a/1")
        assert seen.add(number)
        assert seen.has(number)
        assert not seen.add(number)

    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The oldest orders are forgotten when they are too many or too old."""
        monkeypatch.setattr(recent, "MOST", 3)
        now = [0.0]
        seen = SeenOrders("a", lambda: now[0])
        for n in range(5):
            seen.add(f"{n}/1")
        assert [n for n in range(5) if seen.has(f"{n}/1")] == [2, 3, 4]
        now[0] = recent.KEPT + 1
        seen.add("new/1")
        assert not seen.has("4/1")
