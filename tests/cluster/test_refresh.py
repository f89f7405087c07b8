"""
A renewal that keeps its sockets, on two nodes.
"""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Connection, renew_session_ws
from tests.cluster.conftest import Sites
from tests.promise.site import DEAD, Site
from tests.support import PATIENCE, until
from tests.support.inspect import connections


async def refresh(request: web.Request) -> web.Response:
    """Renew the session, and keep its sockets."""
    response = web.Response()
    await renew_session_ws(request, response, sockets="keep")
    return response


def told(site: Site) -> list[Connection]:
    """Record the connections that ``on_refresh`` is sent."""
    found: list[Connection] = []

    async def note(connection: Connection) -> None:
        found.append(connection)

    site.registry.on_refresh.append(note)
    return found


async def start(sites: Sites, storage: AbstractStorage | None = None, **options: Any) -> Any:
    """Open a socket of one session on each of two nodes."""
    a, b = await sites({"/refresh": refresh}, storage, **options)
    browser = await a.logged_in()
    here, there = await browser.open(), await (await b.browser(browser.cookie)).open()
    return a, b, browser, here, there


class TestRefresh:
    async def test_sockets_go_on(self, sites: Sites) -> None:
        """Sockets of both nodes stay open, are filed under the new id, and get ``on_refresh``."""
        a, b, browser, here, there = await start(sites)
        heard = told(a), told(b)
        await browser.get("/refresh")
        new_id = (await browser.get()).data["id"]
        await until(lambda: all(heard))

        assert new_id != here.id
        for site, socket in ((a, here), (b, there)):
            assert await socket.lives()
            assert [c.session_ws_id for c in connections(site.registry)] == [new_id]
        assert (await a.registry.send_session(new_id, "news", wait=PATIENCE)).sockets == 2

    @pytest.mark.parametrize("times", range(5))
    async def test_the_page_is_faster(self, sites: Sites, times: int) -> None:
        """A request to the other node right after a renewal closes no socket."""
        _, b, browser, here, there = await start(sites)
        elsewhere = await b.browser()
        for _ in range(3):
            await browser.get("/refresh")
            elsewhere.session.cookie_jar.update_cookies(
                {"AIOHTTP_SESSION": browser.cookie.partition("=")[2]}, b.url
            )
            assert (await b.replay(browser.cookie)).data["user"] == "ann"
            assert await b.knock(browser.cookie) == "ann"

        assert await here.lives()
        assert await there.lives()

    async def test_two_that_overlap(self, sites: Sites) -> None:
        """After two overlapping renewals the sockets of both nodes have the later id."""
        a, b, browser, here, there = await start(sites)
        other = await b.browser(browser.cookie)
        async with a.held(browser, "/refresh", at="start"):
            await other.get("/refresh")
            earlier = (await other.get()).data["id"]
            await until(lambda: [c.session_ws_id for c in connections(a.registry)] == [earlier])
        last = (await browser.get()).data["id"]
        await until(lambda: [c.session_ws_id for c in connections(b.registry)] == [last])

        assert [c.session_ws_id for c in connections(a.registry)] == [last]
        assert (await a.registry.recheck("ann", wait=PATIENCE)).sockets == 0
        assert await here.lives()
        assert await there.lives()

    @pytest.mark.parametrize("by", ["old id", "new id", "identity", "log-out"])
    async def test_an_end_afterwards(self, sites: Sites, by: str) -> None:
        """An end by any name of the session closes its sockets on both nodes, for all cookies."""
        a, b, browser, here, there = await start(sites)
        stale = browser.cookie
        await browser.get("/refresh")
        newer = browser.cookie
        match by:
            case "old id":
                await b.registry.end_session(here.id, wait=PATIENCE)
            case "new id":
                new_id = (await browser.get()).data["id"]
                await b.registry.end_session(new_id, wait=PATIENCE)
            case "identity":
                await b.registry.end_identity("ann", wait=PATIENCE)
            case _:
                await browser.get("/out/helper")

        assert (await here.code(), await there.code()) == (DEAD, DEAD)
        for site in (a, b):
            assert await site.presented(stale) == await site.presented(newer) == (None, DEAD)

    async def test_the_one_after_closes(self, sites: Sites) -> None:
        """A later renewal that does not keep the sockets closes them on both nodes."""
        _, _, browser, here, there = await start(sites)
        await browser.get("/refresh")
        await browser.get("/renew")

        assert (await here.code(), await there.code()) == (4403, 4403)
