"""
Operations on single sockets.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws import Close, SessionWSRegistry
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Client,
    expect_close,
    make_app,
    user_of,
)
from tests.support.inspect import connections


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


@pytest.fixture
async def client(aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> Client:
    client = await aiohttp_client(make_app(registry))
    await client.get("/login")
    return client


class TestOneConnection:
    async def test_close(self, client: Client, registry: SessionWSRegistry) -> None:
        """A socket is closed by its connection id; its session and the other sockets stay."""
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            first, _ = await registry.connections()
            report = await registry.close_connection(first.id)

            assert (report.sockets, report.complete) == (1, True)
            assert await expect_close(one) == 4403
            await other.receive(timeout=PATIENCE)
            await other.send_str("still there?")
            assert await other.receive_str(timeout=PATIENCE) == "still there?"
            async with client.ws_connect("/ws") as third:
                assert (await third.receive_json(timeout=PATIENCE))[1] == "ann"

    async def test_code(self, client: Client, registry: SessionWSRegistry) -> None:
        """A single socket is closed with the code that the caller chose."""
        async with client.ws_connect("/ws") as ws:
            (info,) = await registry.connections()
            await registry.close_connection(info.id, close=Close(4500, "bye"))

            assert await expect_close(ws) == 4500

    async def test_gone(self, client: Client, registry: SessionWSRegistry) -> None:
        """An order for a connection id that doesn't exist closes nothing, and is complete."""
        async with client.ws_connect("/ws"):
            report = await registry.close_connection("0123456789ab")

            assert (report.sockets, report.nodes_expected, report.complete) == (0, 1, True)

    async def test_all_but_one(self, client: Client, registry: SessionWSRegistry) -> None:
        """An order with ``except_`` closes only the other sockets of the session."""
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            await one.receive(timeout=PATIENCE)
            first, _ = connections(registry)
            report = await registry.close_all_session(first.session_ws_id, except_=first)

            assert report.sockets == 1
            assert await expect_close(other) == 4403
            await one.send_str("still there?")
            assert await one.receive_str(timeout=PATIENCE) == "still there?"


class TestUserAgent:
    async def test_bounded(self, client: Client, registry: SessionWSRegistry) -> None:
        """A connection's info has the User-Agent header, cut off at 200 characters."""
        headers = [{"User-Agent": "Mozilla"}, {"User-Agent": "x" * 7000}]
        async with (
            client.ws_connect("/ws", headers=headers[0]),
            client.ws_connect("/ws", headers=headers[1]),
        ):
            found = [info.user_agent for info in await registry.connections()]

        assert found == ["Mozilla", "x" * 200]
