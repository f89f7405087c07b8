"""
One directed trace for each trap of the session model, which docs/guide.rst describes.

A trace holds a request at the critical point and resumes it later. It observes only what any
client with a cookie can see: the user that a page is served as, and whether a socket opens.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.promise.world.exchange import Exchange
from tests.promise.world.steps import Config, Order
from tests.promise.world.virtual import run
from tests.promise.world.world import World

COOKIE = Config()
SERVER = Config(storage="memory")
CLUSTER = Config(cluster="memory")  # no message between them arrives
STORAGES = pytest.mark.parametrize("config", [COOKIE, SERVER], ids=["cookie", "server"])

NOBODY = None
OPEN = 101

Trap = Callable[..., Coroutine[Any, Any, None]]


def play(config: Config, trap: Trap, *args: Any) -> None:
    """Run *trap* in a world of its own; fail also if the oracle finds a violation."""

    async def main() -> World:
        async with World(config) as world:
            await trap(world, *args)
            await world.end()
        return world

    world = run(main)
    assert not world.oracle.violations, "\n".join(
        [*world.trace, *map(str, world.oracle.violations)]
    )


async def page(world: World, cookie: str | None, node: int = 0) -> str | None:
    """Return the log-in that a page with *cookie* is served as, ``None`` if anonymous."""
    ex = await world.visit("probe", "read", cookie=cookie, lost=True, node=node)
    return (ex.saw or {}).get("tok")


async def sock(world: World, cookie: str | None, node: int = 0) -> int:
    """Return the code with which a handshake with *cookie* is refused, 101 if it opens."""
    ex = await world.visit("probe", "open", cookie=cookie, lost=True, node=node)
    return ex.client.closed or ex.client.status or 0


async def both(world: World, cookie: str | None, node: int = 0) -> tuple[str | None, int]:
    """Return the results of a page request and of a handshake with *cookie*."""
    return await page(world, cookie, node), await sock(world, cookie, node)


def token(ex: Exchange) -> str:
    """Return the token that *ex* has left in its session."""
    assert ex.left is not None
    return str(ex.left["tok"])


def jar(world: World, name: str = "A") -> str | None:
    """Return the cookie of a browser."""
    return world.browser(name).jar


async def log_in(world: World, name: str = "A") -> tuple[str, str | None]:
    """Log a browser in; return the log-in's token and the cookie."""
    return token(await world.visit(name, "log_in_renewed")), jar(world, name)


# A thief with an older generation


def test_a_renewal_whose_answer_is_lost_does_not_revive_an_older_generation() -> None:
    """A generation that was given up stays so, even if the next renewal's response is lost."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        await world.visit("A", "renew")
        await world.wait(3600)
        await world.visit("A", "read")
        assert await both(world, cookie) == (NOBODY, 4401)
        await world.visit("A", "renew", lost=True)
        assert await both(world, cookie) == (NOBODY, 4401)
        await world.wait(31)
        assert await both(world, cookie) == (NOBODY, 4401)
        assert await both(world, jar(world)) == (login, OPEN)

    play(COOKIE, trap)


def test_a_renewal_grants_no_grace_to_an_older_generation() -> None:
    """The grace covers only the generation that was renewed, not its predecessors."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        await world.visit("A", "renew")
        await world.wait(3600)
        await world.visit("A", "read")
        assert await page(world, cookie) is NOBODY
        await world.visit("A", "renew")
        await world.visit("A", "read")
        assert await page(world, cookie) is NOBODY

    play(COOKIE, trap)


def test_an_older_generation_cannot_renew_itself() -> None:
    """An older generation can't renew itself, even if the response to a later renewal was lost."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        await world.visit("A", "renew")
        await world.visit("A", "read")
        await world.visit("A", "renew", lost=True)
        await world.wait(31)
        stolen = await world.visit("T", "renew", cookie=cookie)
        await world.wait(60)
        assert (stolen.saw or {}).get("tok") is NOBODY
        assert await page(world, jar(world, "T")) is NOBODY
        assert await page(world, jar(world)) == login

    play(COOKIE, trap)


@pytest.mark.parametrize("seen", [True, False])
def test_within_the_grace_a_replaced_generation_cannot_renew_itself(seen: bool) -> None:
    """A replaced session's renewal is not saved, whether the newer generation was seen or not."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        await world.visit("A", "renew")
        if seen:
            await world.visit("A", "read")
        await world.wait(5)
        stolen = await world.visit("T", "renew", cookie=cookie)
        assert not stolen.saved
        await world.wait(60)
        assert await page(world, jar(world)) == login

    play(COOKIE, trap)


