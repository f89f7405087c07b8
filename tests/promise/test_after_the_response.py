"""
A log-out closes its sockets whatever response is sent, even if none arrives.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, SimpleCookieStorage

from aiohttp_session_ws import (
    Timeouts,
    end_other_sessions_ws,
    schedule_close_all_session_ws,
    session_ws,
)
from tests.promise.conftest import Serve
from tests.promise.site import (
    AGAIN,
    DEAD,
    VIEWS,
    Site,
    View,
    everywhere,
    only_close,
    out_by_del,
    out_by_helper,
    out_by_invalidate,
    out_by_new_session,
    renew,
    user_of,
)
from tests.support import PATIENCE, QUICK, RawPeer, Turnstile

#: Each view, and the code with which the socket is closed.
WAYS: dict[str, tuple[View, int]] = {
    "helper": (out_by_helper, DEAD),
    "invalidate": (out_by_invalidate, DEAD),
    "new_session": (out_by_new_session, DEAD),
    "del": (out_by_del, DEAD),
    "everywhere": (everywhere, DEAD),
    "close": (only_close, AGAIN),
    "renew": (renew, AGAIN),
}
#: Without "renew": a renewal that isn't saved renews nothing.
SAVED = ("helper", "invalidate", "new_session", "del", "everywhere", "close")


@web.middleware
async def rewrap(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send another response than the view's, as error pages do."""
    response = await handler(request)
    if request.path == "/act":
        return web.Response(text=f"{response.status}")
    return response


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """The name of a way to close the sockets."""
    return str(request.param)


async def site_of(serve: Serve, act: View, **site: Any) -> Site:
    """Start a site with the view at ``/act``."""
    storage: AbstractStorage = SimpleCookieStorage()
    return await serve(storage, {**VIEWS, "/act": act}, site=site, identify=user_of)


class TestAnswered:
    async def test_on_a_connection_that_is_kept(self, serve: Serve, way: str) -> None:
        """The socket closes after a response on a connection that the client keeps open."""
        view, code = WAYS[way]
        site = await site_of(serve, view)
        browser = await site.logged_in()
        socket = await browser.open()
        reader, writer = await site.send("/act", browser.cookie)
        await reader.readuntil(b"\r\n\r\n")

        assert await socket.code() == code
        writer.close()

    async def test_by_another_response(self, serve: Serve, way: str) -> None:
        """The socket closes when an outer middleware replaces the response."""
        view, code = WAYS[way]
        site = await site_of(serve, view, outer=rewrap)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/act")

        assert await socket.code() == code

    @pytest.mark.parametrize("error", [web.HTTPFound("/"), web.HTTPForbidden(), ValueError()])
    @pytest.mark.parametrize("way", SAVED, indirect=True)
    async def test_by_an_exception(self, serve: Serve, way: str, error: Exception) -> None:
        """The socket closes when the view raises a redirect, a refusal or an error."""
        view, code = WAYS[way]

        async def act(request: web.Request) -> web.StreamResponse:
            await view(request)
            raise error

        site = await site_of(serve, act)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/act")

        assert await socket.code() == code

    async def test_in_another_task(self, serve: Serve, way: str) -> None:
        """The socket closes when a child task of the handler gives the order."""
        view, code = WAYS[way]

        async def act(request: web.Request) -> web.StreamResponse:
            return await asyncio.ensure_future(view(request))

        site = await site_of(serve, act)
        browser = await site.logged_in()
        socket = await browser.open()
        await browser.get("/act")

        assert await socket.code() == code


