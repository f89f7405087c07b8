"""
Close orders that a handshake may have missed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import pytest
from hypothesis import given, strategies as st

from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.sessions.close_orders import HANDSHAKE_LIMIT, CloseOrders


def session(session_ws_id: Hashable) -> Subject:
    """Return the subject of an id."""
    return Subject("id", session_ws_id)


def test_no_order() -> None:
    """Without an order a handshake has missed nothing."""
    assert not CloseOrders().missed(session("a"), 100.0, 100.1)


@pytest.mark.parametrize(("started", "missed"), [(99.0, True), (100.0, True), (100.1, False)])
def test_order(started: float, missed: bool) -> None:
    """An order concerns handshakes of its subject that began no later than the order."""
    orders = CloseOrders()
    orders.add(session("a"), 100.0)

    assert orders.missed(session("a"), started, 101.0) is missed
    assert not orders.missed(session("b"), started, 101.0)
    assert not orders.missed(Subject("identity", "a"), started, 101.0)


def test_equal_ids() -> None:
    """An order to an id concerns all ids that are equal to it."""
    orders = CloseOrders()
    orders.add(session(1), 100.0)

    assert orders.missed(session(True), 99.0, 101.0)


def test_the_last_order_counts() -> None:
    """A second order concerns the handshakes that began after the first."""
    orders = CloseOrders()
    orders.add(session("a"), 100.0)
    orders.add(session("a"), 110.0)

    assert orders.missed(session("a"), 105.0, 111.0)


@pytest.mark.parametrize("many", [False, True])
def test_an_order_that_comes_late(many: bool) -> None:
    """An order that arrives after a later one doesn't replace it."""
    orders = CloseOrders()
    orders.add(session("a"), 110.0)
    if many:
        orders.add_many("id", ["a", "b"], [100.0, 100.0])
    else:
        orders.add(session("a"), 100.0)

    assert orders.missed(session("a"), 105.0, 111.0)
    assert orders.missed(session("b"), 99.0, 111.0) is many
    assert not orders.missed(session("b"), 105.0, 111.0)


def test_many() -> None:
    """Of many orders that are added at once, each counts from its own time."""
    orders = CloseOrders()
    orders.add_many("identity", ["a", "b"], [100.0, 110.0])

    assert orders.missed(Subject("identity", "a"), 100.0, 111.0)
    assert not orders.missed(Subject("identity", "a"), 105.0, 111.0)
    assert orders.missed(Subject("identity", "b"), 105.0, 111.0)
    assert not orders.missed(session("b"), 105.0, 111.0)


def test_all() -> None:
    """An order to all concerns every id; of that and an order to an id, the later one counts."""
    orders = CloseOrders()
    orders.add(session("a"), 100.0)
    orders.add_all(90.0)
    assert orders.missed(session("a"), 95.0, 101.0)
    assert orders.missed(session("b"), 89.0, 101.0)
    assert not orders.missed(session("b"), 90.5, 101.0)

    orders.add_all(110.0)
    assert orders.missed(session("a"), 105.0, 111.0)


@pytest.mark.parametrize(("seconds", "missed"), [(59.9, False), (60.0, True), (3600.0, True)])
def test_old_handshake(seconds: float, missed: bool) -> None:
    """A handshake at or beyond the age limit counts as having missed an order."""
    assert HANDSHAKE_LIMIT == 60.0
    assert CloseOrders().missed(session("a"), 100.0, 100.0 + seconds) is missed


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 90))),
    st.sampled_from("abc"),
    st.floats(0, 59),
)
def test_forgets_nothing_that_matters(
    waits: list[tuple[str, float]], session_ws_id: str, age: float
) -> None:
    """A handshake younger than the limit has missed exactly the orders since it began."""
    orders, now, last = CloseOrders(), 0.0, {"a": -math.inf, "b": -math.inf, "c": -math.inf}
    for ordered, seconds in waits:
        now += seconds
        orders.add(session(ordered), now)
        last[ordered] = now

    missed = last[session_ws_id] >= now - age
    assert orders.missed(session(session_ws_id), now - age, now) is missed
