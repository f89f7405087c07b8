"""
A session that arrived without an id is ended by a log-out like any other.

It was saved before the installation, was emptied and filled again, or its id was deleted.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from aiohttp_session.nacl_storage import NaClCookieStorage

from aiohttp_session_ws import get_session_ws_id, registry_from
from tests.promise.conftest import Serve
from tests.promise.site import (
    AGAIN,
    DEAD,
    OUT,
    cookie_from_before,
    delete_id,
    out_by_helper,
    reached,
    user_of,
)
from tests.support import Turnstile

# The log-out pattern of 1.1.1 leaves a session with an id, with which a page may reconnect.
CODES = dict.fromkeys(OUT, DEAD) | {"/out/pattern": AGAIN}

#: Other spellings of a base64 cookie that decode to the same bytes.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "first": lambda value: f"!{value}",
    "inserted": lambda value: f"{value[:9]}~!{value[9:]}",
    "dashes": lambda value: f"{value[:9]}-_-_{value[9:]}",
    "appended": lambda value: f"{value}zzzz",
    "alphabet": lambda value: value.replace("-", "+").replace("_", "/"),
}


@pytest.fixture(params=OUT)
def way(request: pytest.FixtureRequest) -> str:
    """The path of a log-out."""
    return str(request.param)


class TestFromBefore:
    async def test_an_open_socket(self, serve: Serve, storage: AbstractStorage, way: str) -> None:
        """The socket closes although its client never stored the handshake's cookie."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        browser, tab = await site.browser(cookie), await site.browser(cookie)
        socket = await tab.open()
        await browser.get(way)

        assert (socket.user, await socket.code()) == ("ann", CODES[way])

    async def test_its_cookie_afterwards(
        self, serve: Serve, storage: AbstractStorage, way: str
    ) -> None:
        """The cookie opens no socket and no page, however often it is sent."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        await (await site.browser(cookie)).get(way)

        for _ in range(2):
            assert await site.knock(cookie) in site.shut(CODES[way])
            assert await site.presented(cookie) in site.out(CODES[way])

    @pytest.mark.parametrize(
        ("storage_class", "spelling"),
        [
            *[(EncryptedCookieStorage, name) for name in SPELLINGS if name != "dashes"],
            *[(NaClCookieStorage, name) for name in SPELLINGS if name != "alphabet"],
        ],
    )
    async def test_another_spelling(
        self, serve: Serve, storage_class: Callable[[bytes], AbstractStorage], spelling: str
    ) -> None:
        """A cookie in another base64 spelling, which Python accepts, has ended, too."""
        storage = storage_class(b"k" * 32)
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        name, _, value = cookie.partition("=")
        copy = f"{name}={SPELLINGS[spelling](value)}"
        assert await site.presented(copy) == ("ann", "ann")
        await (await site.browser(cookie)).get("/out/helper")

        assert await site.presented(cookie) == (None, DEAD)
        assert await site.presented(copy) == (None, DEAD)

    async def test_everywhere(self, serve: Serve, storage: AbstractStorage) -> None:
        """A log-out everywhere ends the session."""
        site = await serve(storage, identify=user_of)
        cookie = await cookie_from_before(storage, user="ann")
        socket = await (await site.browser(cookie)).open()
        await (await site.browser(cookie)).get("/everywhere")

        assert await socket.code() == DEAD
        assert await site.presented(cookie) in site.out(DEAD)

    async def test_a_handshake_before_the_response(
        self, serve: Serve, storage: AbstractStorage
    ) -> None:
        """A handshake is refused from the moment of the order, before the response."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        async with site.held(await site.browser(cookie), "/out/helper"):
            early = await site.knock(cookie)

        assert early in site.shut(DEAD)
        assert await site.knock(cookie) in site.shut(DEAD)

    async def test_a_handshake_in_flight(
        self, serve: Serve, storage: AbstractStorage, way: str
    ) -> None:
        """A handshake that is held during the log-out is refused after it."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site = await serve(storage, authorize=authorize)
        cookie = await cookie_from_before(storage, user="ann")
        asked.shut = True
        handshake = asyncio.ensure_future(site.knock(cookie))
        await reached(asked)
        await (await site.browser(cookie)).get(way)
        asked.let()

        assert await handshake == CODES[way]

    async def test_a_request_beside_it(
        self, serve: Serve, storage: AbstractStorage, way: str
    ) -> None:
        """A write by a concurrent request doesn't bring the session back."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        slow = await site.browser(cookie)
        async with site.held(slow, "/write?lang=de"):
            await (await site.browser(cookie)).get(way)

        assert await slow.user() is None
        assert await site.knock(cookie) in site.shut(CODES[way])

    async def test_requests_at_once(self, serve: Serve, storage: AbstractStorage) -> None:
        """Concurrent requests get the same id: the log-out of one ends the other's session."""
        site = await serve(storage)
        cookie = await cookie_from_before(storage, user="ann")
        one, other = await site.browser(cookie), await site.browser(cookie)
        async with site.held(one, "/page"):
            await other.get("/page")
        socket = await one.open()
        await other.get("/out/helper")

        assert await socket.code() == DEAD
        assert await site.presented(one.cookie) in site.out(DEAD)