def test_a_thief_who_renews_first_is_ended_with_the_owner() -> None:
    """A thief who renews first drives the owner out, but the owner's log-out ends both."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        stolen = await world.visit("T", "renew", cookie=cookie)
        assert stolen.saved
        await world.visit("T", "read")
        await world.wait(60)
        assert await both(world, cookie) == (NOBODY, 4401)
        await world.visit("X", "log_out", cookie=cookie)
        assert await both(world, jar(world, "T")) == (NOBODY, 4401)

    play(COOKIE, trap)


def test_an_unused_renewal_of_a_thief_does_not_stand_in_the_owners_way() -> None:
    """The owner can renew after the grace if no request came with the thief's newer generation."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        await world.visit("T", "renew", cookie=cookie, lost=True)
        await world.wait(31)
        assert (await world.visit("A", "renew")).saved
        await world.wait(60)
        assert await both(world, jar(world)) == (login, OPEN)
        assert await both(world, cookie) == (NOBODY, 4401)

    play(COOKIE, trap)


# An administrator knows an id


@pytest.mark.parametrize("newest", [False, True])
def test_the_end_of_any_id_that_a_session_had_ends_it(newest: bool) -> None:
    """An order by the first or the newest id ends the session with all its generations."""

    async def trap(world: World) -> None:
        await world.visit("A", "log_in_renewed")
        old = jar(world)
        first = world.ids()
        await world.visit("A", "renew")
        (new,) = set(world.ids()) - set(first)
        (first_id,) = first
        await world.do(Order("end_session", subject=new if newest else first_id))
        await world.wait(60)
        assert await both(world, old) == (NOBODY, 4401)
        assert await both(world, jar(world)) == (NOBODY, 4401)

    play(COOKIE, trap)


# Log out everywhere else


@pytest.mark.parametrize("how", ["log_out", "end_identity", "end_session"])
def test_logging_out_elsewhere_does_not_save_a_session_that_is_ended_meanwhile(how: str) -> None:
    """A log-out elsewhere begins no new session if the old one ended before the order."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        held = await world.visit("A", "log_out_elsewhere", "handler")
        if how == "log_out":
            await world.visit("X", "log_out", cookie=cookie, lost=True)
        else:
            await world.do(Order(how))
        await world.finish(held)
        await world.wait(60)
        assert await both(world, jar(world)) == (NOBODY, 4401)

    play(COOKIE, trap)


def test_the_second_who_logs_out_elsewhere_ends_nothing() -> None:
    """A log-out elsewhere is refused if another one has ended its session first."""

    async def trap(world: World) -> None:
        await log_in(world)
        _, other = await log_in(world, "B")
        held = await world.visit("X", "log_out_elsewhere", "handler", cookie=other)
        mine = token(await world.visit("A", "log_out_elsewhere"))
        await world.finish(held)
        assert not held.saved
        await world.wait(61)
        assert await both(world, jar(world)) == (mine, OPEN)

    play(COOKIE, trap)


def test_a_replaced_generation_cannot_log_out_elsewhere() -> None:
    """A replaced generation's log-out elsewhere ends nothing."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        await world.visit("A", "renew")
        await world.visit("A", "read")
        await world.wait(5)
        stolen = await world.visit("X", "log_out_elsewhere", cookie=cookie)
        assert not stolen.saved
        await world.wait(60)
        assert await both(world, jar(world)) == (login, OPEN)

    play(COOKIE, trap)


def test_logging_out_elsewhere_wins_over_a_renewal_under_way() -> None:
    """A renewal that finishes after a log-out elsewhere is not saved."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        held = await world.visit("A", "renew", "handled")
        mine = token(await world.visit("A", "log_out_elsewhere"))
        await world.finish(held)
        assert not held.saved
        await world.wait(1)
        assert await both(world, jar(world)) == (mine, OPEN)
        assert await both(world, cookie) == (NOBODY, 4403)

    play(COOKIE, trap)


def test_its_own_page_is_told_to_come_back_when_it_logs_out_elsewhere() -> None:
    """A handshake with the cookie from before a log-out elsewhere gets 4403."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        held = await world.visit("A", "log_out_elsewhere", "handled")
        assert await sock(world, cookie) == 4403
        await world.finish(held)
        assert await sock(world, cookie) == 4403
        assert await sock(world, jar(world)) == OPEN

    play(COOKIE, trap)


