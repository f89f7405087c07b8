"""
What ends or replaces a session, row by row: the close codes, and who may reconnect.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import (
    end_other_sessions_ws,
    get_session_ws_id,
    registry_from,
    schedule_close_all_session_ws,
)
from tests.promise.conftest import Serve
from tests.promise.site import (
    AGAIN,
    DEAD,
    View,
    delete_id,
    log_in,
    log_in_anew,
    new_id,
    out_by_del,
    out_by_helper,
    out_by_invalidate,
    out_by_new_session,
    renew,
    user_of,
)
from tests.support.clock import Wall

GRACE = 31  # seconds: Expiry.renewal_grace, plus one


async def elsewhere(request: web.Request) -> web.Response:
    """Log out everywhere else."""
    response = web.Response()
    assert await end_other_sessions_ws(request, response)
    return response


async def by_id(request: web.Request) -> web.Response:
    """End the session by its id, as an administrator's view does."""
    id_ = await get_session_ws_id(request)
    await registry_from(request).end_session(id_)
    return web.Response()


async def by_identity(request: web.Request) -> web.Response:
    """End the identity, as an administrator's view does."""
    await registry_from(request).end_identity("ann")
    return web.Response()


async def close_by_id(request: web.Request) -> web.Response:
    """Close the sockets of the id."""
    await registry_from(request).close_all_session(await get_session_ws_id(request))
    return web.Response()


async def close_by_identity(request: web.Request) -> web.Response:
    """Close the sockets of the identity."""
    await registry_from(request).close_all_identity("ann")
    return web.Response()


async def clear(request: web.Request) -> web.Response:
    """Delete every key of the session."""
    (await aiohttp_session.get_session(request)).clear()
    return web.Response()


class Row(NamedTuple):
    """
    The effects of a view on a session of ann's.

    For the cookie from before: the close code of its open socket (``told``), and what a page and a
    handshake get at once and after the grace. For the browser's own cookie: its user, and whether
    it opens a socket at once (``at_home``; not if an administrator's order has ended it).
    """

    view: View
    told: int
    at_once: tuple[str | None, str | int | None]
    later: tuple[str | None, str | int | None]
    browser: str | None
    at_home: bool = True


def then(*views: View) -> View:
    """Return a view that calls *views* in sequence and returns the last response."""

    async def both(request: web.Request) -> web.StreamResponse:
        for view in views:
            response = await view(request)
        return response

    return both


