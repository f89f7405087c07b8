"""
Orders by identity.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import NotSetUp, SessionWSRegistry
from aiohttp_session_ws._lineage import Lineage
from aiohttp_session_ws.exceptions import InvalidIdentity
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    cookie_of,
    expect_close,
    make_app,
    user_of,
)
from tests.support.clients import until
from tests.support.inspect import connections, inspect, quiet
from tests.support.people import outcome, seen_as, session_of


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


class TestEndIdentity:
    async def test_all_sessions(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """All sockets of all sessions of one user are closed; those of another user stay open."""
        client = await aiohttp_client(make_app(registry, storage))
        first, second = await session_of(client), await session_of(client)
        other = await session_of(client, "bob")
        async with (
            client.ws_connect("/ws", headers={"Cookie": first}) as a,
            client.ws_connect("/ws", headers={"Cookie": second}) as b,
            client.ws_connect("/ws", headers={"Cookie": other}) as c,
        ):
            await asyncio.gather(a.receive(), b.receive(), c.receive())
            report = await registry.end_identity("ann")

            assert (await expect_close(a), await expect_close(b)) == (4401, 4401)
            assert report.sockets == 2
            await c.send_str("still there?")
            assert await c.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, first) == 4401
        assert await outcome(client, other) == "bob"

    async def test_without_a_socket(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """A session without an open socket is refused each handshake after its identity's end."""
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await session_of(client)
        report = await registry.end_identity("ann")

        assert report.sockets == 0
        assert await outcome(client, cookie) == 4401
        assert await outcome(client, cookie) == 4401

    async def test_by_http(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """A request of an ended session sees an empty session, and its handshake is refused."""
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await session_of(client)
        await registry.end_identity("ann")

        assert await seen_as(client, cookie) is None
        assert await outcome(client, cookie) == 4401

    async def test_log_in_again(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """A user who logs in again after the end is accepted, in an older session as well."""
        client = await aiohttp_client(make_app(registry, storage))
        await client.get("/whoami")
        anonymous = cookie_of(client)
        await registry.end_identity("ann")
        client.session.cookie_jar.clear()
        await client.get("/enter", headers={"Cookie": anonymous})

        assert await outcome(client, cookie_of(client)) == "ann"
        assert await outcome(client, await session_of(client)) == "ann"

    async def test_log_in_without_renewal(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A log-in without a renewal is valid, even in a session that is older than the end."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/whoami")
        await registry.end_identity("ann")
        await client.get("/login")

        assert (await (await client.get("/whoami")).json())["user"] == "ann"
        assert await outcome(client, cookie_of(client)) == "ann"

    @pytest.mark.parametrize("renewed", [False, True])
    async def test_other_ids_of_a_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, renewed: bool
    ) -> None:
        """A session of an ended identity gets no new id, whether it was renewed before or not."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        if renewed:
            await client.get("/renew")
        cookie = cookie_of(client)
        await registry.end_identity("ann")
        client.session.cookie_jar.clear()

        # The handler asks for a new id; neither the ended session nor the empty one gets it.
        async with client.get("/renew", headers={"Cookie": cookie}) as response:
            assert not response.cookies
        assert await outcome(client, cookie) == 4401

    async def test_nobody(self, aiohttp_client: AiohttpClient) -> None:
        """A registry without ``identify`` refuses orders by identity, and ends no session."""
        registry = SessionWSRegistry(timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        cookie = await session_of(client)
        for order in (registry.end_identity, registry.close_all_identity):
            with pytest.raises(NotSetUp, match="identify="):
                await order("ann")

        assert (await client.get("/out/everywhere", headers={"Cookie": cookie})).status == 500
        assert await outcome(client, cookie) == "ann"

    @pytest.mark.parametrize("method", ["end_identity", "close_all_identity"])
    @pytest.mark.parametrize("identity", [None, [], {}])
    async def test_bad_identity(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        method: str,
        identity: Any,
    ) -> None:
        """An order for a value that can't be an identity raises an error, and closes no socket."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            with pytest.raises(InvalidIdentity, match="identi"):
                await getattr(registry, method)(identity)
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"


class TestCloseAllIdentity:
    async def test_may_come_back(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """All sockets of an identity are closed with the reconnect code, and may reconnect."""
        client = await aiohttp_client(make_app(registry))
        first, second = await session_of(client), await session_of(client)
        async with (
            client.ws_connect("/ws", headers={"Cookie": first}) as a,
            client.ws_connect("/ws", headers={"Cookie": second}) as b,
        ):
            await asyncio.gather(a.receive(), b.receive())
            report = await registry.close_all_identity("ann")

            assert (await expect_close(a), await expect_close(b)) == (4403, 4403)
            assert report.sockets == 2
        assert await outcome(client, first) == "ann"

    async def test_code(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """An order closes sockets with the code that the caller chose."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.close_all_identity("ann", close=4999)
            assert await expect_close(ws) == 4999


class TestFirstFrames:
    @pytest.mark.parametrize("order", ["close_all_session", "end_session"])
    async def test_an_order_that_fails(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        storage: AbstractStorage,
        monkeypatch: pytest.MonkeyPatch,
        order: str,
    ) -> None:
        """A socket that was sent a close frame is removed, even if the order fails after that."""

        def fail(*_args: object, **_options: object) -> None:
            raise RuntimeError("no cluster")

        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws", headers={"Cookie": await session_of(client)}) as ws:
            await ws.receive()
            (connection,) = connections(registry)
            monkeypatch.setattr(inspect(registry).cluster, "publish", fail)
            with pytest.raises(RuntimeError, match="no cluster"):
                await getattr(registry, order)(connection.session_ws_id)

            assert await expect_close(ws) == (4403 if order == "close_all_session" else 4401)
            await until(lambda: connection.removed)
        await quiet(registry)

    async def test_a_later_lineage(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """The end of an id doesn't close a socket whose lineage begins later under the same id."""
        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws", headers={"Cookie": await session_of(client)}) as ws:
            await ws.receive()
            (connection,) = connections(registry)
            later = Lineage("later", 0, connection.lineage.began + 4.0)
            core = inspect(registry)
            core.connections.refile(connection, connection.session_ws_id, later)
            report = await registry.end_session(connection.session_ws_id)

            assert report.sockets == 0
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"

    async def test_an_identity_that_is_an_id(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """An order for an identity doesn't close the sockets of a session id of equal value."""
        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws", headers={"Cookie": await session_of(client)}) as ws:
            await ws.receive()
            (connection,) = connections(registry)
            report = await registry.close_all_identity(connection.session_ws_id)

            assert report.sockets == 0
            await ws.send_str("still there?")
            assert await ws.receive_str(timeout=PATIENCE) == "still there?"
