"""
A handshake that is merely refused ends nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Close, HandshakeRefused, Limits
from tests.promise.conftest import Serve
from tests.promise.site import cookie_from_before
from tests.support import until


def unless_no(request: web.Request) -> bool:
    """Refuse who says no."""
    return "no" not in request.query


def close_unless_no(request: web.Request) -> bool | Close:
    """Refuse with a close code who says no."""
    return "no" not in request.query or Close(4999, "no")


def raise_unless_no(request: web.Request) -> bool:
    """Refuse by an exception who says no."""
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
        """The session that both came with lives on, and so do its sockets."""
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
        """The same cookie is good afterwards, for a page and for a socket."""
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
