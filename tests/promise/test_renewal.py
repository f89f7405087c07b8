"""
A renewal replaces older cookies, and logs no user out.
"""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Expiry
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, user_of
from tests.support.clock import Wall

RENEWALS = ("/renew", "/new_id")
GRACE = 31  # seconds: Expiry.renewal_grace, plus one


@pytest.fixture(params=[True, False], ids=["identify", "no identify"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Registry options with and without ``identify``."""
    return {"identify": user_of} if request.param else {}


@pytest.mark.parametrize("path", RENEWALS)
class TestRenewed:
    async def test_its_sockets(self, serve: Serve, storage: AbstractStorage, path: str) -> None:
        """Sockets reconnect with the new cookie, under another id."""
        site = await serve(storage)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get(path)
        again = await browser.open()

        assert (await socket.code(), again.user) == (AGAIN, "ann")
        assert again.id != socket.id

    async def test_the_older_cookie(
        self,
        clock: Wall,
        serve: Serve,
        cookies: AbstractStorage,
        path: str,
        options: dict[str, Any],
    ) -> None:
        """The older cookie gets pages and 4403 for the grace, and is anonymous after it."""
        site = await serve(cookies, **options)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get(path)
        assert await site.presented(stale) == ("ann", AGAIN)
        await browser.get("/page")
        assert await site.presented(stale) == ("ann", AGAIN)

        clock.advance(GRACE)
        assert await site.presented(stale) == (None, DEAD)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_what_the_older_one_writes(
        self, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """A write with the older cookie is not saved."""
        site = await serve(cookies)
        browser = await site.logged_in()
        late = await site.browser(browser.cookie)
        await browser.get(path)
        answer = await late.get("/write?cart=1")

        assert not answer.saved

    async def test_a_write_under_way(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """A write under way during the renewal doesn't replace the new cookie."""
        site = await serve(storage)
        browser = await site.logged_in()
        async with site.held(browser, "/write?cart=1"):
            await browser.get(path)
        socket = await browser.open()
        await browser.get("/out/helper")

        assert (socket.user, await socket.code()) == ("ann", DEAD)

    async def test_a_log_out(
        self,
        clock: Wall,
        serve: Serve,
        cookies: AbstractStorage,
        path: str,
        options: dict[str, Any],
    ) -> None:
        """A log-out ends every copy of every generation permanently."""
        site = await serve(cookies, **options)
        browser = await site.logged_in()
        copies = [browser.cookie]
        for _ in range(2):
            await browser.get(path)
            copies.append(browser.cookie)
        await browser.get("/out/helper")
        for seconds in (0, GRACE, 3600):
            clock.advance(seconds)
            assert [await site.presented(copy) for copy in copies] == [(None, DEAD)] * 3

    async def test_a_log_out_by_the_older_one(
        self, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """A log-out with the older cookie ends the session."""
        site = await serve(cookies)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get(path)
        socket = await browser.open()
        await site.replay(stale, "/out/helper")

        assert await socket.code() == DEAD
        assert await site.presented(browser.cookie) == (None, DEAD)

    async def test_an_end_by_any_of_its_ids(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """An end of the first or the last id ends the session without an open socket."""
        for which in (0, 1):
            site = await serve(storage)
            browser = await site.logged_in()
            ids = [(await browser.get()).data["id"]]
            copies = [browser.cookie]
            await browser.get(path)
            ids.append((await browser.get()).data["id"])
            copies.append(browser.cookie)
            await site.registry.end_session(ids[which])

            assert [await site.presented(copy) for copy in copies] == [(None, DEAD)] * 2


@pytest.mark.parametrize("path", RENEWALS)
class TestLostAnswer:
    """The response to a renewal never arrives."""

    async def test_nobody_is_logged_out(
        self,
        clock: Wall,
        serve: Serve,
        storage: AbstractStorage,
        path: str,
        options: dict[str, Any],
    ) -> None:
        """The older cookie gets pages at once, and sockets after the grace."""
        site = await serve(storage, **options)
        browser = await site.logged_in()
        await browser.get(path, lost=True)
        assert await browser.user() == "ann"

        clock.advance(GRACE)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_replaced_by_an_error_page(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """The older cookie stays valid if an error page replaced the renewal's response."""

        @web.middleware
        async def pages(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if request.path == path:
                return web.Response(text="sorry", status=500)
            return response

        site = await serve(cookies, site={"outer": pages})
        browser = await site.logged_in("/login")
        before = browser.cookie
        assert (await browser.get(path)).status == 500
        assert (browser.cookie, await browser.user()) == (before, "ann")

        clock.advance(GRACE)
        assert (await browser.open()).user == "ann"

    async def test_a_second_one(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """A second renewal makes the browser's cookie the newest."""
        site = await serve(cookies)
        browser = await site.logged_in()
        first = browser.cookie
        await browser.get(path, lost=True)
        clock.advance(GRACE)
        await browser.get(path)
        await browser.get("/page")
        clock.advance(GRACE)

        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.presented(first) == (None, DEAD)

    async def test_it_revives_nothing_older(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """A copy from before an earlier renewal stays replaced."""
        site = await serve(cookies)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get(path)
        await browser.get("/page")
        clock.advance(3600)
        assert await site.presented(stale) == (None, DEAD)

        await browser.get(path, lost=True)
        assert await site.presented(stale) == (None, DEAD)
        clock.advance(GRACE)
        assert await site.presented(stale) == (None, DEAD)
        assert await site.presented(browser.cookie) == ("ann", "ann")


class TestThief:
    """A thief has a copy of the cookie."""

    async def test_he_renews_what_is_out_of_use(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage
    ) -> None:
        """Renewing a replaced cookie gains the thief nothing and costs the owner nothing."""
        site = await serve(cookies)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get("/renew")
        await browser.get("/page")
        for seconds in (0, GRACE, GRACE):
            clock.advance(seconds)
            await thief.get("/renew")
            assert await site.knock(thief.cookie) != "ann"
            assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.seen(thief.cookie) is None

    async def test_he_renews_first(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage
    ) -> None:
        """A thief who renews first drives the owner out; the owner's log-out ends both."""
        site = await serve(cookies)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await thief.get("/renew")
        await thief.get("/page")
        clock.advance(GRACE)
        assert await site.presented(browser.cookie) == (None, DEAD)

        await site.replay(browser.cookie, "/out/helper")
        assert await site.presented(thief.cookie) == (None, DEAD)

    @pytest.mark.parametrize("how", ["/login", "/login/renew", "/login/new"])
    async def test_he_logs_in_with_what_is_out_of_use(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, how: str
    ) -> None:
        """A log-in with a replaced cookie begins a session that doesn't affect the owner's."""
        site = await serve(cookies, identify=user_of)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get("/renew")
        socket = await browser.open()
        clock.advance(GRACE)
        await thief.get(f"{how}?user=eve")

        assert await socket.lives()
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.presented(thief.cookie) == ("eve", "eve")


class TestAtOnce:
    @pytest.mark.parametrize("path", RENEWALS)
    @pytest.mark.parametrize("at", ["start", "end"])
    async def test_two_renewals(
        self, serve: Serve, storage: AbstractStorage, path: str, at: str
    ) -> None:
        """After two concurrent renewals the browser is logged in; a log-out ends both."""
        site = await serve(storage)
        browser = await site.logged_in()
        async with site.held(browser, path, at=at):
            await browser.get(path)
            first = browser.cookie
        assert await site.presented(browser.cookie) == ("ann", "ann")
        second = browser.cookie
        await browser.get("/out/helper")

        assert await site.presented(first) in site.out()
        assert await site.presented(second) in site.out()

    @pytest.mark.parametrize("how", ["/login/renew", "/login/new", "/login/refill", "/login"])
    @pytest.mark.parametrize("at", ["start", "end"])
    async def test_a_double_clicked_log_in(
        self,
        serve: Serve,
        storage: AbstractStorage,
        how: str,
        at: str,
        options: dict[str, Any],
    ) -> None:
        """A double-clicked log-in succeeds, and its log-out ends what it began."""
        site = await serve(storage, **options)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        async with site.held(browser, how, at=at):
            await browser.get(how)
        assert await site.presented(browser.cookie) == ("ann", "ann")
        last = browser.cookie
        await browser.get("/out/helper")

        assert await site.presented(last) in site.out()

    async def test_a_server_side_session_is_repaired(
        self, serve: Serve, storage: AbstractStorage, clock: Wall
    ) -> None:
        """A page that saves the older id over a renewal logs no user out."""
        site = await serve(storage)
        browser = await site.logged_in()
        async with site.held(browser, "/write?cart=1", at="start"):
            await browser.get("/renew")
        clock.advance(GRACE)

        assert await site.presented(browser.cookie) == ("ann", "ann")


class TestOption:
    async def test_a_shorter_grace(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage
    ) -> None:
        """``Expiry.renewal_grace`` limits how long an older cookie gets pages."""
        site = await serve(cookies, expiry=Expiry(renewal_grace=5))
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/renew")
        await browser.get("/page")
        assert await site.seen(stale) == "ann"

        clock.advance(6)
        assert await site.presented(stale) == (None, DEAD)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("wrong", [-1.0, float("nan")])
    def test_a_bad_value(self, wrong: float) -> None:
        """An invalid value raises an error at construction."""
        with pytest.raises(ValueError, match="renewal_grace"):
            Expiry(renewal_grace=wrong)

    def test_a_wrong_type(self) -> None:
        """A wrong type raises an error at construction."""
        with pytest.raises(TypeError, match="renewal_grace"):
            Expiry(renewal_grace="30")  # type: ignore[arg-type]  # that is the point
