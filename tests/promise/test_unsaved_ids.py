"""
An id that exists only as long as its connection is not saved anywhere.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Expiry, WebSocket, websocket_handler
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Browser, Site, Socket, user_of
from tests.support import until
from tests.support.inspect import connections, inspect


@websocket_handler
async def unsaved(ws: WebSocket) -> None:
    """Open a socket with an id that isn't saved."""
    await ws.connect(save=False)
    await ws.send_json({"user": ws.identity, "id": ws.session_ws_id})
    async for message in ws:
        await ws.send(message)


class Counting:
    """Counts the saves of a storage."""

    def __init__(self, storage: AbstractStorage) -> None:
        self.saves = 0
        self._save = storage.save_session
        storage.save_session = self.save  # type: ignore[method-assign]

    async def save(self, request: web.Request, response: Any, session: Any) -> None:
        self.saves += 1
        await self._save(request, response, session)


async def start(
    serve: Serve, storage: AbstractStorage, **options: Any
) -> tuple[Site, Browser, Counting]:
    """Start a site, and open a visitor's browser."""
    counting = Counting(storage)
    site = await serve(storage, {"/unsaved": unsaved}, **options)
    return site, await site.browser(), counting


@pytest.mark.parametrize("middleware", [True, False])
class TestVisitors:
    async def test_nothing_is_saved(
        self, serve: Serve, storage: AbstractStorage, middleware: bool
    ) -> None:
        """Nothing is saved and no cookie is set; each socket has an id of its own."""
        site, browser, counting = await start(serve, storage, site={"middleware": middleware})
        first, second = await browser.open("/unsaved"), await browser.open("/unsaved")
        for socket in (first, second):
            assert await socket.lives()
            await socket.ws.close()
        await until(lambda: not connections(site.registry))

        assert first.id != second.id
        assert (browser.cookie, counting.saves) == ("", 0)
        assert not inspect(site.registry).connections.lineages.size

    async def test_a_log_out(
        self, serve: Serve, storage: AbstractStorage, middleware: bool
    ) -> None:
        """An end of its id closes the socket."""
        site, browser, _ = await start(serve, storage, site={"middleware": middleware})
        socket = await browser.open("/unsaved")
        report = await site.registry.end_session(socket.id)

        assert report.sockets == 1
        assert await socket.code() == DEAD

    async def test_the_check(
        self, serve: Serve, storage: AbstractStorage, middleware: bool
    ) -> None:
        """The periodic check, which finds no session, closes and saves nothing."""
        site, browser, counting = await start(
            serve,
            storage,
            site={"middleware": middleware},
            expiry=Expiry(revalidate_every=1.0),
        )
        socket = await browser.open("/unsaved")
        await _checked(site)

        assert await socket.lives()
        assert counting.saves == 0


async def _checked(site: Site) -> None:
    """Wait until the only connection has been checked twice."""
    (connection,) = connections(site.registry)
    for _ in range(2):
        due = connection.check_at
        await until(lambda due=due: connection.check_at > due)  # type: ignore[misc]


class TestSessions:
    async def test_one_that_has_its_id(self, serve: Serve, storage: AbstractStorage) -> None:
        """The socket of a session that has an id uses it, and ends with it."""
        _, browser, counting = await start(serve, storage, identify=user_of)
        await browser.get("/login")
        socket, saves = await browser.open("/unsaved"), counting.saves
        assert socket.id == (await browser.get()).data["id"]
        assert counting.saves == saves
        await browser.get("/out/helper")

        assert await socket.code() == DEAD

    async def test_the_check_of_one_that_has(self, serve: Serve, storage: AbstractStorage) -> None:
        """The periodic check keeps the socket of a session that has an id."""
        site, browser, _ = await start(
            serve, storage, identify=user_of, expiry=Expiry(revalidate_every=1.0)
        )
        await browser.get("/login")
        socket = await browser.open("/unsaved")
        await _checked(site)

        assert await socket.lives()

    async def test_a_refused_one(self, serve: Serve, storage: AbstractStorage) -> None:
        """A refused handshake saves nothing."""
        site, browser, counting = await start(serve, storage, authorize=lambda _: False)
        with pytest.raises(WSServerHandshakeError):
            await browser.open("/unsaved")

        assert counting.saves == 0
        assert not connections(site.registry)

    async def test_many(self, serve: Serve, storage: AbstractStorage) -> None:
        """Many clients without cookies cause no saves."""
        site, _, counting = await start(serve, storage)

        async def come() -> Socket:
            return await (await site.browser()).open("/unsaved")

        sockets = await asyncio.gather(*(come() for _ in range(20)))
        for socket in sockets:
            await socket.ws.close()
        await until(lambda: not connections(site.registry))

        assert counting.saves == 0
        assert len({socket.id for socket in sockets}) == 20
