"""
Refused handshakes: the close code behind the middleware, and the HTTP status without it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Close, Limits, Timeouts
from aiohttp_session_ws.exceptions import HandshakeRefused
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Site, reached, user_of
from tests.support import PATIENCE, Stopwatch, Turnstile
from tests.support.clock import Wall

FOREIGN = {"Origin": "https://evil.example"}
NO = Close(4999, "no")
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def raising(request: web.Request) -> bool:
    """Refuse by raising an exception."""
    raise HandshakeRefused(NO)


async def failing(request: web.Request) -> str | None:
    """Fail to identify."""
    raise ConnectionError("the database is away")


class Row(NamedTuple):
    """A refusal: the registry's options, headers, and the results without and with middleware."""

    options: dict[str, Any]
    headers: dict[str, str]
    http: int
    websocket: int


ROWS: dict[str, Row] = {
    "foreign origin": Row({}, FOREIGN, 403, 403),
    "null origin": Row({}, {"Origin": "null"}, 403, 403),
    "garbage for an origin": Row({}, {"Origin": "http://"}, 403, 403),
    "authorize says no": Row({"authorize": lambda request: False}, {}, 403, 403),
    "authorize says a code": Row({"authorize": lambda request: NO}, {}, 403, 4999),
    "authorize raises": Row({"authorize": raising}, {}, 403, 4999),
    "identify fails": Row({"identify": failing}, {}, 503, 503),
}


