from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Hashable
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from aiohttp_session_ws import (
    Expiry,
    SessionWSRegistry,
    end_session_ws,
    ensure_session_ws_id,
    schedule_close_all_session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.revocation import HANDSHAKE_LIMIT, CloseOrders, Kind, Revocations
from tests.support import AiohttpClient

TTL = 10.0
IDS = ["a", "b", "c", "\ud800", 1, 1.0, True, 2, (1,), ("a",), b"a", frozenset({1})]
ids = st.sampled_from(IDS)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def revocations(clock: Clock) -> Revocations:
    """Return an empty memory that goes by *clock*."""
    return Revocations(clock=clock)


def kind(revocations: Revocations, session_ws_id: Hashable) -> Kind | None:
    """Return why an id is dead, if it is."""
    record = revocations.get(session_ws_id)
    return None if record is None else record.kind


class TestLifetime:
    def test_unknown(self, revocations: Revocations) -> None:
        """An id that nobody revoked is alive."""
        revocations.end("b", TTL)

        assert revocations.get("a") is None

    @pytest.mark.parametrize(("later", "dead"), [(0, True), (TTL - 0.1, True), (TTL, False)])
    def test_ttl(self, revocations: Revocations, clock: Clock, later: float, dead: bool) -> None:
        """An id is dead for as long as its time to live says."""
        revocations.end("a", TTL)
        clock.now += later

        assert (revocations.get("a") is not None) is dead

    def test_meeting_restarts_it(self, revocations: Revocations, clock: Clock) -> None:
        """Whoever comes with a dead id keeps it dead for another term."""
        revocations.end("a", TTL)
        for _ in range(5):
            clock.now += TTL - 1
            assert revocations.get("a") is not None

        clock.now += TTL
        assert revocations.get("a") is None

    def test_meeting_never_shortens_it(self, revocations: Revocations, clock: Clock) -> None:
        """A record that was renewed for a longer time lives for that, met or not."""
        revocations.move("a", "b", TTL)
        revocations.end("a", 10 * TTL)
        assert revocations.get("a") is not None

        clock.now += 5 * TTL
        assert revocations.get("a") is not None

    def test_a_shorter_term_takes_nothing(self, revocations: Revocations, clock: Clock) -> None:
        """Revoking an id again for a shorter time doesn't bring it back sooner."""
        revocations.end("a", 10 * TTL)
        revocations.end("a", TTL)
        clock.now += 5 * TTL

        assert kind(revocations, "a") is Kind.ENDED

    def test_age_is_that_of_death(self, revocations: Revocations, clock: Clock) -> None:
        """The age counts from the death, not from the last meeting."""
        revocations.end("a", TTL)
        clock.now += 4
        record = revocations.get("a")
        assert record is not None

        assert revocations.age(record) == 4

    def test_age_when_moved_then_ended(self, revocations: Revocations, clock: Clock) -> None:
        """An id that moved and ended later is as old as its end."""
        revocations.move("a", "b", TTL)
        clock.now += 4
        revocations.end("a", TTL)
        clock.now += 1
        record = revocations.get("a")
        assert record is not None

        assert revocations.age(record) == 1

    def test_forgotten_records_leave_no_trace(
        self, revocations: Revocations, clock: Clock
    ) -> None:
        """An id that is revoked anew after its time has no successors from before."""
        revocations.move("a", "b", TTL)
        clock.now += TTL

        assert revocations.end("a", TTL) == ["a"]
        assert revocations.get("b") is None

    def test_expired_records_are_dropped(self, revocations: Revocations, clock: Clock) -> None:
        """What has expired takes no memory for long."""
        for number in range(10):
            revocations.end(number, TTL)
        clock.now += TTL
        revocations.end("a", TTL)

        assert len(revocations) == 1


class TestKinds:
    def test_end_then_move(self, revocations: Revocations) -> None:
        """An id that has ended can't be moved, and its successor ends with it."""
        revocations.end("a", TTL)
        revocations.move("a", "b", TTL)

        assert kind(revocations, "a") is Kind.ENDED
        assert kind(revocations, "b") is Kind.ENDED

    def test_move_then_end(self, revocations: Revocations) -> None:
        """An id that has moved can still end, and its successor with it."""
        revocations.move("a", "b", TTL)
        assert kind(revocations, "a") is Kind.MOVED
        assert revocations.get("b") is None

        assert set(revocations.end("a", TTL)) == {"a", "b"}
        assert kind(revocations, "a") is Kind.ENDED
        assert kind(revocations, "b") is Kind.ENDED

    def test_chain(self, revocations: Revocations) -> None:
        """Ending the first id of a chain ends all that came of it."""
        revocations.move("a", "b", TTL)
        revocations.move("b", "c", TTL)
        revocations.move("c", "d", TTL)

        assert set(revocations.end("a", TTL)) == {"a", "b", "c", "d"}
        assert {kind(revocations, id_) for id_ in "abcd"} == {Kind.ENDED}

    def test_predecessors(self, revocations: Revocations) -> None:
        """A cookie from before a renewal is as stale as the others when the session ends."""
        revocations.move("a", "b", TTL)
        revocations.end("b", TTL)

        assert kind(revocations, "a") is Kind.ENDED

    def test_fork(self, revocations: Revocations) -> None:
        """Two requests may have renewed one id at once: both successors end."""
        revocations.move("a", "b", TTL)
        revocations.move("a", "c", TTL)

        assert set(revocations.end("b", TTL)) == {"a", "b", "c"}
        assert kind(revocations, "c") is Kind.ENDED

    def test_fork_after_the_end(self, revocations: Revocations) -> None:
        """A successor that comes late ends with all that came of it."""
        revocations.move("b", "c", TTL)
        revocations.end("a", TTL)
        revocations.move("a", "b", TTL)

        assert kind(revocations, "c") is Kind.ENDED

    @pytest.mark.parametrize("chain", ["aa", "aba", "abca"])
    def test_cycle(self, revocations: Revocations, chain: str) -> None:
        """Ids that come round again end once."""
        for old, new in itertools.pairwise(chain):
            revocations.move(old, new, TTL)
        ended = revocations.end("a", TTL)

        assert sorted(map(str, ended)) == sorted(set(chain))
        revocations.move("a", chain[1], TTL)
        assert kind(revocations, "a") is Kind.ENDED

    def test_long_chain(self, revocations: Revocations) -> None:
        """The length of a chain is no danger to the stack."""
        for number in range(5000):
            revocations.move(number, number + 1, TTL)

        assert len(revocations.end(0, TTL)) == 5001

    def test_lift(self, revocations: Revocations) -> None:
        """A revocation can be taken back, once."""
        revocations.end("a", TTL)

        assert revocations.lift("a")
        assert revocations.get("a") is None
        assert not revocations.lift("a")


class TestIds:
    @pytest.mark.parametrize("session_ws_id", [1, 2.5, (1, "a"), frozenset({1}), "", "\ud800"])
    def test_any_hashable(self, revocations: Revocations, session_ws_id: Hashable) -> None:
        """Any hashable may be an id, a str with surrogates too."""
        revocations.end(session_ws_id, TTL)

        assert kind(revocations, session_ws_id) is Kind.ENDED
        assert revocations.get("a") is None

    @pytest.mark.parametrize("ended", [1, 1.0, True])
    @pytest.mark.parametrize("met", [1, 1.0, True])
    def test_equal_ids(self, revocations: Revocations, ended: Hashable, met: Hashable) -> None:
        """Ids that are equal are one, as in any dictionary."""
        revocations.end(ended, TTL)

        assert kind(revocations, met) is Kind.ENDED
        assert revocations.lift(met)

    @pytest.mark.parametrize("other", ["1", (1,), b"b", 2])
    def test_different_ids(self, revocations: Revocations, other: Hashable) -> None:
        """Ids that only look alike are two."""
        revocations.end(1, TTL)

        assert revocations.get(other) is None

    @given(st.text(), st.text())
    def test_text(self, ended: str, met: str) -> None:
        """Two texts are one id if they are equal."""
        revocations = Revocations()
        revocations.end(ended, TTL)

        assert (revocations.get(met) is not None) is (ended == met)


class TestBound:
    @pytest.fixture
    def small(self, clock: Clock) -> Revocations:
        """Return a memory for three ids."""
        return Revocations(limit=3, clock=clock)

    def test_up_to_the_limit(self, small: Revocations, caplog: pytest.LogCaptureFixture) -> None:
        """As many as the limit are kept without a word."""
        for session_ws_id in "abc":
            small.end(session_ws_id, TTL)

        assert len(small) == 3
        assert not caplog.records

    def test_beyond(self, small: Revocations, caplog: pytest.LogCaptureFixture) -> None:
        """Beyond the limit the oldest goes, with one warning for many."""
        for session_ws_id in "abcdef":
            small.end(session_ws_id, TTL)

        assert [id_ for id_ in "abcdef" if small.get(id_)] == ["d", "e", "f"]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "more than 3 dead session ids" in caplog.text

    def test_met_ones_stay(self, small: Revocations) -> None:
        """The one that was not met for longest goes first."""
        for session_ws_id in "abc":
            small.end(session_ws_id, TTL)
        small.get("a")
        small.end("d", TTL)

        assert [id_ for id_ in "abcd" if small.get(id_)] == ["a", "c", "d"]

    def test_expired_ones_go_first(
        self, small: Revocations, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Room that expired records leave is used before anything is evicted."""
        for session_ws_id in "abc":
            small.end(session_ws_id, TTL)
        clock.now += TTL
        for session_ws_id in "def":
            small.end(session_ws_id, TTL)

        assert len(small) == 3
        assert not caplog.records

    def test_again_is_no_more(self, small: Revocations) -> None:
        """Revoking an id again takes no more room."""
        for session_ws_id in "abcaaa":
            small.end(session_ws_id, TTL)

        assert [id_ for id_ in "abc" if small.get(id_)] == ["a", "b", "c"]


class Model(RuleBasedStateMachine):
    """
    Compare the memory with plain sets: families of ids that end together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.real = Revocations(clock=self.clock)
        self.families: list[set[Hashable]] = []
        self.kinds: dict[Hashable, Kind] = {}

    def family(self, id_: Hashable) -> set[Hashable]:
        """Find the ids that end with an id."""
        return next((family for family in self.families if id_ in family), {id_})

    @rule(id_=ids)
    def end(self, id_: Hashable) -> None:
        """End an id, and its family."""
        ended = self.real.end(id_, TTL)
        self.kinds.update(dict.fromkeys(self.family(id_), Kind.ENDED))

        assert len(ended) == len(set(ended))
        assert set(ended) == self.family(id_)

    @rule(id_=ids, successor=ids)
    def move(self, id_: Hashable, successor: Hashable) -> None:
        """Move an id, which joins two families."""
        self.real.move(id_, successor, TTL)
        both = self.family(id_) | self.family(successor)
        self.families = [f for f in self.families if not f & both] + [both]
        kinds = self.kinds.setdefault(id_, Kind.MOVED), self.kinds.get(successor)
        if Kind.ENDED in kinds:
            self.kinds.update(dict.fromkeys(both, Kind.ENDED))

    @rule(id_=ids)
    def meet(self, id_: Hashable) -> None:
        """Come with an id."""
        record = self.real.get(id_)

        assert (record and record.kind) is self.kinds.get(id_)

    @rule(seconds=st.sampled_from([0.01, 0.1]))
    def wait(self, seconds: float) -> None:
        """Let a little time pass."""
        self.clock.now += seconds

    @precondition(lambda self: self.kinds)
    @rule()
    def forget(self) -> None:
        """Let so much time pass that all is forgotten."""
        self.clock.now += TTL + 1000
        for id_ in list(self.kinds):
            assert self.real.get(id_) is None
        self.kinds.clear()
        self.families.clear()

        assert len(self.real) == len(self.real._families) == 0


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


class TestCloseOrders:
    def test_no_order(self) -> None:
        """Without an order a handshake has missed nothing."""
        orders = CloseOrders()

        assert not orders.concern("a", 100.0, 100.1)

    @pytest.mark.parametrize(("started", "missed"), [(99.0, True), (100.0, True), (100.1, False)])
    def test_note(self, started: float, missed: bool) -> None:
        """An order concerns the handshakes that began before it, or with it."""
        orders = CloseOrders()
        orders.note("a", 100.0)

        assert orders.concern("a", started, 101.0) is missed
        assert not orders.concern("b", started, 101.0)

    def test_equal_ids(self) -> None:
        """An order to an id is one to all that equal it."""
        orders = CloseOrders()
        orders.note(1, 100.0)

        assert orders.concern(True, 99.0, 101.0)

    def test_the_last_order_counts(self) -> None:
        """A second order concerns the handshakes since the first."""
        orders = CloseOrders()
        orders.note("a", 100.0)
        orders.note("a", 110.0)

        assert orders.concern("a", 105.0, 111.0)

    def test_hold(self) -> None:
        """An order without end holds all handshakes off until the next order."""
        orders = CloseOrders()
        orders.hold("a")
        assert orders.concern("a", 200.0, 200.0)
        assert not orders.concern("b", 200.0, 200.0)

        orders.note("a", 210.0)
        assert orders.concern("a", 209.0, 211.0)
        assert not orders.concern("a", 210.5, 211.0)

    def test_note_all(self) -> None:
        """An order to all concerns ids that nobody has heard of."""
        orders = CloseOrders()
        orders.note_all(100.0)

        assert orders.concern("a", 99.0, 101.0)
        assert not orders.concern("a", 100.5, 101.0)

    def test_note_all_beside_note(self) -> None:
        """The later of both orders counts, whichever that is."""
        orders = CloseOrders()
        orders.note("a", 100.0)
        orders.note_all(90.0)
        assert orders.concern("a", 95.0, 101.0)

        orders.note_all(110.0)
        assert orders.concern("a", 105.0, 111.0)

    @pytest.mark.parametrize(("seconds", "missed"), [(59.9, False), (60.0, True), (3600.0, True)])
    def test_old_handshake(self, seconds: float, missed: bool) -> None:
        """A handshake may have missed an order that has been forgotten since."""
        orders = CloseOrders()

        assert HANDSHAKE_LIMIT == 60.0
        assert orders.concern("a", 100.0, 100.0 + seconds) is missed

    def test_prune(self) -> None:
        """Orders are forgotten when no handshake can be as old as they are."""
        orders = CloseOrders()
        for number in range(1000):
            orders.note(number, float(number))

        assert len(orders._last) == HANDSHAKE_LIMIT
        assert not orders.concern(0, 999.5, 1000.0)
        assert orders.concern(0, -1.0, 1000.0)

    def test_hold_outlives_pruning(self) -> None:
        """Handshakes stay held off however many orders come meanwhile."""
        orders = CloseOrders()
        orders.hold("held")
        for number in range(200):
            orders.note(number, float(number))

        assert orders.concern("held", 199.0, 199.0)

    def test_hold_does_not_stop_pruning(self) -> None:
        """One request that takes for ever must not keep all later orders in memory."""
        orders = CloseOrders()
        orders.hold("held")
        for number in range(1000):
            orders.note(number, float(number))

        assert len(orders._last) <= HANDSHAKE_LIMIT + 1

    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 90))),
        st.sampled_from("abc"),
        st.floats(0, 59),
    )
    def test_forgets_nothing_that_matters(
        self, waits: list[tuple[str, float]], session_ws_id: str, age: float
    ) -> None:
        """Every handshake younger than the limit is told of an order since it began."""
        orders, now, last = CloseOrders(), 0.0, {"a": -math.inf, "b": -math.inf, "c": -math.inf}
        for ordered, seconds in waits:
            now += seconds
            orders.note(ordered, now)
            last[ordered] = now

        assert orders.concern(session_ws_id, now - age, now) is (last[session_ws_id] >= now - age)