def test_a_double_click_on_log_out_elsewhere_is_one() -> None:
    """The second of two concurrent log-outs elsewhere is refused and overwrites nothing."""

    async def trap(world: World) -> None:
        await log_in(world)
        first = await world.visit("A", "log_out_elsewhere", "handler")
        second = await world.visit("A", "log_out_elsewhere", "handler")
        await world.finish(first)
        await world.finish(second)
        assert not second.saved
        await world.wait(20)
        assert await both(world, jar(world)) == (token(first), OPEN)

    play(COOKIE, trap)


@pytest.mark.parametrize("ended", [True, False])
def test_one_can_log_in_and_out_everywhere_else_at_once(ended: bool) -> None:
    """A log-in with a log-out elsewhere is refused if the identity ended after it arrived."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        held = await world.visit("A", "log_in_only_here", "handler")
        if ended:
            await world.do(Order("end_identity"))
        await world.finish(held)
        await world.wait(60)
        assert await page(world, jar(world)) == (NOBODY if ended else token(held))

    play(COOKIE, trap)


# A visitor who logs in


def test_a_visitors_cookie_is_a_visitors_again_after_the_grace() -> None:
    """A visitor's cookie from before a log-in gets 4403 for the grace, then opens as before."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        cookie = jar(world)
        login, _ = await log_in(world)
        assert await sock(world, cookie) == 4403
        await world.wait(31)
        assert await sock(world, cookie) == OPEN
        stolen = await world.visit("T", "renew", cookie=cookie)
        assert stolen.saved
        assert await both(world, jar(world, "T")) == (NOBODY, OPEN)
        assert await both(world, jar(world)) == (login, OPEN)

    play(COOKIE, trap)


@pytest.mark.parametrize("action", ["write", "renew"])
def test_a_slow_page_of_the_visitor_does_not_overwrite_a_log_in(action: str) -> None:
    """A visitor's page that finishes after a log-in does not overwrite it, however slow."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        held = await world.visit("A", action, "handled")
        login, _ = await log_in(world)
        await world.wait(40)
        await world.finish(held)
        assert await page(world, jar(world)) == login

    play(COOKIE, trap)


@pytest.mark.parametrize("action", ["write", "renew", "log_in_renewed"])
def test_what_overlaps_a_log_in_does_not_undo_it(action: str) -> None:
    """A write, renewal or second log-in that overlaps a log-in leaves the browser logged in."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        held = await world.visit("A", action, "handled")
        login, _ = await log_in(world)
        await world.finish(held)
        await world.wait(1)
        expected = token(held) if action == "log_in_renewed" else login
        assert await page(world, jar(world)) == expected

    play(COOKIE, trap)


# Storages that keep the session on the server


@pytest.mark.parametrize("action", ["log_in_renewed", "renew"])
def test_a_page_between_the_record_and_the_save_loses_nothing(action: str) -> None:
    """A page that loads the session just before the save overwrites no log-in and no renewal."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        if action == "renew":
            await log_in(world)
        held = await world.visit("A", action, "save")
        between = await world.visit("A", "read", "handled")
        await world.finish(held)
        await world.finish(between)
        assert await both(world, jar(world)) == (token(held), OPEN)

    play(SERVER, trap)


@pytest.mark.parametrize("later", [1, 40])
def test_a_write_that_is_saved_over_a_renewal_is_repaired(later: int) -> None:
    """An older generation in the storage is repaired to the newest, however late it is loaded."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        held = await world.visit("A", "write", "save")
        await world.visit("A", "renew")
        await world.visit("A", "read")
        await world.finish(held)
        await world.wait(later)
        assert await both(world, cookie) == (login, OPEN)

    play(SERVER, trap)


def test_an_ended_identity_serves_no_replaced_generation() -> None:
    """A replaced session whose identity has ended is not served within the grace."""

    async def trap(world: World) -> None:
        _, cookie = await log_in(world)
        await world.visit("A", "renew")
        await world.do(Order("end_identity"))
        assert await both(world, cookie) == (NOBODY, 4401)

    play(COOKIE, trap)


