"""
A handshake that gets stuck frees its place.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp_session import AbstractStorage, SimpleCookieStorage

from aiohttp_session_ws import Limits, Timeouts
from tests.promise.conftest import Serve
from tests.promise.site import Site, reached
from tests.support import PATIENCE, GatedStorage, Turnstile, until

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SOON = Timeouts(close=0.2, handler_grace=0.1, response=0.5, handshake=0.3)
ONE = Limits(total=1)


@pytest.fixture(params=["storage", "identify", "authorize", "id_factory"])
def stuck(request: pytest.FixtureRequest) -> tuple[Turnstile, AbstractStorage, dict[str, Any]]:
    """Where a handshake is held: the gate, a storage, registry options."""
    storage = SimpleCookieStorage()
    if request.param == "storage":
        gated = GatedStorage(storage)
        return gated.loading, gated, {}
    gate = Turnstile()

    async def ask(request: web.Request) -> str:
        await gate()
        return "ann"

    return gate, storage, {request.param: ask}


class TestTooLate:
    async def test_it_is_told(
        self, serve: Serve, stuck: tuple[Turnstile, AbstractStorage, dict[str, Any]]
    ) -> None:
        """A handshake gets 503 with Retry-After after ``Timeouts.handshake``."""
        gate, storage, options = stuck
        site = await serve(storage, timeouts=SOON, **options)
        gate.shut = True
        reader, writer = await site.send("/ws", "", **HANDSHAKE)
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()

        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in head
        gate.let()

    async def test_its_place_is_free(
        self, serve: Serve, stuck: tuple[Turnstile, AbstractStorage, dict[str, Any]]
    ) -> None:
        """Another handshake is accepted while the callable of the first is still stuck."""
        gate, storage, options = stuck
        site = await serve(storage, timeouts=SOON, limits=ONE, **options)
        gate.shut = True
        first = await site.knock("")
        gate.shut = False

        assert (first, await site.knock("")) == (503, None)
        gate.let()

    async def test_the_client_has_gone(
        self, serve: Serve, stuck: tuple[Turnstile, AbstractStorage, dict[str, Any]]
    ) -> None:
        """A client that disconnects frees its place at once, and isn't counted as late."""
        gate, storage, options = stuck
        timeouts = Timeouts(close=0.2, handler_grace=0.1, response=0.5, handshake=60)
        site = await serve(storage, timeouts=timeouts, limits=ONE, **options)
        gate.shut = True
        _, writer = await site.send("/ws", "", **HANDSHAKE)
        await reached(gate)
        writer.transport.abort()
        gate.shut = False

        assert await self.let_in(site) is None
        await until(lambda: "client gone" in site.registry.stats().refusals)
        assert "late" not in site.registry.stats().refusals
        gate.let()

    @staticmethod
    async def let_in(site: Site) -> str | int | None:
        """Try handshakes until one is not refused with 503."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await site.knock("")) == 503:
                pass
        return answer

    async def test_what_is_open(self, serve: Serve) -> None:
        """An open socket outlives ``Timeouts.handshake``."""
        site = await serve(timeouts=SOON)
        socket = await (await site.logged_in()).open()
        late = Turnstile()
        late.shut = True
        asyncio.get_running_loop().call_later(0.5, late.let)
        await late()

        assert await socket.lives()

    @pytest.mark.parametrize("stuck", ["storage", "identify", "authorize"], indirect=True)
    async def test_nothing_is_ended(
        self, serve: Serve, stuck: tuple[Turnstile, AbstractStorage, dict[str, Any]]
    ) -> None:
        """A handshake that was too late doesn't affect its session."""
        gate, storage, options = stuck
        site = await serve(storage, timeouts=SOON, **options)
        browser = await site.logged_in("/login")
        socket = await browser.open()
        gate.shut = True
        late = await site.knock(browser.cookie)
        gate.let()

        assert late == 503
        assert await socket.lives()
        assert await site.presented(browser.cookie) == ("ann", "ann")


class TestOption:
    @pytest.mark.parametrize("wrong", [-1.0, float("nan")])
    def test_a_bad_value(self, wrong: float) -> None:
        """An invalid value raises an error at construction that names the option."""
        with pytest.raises(ValueError, match="handshake"):
            Timeouts(handshake=wrong)
