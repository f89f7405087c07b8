"""
Subscriptions of strawberry-graphql end with their session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import strawberry
from aiohttp import ClientWebSocketResponse, web
from strawberry.aiohttp.views import GraphQLView

from aiohttp_session_ws import registry_from
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Site, user_of
from tests.support import PATIENCE, expect_close, until
from tests.support.inspect import connections

PROTOCOL = "graphql-transport-ws"
STACK = web.RequestKey("STACK", contextlib.AsyncExitStack[bool | None])

running: list[str] = []


@strawberry.type
class Query:
    """The query type that GraphQL requires."""

    @strawberry.field
    def hello(self) -> str:
        return "world"


@strawberry.type
class Subscription:
    """A subscription that never ends."""

    @strawberry.subscription
    async def count(self) -> AsyncIterator[int]:
        running.append("count")
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            running.pop()


SCHEMA = strawberry.Schema(Query, subscription=Subscription)


class SessionGraphQLView(GraphQLView[Any, Any]):
    """A view whose websockets belong to their sessions."""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        async with contextlib.AsyncExitStack() as stack:
            request[STACK] = stack
            return await super().__call__(request)

    async def create_websocket_response(
        self, request: web.Request, subprotocol: str | None
    ) -> web.WebSocketResponse:
        ws = await super().create_websocket_response(request, subprotocol)
        await request[STACK].enter_async_context(registry_from(request).adopt(request, ws))
        return ws


async def start(serve: Serve) -> Site:
    """Serve the schema."""
    return await serve(None, {"/graphql": SessionGraphQLView(SCHEMA)}, identify=user_of)


async def subscribe(site: Site, cookie: str) -> ClientWebSocketResponse:
    """Connect as a GraphQL client does."""
    return await site.thief.ws_connect(
        site.url.with_path("/graphql"), headers={"Cookie": cookie}, protocols=[PROTOCOL]
    )


async def count(ws: ClientWebSocketResponse) -> None:
    """Subscribe, and receive the first value."""
    await ws.send_json({"type": "connection_init"})
    assert (await ws.receive_json(timeout=PATIENCE))["type"] == "connection_ack"
    payload = {"query": "subscription { count }"}
    await ws.send_json({"id": "1", "type": "subscribe", "payload": payload})
    message = await ws.receive_json(timeout=PATIENCE)
    assert message["payload"] == {"data": {"count": 1}}


class TestSubscription:
    async def test_a_log_out(self, serve: Serve) -> None:
        """A log-out closes the socket with 4401, ends its generator, and refuses its cookie."""
        site = await start(serve)
        browser = await site.logged_in()
        ws = await subscribe(site, browser.cookie)
        await count(ws)
        stale = browser.cookie
        await browser.get("/out/helper")

        assert await expect_close(ws) == DEAD
        await until(lambda: not (running or connections(site.registry)))
        assert await expect_close(await subscribe(site, stale)) == DEAD

    async def test_queries_go_on(self, serve: Serve) -> None:
        """A query over HTTP is served as usual."""
        site = await start(serve)
        browser = await site.logged_in()
        async with browser.session.post(
            site.url.with_path("/graphql"), json={"query": "{ hello }"}
        ) as response:
            assert (await response.json())["data"] == {"hello": "world"}
