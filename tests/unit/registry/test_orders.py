"""
Orders by identity.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import NotSetUp, SessionWSRegistry
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
from tests.support.people import outcome, seen_as, session_of


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


class TestEndIdentity:
    async def test_all_sessions(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """All sockets of all sessions of one user are closed; another's stay."""
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
        """A session that has no socket open ends on its next handshake."""
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await session_of(client)
        report = await registry.end_identity("ann")

        assert report.sockets == 0
        assert await outcome(client, cookie) == 4401
        assert await outcome(client, cookie) == 4401

    async def test_by_http(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """Or on its next request, which sees an empty session."""
        client = await aiohttp_client(make_app(registry, storage))
        cookie = await session_of(client)
        await registry.end_identity("ann")

        assert await seen_as(client, cookie) is None
        assert await outcome(client, cookie) == 4401

    async def test_log_in_again(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, storage: AbstractStorage
    ) -> None:
        """Who logs in again is let in, in a session that was there before as well."""
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
        """It has to be done twice in a session that is older than the end."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/whoami")
        await registry.end_identity("ann")
        seen = []
        for _ in range(2):
            await client.get("/login")
            seen.append((await (await client.get("/whoami")).json())["user"])

        assert seen == [None, "ann"]

    async def test_except_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """One session may live on, its other ids and its sockets too."""
        client = await aiohttp_client(make_app(registry))
        mine, other = await session_of(client), await session_of(client)
        async with (
            client.ws_connect("/ws", headers={"Cookie": mine}) as a,
            client.ws_connect("/ws", headers={"Cookie": other}) as b,
        ):
            my_id = (await a.receive()).json()[0]
            await b.receive()
            report = await registry.end_identity("ann", except_session=my_id)

            assert await expect_close(b) == 4401
            assert report.sockets == 1
            await a.send_str("still there?")
            assert await a.receive_str(timeout=PATIENCE) == "still there?"
        assert await outcome(client, mine) == "ann"
        assert await outcome(client, other) == 4401
        client.session.cookie_jar.clear()
        await client.get("/renew", headers={"Cookie": mine})
        assert await outcome(client, cookie_of(client)) == "ann"

    async def test_except_session_that_moved(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """The session that lives on may be named by an id that it had before."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        before = json.loads(await (await client.get("/whoami")).text())["id"]
        await client.get("/renew")
        await registry.end_identity("ann", except_session=before)

        assert await outcome(client, cookie_of(client)) == "ann"

    async def test_twice(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """The second time ends what the first left out."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        cookie = cookie_of(client)
        mine = json.loads(await (await client.get("/whoami")).text())["id"]
        await registry.end_identity("ann", except_session=mine)
        assert await outcome(client, cookie) == "ann"
        await registry.end_identity("ann")

        assert await outcome(client, cookie) == 4401

    @pytest.mark.parametrize("renewed", [False, True])
    async def test_other_ids_of_a_session(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, renewed: bool
    ) -> None:
        """A session ends with all its ids, be they known by a socket or not."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        if renewed:
            await client.get("/renew")
        cookie = cookie_of(client)
        await registry.end_identity("ann")
        client.session.cookie_jar.clear()

        # The handler asks for a new id; it must not get one for the ended session.
        await client.get("/renew", headers={"Cookie": cookie})
        after = cookie_of(client)
        assert await outcome(client, cookie) == 4401
        assert await outcome(client, after) == "None"

    async def test_nobody(self, aiohttp_client: AiohttpClient) -> None:
        """A registry that can't identify says so, and ends nobody."""
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
        """What can't be an identity is refused, and harms no socket."""
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
        """The sockets of all sessions are told to come back, and may."""
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
        """The caller may choose the code."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/enter")
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            await registry.close_all_identity("ann", code=4999)
            assert await expect_close(ws) == 4999
