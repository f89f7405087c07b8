"""
Identities with an expiry, such as those of tokens.
"""

from __future__ import annotations

import math
import time
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import SessionWSRegistry, renew_session_ws
from aiohttp_session_ws.connections import manager
from aiohttp_session_ws.signals import FailDetails
from aiohttp_session_ws.typing import Identified
from tests.support import PATIENCE, QUICK, AiohttpClient, Client, make_app, user_of
from tests.support.inspect import connections

EXPIRED = (4401, "session expired")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every 10 ms instead of every second which connections are due."""
    monkeypatch.setattr(manager, "TICK", 0.01)


async def token_of(request: web.Request) -> Identified | None:
    """Return the session's user, with the expiry that the session holds."""
    session = await aiohttp_session.get_session(request)
    user = await user_of(request)
    return None if user is None else Identified(user, session.get("until", math.inf))


async def refresh(request: web.Request) -> web.Response:
    """Store another expiry in the session, and keep its open sockets."""
    session = await aiohttp_session.get_session(request)
    session["until"] = time.time() + float(request.query["for"])
    response = web.Response()
    await renew_session_ws(request, response, sockets="keep")
    return response


async def closed(ws: Any) -> tuple[int, str]:
    """Read until the server closes the socket; return the code and the reason."""
    while True:
        message = await ws.receive(timeout=PATIENCE)
        if message.type is WSMsgType.CLOSE:
            return int(message.data), str(message.extra)


async def start(
    aiohttp_client: AiohttpClient,
    registry: SessionWSRegistry,
    storage: AbstractStorage | None = None,
) -> Client:
    """Start an app with the handler ``refresh``; return a client that has logged in."""
    app = make_app(registry, storage)
    app.router.add_get("/refresh", refresh)
    client = await aiohttp_client(app)
    await client.get("/login")
    return client


class TestUntil:
    async def test_closed(self, aiohttp_client: AiohttpClient) -> None:
        """A socket is closed when its identity expires, and not before."""
        until = time.time() + 0.5
        registry = SessionWSRegistry(
            identify=lambda request: Identified("ann", until), timeouts=QUICK
        )
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            assert len(await registry.connections(identity="ann")) == 1

            assert await closed(ws) == EXPIRED
            assert until <= time.time() < until + PATIENCE

    async def test_over(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake whose identity has expired is refused as expired."""
        over = time.time() - 1
        registry = SessionWSRegistry(identify=lambda request: Identified("ann", over))
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            assert await closed(ws) == EXPIRED
        assert not len(registry)

    async def test_anonymous(self, aiohttp_client: AiohttpClient) -> None:
        """An identity of ``None`` may have an expiry, at which the anonymous socket is closed."""
        until = time.time() + 0.3
        registry = SessionWSRegistry(
            identify=lambda request: Identified(None, until), timeouts=QUICK
        )
        client = await start(aiohttp_client, registry)
        async with client.ws_connect("/ws") as ws:
            (info,) = await registry.connections()

            assert info.identity is None
            assert await closed(ws) == EXPIRED

    @pytest.mark.parametrize("until", [math.nan, "tomorrow", None])
    async def test_no_time(self, aiohttp_client: AiohttpClient, until: Any) -> None:
        """An ``until`` that is no time fails the handshake; the error names ``until``."""
        registry = SessionWSRegistry(identify=lambda request: Identified("ann", until))
        failures: list[BaseException | None] = []

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failures.append(details.exception.__cause__)

        client = await start(aiohttp_client, registry)
        with pytest.raises(WSServerHandshakeError, match="503"):
            await client.ws_connect("/ws")

        assert "until= must be a number of seconds" in str(failures[0])


class TestRefresh:
    async def test_longer(self, aiohttp_client: AiohttpClient, storage: AbstractStorage) -> None:
        """A socket whose token was refreshed in place stays open until the new token expires."""
        registry = SessionWSRegistry(identify=token_of, timeouts=QUICK)
        client = await start(aiohttp_client, registry, storage)
        await client.get("/refresh", params={"for": "0.7"})
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            (connection,) = connections(registry)
            before = connection.until
            await client.get("/refresh", params={"for": "1.5"})
            until = connection.until

            assert await closed(ws) == EXPIRED
            assert before < until <= time.time()

    async def test_shorter(self, aiohttp_client: AiohttpClient, storage: AbstractStorage) -> None:
        """An open socket is closed after its token was replaced by one that expires."""
        registry = SessionWSRegistry(identify=token_of, timeouts=QUICK)
        client = await start(aiohttp_client, registry, storage)
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            await client.get("/refresh", params={"for": "0.3"})

            assert await closed(ws) == EXPIRED

    async def test_checked_after(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage
    ) -> None:
        """A check that may see an older cookie keeps a refreshed socket open, with its expiry."""
        registry = SessionWSRegistry(identify=token_of, timeouts=QUICK)
        client = await start(aiohttp_client, registry, storage)
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            await client.get("/refresh", params={"for": "3600"})
            (connection,) = connections(registry)
            until, connection.check_at = connection.until, 0.0
            while connection.check_at == 0.0:  # a check sets the time of the next one
                await ws.send_str("still there?")
                assert await ws.receive_str(timeout=PATIENCE) == "still there?"

            assert connection.until == until
