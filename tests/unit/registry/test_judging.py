"""
Orders that concern many sockets: the sockets are judged and closed in slices.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws import SessionWSRegistry, Timeouts
from aiohttp_session_ws._lineage import Kind, Lineage, Subject
from aiohttp_session_ws.close_codes import RECONNECT, SESSION_ENDED, Close
from aiohttp_session_ws.connections import closing
from aiohttp_session_ws.connections.connection import CLOSING, OPEN, TrackedConnection
from aiohttp_session_ws.registry import effects
from aiohttp_session_ws.registry.identify import Owner, subjects_of
from aiohttp_session_ws.registry.judging import Judge, closes_in_any_case
from aiohttp_session_ws.registry.order import Order
from aiohttp_session_ws.results import CloseReport
from aiohttp_session_ws.sessions.clock import Clock
from aiohttp_session_ws.sessions.records import (
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from aiohttp_session_ws.sessions.status import State, Status, status
from aiohttp_session_ws.signals import OrderDetails
from tests.support import AiohttpClient, Client, expect_close, make_app, until, user_of
from tests.support.inspect import inspect

MANY = 5
CLOSE_FOR = {State.ALIVE: None, State.REPLACED: RECONNECT, State.ENDED: SESSION_ENDED}
SUBJECTS: tuple[tuple[Kind, str], ...] = (("id", "x"), ("id", "y"), ("identity", "ann"))


def anns(registry: SessionWSRegistry) -> list[TrackedConnection]:
    """Return the connections that are filed under the identity ann."""
    return inspect(registry).connections.identities.of("ann")


async def carry_out(
    order: Coroutine[Any, Any, CloseReport], sockets: list[Any]
) -> tuple[CloseReport, list[int]]:
    """Give an order; return its report, and the close codes of *sockets*."""
    report = asyncio.ensure_future(order)
    codes = await asyncio.gather(*map(expect_close, sockets))
    return await report, codes


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a slice to one socket, so that two sockets are many."""
    monkeypatch.setattr(effects, "JUDGED_AT_ONCE", 1)
    monkeypatch.setattr(closing, "AT_ONCE", 0)
    monkeypatch.setattr(closing, "SLICE", 1)
    monkeypatch.setattr(closing, "BATCH", 1)


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=Timeouts(close=5.0, handler_grace=5.0))


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    client = await aiohttp_client(make_app(registry))
    await client.get("/login")
    return client


@pytest.fixture
async def sockets(client: Client) -> AsyncIterator[list[Any]]:
    """Open :data:`MANY` sockets for ann."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(client.ws_connect("/ws")) for _ in range(MANY)]
        for ws in opened:
            await ws.receive()
        yield opened


async def test_all_are_closed_and_counted(registry: SessionWSRegistry, sockets: list[Any]) -> None:
    """An order's report counts all sockets, also those judged after the call."""
    report, codes = await carry_out(registry.end_identity("ann"), sockets)

    assert codes == [4401] * MANY
    assert (report.sockets, report.aborted, report.cancelled) == (MANY, 0, 0)


