"""
Once a session has ended, its cookie opens nothing, with every storage and every log-out.
"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage

from tests.support import (
    PATIENCE,
    WAYS,
    AiohttpClient,
    Client,
    Turnstile,
    cookie_of,
    expect_close,
    make_app,
)

ENDINGS = sorted(WAYS)


async def speaks_as(client: Client, cookie: str) -> str | None:
    """Connect with *cookie*; return the user that the server sends, ``None`` if it closes."""
    client.session.cookie_jar.clear()
    async with client.ws_connect("/ws", headers={"Cookie": cookie}) as ws:
        message = await ws.receive(timeout=PATIENCE)
        if message.type is WSMsgType.CLOSE:
            assert message.data in (4401, 4403)
            return None
        user: str | None = message.json()[1]
        return user


@pytest.mark.parametrize("way", ENDINGS)
class TestStaleCookie:
    async def test_directly(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage, way: str
    ) -> None:
        """A cookie saved before the log-out opens no socket after it."""
        client = await aiohttp_client(make_app(storage=storage))
        await client.get("/login")
        stale = cookie_of(client)
        async with client.ws_connect("/ws") as ws:
            await client.get(f"/out/{way}", allow_redirects=False)
            code = await expect_close(ws)

        assert code == (4403 if way == "pattern" else 4401)
        assert await speaks_as(client, stale) is None

    async def test_after_a_get(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage, way: str
    ) -> None:
        """A page request with the cookie sees an empty session and doesn't revive it."""
        client = await aiohttp_client(make_app(storage=storage))
        await client.get("/login")
        stale = cookie_of(client)
        await client.get(f"/out/{way}", allow_redirects=False)
        client.session.cookie_jar.clear()
        async with client.get("/whoami", headers={"Cookie": stale}) as response:
            seen = await response.json()

        assert seen["user"] is None
        assert await speaks_as(client, stale) is None

    async def test_while_the_log_out_runs(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage, way: str
    ) -> None:
        """A socket that opens while the log-out is answered is closed with the others."""
        answering = Turnstile()

        @web.middleware
        async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            finally:
                if request.path.startswith("/out/"):
                    await answering()

        client = await aiohttp_client(make_app(None, storage, slow))
        await client.get("/login")
        stale = cookie_of(client)
        answering.shut = True
        leaving = asyncio.ensure_future(client.get(f"/out/{way}", allow_redirects=False))
        await answering.arrived.wait()
        async with client.ws_connect("/ws", headers={"Cookie": stale}) as ws:
            first = await ws.receive(timeout=PATIENCE)
            answering.let()
            await leaving
            # A server-side storage that was emptied loads a new session for this cookie.
            if first.type is WSMsgType.TEXT and first.json()[1] is not None:
                await expect_close(ws)

        assert await speaks_as(client, stale) is None
