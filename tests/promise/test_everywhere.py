"""
"Log out everywhere" ends every earlier session of a user, and none that began later.
"""

from __future__ import annotations

import asyncio
import itertools

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Browser, Site, everywhere, reached, user_of
from tests.support import Turnstile, until
from tests.support.clock import Wall

LOGINS = ("/login", "/login/renew", "/login/new", "/login/refill")


def names_of_tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks()}


async def by_user(site: Site) -> None:
    """Log out everywhere as ann, on another device."""
    await (await site.logged_in()).get("/everywhere")


async def by_administrator(site: Site) -> None:
    """End the identity "ann" as an administrator."""
    await site.registry.end_identity("ann")


ENDS = {"user": by_user, "administrator": by_administrator}


@pytest.mark.parametrize("end", ENDS)
class TestCookiesOfBefore:
    @pytest.mark.parametrize("how", LOGINS)
    async def test_all_are_dead(
        self, serve: Serve, storage: AbstractStorage, end: str, how: str
    ) -> None:
        """A log-out everywhere closes the socket and ends the cookie, whatever the log-in."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in(how)
        socket = await browser.open()
        await ENDS[end](site)

        assert await socket.code() == DEAD
        assert await site.presented(browser.cookie) == (None, DEAD)

    @pytest.mark.parametrize("later", [0, 31])
    async def test_from_before_a_renewal(
        self, serve: Serve, cookies: AbstractStorage, clock: Wall, end: str, later: int
    ) -> None:
        """A log-out everywhere also ends a cookie from before the last renewal."""
        site = await serve(cookies, identify=user_of)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get("/renew")
        await ENDS[end](site)
        clock.advance(later)

        assert await site.presented(thief.cookie) == (None, DEAD)
        await thief.get("/page")
        assert "ann" not in await site.presented(thief.cookie)

    @pytest.mark.parametrize("path", ["/renew", "/new_id", "/delete_id", "/write?x=1"])
    async def test_no_renewal_escapes(
        self, serve: Serve, storage: AbstractStorage, clock: Wall, end: str, path: str
    ) -> None:
        """An old cookie that is renewed after the end is not the user's."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await ENDS[end](site)
        for seconds in (0, 11, 31):
            clock.advance(seconds)
            await thief.get(path)
            assert "ann" not in await site.presented(thief.cookie)
        assert "ann" not in await site.presented(browser.cookie)

    @pytest.mark.parametrize("path", ["/renew", "/new_id", "/delete_id"])
    async def test_a_renewal_under_way(
        self, serve: Serve, storage: AbstractStorage, end: str, path: str
    ) -> None:
        """A renewal that began before the end and finishes after it doesn't escape."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        async with site.held(browser, path):
            await ENDS[end](site)

        assert "ann" not in await site.presented(browser.cookie)

    async def test_a_log_in_under_way(
        self, serve: Serve, storage: AbstractStorage, end: str
    ) -> None:
        """A log-in that arrived before the end is ended."""
        site = await serve(storage, identify=user_of)
        browser = await site.browser()
        async with site.held(browser, "/login"):
            await ENDS[end](site)

        assert await site.presented(browser.cookie) == (None, DEAD)

    @pytest.mark.parametrize("how", LOGINS)
    async def test_a_later_log_in(
        self, serve: Serve, storage: AbstractStorage, end: str, how: str
    ) -> None:
        """A log-in right after the end, in the same browser, succeeds."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        await ENDS[end](site)
        await browser.get(how)

        assert (await browser.user(), (await browser.open()).user) == ("ann", "ann")

    async def test_others(self, serve: Serve, storage: AbstractStorage, end: str) -> None:
        """Another user's page and socket are not affected."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in(user="bob")
        socket = await browser.open()
        await ENDS[end](site)

        assert await socket.lives()
        assert await site.presented(browser.cookie) == ("bob", "bob")


class TestGivenUp:
    async def test_a_handler_that_does_not_wait(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A user isn't logged in again when the handler cancels its log-out everywhere."""
        whose, again, out = Turnstile(), Turnstile(), asyncio.Event()
        asked = itertools.count(1)

        async def identify(request: web.Request) -> str | None:
            number = next(asked) if out.is_set() else 0
            if number == 2:  # the new session is anonymous; whose was the one it arrived with?
                await whose()
            if number == 4:
                await again()
            return await user_of(request)

        async def act(request: web.Request) -> web.Response:
            await aiohttp_session.new_session(request)
            out.set()
            ending = asyncio.ensure_future(everywhere(request))
            await whose.arrived.wait()
            ending.cancel()  # as a time limit does
            return web.Response()

        site = await serve(storage, {"/act": act}, identify=identify)
        browser = await site.logged_in()
        whose.shut = again.shut = True
        acting = asyncio.ensure_future(browser.get("/act"))
        await until(lambda: "aiohttp_session_ws: settle" in names_of_tasks())
        whose.let()
        await until(lambda: "aiohttp_session_ws: end an identity" not in names_of_tasks())
        again.let()
        await acting

        assert await browser.user() is None


class TestClockSetBack:
    async def test_a_later_log_in(
        self, clock: Wall, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A wall clock set back by an hour ends no session and refuses no log-in."""
        site = await serve(storage, identify=user_of)
        old = await site.logged_in()
        await site.registry.end_identity("ann")
        browser = await site.logged_in()
        socket = await browser.open()
        clock.set_back(3600)

        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await socket.lives()
        later = await site.logged_in()
        assert await site.presented(later.cookie) == ("ann", "ann")
        await site.registry.end_identity("ann")
        assert await site.presented(later.cookie) == (None, DEAD)
        assert await site.presented(old.cookie) == (None, DEAD)


class TestVanishing:
    """Clients that disconnect before the response, with and without cancelled handlers."""

    @pytest.mark.parametrize("cancel", [True, False])
    async def test_while_identify_is_asked(
        self, serve: Serve, storage: AbstractStorage, cancel: bool
    ) -> None:
        """A client that vanishes during ``identify`` is still logged out everywhere."""
        asked = Turnstile()

        async def identify(request: web.Request) -> str | None:
            if request.path == "/everywhere":
                await asked()
            return await user_of(request)

        site = await serve(storage, site={"handler_cancellation": cancel}, identify=identify)
        browser, other = await site.logged_in(), await site.logged_in()
        sockets = [await browser.open(), await other.open()]
        await site.vanish("/everywhere", browser.cookie, asked)

        assert [await socket.code() for socket in sockets] == [DEAD, DEAD]
        assert await site.presented(browser.cookie) in site.out()
        assert await site.presented(other.cookie) == (None, DEAD)

    async def test_before_identify_answers(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-out everywhere ends its own session before it awaits anything."""
        asked = Turnstile()

        async def identify(request: web.Request) -> str | None:
            if request.path == "/everywhere":
                await asked()
            return await user_of(request)

        site = await serve(storage, identify=identify)
        browser = await site.logged_in()
        thief = browser.cookie
        asked.shut = True
        leaving = asyncio.ensure_future(self.leave(browser))
        await reached(asked)
        refused = await site.presented(thief)
        asked.let()
        await leaving

        assert refused in site.out()

    @staticmethod
    async def leave(browser: Browser) -> None:
        """Log out everywhere."""
        await browser.get("/everywhere")
