"""
With ``identify``, the identity decides whether a session continues.
"""

from __future__ import annotations

import logging

import aiohttp_security
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage
from aiohttp_session.redis_storage import RedisStorage

from aiohttp_session_ws import (
    SessionWSRegistry,
    end_session_ws,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from tests.promise.conftest import Serve
from tests.promise.site import (
    AGAIN,
    DEAD,
    VIEWS,
    Site,
    cookie_from_before,
    out_by_del,
    user_of,
)
from tests.support import QUICK
from tests.support.clock import Wall


async def clear(request: web.Request) -> web.Response:
    """Log out by deleting every key of the session, the library's included."""
    (await aiohttp_session.get_session(request)).clear()
    return web.Response()


async def keep_language(request: web.Request) -> web.Response:
    """Log out with a new session that keeps the language."""
    session = await aiohttp_session.get_session(request)
    (await aiohttp_session.new_session(request))["lang"] = session["lang"]
    return web.Response()


async def pattern_by_del(request: web.Request) -> web.Response:
    """Log out by the pattern in the README of 1.1.1, in a session that keeps its other keys."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    await out_by_del(request)
    await new_session_ws_id(request)
    return response


async def del_and_renew(request: web.Request) -> web.Response:
    """Delete the user, and renew the id."""
    response = web.Response()
    await out_by_del(request)
    await renew_session_ws(request, response)
    return response


OUT_VIEWS = {
    "/out/del": out_by_del,
    "/out/clear": clear,
    "/out/keep": keep_language,
    "/out/pattern_by_del": pattern_by_del,
    "/out/del_and_renew": del_and_renew,
}


class TestUserLeaves:
    @pytest.mark.parametrize("path", OUT_VIEWS)
    async def test_sockets(self, serve: Serve, storage: AbstractStorage, path: str) -> None:
        """Sockets close with 4401 when their user leaves, whatever the session keeps."""
        site = await serve(storage, OUT_VIEWS, identify=user_of)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get(path)

        assert (socket.user, await socket.code()) == ("ann", DEAD)
        assert await browser.user() is None

    @pytest.mark.parametrize("path", OUT_VIEWS)
    async def test_a_copy_of_the_cookie(
        self, serve: Serve, cookies: AbstractStorage, path: str
    ) -> None:
        """A copy of the cookie opens no socket, neither at once nor after a page request."""
        site = await serve(cookies, OUT_VIEWS, identify=user_of)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        await browser.get(path)

        assert await site.presented(thief.cookie) == (None, DEAD)
        await thief.get("/page")
        assert "ann" not in await site.presented(thief.cookie)

    @pytest.mark.parametrize("path", ["/out/del", "/out/keep", "/out/pattern_by_del"])
    async def test_what_is_kept(self, serve: Serve, storage: AbstractStorage, path: str) -> None:
        """The browser keeps its language, and opens sockets as a visitor at once."""
        site = await serve(storage, OUT_VIEWS, identify=user_of)
        browser = await site.logged_in()
        await browser.get(path)

        assert (await browser.get()).data["lang"] == "de"
        assert (await browser.open()).user is None

    async def test_a_handshake_beside_it(self, serve: Serve, storage: AbstractStorage) -> None:
        """A socket that opens while the user logs out is closed with the others."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        tab = await site.browser(browser.cookie)
        async with site.held(browser, "/out/del"):
            socket = await tab.open()

        assert (socket.user, await socket.code()) == ("ann", DEAD)

    async def test_a_write_beside_it(self, serve: Serve, storage: AbstractStorage) -> None:
        """A write that began before the log-out doesn't log the user in again."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        slow = await site.browser(browser.cookie)
        async with site.held(slow, "/write?cart=1"):
            await browser.get("/out/del")

        assert "ann" not in await site.presented(slow.cookie)
        assert "ann" not in await site.presented(browser.cookie)


class TestAnotherUser:
    @pytest.mark.parametrize("how", ["/login", "/login/renew", "/login/new", "/login/refill"])
    async def test_takes_the_session(
        self, serve: Serve, storage: AbstractStorage, how: str
    ) -> None:
        """A change of user closes the first user's sockets with 4403."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get(f"{how}?user=bob")

        assert await socket.code() == AGAIN
        assert (await browser.user(), (await browser.open()).user) == ("bob", "bob")
        assert "ann" not in await site.presented(stale)

    async def test_end_of_the_first(self, serve: Serve, storage: AbstractStorage) -> None:
        """An end of the first user doesn't affect the second."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        await browser.get("/login?user=bob")
        socket = await browser.open()
        await site.registry.end_identity("ann")

        assert await socket.lives()
        await site.registry.end_identity("bob")
        assert await socket.code() == DEAD


class TestLogIn:
    """A visitor logs in by a view that doesn't renew the session."""

    async def visitor(self, site: Site) -> tuple[str, str]:
        """Visit, then log in; return the cookies from before and after."""
        browser = await site.browser()
        await browser.get("/write?lang=de")
        before = browser.cookie
        await browser.get("/login")
        return before, browser.cookie

    async def test_sockets_of_before(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-in closes the visitor's sockets; they reconnect as the user's."""
        site = await serve(storage, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        socket = await browser.open()
        await browser.get("/login")

        assert (socket.user, await socket.code()) == (None, AGAIN)
        socket = await browser.open()
        report = await site.registry.end_identity("ann")
        assert (socket.user, report.sockets, await socket.code()) == ("ann", 1, DEAD)

    async def test_a_handshake_beside_it(self, serve: Serve, storage: AbstractStorage) -> None:
        """A visitor's socket that opens during the log-in is closed with 4403."""
        site = await serve(storage, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        tab = await site.browser(browser.cookie)
        async with site.held(browser, "/login"):
            socket = await tab.open()

        assert (socket.user, await socket.code()) == (None, AGAIN)

    async def test_a_visitors_cookie(
        self, serve: Serve, cookies: AbstractStorage, clock: Wall
    ) -> None:
        """A visitor's cookie gets 4403 for the grace, then is a visitor's again."""
        site = await serve(cookies, identify=user_of)
        before, after = await self.visitor(site)

        assert await site.presented(before) == (None, AGAIN)
        assert await site.presented(after) == ("ann", "ann")
        clock.advance(31)
        assert await site.presented(before) == (None, None)
        assert (await site.replay(before)).data["lang"] == "de"

    async def test_a_log_out_of_the_user(self, serve: Serve, cookies: AbstractStorage) -> None:
        """A log-out ends the log-in's session and not the visitor's."""
        site = await serve(cookies, identify=user_of)
        before, after = await self.visitor(site)
        await site.replay(after, "/out/helper")

        assert await site.presented(after) == (None, DEAD)
        assert await site.presented(before) == (None, AGAIN)

    async def test_again(self, serve: Serve, storage: AbstractStorage) -> None:
        """A second log-in of the same user closes no sockets, unless the view renews."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/login")
        assert await socket.lives()

        await browser.get("/login/renew")
        assert (await socket.code(), (await browser.open()).user) == (AGAIN, "ann")


class Everybody(aiohttp_security.AbstractAuthorizationPolicy):
    async def authorized_userid(self, identity: str) -> str:
        """Return the identity as the user."""
        return identity

    async def permits(self, identity: object, permission: object, context: object = None) -> bool:
        """Permit everything."""
        return True


async def remember(request: web.Request) -> web.Response:
    """Log in with aiohttp_security."""
    response = web.Response()
    await aiohttp_security.remember(request, response, "ann")
    await renew_session_ws(request, response)
    return response


async def forget(request: web.Request) -> web.Response:
    """Log out with aiohttp_security."""
    response = web.Response()
    await aiohttp_security.forget(request, response)
    return response


async def forget_and_end(request: web.Request) -> web.Response:
    """Log out with aiohttp_security and with ``end_session_ws()``."""
    response = await forget(request)
    await end_session_ws(request, response)
    return response


class TestSecurity:
    """The user is identified by aiohttp_security."""

    async def site(
        self, storage: AbstractStorage, policy: aiohttp_security.AbstractIdentityPolicy
    ) -> Site:
        """Start a site; the caller stops it."""
        identify = aiohttp_security.authorized_userid
        site = Site(SessionWSRegistry(timeouts=QUICK, identify=identify), storage)
        sessions = aiohttp_session.session_middleware(storage)
        app = web.Application(middlewares=[sessions, session_ws_middleware])
        aiohttp_security.setup(app, policy, Everybody())
        setup(app, site.registry)
        views = {"/in": remember, "/forget": forget, "/forget_and_end": forget_and_end}
        for path, view in {**VIEWS, **views, "/ws": self.converse}.items():
            app.router.add_get(path, view)
        await site.serve(app)
        return site

    @staticmethod
    async def converse(request: web.Request) -> web.WebSocketResponse:
        """Send the user that aiohttp_security reports."""
        async with session_ws(request) as ws:
            user = await aiohttp_security.authorized_userid(request)
            await ws.send_json({"user": user, "id": "?"})
            await ws.receive()
        return ws

    @pytest.mark.parametrize("cart", [True, False])
    async def test_forget(self, storage: AbstractStorage, cart: bool) -> None:
        """``forget()`` is a log-out: sockets close with 4401, and the old cookie is refused."""
        site = await self.site(storage, aiohttp_security.SessionIdentityPolicy())
        async with site.stack:
            browser = await site.browser()
            if cart:
                await browser.get("/write?cart=book")
            await browser.get("/in")
            stale, socket = browser.cookie, await browser.open()
            await browser.get("/forget")

            assert (socket.user, await socket.code()) == ("ann", DEAD)
            if not isinstance(storage, RedisStorage):
                assert await site.knock(stale) == DEAD
            assert await site.knock(browser.cookie) is None

    @pytest.mark.parametrize("socket", [True, False])
    async def test_an_identity_outside_of_the_session(
        self, cookies: AbstractStorage, socket: bool
    ) -> None:
        """An explicit order leaves a record, whether a socket is open or not."""
        site = await self.site(cookies, aiohttp_security.CookiesIdentityPolicy())
        async with site.stack:
            browser = await site.browser()
            await browser.get("/in")
            await browser.get("/page")
            stale = browser.cookie
            if socket:
                opened = await browser.open()
            await browser.get("/forget_and_end")

            if socket:
                assert await opened.code() == DEAD
            assert await site.knock(stale) == DEAD


class TestAsked:
    """How often ``identify`` is called, and what it may raise."""

    async def test_not_for_a_page_that_changes_nothing(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """Pages that change nothing cost no call, if no identity has ended."""
        calls: list[str] = []

        async def identify(request: web.Request) -> str | None:
            calls.append(request.path)
            return await user_of(request)

        site = await serve(storage, identify=identify)
        browser = await site.logged_in()
        calls.clear()
        for _ in range(3):
            await browser.get("/page")

        assert calls == []

    async def test_once_per_lineage_after_an_end(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """An end of another identity, newer than the session, costs the session one call."""
        calls: list[str] = []

        async def identify(request: web.Request) -> str | None:
            calls.append(request.path)
            return await user_of(request)

        cookie = (await (await serve(storage, identify=user_of)).logged_in()).cookie
        site = await serve(storage, identify=identify)  # another process: it remembers no lineage
        await site.registry.end_identity("bob")
        for _ in range(3):
            await site.replay(cookie)

        assert calls == ["/page"]

    @pytest.mark.parametrize("error", [web.HTTPUnauthorized, web.HTTPForbidden])
    async def test_it_says_no(
        self, serve: Serve, storage: AbstractStorage, error: type[Exception]
    ) -> None:
        """An HTTPUnauthorized or HTTPForbidden from ``identify`` means a log-out, not an error."""

        async def identify(request: web.Request) -> str:
            user = await user_of(request)
            if user is None:
                raise error
            return user

        site = await serve(storage, identify=identify)
        browser = await site.logged_in()
        socket = await browser.open()
        answer = await browser.get("/out/del")

        assert (answer.status, await socket.code()) == (200, DEAD)

    async def test_it_fails_when_a_session_was_changed(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """If ``identify`` fails after a change, nothing is saved and the response is 503."""
        broken = False

        async def identify(request: web.Request) -> str | None:
            if broken:
                raise ConnectionError("the database is away")
            return await user_of(request)

        site = await serve(storage, identify=identify)
        browser = await site.logged_in()
        broken = True
        answer = await browser.get("/out/del")
        broken = False

        assert (answer.status, answer.saved) == (503, False)
        assert await browser.user() == "ann"

    async def test_it_fails_on_arrival(self, serve: Serve, storage: AbstractStorage) -> None:
        """If ``identify`` fails on arrival, page and handshake get 503, and nothing is lost."""
        broken = False

        async def identify(request: web.Request) -> str | None:
            if broken:
                raise ConnectionError("the database is away")
            return await user_of(request)

        site = await serve(storage, identify=identify)
        browser = await site.browser(await cookie_from_before(storage, user="ann"))
        await site.registry.end_identity("bob")
        broken = True
        async with browser.session.get(site.url.joinpath("page")) as response:
            refused = response.status, "Retry-After" in response.headers, bool(response.cookies)
        knocked = await site.knock(browser.cookie)
        broken = False

        assert (refused, knocked) == ((503, True, False), 503)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("at", ["arrival", "settle"])
    async def test_who_tries_again_is_judged_again(
        self, serve: Serve, storage: AbstractStorage, at: str
    ) -> None:
        """A refused request that a middleware handles once more is judged once more."""
        failures = 0

        async def identify(request: web.Request) -> str | None:
            nonlocal failures
            if failures:
                failures -= 1
                raise ConnectionError("the database is away for a moment")
            return await user_of(request)

        @web.middleware
        async def twice(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPServiceUnavailable:
                return await handler(request)

        site = await serve(storage, identify=identify, site={"outer": twice})
        if at == "settle":
            browser = await site.logged_in()
            socket, failures = await browser.open(), 1
            answer = await browser.get("/out/del")
            assert await socket.code() == DEAD
        else:
            browser = await site.browser(await cookie_from_before(storage, user="ann"))
            await site.registry.end_identity("ann")
            failures = 1
            answer = await browser.get("/page")

        assert (answer.status, failures) == (200, 0)
        assert "ann" not in answer.body


async def test_log_of_a_failure(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A failing ``identify`` is logged once, with its type and place, without its message."""
    broken = False

    async def identify(request: web.Request) -> str | None:
        if broken:
            raise LookupError("of the secret in the session")
        return await user_of(request)

    site = await serve(identify=identify)
    browser = await site.logged_in()
    broken = True
    answers = [(await browser.get("/login")).status for _ in range(3)]
    refused = await site.knock(browser.cookie)

    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [*answers, refused] == [503] * 4
    assert len(lines) == 1
    assert "LookupError at" in lines[0].getMessage()
    assert "503" in lines[0].getMessage()
    assert "secret" not in caplog.text
