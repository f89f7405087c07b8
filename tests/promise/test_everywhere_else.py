"""
"Log out everywhere else" continues the session at hand and ends all others, copies included.
"""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import NotSetUp, SessionWSRegistry, end_other_sessions_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Site, View, log_in, user_of
from tests.support import QUICK
from tests.support.clock import Wall


async def elsewhere(request: web.Request) -> web.Response:
    """Log out everywhere else."""
    response = web.Response()
    done = await end_other_sessions_ws(request, response)
    response.text = str(done)
    return response


async def log_in_alone(request: web.Request) -> web.Response:
    """Log in, and log out everywhere else."""
    await log_in(request)
    return await elsewhere(request)


VIEWS: dict[str, View] = {"/elsewhere": elsewhere, "/login/alone": log_in_alone}


async def site_of(serve: Serve, storage: AbstractStorage) -> Site:
    """Start a site with views that log out everywhere else."""
    return await serve(storage, VIEWS, identify=user_of)


class TestDone:
    async def test_the_session_at_hand(self, serve: Serve, storage: AbstractStorage) -> None:
        """The session continues with the new cookie, and its sockets reconnect."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        socket = await browser.open()
        answer = await browser.get("/elsewhere")

        assert (answer.body, await socket.code()) == ("True", AGAIN)
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert (await browser.get()).data["lang"] == "de"

    async def test_the_others(self, serve: Serve, storage: AbstractStorage) -> None:
        """The user's other sessions end."""
        site = await site_of(serve, storage)
        browser, other = await site.logged_in(), await site.logged_in()
        socket = await other.open()
        await browser.get("/elsewhere")

        assert await socket.code() == DEAD
        assert await site.presented(other.cookie) == (None, DEAD)

    async def test_a_copy(self, serve: Serve, cookies: AbstractStorage, clock: Wall) -> None:
        """A copy of the old cookie has ended; its handshakes get 4403 for the grace, then 4401."""
        site = await site_of(serve, cookies)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/elsewhere")

        assert await site.presented(stale) == (None, AGAIN)
        clock.advance(31)
        assert await site.presented(stale) == (None, DEAD)

    async def test_a_copy_of_a_key(self, serve: Serve, storage: AbstractStorage) -> None:
        """A copy of the old cookie has also ended with a server-side storage."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await (await site.browser(browser.cookie)).open()
        await browser.get("/elsewhere")

        assert await socket.code() == AGAIN
        assert await site.presented(stale) in site.out(AGAIN)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_while_it_is_handled(self, serve: Serve, storage: AbstractStorage) -> None:
        """A handshake with the old cookie gets 4403 before the response is sent."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        stale = browser.cookie
        async with site.held(browser, "/elsewhere"):
            assert await site.knock(stale) == AGAIN

        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_other_users(self, serve: Serve, storage: AbstractStorage) -> None:
        """Other users' pages and sockets are not affected."""
        site = await site_of(serve, storage)
        browser, other = await site.logged_in(), await site.logged_in(user="bob")
        socket = await other.open()
        await browser.get("/elsewhere")

        assert await socket.lives()
        assert await site.presented(other.cookie) == ("bob", "bob")

    async def test_twice(self, serve: Serve, storage: AbstractStorage) -> None:
        """A second order succeeds in the same browser and fails in one that was logged out."""
        site = await site_of(serve, storage)
        browser, other = await site.logged_in(), await site.logged_in()
        await browser.get("/elsewhere")
        answers = [(await one.get("/elsewhere")).body for one in (other, browser)]

        assert answers == ["False", "True"]
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(other.cookie)

    async def test_a_later_log_in(self, serve: Serve, storage: AbstractStorage) -> None:
        """A later log-in lives; one that was under way is ended."""
        site = await site_of(serve, storage)
        browser, under_way = await site.logged_in(), await site.browser()
        async with site.held(under_way, "/login"):
            await browser.get("/elsewhere")
        later = await site.logged_in()

        assert await site.presented(later.cookie) == ("ann", "ann")
        assert await site.presented(under_way.cookie) == (None, DEAD)

    @pytest.mark.parametrize("visited", [True, False])
    async def test_with_a_log_in(
        self, serve: Serve, storage: AbstractStorage, visited: bool
    ) -> None:
        """A log-in with a log-out elsewhere leaves the user with this one session."""
        site = await site_of(serve, storage)
        browser, other = await site.browser(), await site.logged_in()
        if visited:
            await browser.get("/write?lang=de")
        answer = await browser.get("/login/alone")

        assert answer.body == "True"
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.presented(other.cookie) == (None, DEAD)


