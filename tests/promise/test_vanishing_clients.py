"""
A client that vanishes undoes no log-out, and blocks nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, OUT, Site, reached, user_of
from tests.support import GatedStorage, Turnstile, until

# The code depends on whether the response, which was never sent, would have carried a session.
CLOSED = (DEAD, AGAIN)


async def fail(request: web.Request) -> web.Response:
    """Invalidate the session, then fail."""
    (await aiohttp_session.get_session(request)).invalidate()
    raise RuntimeError("the database is away")


@pytest.fixture(params=[True, False], ids=["cancelled", "not cancelled"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Whether the server cancels the handler when the client disconnects."""
    return {"handler_cancellation": request.param}


class TestLogOut:
    @pytest.mark.parametrize("path", [*OUT, "/login/new"])
    async def test_while_its_handler_runs(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], path: str
    ) -> None:
        """Changes of a handler whose client vanishes are settled."""
        site = await serve(storage, site=how)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await site.vanish(f"{path}?at=end&user=bob", stale)

        assert await socket.code() in CLOSED
        assert "ann" not in await site.presented(stale)

    @pytest.mark.parametrize("path", ["/out/del", "/out/invalidate", "/login?user=bob"])
    async def test_while_identify_is_asked(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], path: str
    ) -> None:
        """The session's end is settled although the client vanishes during ``identify``."""
        asked = Turnstile()

        async def identify(request: web.Request) -> str | None:
            await asked()
            return await user_of(request)

        site = await serve(storage, site=how, identify=identify)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await site.vanish(path, stale, asked)

        assert await socket.code() in CLOSED
        assert "ann" not in await site.presented(stale)

    @pytest.mark.parametrize("path", ["/login/new", "/out/pattern"])
    async def test_while_an_id_is_made(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], path: str
    ) -> None:
        """A replaced session ends although the client vanishes during ``id_factory``."""
        made = Turnstile()

        async def factory(request: web.Request) -> str:
            await made()
            return uuid.uuid4().hex

        site = await serve(storage, site=how, id_factory=factory)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await site.vanish(f"{path}?user=bob", stale, made)

        assert await socket.code() in CLOSED
        assert "ann" not in await site.presented(stale)

    async def test_while_the_session_is_loaded(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any]
    ) -> None:
        """A request whose client vanishes before its handler runs ends and blocks nothing."""
        gated = GatedStorage(storage)
        site = await serve(gated, site=how)
        browser = await site.logged_in()
        socket = await browser.open()
        gated.loading.shut = True
        _, writer = await site.send("/page", browser.cookie)
        await reached(gated.loading)
        writer.transport.abort()
        gated.loading.let()

        assert await socket.lives()
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("upgrade", [True, False])
    async def test_a_handler_that_fails(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], upgrade: bool
    ) -> None:
        """A handler that invalidates the session and then fails ends it."""
        site = await serve(storage, {"/fail": fail}, site=how)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        headers = {"Upgrade": "websocket"} if upgrade else {}
        _, writer = await site.send("/fail", stale, **headers)

        assert await socket.code() == DEAD
        assert "ann" not in await site.presented(stale)
        writer.close()


class TestOnlyClose:
    async def test_an_order_to_close(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any]
    ) -> None:
        """A close order is carried out, and doesn't affect the session."""
        site = await serve(storage, site=how)
        browser = await site.logged_in()
        socket = await browser.open()
        await site.vanish("/close?at=end", browser.cookie)

        assert await socket.code() == AGAIN
        assert await site.presented(browser.cookie) == ("ann", "ann")

    @pytest.mark.parametrize("path", ["/renew", "/new_id"])
    async def test_a_renewal(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], path: str
    ) -> None:
        """A browser that never received the new cookie is still logged in."""
        site = await serve(storage, site=how)
        browser = await site.logged_in()
        await site.vanish(f"{path}?at=end", browser.cookie)

        assert await browser.user() == "ann"


class TestHandshakes:
    @pytest.mark.parametrize("step", ["identify", "authorize"])
    async def test_given_up(
        self, serve: Serve, storage: AbstractStorage, how: dict[str, Any], step: str
    ) -> None:
        """A handshake whose client vanishes ends no session, and blocks no later handshake."""
        asked = Turnstile()

        async def ask(request: web.Request) -> str:
            await asked()
            return "ann"

        options: dict[str, Any] = {step: ask}
        site = await serve(storage, site=how, **options)
        browser = await site.logged_in("/login")
        socket = await browser.open()
        asked.shut = True
        peer = asyncio.ensure_future(self.knock_and_go(site, browser.cookie, asked))
        await peer
        asked.let()

        assert await socket.lives()
        assert (await browser.open()).user == "ann"

    @staticmethod
    async def knock_and_go(site: Site, cookie: str, gate: Turnstile) -> None:
        """Send a handshake, and disconnect when it is held."""
        _, writer = await site.send(
            "/ws",
            cookie,
            **{
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        )
        await reached(gate)
        request = site.latest
        assert request is not None
        writer.transport.abort()
        await until(lambda: request.transport is None)


class TestTwoUsersOfOneCookie:
    """Two log-ins with one visitor's cookie, which a thief may have planted."""

    @pytest.mark.parametrize(
        ("options", "first"),
        [
            ({"identify": user_of}, "/login"),
            ({"identify": user_of}, "/login/renew"),
            ({"identify": user_of}, "/login/new"),
            ({"identify": user_of}, "/login/refill"),
            ({}, "/login/new"),
            ({}, "/login/refill"),
        ],
    )
    async def test_are_two_sessions(
        self, serve: Serve, cookies: AbstractStorage, options: dict[str, Any], first: str
    ) -> None:
        """A log-out of one user doesn't affect the other's session."""
        site = await serve(cookies, **options)
        visitor = await site.browser()
        await visitor.get("/write?cart=1")
        ann, eve = await site.browser(visitor.cookie), await site.browser(visitor.cookie)
        await ann.get(f"{first}?user=ann")
        await eve.get(f"{first}?user=eve")
        socket = await ann.open()
        await eve.get("/out/helper")

        assert await socket.lives()
        assert await site.presented(ann.cookie) == ("ann", "ann")
        assert await site.presented(eve.cookie) == (None, None)
