"""
``session_ws``: how an exception in its block closes the websocket.
"""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, session_ws, session_ws_middleware
from aiohttp_session_ws.exceptions import SessionWSClosed
from tests.support import AiohttpClient, expect_close, make_app


async def test_a_connection_of_its_own(
    aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A ConnectionError that isn't the websocket's is logged, and closes it with 1011."""

    async def handler(request: web.Request) -> web.WebSocketResponse:
        async with session_ws(request):
            raise ConnectionRefusedError("the database is away")

    app = make_app(SessionWSRegistry())
    app.router.add_get("/handler", handler)
    client = await aiohttp_client(app)
    async with client.ws_connect("/handler") as ws:
        assert await expect_close(ws) == 1011
    await client.close()

    assert "the database is away" in caplog.text


async def test_an_http_exception(aiohttp_client: AiohttpClient) -> None:
    """An HTTP exception becomes a close code; without the middleware SessionWSClosed is raised."""
    raised: asyncio.Queue[Exception] = asyncio.Queue()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            async with session_ws(request):
                raise web.HTTPForbidden
        except SessionWSClosed as exc:
            raised.put_nowait(exc)
            return exc.response

    app = make_app(SessionWSRegistry())
    app.middlewares.remove(session_ws_middleware)
    app.router.add_get("/handler", handler)
    client = await aiohttp_client(app)
    async with client.ws_connect("/handler") as ws:
        assert await expect_close(ws) == 1008

    assert isinstance((await raised.get()).__cause__, web.HTTPForbidden)