class TestEndedByItsId:
    @pytest.mark.parametrize("again", ["other ids", "the same id"])
    async def test_its_cookie_afterwards(
        self, serve: Serve, storage: AbstractStorage, again: str
    ) -> None:
        """Ending the id that a request was given ends the session that it arrived with."""
        numbers = itertools.count() if again == "other ids" else itertools.repeat(1)

        async def out(request: web.Request) -> web.Response:
            await registry_from(request).end_session(await get_session_ws_id(request))
            return web.Response()

        site = await serve(storage, {"/out": out}, id_factory=lambda request: next(numbers))
        cookie = await cookie_from_before(storage, user="ann")
        socket = await (await site.browser(cookie)).open()
        await site.replay(cookie, "/out")

        assert await socket.code() == DEAD
        assert await site.presented(cookie) == (None, DEAD)


class TestFilledInAgain:
    async def test_a_log_out_ends_it(
        self, serve: Serve, storage: AbstractStorage, way: str
    ) -> None:
        """A log-out ends a session that was filled again, and the log-in's first cookie."""
        site = await serve(storage)
        browser = await site.logged_in("/login/refill")
        stale = browser.cookie
        await browser.get("/page")
        socket = await browser.open()
        await browser.get(way)

        assert (socket.user, await socket.code()) == ("ann", CODES[way])
        assert await site.presented(stale) in site.out(CODES[way])

    async def test_the_visitor_of_before(self, serve: Serve, cookies: AbstractStorage) -> None:
        """The emptied visitor's session has ended; its page reconnects with the new one."""
        site = await serve(cookies)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        stale = browser.cookie
        socket = await browser.open()
        await browser.get("/login/refill")

        assert await socket.code() == AGAIN
        assert (await site.knock(stale), (await browser.open()).user) == (AGAIN, "ann")


class TestWithoutItsId:
    async def test_a_log_out_ends_it(
        self, serve: Serve, storage: AbstractStorage, way: str
    ) -> None:
        """A session whose id was deleted gets another, and ends with it."""
        site = await serve(storage)
        browser = await site.logged_in()
        await browser.get("/delete_id")
        stale = browser.cookie
        await browser.get("/page")
        socket = await browser.open()
        await browser.get(way)

        assert (socket.user, await socket.code()) == ("ann", CODES[way])
        assert await site.presented(stale) in site.out(CODES[way])

    async def test_taken_out_right_before(self, serve: Serve, storage: AbstractStorage) -> None:
        """A view that deletes the id and then logs out ends the session."""

        async def out(request: web.Request) -> web.Response:
            await delete_id(request)
            return await out_by_helper(request)

        site = await serve(storage, {"/out/both": out})
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/out/both")

        assert await socket.code() == DEAD
        assert await site.presented(stale) in site.out(DEAD)
