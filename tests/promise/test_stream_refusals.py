"""
A stream is refused by an HTTP status, since it has no close code.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp_session
import pytest
from aiohttp import web

from aiohttp_session_ws import (
    Close,
    HandshakeRefused,
    Limits,
    SessionWSRegistry,
    session_stream,
)
from aiohttp_session_ws.close_codes import SESSION_ENDED, TOO_MANY_CONNECTIONS
from tests.promise.conftest import Serve
from tests.promise.feeds import EVENTS, Feed, listen, status_of
from tests.promise.site import DEAD, Answer, Browser, Site, user_of
from tests.support import PATIENCE, Turnstile
from tests.support.inspect import opening


async def start(serve: Serve, **options: Any) -> tuple[Site, Browser, Feed]:
    """Serve a stream, and log in."""
    feed = Feed()
    site = await serve(None, {"/events": feed.events}, **{"identify": user_of, **options})
    return site, await site.logged_in(), feed


def left_alone(site: Site, feed: Feed) -> bool:
    """Return whether a refusal has left nothing behind."""
    return not (len(site.registry) or opening(site.registry) or feed.running)


class TestEnded:
    @pytest.mark.parametrize(("headers", "status"), [({}, 401), (EVENTS, 204)])
    async def test_a_stale_cookie(
        self, serve: Serve, headers: dict[str, str], status: int
    ) -> None:
        """An ended session gets 401, or 204 for an EventSource, which stops it from retrying."""
        site, browser, feed = await start(serve)
        stale = browser.cookie
        await browser.get("/out/helper")

        assert await site.replay(stale, "/events", **headers) == _refused(status, "session ended")
        assert left_alone(site, feed)

    async def test_everywhere_without_a_socket(self, serve: Serve) -> None:
        """A session ended by its identity opens no stream."""
        site, browser, feed = await start(serve)
        await site.registry.end_identity("ann")

        assert await status_of(site, browser.cookie, **EVENTS) == 204
        assert left_alone(site, feed)


def _refused(status: int, reason: str) -> Answer:
    return Answer(status, "" if status == 204 else f"refused: {reason}", saved=False)


class TestReplaced:
    async def test_an_older_cookie(self, serve: Serve) -> None:
        """A replaced cookie gets 409 and Retry-After: the newer one is on its way."""
        site, browser, feed = await start(serve)
        stale = browser.cookie
        await browser.get("/renew")
        async with site.thief.get(
            site.url.with_path("/events"), headers={"Cookie": stale}
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (409, "1")

        assert left_alone(site, feed)

    async def test_an_order_while_it_opens(self, serve: Serve) -> None:
        """An order during ``authorize`` refuses the stream with 409."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site, browser, feed = await start(serve, authorize=authorize)
        asked.shut = True
        knocking = asyncio.ensure_future(status_of(site, browser.cookie))
        async with asyncio.timeout(PATIENCE):
            await asked.arrived.wait()
        await site.registry.close_all()
        asked.let()

        assert await knocking == 409
        assert left_alone(site, feed)

    async def test_an_end_while_it_opens(self, serve: Serve) -> None:
        """An end during ``authorize`` refuses the stream with 401."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site, browser, feed = await start(serve, authorize=authorize)
        asked.shut = True
        knocking = asyncio.ensure_future(status_of(site, browser.cookie))
        async with asyncio.timeout(PATIENCE):
            await asked.arrived.wait()
        await site.registry.end_identity("ann")
        asked.let()

        assert await knocking == 401
        assert left_alone(site, feed)


class TestOthers:
    async def test_a_foreign_page(self, serve: Serve) -> None:
        """A foreign Origin gets 403."""
        site, browser, feed = await start(serve)

        assert await status_of(site, browser.cookie, Origin="http://evil.example") == 403
        assert left_alone(site, feed)

    @pytest.mark.parametrize(
        "allowed", [False, Close(4000, "not you"), SESSION_ENDED, TOO_MANY_CONNECTIONS]
    )
    async def test_not_authorized(self, serve: Serve, allowed: object) -> None:
        """A refusal by ``authorize`` gets 403, also if it returns a close code."""
        site, browser, feed = await start(serve, authorize=lambda _: allowed)

        assert await status_of(site, browser.cookie) == 403
        assert await status_of(site, browser.cookie, **EVENTS) == 403
        assert left_alone(site, feed)

    async def test_not_authorized_by_an_exception(self, serve: Serve) -> None:
        """A refusal that ``authorize`` raises gets 403 and is counted."""

        async def authorize(request: web.Request) -> bool:
            raise HandshakeRefused(Close(4000, "not you"))

        site, browser, feed = await start(serve, authorize=authorize)

        assert await status_of(site, browser.cookie) == 403
        assert site.registry.stats().refusals["authorize"] == 1
        assert left_alone(site, feed)

    async def test_a_page_in_its_place(self, serve: Serve) -> None:
        """A handler that answers a refused stream with a page may log out."""

        async def events(request: web.Request) -> web.StreamResponse:
            try:
                async with session_stream(request, web.StreamResponse()):
                    return web.Response()
            except web.HTTPForbidden:
                del (await aiohttp_session.get_session(request))["user"]
                return web.Response(text="no news, but bye")

        def authorize(request: web.Request) -> bool:
            return request.path == "/ws"

        site = await serve(None, {"/events": events}, identify=user_of, authorize=authorize)
        browser = await site.logged_in()
        stale, socket = browser.cookie, await browser.open()
        answer = await browser.get("/events")

        assert (answer.status, answer.saved) == (200, True)
        assert await socket.code() == DEAD
        assert await site.presented(stale) in site.out()

    async def test_too_many(self, serve: Serve) -> None:
        """A stream above the limit per session gets 429."""
        limits = Limits(per_session=1, on_limit="refuse")
        site, browser, feed = await start(serve, limits=limits)
        stream = await listen(browser)

        assert await status_of(site, browser.cookie) == 429
        assert feed.running == 1
        stream.close()

    async def test_no_room(self, serve: Serve) -> None:
        """A stream above the total limit gets 503."""
        site, browser, _ = await start(serve, limits=Limits(total=1))
        stream = await listen(browser)

        assert await status_of(site, browser.cookie) == 503
        stream.close()

    async def test_draining(self, serve: Serve) -> None:
        """A stream requested during a drain gets 503."""
        site, browser, feed = await start(serve)
        await site.registry.drain(0.0)

        assert await status_of(site, browser.cookie) == 503
        assert left_alone(site, feed)

    async def test_without_the_middleware(self, serve: Serve) -> None:
        """An ended session gets 401 without the middleware, too."""
        site, browser, feed = await start(serve, site={"middleware": False})
        stale = browser.cookie
        await browser.get("/out/helper")

        assert await status_of(site, stale) == 401
        assert left_alone(site, feed)

    async def test_a_visitor_who_is_refused(self, serve: Serve) -> None:
        """A visitor whose stream is refused gets no cookie."""
        site, _, _ = await start(serve, authorize=lambda _: False)
        answer = await (await site.browser()).get("/events")

        assert (answer.status, answer.saved) == (403, False)


class TestWithoutSetup:
    async def test_it_says_so(self, serve: Serve) -> None:
        """A stream without an id is refused with 403."""

        class Nobodys(SessionWSRegistry):
            async def get_id(self, request: web.Request) -> None:
                """Return no id."""

        async def events(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            async with session_stream(request, response):
                pass
            return response

        site = await serve(None, {"/events": events}, registry=Nobodys())

        assert (await (await site.browser()).get("/events")).status == 403