def test_a_repaired_visitor_does_not_overwrite_a_log_in() -> None:
    """A page that was repaired to the newest generation is not saved over a log-in."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        held = await world.visit("A", "renew", "save")
        between = await world.visit("A", "read", "handled")
        await world.finish(held)
        login, _ = await log_in(world)
        await world.finish(between)
        assert await both(world, jar(world)) == (login, OPEN)

    play(SERVER, trap)


@pytest.mark.parametrize("newest", [False, True])
def test_the_end_of_either_id_ends_a_repaired_session(newest: bool) -> None:
    """A repaired session, which has the old id and the newest generation, ends by either id."""

    async def trap(world: World) -> None:
        await log_in(world)
        cookie = jar(world)
        (first,) = world.ids()
        held = await world.visit("A", "renew", "save")
        (new,) = set(world.ids()) - {first}
        between = await world.visit("A", "read", "handled")
        await world.finish(held)
        await world.finish(between)
        await world.do(Order("end_session", subject=new if newest else first))
        await world.wait(60)
        assert await both(world, cookie) == (NOBODY, 4401)

    play(SERVER, trap)


# Two nodes that miss each other's messages


def test_two_nodes_may_give_the_same_generation() -> None:
    """Both cookies of concurrent renewals on two nodes live; the old one is given up."""

    async def trap(world: World) -> None:
        login, old = await log_in(world)
        held = [await world.visit("A", "renew", "handled", cookie=old, node=n) for n in (0, 1)]
        cookies = []
        for ex in held:
            await world.finish(ex)
            cookies.append(jar(world))
        await world.wait(61)
        for cookie in cookies:
            for node in (0, 1):
                assert await both(world, cookie, node) == (login, OPEN)
        for node in (0, 1):
            assert await both(world, old, node) == (NOBODY, 4401)

    play(CLUSTER, trap)


def test_a_generation_that_is_seen_on_another_node_is_seen() -> None:
    """A request with a newer generation than its node knows marks it seen there."""

    async def trap(world: World) -> None:
        login, cookie = await log_in(world)
        assert await page(world, cookie, 1) == login
        await world.visit("A", "renew")
        await world.visit("A", "read", node=1)
        await world.wait(45)
        assert await page(world, cookie, 1) is NOBODY
        await world.wait(120)
        for node in (0, 1):
            assert await page(world, cookie, node) is NOBODY

    play(CLUSTER, trap)


@pytest.mark.parametrize("newest", [False, True])
def test_the_end_of_an_id_meets_a_renewal_on_another_node(newest: bool) -> None:
    """An order by either id ends a session renewed on another node, though no message arrives."""

    async def trap(world: World) -> None:
        _, old = await log_in(world)
        (first,) = world.ids()
        await page(world, old, 1)
        held = await world.visit("A", "renew", "handled", node=1)
        if not newest:
            await world.do(Order("end_session", subject=first))
        await world.finish(held)
        if newest:
            await world.do(Order("end_session", subject=world.ids()[-1]))
        await world.wait(61)
        for node in (0, 1):
            assert await both(world, old, node) == (NOBODY, 4401)
            assert await both(world, jar(world), node) == (NOBODY, 4401)

    play(CLUSTER, trap)


def test_redis_judges_who_may_log_out_elsewhere() -> None:
    """A log-out elsewhere is refused by the shared records if its own node missed the end."""

    async def trap(world: World) -> None:
        await log_in(world)
        await world.visit("B", "log_in_renewed", node=1)
        held = await world.visit(
            "X", "log_out_elsewhere", "handler", cookie=jar(world, "B"), node=1
        )
        mine = token(await world.visit("A", "log_out_elsewhere"))
        await world.finish(held)
        assert not held.saved
        await world.wait(61)
        for node in (0, 1):
            assert await both(world, jar(world), node) == (mine, OPEN)

    play(CLUSTER, trap)


def test_logging_out_elsewhere_ends_a_log_in_under_way_on_another_node() -> None:
    """A log-in that arrived before a log-out elsewhere is ended; one that arrived later lives."""

    async def trap(world: World) -> None:
        await log_in(world)
        held = await world.visit("B", "log_in_renewed", "handler", node=1)
        mine = token(await world.visit("A", "log_out_elsewhere"))
        await world.finish(held)
        later = token(await world.visit("C", "log_in_renewed", node=1))
        await world.wait(61)
        assert await both(world, jar(world, "B"), 1) == (NOBODY, 4401)
        assert await both(world, jar(world, "C"), 1) == (later, OPEN)
        assert await both(world, jar(world), 1) == (mine, OPEN)

    play(CLUSTER, trap)


# A renewal under an id that was ended


@pytest.mark.parametrize("node", [0, 1], ids=["here", "on another node"])
def test_a_session_that_ends_while_its_derived_id_is_made_does_not_begin_anew(node: int) -> None:
    """A log-in under an ended derived id does not begin anew if its session ends meanwhile."""

    async def trap(world: World) -> None:
        await log_in(world, "B")
        await world.visit("A", "log_in")  # its id differs: it was made for a visitor
        await world.do(Order("end_session", subject=world.ids()[0]))
        held = await world.visit("A", "log_in_renewed", "id_factory", node=node)
        await world.visit("A", "log_out")
        await world.finish(held)
        await world.wait(12)
        assert await page(world, jar(world)) is NOBODY

    play(Config(identify=False, ids="derived", cluster="memory"), trap)


def test_a_log_in_under_a_derived_id_outlives_its_end_that_its_node_has_not_heard() -> None:
    """A log-in under a derived id lives if that id was ended before, unknown to its node."""

    async def trap(world: World) -> None:
        await log_in(world, "B")
        await world.visit("A", "read")
        await world.do(Order("end_session", subject=world.ids()[0]))
        login = token(await world.visit("A", "log_in_renewed", node=1))
        await world.wait(61)
        for node in (0, 1):
            assert await both(world, jar(world), node) == (login, OPEN)
            assert await both(world, jar(world, "B"), node) == (NOBODY, 4401)

    play(Config(identify=False, ids="derived", cluster="memory"), trap)


def test_an_id_that_was_given_and_replaced_in_one_request_ends_with_others_only() -> None:
    """A log-in lives on when the visitors' shared id that it replaced at once is ended."""

    async def trap(world: World) -> None:
        await world.visit("A", "log_in_renewed")
        await world.visit("B", "log_in")  # its id is the visitors' shared one, as A's was at first
        await world.do(Order("end_session", subject=world.ids()[-1]))
        await world.wait(12)
        assert await page(world, jar(world)) is not NOBODY

    play(Config(identify=False, ids="derived"), trap)