class KnownOnly(SessionWSRegistry):
    """A registry that gives no id to anonymous visitors."""

    async def ensure_id(self, request: web.Request) -> None:
        """Give an id only to a user who is logged in."""
        if await user_of(request) is not None:
            await super().ensure_id(request)


class TestWithALogIn:
    """A log-in with a log-out elsewhere begins a new session, whatever the request came with."""

    @pytest.mark.parametrize("seconds", [0, 11])
    async def test_after_a_log_out(
        self, serve: Serve, cookies: AbstractStorage, clock: Wall, seconds: float
    ) -> None:
        """A log-in that arrives with the cookie of an ended session succeeds."""
        site = await site_of(serve, cookies)
        browser, other = await site.logged_in(), await site.logged_in()
        late = await site.browser(browser.cookie)
        await browser.get("/out/helper")
        clock.advance(seconds)
        answer = await late.get("/login/alone")

        assert answer.body == "True"
        assert await site.presented(late.cookie) == ("ann", "ann")
        assert await site.presented(other.cookie) == (None, DEAD)

    @pytest.mark.parametrize("user", ["ann", "bob"])
    async def test_after_a_renewal(
        self, serve: Serve, cookies: AbstractStorage, user: str
    ) -> None:
        """A log-in with a replaced cookie ends the newer generation if that is another user's."""
        site = await site_of(serve, cookies)
        browser, other = await site.logged_in("/login", user), await site.logged_in("/login")
        late = await site.browser(browser.cookie)
        await browser.get("/renew")
        answer = await late.get("/login/alone")

        if user == "ann":  # already logged in
            assert answer.body == "False"
            assert await site.presented(other.cookie) == ("ann", "ann")
            assert await site.presented(browser.cookie) == ("ann", "ann")
        else:
            assert answer.body == "True"
            assert await site.presented(other.cookie) == (None, DEAD)
            assert await site.presented(browser.cookie) == (None, AGAIN)
            assert await site.presented(late.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("path", ["", "/page", "/write?lang=de"])
    async def test_of_a_visitor_without_an_id(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """A visitor without an id, or without a session, can log in this way."""
        registry = KnownOnly(identify=user_of, timeouts=QUICK)
        site = await serve(storage, VIEWS, registry=registry)
        browser, other = await site.browser(), await site.logged_in("/login")
        if path:
            await browser.get(path)
        answer = await browser.get("/login/alone")

        assert answer.body == "True"
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.presented(other.cookie) == (None, DEAD)

    @pytest.mark.parametrize("how", ["ended", "unknown"])
    async def test_ended_meanwhile(self, serve: Serve, cookies: AbstractStorage, how: str) -> None:
        """An end of the identity after the order ends the new session, too."""
        registry = KnownOnly(identify=user_of, timeouts=QUICK)
        site = await serve(cookies, VIEWS, registry=registry)
        late = await site.browser()
        if how == "ended":
            browser = await site.logged_in("/login")
            late = await site.browser(browser.cookie)
            await browser.get("/out/helper")
        async with site.held(late, "/login/alone") as answer:
            await site.registry.end_identity("ann")

        assert (await answer).body == "True"
        assert "ann" not in await site.presented(late.cookie)


class TestNotDone:
    """A session that isn't alive ends nothing and begins nothing; the caller gets ``False``."""

    async def test_it_had_ended(self, serve: Serve, storage: AbstractStorage) -> None:
        """A thief with the cookie of an ended session closes no sockets."""
        site = await site_of(serve, storage)
        browser, victim = await site.logged_in(), await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get("/out/helper")
        socket = await victim.open()
        answer = await thief.get("/elsewhere")

        assert answer.body == "False"
        assert await socket.lives()
        assert "ann" not in await site.presented(thief.cookie)

    @pytest.mark.parametrize("how", ["session", "identity", "id"])
    async def test_it_ends_meanwhile(
        self, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """An end after the order and before the response ends the new session."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        id_, copy = (await browser.get()).data["id"], browser.cookie
        async with site.held(browser, "/elsewhere"):
            if how == "session":
                await site.replay(copy, "/out/helper")
            elif how == "identity":
                await site.registry.end_identity("ann")
            else:
                await site.registry.end_session(id_)

        assert "ann" not in await site.presented(browser.cookie)

    async def test_two_at_once(self, serve: Serve, storage: AbstractStorage) -> None:
        """The first of two browsers to order stays logged in, though the other began first."""
        site = await site_of(serve, storage)
        first, second = await site.logged_in(), await site.logged_in()
        async with site.held(second, "/elsewhere", at="start") as late:
            await first.get("/elsewhere")

        assert (await late).body == "False"
        assert await site.presented(first.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(second.cookie)

    async def test_the_other_is_answered_later(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """The order that came first wins, though its response is sent last."""
        site = await site_of(serve, storage)
        first, second = await site.logged_in(), await site.logged_in()
        async with site.held(first, "/elsewhere"):
            answer = await second.get("/elsewhere")

        assert answer.body == "False"
        assert await site.presented(first.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(second.cookie)

    async def test_it_was_replaced(self, serve: Serve, cookies: AbstractStorage) -> None:
        """A thief with a cookie from before a renewal closes no sockets within the grace."""
        site = await site_of(serve, cookies)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get("/renew")
        socket = await browser.open()
        answer = await thief.get("/elsewhere")

        assert (answer.body, await socket.lives()) == ("False", True)
        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert await site.knock(thief.cookie) == AGAIN

    async def test_of_a_visitor(self, serve: Serve, storage: AbstractStorage) -> None:
        """A visitor's log-out elsewhere doesn't affect other visitors."""
        site = await site_of(serve, storage)
        browser, other = await site.browser(), await site.browser()
        await browser.get("/write?lang=de")
        await other.get("/write?lang=de")
        socket = await other.open()
        await browser.get("/elsewhere")

        assert await socket.lives()

    async def test_a_log_in_with_an_end_meanwhile(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A log-in is refused if its identity ended after the request arrived."""
        site = await site_of(serve, storage)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        async with site.held(browser, "/login/alone", at="start") as late:
            await site.registry.end_identity("ann")

        assert (await late).body == "False"
        assert "ann" not in await site.presented(browser.cookie)

    async def test_without_identify(self, serve: Serve) -> None:
        """A log-out elsewhere without ``identify`` raises an error that names it."""
        said: list[str] = []

        async def ask(request: web.Request) -> web.Response:
            try:
                await end_other_sessions_ws(request, web.Response())
            except NotSetUp as exc:
                said.append(str(exc))
            return web.Response()

        site = await serve(views={"/ask": ask})
        await (await site.logged_in()).get("/ask")

        assert "identify" in said[0]


class TestBesideOthers:
    async def test_a_renewal(self, serve: Serve, cookies: AbstractStorage) -> None:
        """A concurrent renewal of the same session is ended."""
        site = await site_of(serve, cookies)
        browser = await site.logged_in()
        slow = await site.browser(browser.cookie)
        async with site.held(slow, "/renew"):
            await browser.get("/elsewhere")

        assert await site.presented(browser.cookie) == ("ann", "ann")
        assert "ann" not in await site.presented(slow.cookie)

    async def test_a_double_click(self, serve: Serve, storage: AbstractStorage) -> None:
        """A browser that clicks twice is still logged in after both responses."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        async with site.held(browser, "/elsewhere", at="start"):
            first = await browser.get("/elsewhere")

        assert first.body == "True"
        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_a_double_click_that_overlaps(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A browser is still logged in when the first of two orders is answered last."""
        site = await site_of(serve, storage)
        browser = await site.logged_in()
        async with site.held(browser, "/elsewhere"):
            second = await browser.get("/elsewhere")

        assert second.body == "False"
        assert await site.presented(browser.cookie) == ("ann", "ann")