async def close_first(request: web.Request) -> web.Response:
    """Close the sockets, as the log-out pattern of 1.1.1 does first."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    return response


async def bob(request: web.Request) -> web.Response:
    """Change the user to bob."""
    (await aiohttp_session.get_session(request))["user"] = "bob"
    return web.Response()


OUT = Row(out_by_helper, DEAD, (None, DEAD), (None, DEAD), None)
CARRIES = Row(log_in_anew, AGAIN, (None, AGAIN), (None, DEAD), "ann")
RENEWED = Row(renew, AGAIN, ("ann", AGAIN), (None, DEAD), "ann")
CLOSED = Row(close_first, AGAIN, ("ann", "ann"), ("ann", "ann"), "ann")

#: With and without ``identify``.
BOTH: dict[str, Row] = {
    "end_session_ws": OUT,
    "invalidate": OUT._replace(view=out_by_invalidate),
    "new_session": OUT._replace(view=out_by_new_session),
    "clear": OUT._replace(view=clear),
    "pattern": CARRIES._replace(view=then(close_first, out_by_new_session, new_id), browser=None),
    "new_session and log-in": CARRIES,
    "renew_session_ws": RENEWED,
    "new_session_ws_id": RENEWED._replace(view=new_id),
    "end_session": OUT._replace(view=by_id, at_home=False),
    "close": CLOSED,
    "close_all_session": CLOSED._replace(view=close_by_id),
    # Of several orders the strongest applies.
    "close and renew": RENEWED._replace(view=then(close_first, renew)),
    "renew and end": OUT._replace(view=then(renew, out_by_helper)),
    "end and log in": CARRIES._replace(view=then(out_by_helper, log_in)),
}
IDENTIFIED: dict[str, Row] = {
    "user goes": OUT._replace(view=out_by_del),
    "user goes and close": OUT._replace(view=then(close_first, out_by_del)),
    "user goes and renew": OUT._replace(view=then(out_by_del, renew)),
    "another user": CARRIES._replace(view=bob, browser="bob"),
    "another user and renew": CARRIES._replace(view=then(bob, renew), browser="bob"),
    "everywhere else": CARRIES._replace(view=elsewhere),
    "delete_session_ws_id": RENEWED._replace(view=delete_id),
    "end_identity": OUT._replace(view=by_identity, at_home=False),
    "close_all_identity": CLOSED._replace(view=close_by_identity),
}
NOT_IDENTIFIED: dict[str, Row] = {
    "user goes": CLOSED._replace(view=out_by_del, told=0, browser=None),
    "delete_session_ws_id": CARRIES._replace(view=delete_id),
}


async def check(
    serve: Serve, storage: AbstractStorage, clock: Wall, row: Row, **options: Any
) -> None:
    """Check that clients get what *row* says."""
    site = await serve(storage, {"/act": row.view}, **options)
    browser = await site.logged_in()
    stale, socket = browser.cookie, await browser.open()
    await browser.get("/act")

    assert (await socket.code() if row.told else await socket.lives()) == (row.told or True)
    assert await site.presented(stale) == row.at_once
    # The browser's request with its current cookie marks a renewal as seen.
    assert await browser.user() == row.browser
    if row.at_home:
        assert (await browser.open()).user == row.browser
    assert await site.presented(stale) == row.at_once
    clock.advance(GRACE)
    assert await site.presented(stale) == row.later
    assert await browser.user() == row.browser
    assert (await browser.open()).user == row.browser


class TestTable:
    @pytest.mark.parametrize("identify", [True, False], ids=["identify", "no identify"])
    @pytest.mark.parametrize("what", BOTH)
    async def test_in_any_case(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, what: str, identify: bool
    ) -> None:
        """These rows hold with and without ``identify``."""
        options: dict[str, Any] = {"identify": user_of} if identify else {}
        await check(serve, cookies, clock, BOTH[what], **options)

    @pytest.mark.parametrize("what", IDENTIFIED)
    async def test_with_identify(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, what: str
    ) -> None:
        """These rows hold with ``identify``, where the identity decides."""
        await check(serve, cookies, clock, IDENTIFIED[what], identify=user_of)

    @pytest.mark.parametrize("what", NOT_IDENTIFIED)
    async def test_without_identify(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, what: str
    ) -> None:
        """These rows hold without ``identify``, where only the session decides."""
        await check(serve, cookies, clock, NOT_IDENTIFIED[what])


class TestLogIn:
    @pytest.mark.parametrize("how", ["/login", "/login/renew"])
    async def test_of_a_visitor(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, how: str
    ) -> None:
        """A visitor's cookie is replaced for the grace after a log-in, and nothing ends."""
        site = await serve(cookies, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        visitor, socket = browser.cookie, await browser.open()
        await browser.get(how)

        assert await socket.code() == AGAIN
        assert await site.presented(visitor) == (None, AGAIN)
        assert await site.presented(browser.cookie) == ("ann", "ann")
        clock.advance(GRACE)
        assert await site.presented(visitor) == (None, None)
        assert await site.presented(browser.cookie) == ("ann", "ann")

    async def test_by_emptying(self, clock: Wall, serve: Serve, cookies: AbstractStorage) -> None:
        """A visitor's session that was emptied for the log-in has ended."""
        site = await serve(cookies, identify=user_of)
        browser = await site.browser()
        await browser.get("/write?lang=de")
        visitor, socket = browser.cookie, await browser.open()
        await browser.get("/login/refill")

        assert await socket.code() == AGAIN
        assert await site.presented(visitor) == (None, AGAIN)
        clock.advance(GRACE)
        assert await site.presented(visitor) == (None, DEAD)

    @pytest.mark.parametrize("identify", [True, False], ids=["identify", "no identify"])
    @pytest.mark.parametrize(
        "out", ["/out/helper", "/out/pattern", "/out/invalidate", "/out/new_session"]
    )
    @pytest.mark.parametrize("how", ["/login", "/login/renew", "/login/new", "/login/refill"])
    async def test_right_after_a_log_out(
        self, serve: Serve, storage: AbstractStorage, out: str, how: str, identify: bool
    ) -> None:
        """A log-in right after a log-out, in the same browser, succeeds."""
        options: dict[str, Any] = {"identify": user_of} if identify else {}
        site = await serve(storage, **options)
        browser = await site.logged_in()
        await browser.get(out)
        await browser.get(how)

        assert await site.presented(browser.cookie) == ("ann", "ann")


class TestSharedId:
    @pytest.mark.parametrize(
        "path", ["/out/helper", "/out/invalidate", "/out/new_session", "/out/pattern"]
    )
    async def test_another_lineage(
        self, serve: Serve, storage: AbstractStorage, path: str
    ) -> None:
        """Sockets with the same id and another lineage are closed with 4403."""
        site = await serve(storage, id_factory=lambda request: "everybody")
        one, other = await site.logged_in("/login"), await site.logged_in("/login")
        mine, theirs = await one.open(), await other.open()
        await one.get(path)

        assert await mine.code() in (DEAD, AGAIN)
        assert await theirs.code() == AGAIN
        assert (await other.open()).user == "ann"