class TestHold:
    @pytest.mark.parametrize("watched", [False, True])
    @pytest.mark.parametrize("status", [200, 302, 404])
    @pytest.mark.parametrize("helper", [schedule_close_all_session_ws, end_session_ws])
    async def test_ends_with_the_request(
        self, aiohttp_client: AiohttpClient, helper: Any, status: int, watched: bool
    ) -> None:
        """Handshakes are held off no longer than the request, a newcomer's error or not."""

        async def handler(request: web.Request) -> web.Response:
            await ensure_session_ws_id(request)
            response = web.Response(status=status)
            await helper(request, response)
            return response

        registry = SessionWSRegistry()
        storage = aiohttp_session.SimpleCookieStorage()
        middlewares = [aiohttp_session.session_middleware(storage)]
        if watched:
            middlewares.append(session_ws_middleware)
        app = web.Application(middlewares=middlewares)
        setup(app, registry)
        app.router.add_get("/", handler)
        client = await aiohttp_client(app)
        async with client.get("/", allow_redirects=False) as response:
            assert response.status == status
        await asyncio.gather(*registry._sockets._tasks)

        assert not registry._orders._held


class TestExpiry:
    @pytest.mark.parametrize("seconds", [0, -1, -math.inf])
    def test_not_positive(self, seconds: float) -> None:
        """A time to live is positive."""
        with pytest.raises(ValueError, match="revocation_ttl"):
            Expiry(revocation_ttl=seconds)

    def test_default(self) -> None:
        """Without a max_age of the storage, dead ids are remembered for thirty days."""
        assert Expiry().ttl(None) == 30 * 24 * 3600

    def test_chosen(self) -> None:
        """The time without a max_age may be chosen."""
        assert Expiry(revocation_ttl=5).ttl(None) == 5

    @pytest.mark.parametrize("max_age", [0, 60, 10**9])
    def test_max_age(self, max_age: int) -> None:
        """With a max_age, an id stays dead for an hour longer than its session."""
        assert Expiry(revocation_ttl=5).ttl(max_age) == max_age + 3600

    def test_of_the_registry(self) -> None:
        """The registry remembers for as long as it is told to."""
        registry = SessionWSRegistry(expiry=Expiry(revocation_ttl=5))

        assert registry.expiry.revocation_ttl == 5
        assert SessionWSRegistry().expiry == Expiry()