@pytest.mark.parametrize("ended", [False, True], ids=["under another", "under one that was ended"])
def test_the_end_of_a_derived_id_meets_a_renewal_under_another_on_another_node(
    ended: bool,
) -> None:
    """A session ends with its former derived id, even if renewed on a node unaware of the end."""

    async def trap(world: World) -> None:
        await world.visit("B", "read")
        await log_in(world, "B")  # the visitors' shared id is recorded as this lineage's
        await world.visit("A", "log_in")
        if ended:
            await world.do(Order("end_session", subject=world.ids()[0]))
        held = await world.visit("A", "log_in_renewed", "handled", node=1)
        await world.do(Order("end_session", subject=world.ids()[1]))
        await world.finish(held)
        await world.wait(61)
        for node in (0, 1):
            assert await both(world, jar(world), node) == (NOBODY, 4401)

    play(Config(identify=False, ids="derived", cluster="memory"), trap)


def test_a_session_that_ends_while_its_derived_id_is_made_does_not_go_on_alone() -> None:
    """A log-out elsewhere saves no session if a log-out comes while it makes a derived id."""

    async def trap(world: World) -> None:
        await log_in(world)
        held = await world.visit("A", "log_out_elsewhere", "id_factory")
        await world.visit("A", "log_out")
        await world.finish(held)
        assert not held.saved
        assert await page(world, jar(world)) is NOBODY

    play(Config(ids="derived"), trap)


# Double clicks


@STORAGES
@pytest.mark.parametrize("lost", [False, True], ids=["both arrive", "first lost"])
@pytest.mark.parametrize(
    "action", ["log_in", "log_in_renewed", "log_in_anew", "renew", "write", "delete_id"]
)
def test_a_double_click_leaves_somebody_logged_in(config: Config, action: str, lost: bool) -> None:
    """A double click on any view leaves the browser logged in, even if a response is lost."""

    async def trap(world: World) -> None:
        await world.visit("A", "write")
        if not action.startswith("log_in"):
            await log_in(world)
        cookie = jar(world)
        first = await world.visit("A", action, "handler", "handled", cookie=cookie, lost=lost)
        second = await world.visit("A", action, "handler", "handled", cookie=cookie)
        for ex in (first, second):
            ex.let_go()
            await world.settle()
        await world.finish(first)
        await world.finish(second)
        await world.wait(31)
        found, status = await both(world, jar(world))
        assert found is not NOBODY
        assert status == OPEN

    play(config, trap)
