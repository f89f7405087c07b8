"""
One log-out on two nodes, with one endpoint of each kind: no socket survives.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, WebSocketView
from aiohttp_session_ws.connections.connection import State
from tests.cluster.conftest import Sites
from tests.promise.feeds import EVENTS, Feed, ended, listen, status_of
from tests.promise.site import DEAD, Browser, Site
from tests.promise.test_adopted_sockets import Foreign
from tests.promise.test_graphql import SCHEMA, SessionGraphQLView, count, running, subscribe
from tests.promise.test_proofs import Tickets, say
from tests.support import PATIENCE, QUICK, Stopwatch, expect_close, until
from tests.support.inspect import connections, inspect

BOUND = QUICK.response + QUICK.close + QUICK.handler_grace + 3.0  # seconds


class View(WebSocketView):
    """A class-based view."""

    async def on_open(self) -> None:
        """Send a greeting."""
        await self.send_json({"user": self.ws.identity, "id": self.ws.session_ws_id})


class Thing:
    """An object registered by hand."""

    code: int | None = None

    async def close(self, *, code: int, message: bytes) -> None:
        """Record the code."""
        self.code = code


class Everything:
    """One endpoint of each kind on a node, all of one session."""

    def __init__(self, site: Site, feed: Feed) -> None:
        self.site = site
        self.feed = feed
        self.thing = Thing()

    async def open(self, browser: Browser) -> None:
        """Open all endpoints."""
        paths = ("/ws", "/view", "/gql", "/deaf")
        self.sockets = [await browser.open(path) for path in paths]
        self.stream = await listen(browser)
        self.graphql = await subscribe(self.site, browser.cookie)
        await count(self.graphql)
        self.site.registry.register(self.sockets[0].id, self.thing, identity="ann")
        visitor = await (await self.site.browser()).open("/prove")
        self.sockets.append(await say(visitor, "ann"))

    async def codes(self) -> list[int | None]:
        """Wait until all are closed; return their close codes."""
        codes: list[int | None] = [await socket.code() for socket in self.sockets]
        assert await ended(self.stream)
        await until(lambda: self.thing.code)
        return [*codes, await expect_close(self.graphql), self.thing.code]

    async def gone(self) -> None:
        """Wait until the registry holds none of them."""
        await self.feed.gone(self.site.registry)
        held = inspect(self.site.registry).connections
        assert not (held.identities.size + held.opening.size + held.labels.size)


@pytest.mark.parametrize("how", ["/everywhere", "end_identity"])
async def test_one_of_each(sites: Sites, how: str) -> None:
    """All endpoints on both nodes close in bounded time; stale cookies are refused everywhere."""
    foreign, feeds = Foreign(), [Feed(), Feed()]
    views: dict[str, Any] = {"/view": View, **foreign.views(), **Tickets().views}
    views["/graphql"] = SessionGraphQLView(SCHEMA)

    async def events(request: web.Request) -> web.StreamResponse:
        registry = request.config_dict["aiohttp_session_ws_registry"]
        return await feeds[registry is not a.registry].events(request)

    a, b = await sites({**views, "/events": events})
    browser = await a.logged_in()
    stale = browser.cookie
    both = [Everything(site, feed) for site, feed in zip((a, b), feeds, strict=True)]
    await both[0].open(browser)
    await both[1].open(await b.browser(stale))
    total = len(connections(a.registry)) + len(connections(b.registry))
    watch = Stopwatch()
    if how == "end_identity":
        report = await b.registry.end_identity("ann", wait=PATIENCE)
        assert (report.sockets, report.complete) == (total, True)
    else:
        await browser.get(how)
    codes = await asyncio.gather(*(one.codes() for one in both))
    for one in both:
        await one.gone()

    assert codes == [[DEAD] * 7] * 2
    await until(lambda: not running)
    assert watch.stop() < BOUND
    for site in (a, b):
        assert await site.presented(stale) == (None, DEAD)
        assert await site.knock(stale, "/gql") == DEAD
        assert await site.knock(stale, "/view") == DEAD
        assert await expect_close(await subscribe(site, stale)) == DEAD
        assert await status_of(site, stale, **EVENTS) == 204
        assert not _left(site.registry)


def _left(registry: SessionWSRegistry) -> list[State]:
    return [connection.state for connection in connections(registry)]