async def test_frames_in_one_go(
    registry: SessionWSRegistry, sockets: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of an order that isn't large are written in one event loop iteration."""
    monkeypatch.setattr(closing, "AT_ONCE", MANY)
    report = asyncio.ensure_future(registry.end_identity("ann"))
    await asyncio.sleep(0)
    states = [connection.state for connection in anns(registry)]
    await asyncio.gather(*map(expect_close, sockets))

    assert states == [CLOSING] * MANY
    assert (await report).sockets == MANY


async def test_close_order(registry: SessionWSRegistry, sockets: list[Any]) -> None:
    """An order that only closes sends the reconnect code to all sockets."""
    report, codes = await carry_out(registry.close_all_identity("ann"), sockets)

    assert codes == [4403] * MANY
    assert report.sockets == MANY


async def test_announced_with_their_number(
    registry: SessionWSRegistry, sockets: list[Any]
) -> None:
    """The signal ``on_order`` is sent once, with the number of all sockets closed."""
    told: list[OrderDetails] = []

    @registry.on_order
    async def tell(details: OrderDetails) -> None:
        told.append(details)

    await asyncio.gather(registry.end_identity("ann"), *[expect_close(ws) for ws in sockets])
    await until(lambda: told)

    assert [(details.sockets, details.handshakes) for details in told] == [(MANY, 0)]


async def test_exception(registry: SessionWSRegistry, sockets: list[Any]) -> None:
    """A connection that an order excepts stays open, and isn't counted."""
    spared = anns(registry)[0]
    order = registry.close_all_session(spared.session_ws_id, except_=spared)
    report, _ = await carry_out(order, sockets[1:])

    assert report.sockets == MANY - 1
    assert anns(registry) == [spared]


async def test_leaving_meanwhile(registry: SessionWSRegistry, sockets: list[Any]) -> None:
    """A socket whose transport is lost before its turn is counted as closed, not as aborted."""
    order = asyncio.ensure_future(registry.end_identity("ann"))
    await asyncio.sleep(0)
    leaving = anns(registry)[-1]
    assert leaving.state is OPEN
    assert leaving.transport is not None
    leaving.transport.abort()
    report = await order

    assert (report.sockets, report.aborted) == (MANY, 0)
    assert not anns(registry)


async def test_pushed_meanwhile(registry: SessionWSRegistry, sockets: list[Any]) -> None:
    """A message pushed while sockets wait for their turn isn't sent to them."""
    order = asyncio.ensure_future(registry.end_identity("ann"))
    await asyncio.sleep(0)
    assert anns(registry)[-1].state is OPEN
    delivery = await registry.broadcast("not for you")

    assert delivery.sockets == 0
    assert [(await ws.receive()).type for ws in sockets] == [WSMsgType.CLOSE] * MANY
    await order


async def test_coming_meanwhile(
    client: Client, registry: SessionWSRegistry, sockets: list[Any]
) -> None:
    """A handshake that begins while sockets wait for their turn is refused, and isn't counted."""
    order = asyncio.ensure_future(registry.end_identity("ann"))
    await asyncio.sleep(0)
    assert anns(registry)[-1].state is OPEN
    async with client.ws_connect("/ws") as ws:
        assert await expect_close(ws) == 4401

    assert (await order).sockets == MANY


def test_certain() -> None:
    """A connection that is closed in any case gets the same close if it is judged."""
    rng, certain = random.Random(3), [0, 0]
    clock = Clock(wall=lambda: 2.0, monotonic=lambda: 0.0)
    for _ in range(3000):
        records, lineage = Records(), Lineage("t", rng.randrange(3), rng.uniform(0, 3))
        identity, sparse = rng.choice([None, "ann"]), rng.random() < 0.2
        connection: Any = SimpleNamespace(
            state=OPEN,
            lineage=lineage,
            session_ws_id="x",
            identity=identity,
            sparse={} if sparse else None,
            labels=(),
            proven=None,
        )
        end = SubjectEnded(Subject(*rng.choice(SUBJECTS)), rng.uniform(0, 3), 60.0)
        must_reconnect = rng.random() < 0.5
        others: list[Change] = [
            LineageEnded("t", 1.0, carries=rng.random() < 0.5, ttl=60.0),
            LineageRenewed("t", 2, 1, 1.0, False, seen=True, ttl=60.0),
            IdNote("x", "t", 1.0, 60.0),
        ]
        changes: tuple[Change, ...] = () if must_reconnect else (end,)
        for change in (*rng.sample(others, rng.randrange(3)), *changes):
            records.merge(change)

        def judge(c: TrackedConnection, known: Records = records) -> Status:
            subjects = subjects_of(c.session_ws_id, Owner(c.identity, c.labels))
            return status(known, c.lineage, subjects, clock, 30.0)

        core: Any = SimpleNamespace(
            status_of=judge, close_for=lambda found: CLOSE_FOR[found.state]
        )
        closes = (Subject("id", "x"),) if must_reconnect else ()
        slow = Judge(Order(changes, closes, Close(4000)), core)
        if closes_in_any_case(changes, connection, must_reconnect):
            certain[must_reconnect] += 1
            assert slow.close_of(connection, must_reconnect) == Close(4000)
            assert not slow.replaced
    assert min(certain) > 100
