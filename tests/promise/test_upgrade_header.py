"""
A page requested with ``Upgrade: websocket`` is treated as a page.
"""

from __future__ import annotations

from typing import Any

import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage

from tests.promise.conftest import Serve
from tests.promise.site import DEAD, OUT, Site, user_of

UPGRADE = {"Upgrade": "websocket"}
HANDSHAKE = {
    **UPGRADE,
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def stream(request: web.Request) -> web.StreamResponse:
    """Stream the user of the session."""
    user = await user_of(request)
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(f"private of {user}".encode())
    return response


async def fail(request: web.Request) -> web.Response:
    """Invalidate the session, then fail."""
    (await aiohttp_session.get_session(request)).invalidate()
    raise RuntimeError("the database is away")


async def refuse(request: web.Request) -> web.Response:
    """Invalidate the session, then refuse."""
    (await aiohttp_session.get_session(request)).invalidate()
    raise web.HTTPForbidden


VIEWS = {"/stream": stream, "/fail": fail, "/refuse": refuse}


@pytest.fixture(params=[{}, UPGRADE, HANDSHAKE], ids=["plain", "upgrade", "handshake"])
def headers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Headers of a plain request, of an upgrade, and of a handshake."""
    return dict(request.param)


class TestEnded:
    async def test_no_handler_sees_it(
        self, serve: Serve, storage: AbstractStorage, headers: dict[str, Any]
    ) -> None:
        """A view sees nothing of an ended session, and its response is sent in full."""
        site = await serve(storage, VIEWS)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/out/helper")

        answer = await site.replay(stale, "/page", **headers)
        assert (answer.status, answer.data.get("user")) == (200, None)
        answer = await site.replay(stale, "/stream", **headers)
        assert (answer.status, answer.body) == (200, "private of None")

    @pytest.mark.parametrize("path", ["/renew", "/new_id", "/delete_id", "/login?user=eve"])
    @pytest.mark.parametrize("end", ["identity", "session"])
    async def test_no_view_revives_it(
        self,
        serve: Serve,
        storage: AbstractStorage,
        headers: dict[str, Any],
        path: str,
        end: str,
    ) -> None:
        """No view that changes the id or logs in revives the ended session."""
        site = await serve(storage, identify=user_of)
        browser = await site.logged_in()
        thief = await site.browser(browser.cookie)
        if end == "identity":
            await site.registry.end_identity("ann")
        else:
            await site.registry.end_session((await browser.get()).data["id"])
        await thief.get(path, **headers)

        assert "ann" not in await site.presented(thief.cookie)
        assert "ann" not in await site.presented(browser.cookie)


class TestSettled:
    @pytest.mark.parametrize("path", [*OUT, "/fail", "/refuse"])
    async def test_a_log_out(
        self, serve: Serve, storage: AbstractStorage, headers: dict[str, Any], path: str
    ) -> None:
        """A log-out closes the sockets, also if the view fails after it."""
        site = await serve(storage, VIEWS)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        await browser.get(path, **headers)

        assert await socket.code() in (DEAD, 4403)
        assert "ann" not in await site.presented(stale)

    async def test_a_write(
        self, serve: Serve, storage: AbstractStorage, headers: dict[str, Any]
    ) -> None:
        """A view's changes are saved."""
        site = await serve(storage)
        browser = await site.logged_in()
        await browser.get("/write?cart=1", **headers)

        assert (await browser.get()).data["cart"] == "1"


@pytest.mark.parametrize("path", ["/page", "/stream", "/fail", "/refuse", "/out/helper"])
class TestOneAnswer:
    async def count(self, site: Site, path: str, cookie: str) -> list[bytes]:
        """Request a page with the header; return the status lines that arrive."""
        reader, writer = await site.send(path, cookie, Upgrade="websocket", Connection="close")
        answer = await reader.read()
        writer.close()
        return [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1")]

    async def test_of_a_live_session(self, serve: Serve, path: str) -> None:
        """A request gets one response."""
        site = await serve(views=VIEWS)
        browser = await site.logged_in()

        assert len(await self.count(site, path, browser.cookie)) == 1

    async def test_of_an_ended_one(self, serve: Serve, path: str) -> None:
        """A request with an ended session gets one response."""
        site = await serve(views=VIEWS)
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/out/helper")

        assert len(await self.count(site, path, stale)) == 1
