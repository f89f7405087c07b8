"""
Without the middleware the helpers judge a request themselves, whatever its handler did before.
"""

from __future__ import annotations

from collections.abc import Callable

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, Session

from aiohttp_session_ws import end_session_ws, schedule_close_all_session_ws
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD


def empty(session: Session) -> None:
    session.invalidate()


def refill(session: Session) -> None:
    session.invalidate()
    session["flash"] = "You have logged out."


def change(session: Session) -> None:
    session["flash"] = "You have logged out."


@pytest.mark.parametrize("first", [empty, refill, change])
async def test_a_log_out(
    serve: Serve, storage: AbstractStorage, first: Callable[[Session], None]
) -> None:
    """A log-out ends the session that the request came with, even if it was emptied before."""

    async def out(request: web.Request) -> web.Response:
        first(await aiohttp_session.get_session(request))
        response = web.Response()
        await end_session_ws(request, response)
        return response

    site = await serve(storage, {"/out": out}, site={"middleware": False})
    browser = await site.logged_in("/login")
    socket = await browser.open()
    stale = browser.cookie
    await browser.get("/out")

    assert await socket.code() == DEAD
    assert await site.knock(stale) in (403, None)  # None: the key of an emptied session


@pytest.mark.parametrize("first", [empty, refill, change])
async def test_a_close_order(
    serve: Serve, storage: AbstractStorage, first: Callable[[Session], None]
) -> None:
    """A close order closes the sockets of the session that the request came with."""

    async def close(request: web.Request) -> web.Response:
        first(await aiohttp_session.get_session(request))
        response = web.Response()
        await schedule_close_all_session_ws(request, response)
        return response

    site = await serve(storage, {"/close": close}, site={"middleware": False})
    browser = await site.logged_in("/login")
    socket = await browser.open()
    await browser.get("/close")

    assert await socket.code() in (DEAD, AGAIN)
