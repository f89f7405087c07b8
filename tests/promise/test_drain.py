"""
Draining closes a process's sockets gradually and refuses new ones.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import Timeouts
from tests.promise.conftest import Serve
from tests.promise.feeds import Feed, ended, listen
from tests.promise.site import DEAD, Browser, Site, Socket, user_of
from tests.support import PATIENCE, Turnstile, until
from tests.support.inspect import connections, idle, inspect

RESTART = 1012


async def crowd(site: Site, size: int) -> list[tuple[Browser, Socket]]:
    """Open *size* sockets, each in a session of its own."""
    browsers = [await site.logged_in() for _ in range(size)]
    return [(browser, await browser.open()) for browser in browsers]


class TestDrain:
    async def test_little_by_little(self, serve: Serve) -> None:
        """Sockets close over the window, none before its turn, in random order."""
        site = await serve()
        sockets = [socket for _, socket in await crowd(site, 40)]
        closed: list[tuple[float, int]] = []

        async def note(number: int, socket: Socket) -> None:
            assert await socket.code() == RESTART
            closed.append((time.monotonic() - began, number))

        began = time.monotonic()
        notes = [asyncio.ensure_future(note(*pair)) for pair in enumerate(sockets)]
        await site.registry.drain(1.0)
        took = time.monotonic() - began
        await asyncio.gather(*notes)

        assert took >= 1.0
        assert not len(site.registry)
        turns = [turn / len(sockets) for turn in range(1, len(sockets) + 1)]
        assert all(at >= turn for (at, _), turn in zip(closed, turns, strict=True))
        order = [number for _, number in closed]
        assert order not in (sorted(order), sorted(order, reverse=True))

    async def test_from_the_start(self, serve: Serve) -> None:
        """The first socket closes while others are still open."""
        site = await serve()
        sockets = [socket for _, socket in await crowd(site, 40)]
        codes = [asyncio.ensure_future(socket.code()) for socket in sockets]
        draining = asyncio.ensure_future(site.registry.drain(PATIENCE / 2))
        await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)

        assert len(site.registry)
        await site.registry.drain(0.0)
        assert set(await asyncio.gather(*codes)) == {RESTART}
        await draining

    async def test_newcomers(self, serve: Serve) -> None:
        """Handshakes get 503 as soon as the drain begins; pages are served."""
        site = await serve()
        (browser, socket), (_, other) = await crowd(site, 2)
        draining = asyncio.ensure_future(site.registry.drain(0.5))
        await asyncio.sleep(0)

        assert await site.knock(browser.cookie) == 503
        assert await browser.user() == "ann"
        assert {await socket.code(), await other.code()} == {RESTART}
        await draining

    async def test_a_handshake_in_flight(self, serve: Serve) -> None:
        """A handshake that began before the drain gets 503."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site = await serve(authorize=authorize)
        browser = await site.logged_in()
        asked.shut = True
        knocking = asyncio.ensure_future(site.knock(browser.cookie))
        await asked.arrived.wait()
        await site.registry.drain(0.0)
        asked.let()

        assert await knocking == 503
        assert not connections(site.registry)

    async def test_one_that_is_answered_meanwhile(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handshake whose answer is delayed until after the drain is closed with 1012."""
        answering = Turnstile()
        prepare = web.WebSocketResponse.prepare

        async def held(self: web.WebSocketResponse, request: web.Request) -> Any:
            await answering()
            return await prepare(self, request)

        site = await serve()
        browser = await site.logged_in()
        monkeypatch.setattr(web.WebSocketResponse, "prepare", held)
        answering.shut = True
        knocking = asyncio.ensure_future(site.knock(browser.cookie))
        await answering.arrived.wait()
        await site.registry.drain(0.0)
        answering.let()

        assert await knocking == RESTART
        assert not connections(site.registry)

    async def test_orders_win(self, serve: Serve) -> None:
        """An order given during a drain closes its sockets at once, with its own code."""
        site = await serve(identify=user_of)
        pairs = await crowd(site, 3)
        draining = asyncio.ensure_future(site.registry.drain(1.0))
        await asyncio.sleep(0)
        await pairs[0][0].get("/out/helper")
        report = await site.registry.end_identity("ann")

        assert report.sockets <= 3
        codes = [await socket.code() for _, socket in pairs]
        assert codes.count(DEAD) >= 2
        await draining

    async def test_twice(self, serve: Serve) -> None:
        """A second drain() awaits the first; cancelling one caller doesn't stop the drain."""
        site = await serve()
        (_, socket), _ = await crowd(site, 2)
        impatient = asyncio.ensure_future(site.registry.drain(0.3))
        await asyncio.sleep(0)
        impatient.cancel()
        await site.registry.drain(60.0)

        assert await socket.code() == RESTART
        assert not len(site.registry)
        await until(lambda: idle(site.registry))

    async def test_a_stream(self, serve: Serve) -> None:
        """A drain ends streams."""
        feed = Feed()
        site = await serve(None, {"/events": feed.events})
        stream = await listen(await site.logged_in())
        await site.registry.drain(0.0)

        assert await ended(stream)
        await feed.gone(site.registry)

    async def test_nobody(self, serve: Serve) -> None:
        """A drain without sockets returns at once."""
        site = await serve()
        async with asyncio.timeout(PATIENCE):
            await site.registry.drain(3600.0)


class TestShutdown:
    async def test_timeouts_drain(self, serve: Serve) -> None:
        """The shutdown drains the sockets if ``Timeouts.drain`` is set."""
        site = await serve(timeouts=Timeouts(close=1.0, handler_grace=0.5, drain=0.5))
        sockets = [socket for _, socket in await crowd(site, 5)]
        began = time.monotonic()
        stopping = asyncio.ensure_future(inspect(site.registry).shut_down())

        assert [await socket.code() for socket in sockets] == [RESTART] * 5
        await stopping
        assert time.monotonic() - began >= 0.3

    async def test_without(self, serve: Serve) -> None:
        """The shutdown doesn't drain by default: it closes with 1001."""
        site = await serve()
        ((_, socket),) = await crowd(site, 1)
        stopping = asyncio.ensure_future(inspect(site.registry).shut_down())

        assert await socket.code() == 1001
        await stopping

    async def test_after_a_drain(self, serve: Serve) -> None:
        """A shutdown during a drain closes the remaining sockets."""
        site = await serve()
        sockets = [socket for _, socket in await crowd(site, 5)]
        draining = asyncio.ensure_future(site.registry.drain(60.0))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(inspect(site.registry).shut_down())

        assert {await socket.code() for socket in sockets} <= {RESTART, 1001}
        await stopping
        draining.cancel()

    async def test_while_a_longer_drain_runs(self, serve: Serve) -> None:
        """A shutdown with a drain of its own doesn't wait for a longer one."""
        site = await serve(timeouts=Timeouts(close=0.2, handler_grace=0.1, drain=0.1))
        sockets = [socket for _, socket in await crowd(site, 5)]
        draining = asyncio.ensure_future(site.registry.drain(3600.0))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(PATIENCE):
                await inspect(site.registry).shut_down()
        finally:
            await inspect(site.registry).tasks.stop(PATIENCE)

        assert [await socket.code() for socket in sockets] == [RESTART] * 5
        await draining
