"""
Identities of sockets, and log-outs of all sessions of an identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

import aiohttp_security
import pytest
from aiohttp import WSServerHandshakeError, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import SessionWSRegistry, end_identity_ws, renew_session_ws
from aiohttp_session_ws.exceptions import IdentifyFailed, InvalidIdentity
from aiohttp_session_ws.signals import FailDetails, HandshakeDetails
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    cookie_of,
    expect_close,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, inspect, opening
from tests.support.people import outcome


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


class TestIdentify:
    @pytest.mark.parametrize("identity", ["ann", 7, ("org", 7), frozenset({1})])
    async def test_hashable(self, aiohttp_client: AiohttpClient, identity: Hashable) -> None:
        """An identity may be any hashable object."""
        registry = SessionWSRegistry(identify=lambda request: identity, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            (info,) = await registry.connections(identity=identity)
            assert info.identity == identity
            await registry.end_identity(identity)
            assert await expect_close(ws) == 4401

    @pytest.mark.parametrize("identity", [[], {}, set()])
    async def test_unhashable(self, aiohttp_client: AiohttpClient, identity: Any) -> None:
        """An unhashable identity fails its handshake with a clear error; other sockets stay."""
        harmed: list[BaseException] = []
        bad = [False]
        registry = SessionWSRegistry(
            identify=lambda request: identity if bad[0] else "ann", timeouts=QUICK
        )

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            harmed.append(details.exception)

        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            bad[0] = True
            with pytest.raises(WSServerHandshakeError, match="503"):
                await client.ws_connect("/ws")
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        assert isinstance(harmed[0].__cause__, InvalidIdentity)
        assert "hashable" in str(harmed[0].__cause__)
        assert not opening(registry)

    async def test_raises(self, aiohttp_client: AiohttpClient) -> None:
        """An ``identify`` that raises fails the handshake, which is then no longer tracked."""
        failures: list[BaseException] = []

        def identify(request: web.Request) -> str:
            raise LookupError("no database")

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failures.append(details.exception)

        client = await aiohttp_client(make_app(registry))
        with pytest.raises(WSServerHandshakeError, match="503"):
            await client.ws_connect("/ws")

        failure = failures[0].__cause__
        assert isinstance(failure, IdentifyFailed)
        assert isinstance(failure.__cause__, LookupError)
        assert "must return" in str(failure)
        assert not opening(registry)

    async def test_raises_on_a_page(self, aiohttp_client: AiohttpClient) -> None:
        """While ``identify`` fails, only requests that need an identity get 503."""
        broken = False

        def identify(request: web.Request) -> str:
            if broken:
                raise LookupError("no database")
            return "ann"

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")
        cookie = cookie_of(client)
        broken = True
        assert (await client.get("/whoami")).status == 200
        async with client.get("/login", params={"user": "bob"}) as response:
            assert response.status == 503  # whether it replaces another user is unknown
            assert response.headers["Retry-After"]
            assert not response.cookies
        await registry.end_identity("bob")
        async with client.get("/whoami") as response:
            assert response.status in (200, 503)  # 200 if known since the log-in

        assert cookie_of(client) == cookie

    @pytest.mark.parametrize("error", [web.HTTPUnauthorized, web.HTTPForbidden])
    async def test_http_answer(
        self, aiohttp_client: AiohttpClient, error: type[web.HTTPException]
    ) -> None:
        """A session is anonymous if ``identify`` raises 401 or 403."""

        def identify(request: web.Request) -> str:
            raise error

        registry = SessionWSRegistry(identify=identify, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            (info,) = await registry.connections()

        assert info.identity is None

    async def test_known_to_authorize(self, aiohttp_client: AiohttpClient) -> None:
        """``identify`` is called after ``on_handshake`` and before ``authorize``."""
        steps: list[str] = []

        def identify(request: web.Request) -> str:
            steps.append("identify")
            return "ann"

        def authorize(request: web.Request) -> bool:
            steps.append("authorize")
            return True

        registry = SessionWSRegistry(identify=identify, authorize=authorize, timeouts=QUICK)

        @registry.on_handshake
        async def note(details: HandshakeDetails) -> None:
            steps.append("on_handshake")

        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws"):
            pass
        assert steps == ["on_handshake", "identify", "authorize"]

    async def test_index_is_left(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The index of identities is empty again when their sockets have closed."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws, client.ws_connect("/ws") as other:
            await asyncio.gather(ws.receive(), other.receive())
            assert inspect(registry).connections.identities.size == 2
        await until(lambda: not connections(registry))

        assert inspect(registry).connections.identities.size == 0
        assert len(inspect(registry).connections.identities) == 0


class Everybody(aiohttp_security.AbstractAuthorizationPolicy):
    """A policy that knows every user who has a name."""

    async def permits(self, identity: str | None, permission: Any, context: Any = None) -> bool:
        """Permit everything to every user."""
        return identity is not None

    async def authorized_userid(self, identity: str) -> str | None:
        """Return the user's id."""
        return f"user {identity}"


class TestAiohttpSecurity:
    """``aiohttp_security.authorized_userid`` can be used as ``identify`` without a wrapper."""

    async def test_session_identity_policy(
        self, aiohttp_client: AiohttpClient, storage: AbstractStorage
    ) -> None:
        """A log-out everywhere by aiohttp_security's user id ends that user's sessions only."""
        registry = SessionWSRegistry(identify=aiohttp_security.authorized_userid, timeouts=QUICK)

        async def remember(request: web.Request) -> web.Response:
            response = web.Response()
            await aiohttp_security.remember(request, response, request.query["name"])
            await renew_session_ws(request, response)
            return response

        async def forget(request: web.Request) -> web.Response:
            response = web.Response()
            await aiohttp_security.forget(request, response)
            await end_identity_ws(request, response)
            return response

        app = make_app(registry, storage)
        app.router.add_get("/remember", remember)
        app.router.add_get("/forget", forget)
        aiohttp_security.setup(app, aiohttp_security.SessionIdentityPolicy(), Everybody())
        client = await aiohttp_client(app)
        cookies = []
        for name in ("ann", "ann", "bob"):
            client.session.cookie_jar.clear()
            await client.get("/remember", params={"name": name})
            cookies.append(cookie_of(client))
        client.session.cookie_jar.clear()
        async with (
            client.ws_connect("/ws", headers={"Cookie": cookies[0]}) as ann,
            client.ws_connect("/ws", headers={"Cookie": cookies[2]}) as bob,
        ):
            await asyncio.gather(ann.receive(), bob.receive())
            infos = await registry.connections(identity="user ann")
            assert [info.identity for info in infos] == ["user ann"]
            await client.get("/forget", headers={"Cookie": cookies[1]})

            assert await expect_close(ann) == 4401
            await bob.send_str("still there?")
            assert await bob.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, cookies[0]) == 4401