@pytest.mark.parametrize("middleware", [True, False], ids=["middleware", "no middleware"])
class TestTable:
    @pytest.mark.parametrize("what", ROWS)
    async def test_by_the_application(
        self, serve: Serve, cookies: AbstractStorage, what: str, middleware: bool
    ) -> None:
        """Foreign origins get 403; a close code from ``authorize`` is sent as such."""
        row = ROWS[what]
        site = await serve(cookies, site={"middleware": middleware}, **row.options)
        told = await site.knock("", **row.headers)

        assert told == (row.websocket if middleware else row.http)

    async def test_retry_after(
        self, serve: Serve, cookies: AbstractStorage, middleware: bool
    ) -> None:
        """A 503 carries Retry-After."""
        site = await serve(cookies, site={"middleware": middleware}, limits=Limits(total=1))
        socket = await (await site.browser()).open()
        async with site.thief.get(site.url.joinpath("ws"), headers=HANDSHAKE) as response:
            assert (response.status, "Retry-After" in response.headers) == (503, True)
        assert await socket.lives()

    @pytest.mark.parametrize("limit", ["per_session", "per_identity"])
    async def test_limits(
        self, serve: Serve, cookies: AbstractStorage, middleware: bool, limit: str
    ) -> None:
        """A handshake above a limit gets 4429, or 403 without the middleware."""
        options: dict[str, Any] = {limit: 1, "on_limit": "refuse"}
        site = await serve(
            cookies, site={"middleware": middleware}, limits=Limits(**options), identify=user_of
        )
        browser = await site.logged_in("/login")
        socket = await browser.open()

        assert await site.knock(browser.cookie) == (4429 if middleware else 403)
        assert await socket.lives()

    async def test_ended(self, serve: Serve, cookies: AbstractStorage, middleware: bool) -> None:
        """A handshake of an ended session gets 4401, or 403."""
        site = await serve(cookies, site={"middleware": middleware})
        browser = await site.logged_in("/login")
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/out/helper")
        await socket.code()

        assert await site.knock(stale) == (DEAD if middleware else 403)

    async def test_ended_and_carried(
        self, clock: Wall, serve: Serve, cookies: AbstractStorage, middleware: bool
    ) -> None:
        """A handshake gets 4403 for the grace if the end gave the browser another cookie."""
        site = await serve(cookies, site={"middleware": middleware})
        browser = await site.logged_in("/login")
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/out/pattern")
        await socket.code()

        assert await site.knock(stale) == (AGAIN if middleware else 403)
        clock.advance(31)
        assert await site.knock(stale) == (DEAD if middleware else 403)

    async def test_replaced(
        self, serve: Serve, cookies: AbstractStorage, middleware: bool
    ) -> None:
        """A handshake of a renewed session gets 4403, or 403."""
        site = await serve(cookies, site={"middleware": middleware})
        browser = await site.logged_in("/login")
        stale, socket = browser.cookie, await browser.open()
        await browser.get("/renew")
        await socket.code()

        assert await site.knock(stale) == (AGAIN if middleware else 403)

    @pytest.mark.parametrize("order", ["close_all_session", "end_session", "close_all"])
    async def test_an_order_while_opening(
        self, serve: Serve, cookies: AbstractStorage, middleware: bool, order: str
    ) -> None:
        """An order refuses a handshake that is still opening."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site = await serve(cookies, site={"middleware": middleware}, authorize=authorize)
        browser = await site.logged_in("/login")
        socket = await browser.open()
        asked.shut = True
        knocking = asyncio.ensure_future(site.knock(browser.cookie))
        await reached(asked)
        registry = site.registry
        await getattr(registry, order)(*(() if order == "close_all" else (socket.id,)))
        asked.let()

        code = DEAD if order == "end_session" else AGAIN
        assert await knocking == (code if middleware else 403)


class TestHowItIsTold:
    @pytest.fixture
    async def dead(self, serve: Serve) -> tuple[Site, str]:
        """A site, and the cookie of a session that has ended."""
        site = await serve()
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/out/helper")
        return site, stale

    async def test_the_subprotocol(self, dead: tuple[Site, str]) -> None:
        """A refusal accepts the first subprotocol offered, which browsers require."""
        site, stale = dead
        async with ClientSession(headers={"Cookie": stale}) as client:
            ws = await client.ws_connect(site.url.joinpath("ws"), protocols=("chat", "other"))
            assert ws.protocol == "chat"
            assert (await ws.receive()).data == DEAD

    async def test_a_foreign_page(self, dead: tuple[Site, str]) -> None:
        """A foreign origin gets 403, even with an ended session."""
        site, stale = dead

        assert await site.knock(stale, **FOREIGN) == 403

    async def test_no_compression(self, dead: tuple[Site, str]) -> None:
        """A refusal negotiates no compression."""
        site, stale = dead
        async with ClientSession(headers={"Cookie": stale}) as client:
            ws = await client.ws_connect(site.url.joinpath("ws"), compress=15)
            assert not ws.compress
            await ws.receive()

    async def test_they_count(self, serve: Serve) -> None:
        """Refusals that wait for the client's close frame count for ``total``."""
        site = await serve(limits=Limits(total=3), timeouts=Timeouts(close=PATIENCE))
        browser = await site.logged_in()
        stale = browser.cookie
        await browser.get("/out/helper")
        peers = []
        for _ in range(10):
            reader, writer = await site.send("/ws", stale, **HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            peers.append(writer)
        answer = await site.knock("")
        for writer in peers:
            writer.transport.abort()

        assert answer == 503

    async def test_they_hold_up_no_shutdown(self, dead: tuple[Site, str]) -> None:
        """A shutdown doesn't wait for clients that never answer a refusal."""
        site, stale = dead
        writers = [(await site.send("/ws", stale, **HANDSHAKE))[1] for _ in range(20)]
        watch = Stopwatch()
        await site.stack.aclose()
        took = watch.stop()
        for writer in writers:
            writer.transport.abort()

        assert took < 1.5

    async def test_the_reason_is_told(self, serve: Serve) -> None:
        """The code and the reason of a ``Close`` reach the client."""
        site = await serve(authorize=lambda request: NO)
        async with ClientSession() as client:
            ws = await client.ws_connect(site.url.joinpath("ws"))
            message = await ws.receive()
        assert (message.data, message.extra) == (4999, "no")
