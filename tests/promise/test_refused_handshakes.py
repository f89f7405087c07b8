"""
A handshake that is merely refused ends no session.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import AbstractStorage
from aiohttp_session.redis_storage import RedisStorage

from aiohttp_session_ws import Close, HandshakeRefused, Limits, session_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, cookie_from_before, reached
from tests.support import Turnstile, until


def unless_no(request: web.Request) -> bool:
    """Refuse a request whose query has "no"."""
    return "no" not in request.query


def close_unless_no(request: web.Request) -> bool | Close:
    """Refuse a request whose query has "no", with a close code."""
    return "no" not in request.query or Close(4999, "no")


def raise_unless_no(request: web.Request) -> bool:
    """Refuse a request whose query has "no", with an exception."""
    if "no" in request.query:
        raise HandshakeRefused(Close(4998, "no"))
    return True


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, str], int]] = {
    "authorize": ({"authorize": unless_no}, {}, 403),
    "authorize says a code": ({"authorize": close_unless_no}, {}, 4999),
    "authorize raises": ({"authorize": raise_unless_no}, {}, 4998),
    "total": ({"limits": Limits(total=1)}, {}, 503),
    "per session": ({"limits": Limits(per_session=1, on_limit="refuse")}, {}, 4429),
    "origin": ({}, {"Origin": "https://evil.example"}, 403),
}


@pytest.mark.parametrize("refusal", REFUSALS)
class TestRefused:
    async def test_beside_a_page(
        self, serve: Serve, storage: AbstractStorage, refusal: str
    ) -> None:
        """The session of a refused handshake, and its open socket, live on."""
        options, headers, status = REFUSALS[refusal]
        site = await serve(storage, **options)
        cookie = await cookie_from_before(storage, user="ann")
        browser = await site.browser(cookie)
        before = (await browser.get("/page")).data
        socket = await browser.open()
        refused = await site.knock(cookie, "/ws?no", **headers)

        assert refused == status
        assert await socket.lives()
        assert (await browser.get("/page")).data == before

    async def test_the_only_one(
        self, serve: Serve, storage: AbstractStorage, refusal: str
    ) -> None:
        """The cookie of a refused handshake still opens pages and sockets."""
        options, headers, status = REFUSALS[refusal]
        site = await serve(storage, **options)
        browser = await site.logged_in()
        if status in (503, 4429):
            socket = await browser.open()
        refused = await site.knock(browser.cookie, "/ws?no", **headers)
        if status in (503, 4429):
            await socket.ws.close()
            await until(lambda: not len(site.registry))

        assert refused == status
        assert await browser.user() == "ann"
        assert (await browser.open()).user == "ann"


async def page_instead(request: web.Request) -> web.StreamResponse:
    """Answer a refused handshake with a page, and record it in the session."""
    session = await aiohttp_session.get_session(request)
    try:
        async with session_ws(request) as ws:
            return ws
    except web.HTTPForbidden:
        session["refused"] = True
        return web.Response()


async def test_a_page_instead(serve: Serve, storage: AbstractStorage) -> None:
    """Changes are saved if the handler answers a refused handshake with a page."""
    site = await serve(storage, {"/ws/page": page_instead}, authorize=unless_no)
    browser = await site.browser(await cookie_from_before(storage, user="ann"))
    with pytest.raises(WSServerHandshakeError) as answer:
        await browser.open("/ws/page?no")
    data = (await browser.get("/page")).data

    assert answer.value.status == 200
    assert (data["user"], data["refused"]) == ("ann", True)


async def count(request: web.Request) -> bool:
    """Authorize every request, and count them in the session."""
    session = await aiohttp_session.get_session(request)
    session["count"] = session.get("count", 0) + 1
    return True


class TestAuthorizeThatWrites:
    """A write by ``authorize`` is not mistaken for another request's change."""

    async def test_a_visitor(self, serve: Serve, storage: AbstractStorage) -> None:
        """A new visitor is accepted, and the new session holds what was written."""
        site = await serve(storage, authorize=count)
        browser = await site.browser()
        socket = await browser.open()

        assert (await browser.get("/page")).data == {"count": 1, "id": socket.id}

    async def test_a_session_without_an_id(self, serve: Serve, storage: AbstractStorage) -> None:
        """A session with data and no id is accepted, and what was written is saved."""
        site = await serve(storage, authorize=count)
        browser = await site.browser(await cookie_from_before(storage, user="ann"))
        socket = await browser.open()

        assert socket.user == "ann"
        assert (await browser.get("/page")).data == {"user": "ann", "count": 1, "id": socket.id}

    async def test_another_request_writes(self, serve: Serve, storage: AbstractStorage) -> None:
        """A handshake with a server-side session is refused if another request wrote to it."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return await count(request)

        site = await serve(storage, authorize=authorize)
        cookie = await cookie_from_before(storage, user="ann")
        asked.shut = True
        handshake = asyncio.ensure_future(site.knock(cookie))
        await reached(asked)
        await site.replay(cookie, "/write?lang=de")
        asked.let()

        assert await handshake == (AGAIN if isinstance(storage, RedisStorage) else "ann")
