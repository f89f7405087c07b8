"""
A stale cookie costs no memory however often it is replayed, and pushes out no recorded end.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
from aiohttp_session import AbstractStorage, SimpleCookieStorage

import aiohttp_session_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Site, cookie_from_before, user_of
from tests.support import until
from tests.support.clock import Wall

GRACE = 31  # seconds: Expiry.renewal_grace, plus one
WARM, REPLAYS = 20, 100
BYTES = 64  # for each replay; less than the smallest object that could be kept
OURS = tracemalloc.Filter(True, aiohttp_session_ws.__path__[0] + "/*")


async def growth(site: Site, replay: Callable[[], Awaitable[object]]) -> float:
    """Return the growth of this library's memory in bytes per replay."""

    async def ours() -> int:
        await until(lambda: len(site.registry) == 0)
        gc.collect()
        snapshot = tracemalloc.take_snapshot().filter_traces([OURS])
        return sum(trace.size for trace in snapshot.traces)

    tracemalloc.start()
    try:
        for _ in range(WARM):
            await replay()
        before = await ours()
        for _ in range(REPLAYS):
            await replay()
        return (await ours() - before) / REPLAYS
    finally:
        tracemalloc.stop()


async def stale_cookie(site: Site, clock: Wall, how: str) -> str:
    """Return a cookie of ann's that has ended or was replaced."""
    browser = await site.logged_in()
    stale = browser.cookie
    await browser.get({"ended": "/out/helper", "carried": "/out/pattern"}.get(how, "/renew"))
    await browser.get("/page")
    if how == "replaced for long":
        clock.advance(GRACE)
    return stale


@pytest.fixture
def storage() -> AbstractStorage:
    """A storage that keeps everything in the cookie, which can be copied."""
    return SimpleCookieStorage()


@pytest.mark.parametrize("how", ["ended", "carried", "replaced", "replaced for long"])
class TestReplayed:
    async def test_by_pages(
        self, clock: Wall, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """Page requests with a stale cookie leave nothing in memory."""
        site = await serve(storage, identify=user_of)
        stale = await stale_cookie(site, clock, how)

        assert await growth(site, lambda: site.replay(stale)) < BYTES

    async def test_by_handshakes(
        self, clock: Wall, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """Handshakes with a stale cookie leave nothing in memory."""
        site = await serve(storage, identify=user_of)
        stale = await stale_cookie(site, clock, how)

        assert await growth(site, lambda: site.knock(stale)) < BYTES

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("path", ["/renew", "/out/helper", "/login?user=ann", "/write?x=1"])
    async def test_by_views_that_do_something(
        self, clock: Wall, serve: Serve, storage: AbstractStorage, how: str, path: str
    ) -> None:
        """Views that renew, log in or out, or write leave nothing in memory."""
        site = await serve(storage)
        stale = await stale_cookie(site, clock, how)

        assert await growth(site, lambda: site.replay(stale, path)) < BYTES

    async def test_a_log_out_then(
        self, clock: Wall, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """Ended sessions stay ended, whatever requests with a stale cookie do."""
        site = await serve(storage)
        victim = await site.logged_in()
        copy = victim.cookie
        await victim.get("/out/helper")
        thief = await site.browser(await stale_cookie(site, clock, how))
        for _ in range(20):
            await thief.get("/page")
            await thief.get("/renew")
        await thief.get("/out/helper")

        assert await site.presented(copy) == (None, DEAD)
        assert "ann" not in await site.presented(thief.cookie)


class TestFirstVisits:
    async def test_of_an_old_cookie(self, serve: Serve, storage: AbstractStorage) -> None:
        """A cookie from before the installation gets the same id each time, and leaves nothing."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")

        assert await growth(site, lambda: site.replay(cookie)) < BYTES
        assert len({(await site.replay(cookie)).data["id"] for _ in range(3)}) == 1

    async def test_of_visitors_who_stay_out(self, serve: Serve, storage: AbstractStorage) -> None:
        """A client without a cookie that comes once leaves nothing in memory."""
        site = await serve(storage, identify=user_of)

        assert await growth(site, lambda: site.replay("")) < BYTES
        assert await growth(site, lambda: site.knock("")) < BYTES


class TestCopies:
    """Copies of one cookie from many moments."""

    async def test_one_end_for_all(
        self, clock: Wall, serve: Serve, storage: AbstractStorage
    ) -> None:
        """Twenty copies, each renewed since, are all replaced, and one log-out ends them all."""
        site = await serve(storage)
        browser = await site.logged_in()
        copies = []
        for _ in range(20):
            copies.append(browser.cookie)
            await browser.get("/renew")
        told = {await site.knock(copy) for copy in copies}
        await browser.get("/page")
        clock.advance(GRACE)

        assert told == {AGAIN, DEAD} or told == {AGAIN}
        assert {await site.presented(copy) for copy in copies} == {(None, DEAD)}
        copies.append(browser.cookie)
        await browser.get("/out/helper")
        assert {await site.presented(copy) for copy in copies} == {(None, DEAD)}