class TestWhileItCloses:
    @pytest.mark.parametrize("way", ["/out/pattern", "/out/new_session", "/out/del"])
    async def test_a_socket_that_opens_meanwhile(self, serve: Serve, way: str) -> None:
        """A socket that opens between two orders of one request is closed by the second."""
        left = asyncio.Event()

        async def stay(request: web.Request) -> web.StreamResponse:
            async with session_ws(request) as ws:
                await ws.send_str("here")
                await left.wait()  # it never reads, so that closing it takes its time
            return ws

        async def act(request: web.Request) -> web.StreamResponse:
            await schedule_close_all_session_ws(request, web.Response())
            return await VIEWS[way](request)

        timeouts = Timeouts(close=PATIENCE, handler_grace=PATIENCE, response=0.01)
        views = {**VIEWS, "/stay": stay, "/act": act}
        site = await serve(SimpleCookieStorage(), views, identify=user_of, timeouts=timeouts)
        browser = await site.logged_in()
        rude = await RawPeer.open(site.url / "stay", browser.cookie)
        await rude.frame()
        site.gate.shut = True
        acting = asyncio.ensure_future(browser.get("/act?at=end"))
        told = await rude.frame()  # the response is late: the first order is executed
        assert told is not None
        assert told[0] == 8
        socket = await browser.open()
        site.gate.let()
        await acting

        assert await socket.code() in (DEAD, AGAIN)
        left.set()
        rude.close()


class TestNotAnsweredInTime:
    async def test_whom_it_ends_is_known_late(self, serve: Serve) -> None:
        """Sockets of an identity that was identified late don't wait for the handler."""
        asked, stays = Turnstile(), Turnstile()

        async def identify(request: web.Request) -> str | None:
            if request.path == "/act":
                await asked()
            return await user_of(request)

        async def act(request: web.Request) -> web.StreamResponse:
            response = await everywhere(request)
            await stays()
            return response

        timeouts = replace(QUICK, response=0.01)
        site = await serve(None, {"/act": act}, identify=identify, timeouts=timeouts)
        browser, other = await site.logged_in(), await site.logged_in()
        own, others = await browser.open(), await other.open()
        asked.shut = stays.shut = True
        acting = asyncio.ensure_future(browser.get("/act"))
        assert await own.code() == DEAD  # the response is late: the known sockets are closed
        asked.let()

        assert await others.code() == DEAD
        stays.let()
        await acting

    async def test_everywhere_else(self, serve: Serve) -> None:
        """A log-out elsewhere closes its sockets without waiting for a slow handler."""
        stays = Turnstile()

        async def act(request: web.Request) -> web.StreamResponse:
            response = web.Response()
            assert await end_other_sessions_ws(request, response)
            await stays()
            return response

        timeouts = replace(QUICK, response=0.01)
        site = await serve(None, {"/act": act}, identify=user_of, timeouts=timeouts)
        browser, other = await site.logged_in(), await site.logged_in()
        own, others = await browser.open(), await other.open()
        stays.shut = True
        acting = asyncio.ensure_future(browser.get("/act"))

        assert (await own.code(), await others.code()) == (AGAIN, DEAD)
        stays.let()
        await acting
        assert await site.presented(browser.cookie) == ("ann", "ann")


class TestNotAnswered:
    @pytest.mark.parametrize("cancel", [True, False])
    @pytest.mark.parametrize("way", SAVED, indirect=True)
    async def test_the_client_vanishes(self, serve: Serve, way: str, cancel: bool) -> None:
        """The socket closes when the client vanishes before the response."""
        view, code = WAYS[way]
        site = await site_of(serve, view, handler_cancellation=cancel)
        browser = await site.logged_in()
        socket = await browser.open()
        await site.vanish("/act?at=end", browser.cookie)

        assert await socket.code() == code

    async def test_the_client_never_reads(self, serve: Serve, way: str) -> None:
        """The socket closes at a deadline when the client never reads the response."""
        view, code = WAYS[way]

        async def act(request: web.Request) -> web.StreamResponse:
            response = await view(request)
            assert isinstance(response, web.Response)
            response.body = b"x" * 20_000_000
            return response

        site = await site_of(serve, act)
        browser = await site.logged_in()
        socket = await browser.open()
        _, writer = await site.send("/act", browser.cookie)

        assert await socket.code() == code
        writer.transport.abort()
