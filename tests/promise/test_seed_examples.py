"""
The examples of the README of 1.1.1, unchanged except for names that were wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from datetime import datetime
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws import (
    SessionWSRegistry,
    delete_session_ws_id,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup as setup_session_websockets,
)
from aiohttp_session_ws.typing import SupportsClose
from tests.support import PATIENCE, AiohttpClient, Client

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def handle_root(request: web.Request) -> web.Response:
    return web.Response(text="Hello world", content_type="text/html")


async def handle_reset(request: web.Request) -> web.Response:
    session_ws_id = await get_session_ws_id(request)
    response = web.Response(
        text=f"Reset called on session {session_ws_id}!",
        content_type="text/plain",
    )
    await schedule_close_all_session_ws(request, response)
    await new_session_ws_id(request)
    return response


async def handle_clock(request: web.Request) -> web.WebSocketResponse:
    async with session_ws(request) as wsr:
        connected_at = datetime.now()
        session_ws_id = await get_session_ws_id(request)
        while True:
            await wsr.send_str(
                f"Websocket associated with session [{session_ws_id}] "
                f"connected for {(datetime.now() - connected_at).seconds}"
            )
            await asyncio.sleep(1)
        return wsr  # type: ignore[unreachable]  # it stands so in the example


async def handle_logout_returned(request: web.Request) -> web.StreamResponse:
    response = web.HTTPFound("/")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    return response


async def handle_logout_raised(request: web.Request) -> web.StreamResponse:
    response = web.HTTPFound("/")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    raise response


async def handle_websocket(request: web.Request) -> web.WebSocketResponse:
    async with session_ws(request) as wsr:
        async for msg in wsr:
            await wsr.send_str(f"Heard: {msg.data}")
        return wsr


async def handle_graphql(request: web.Request) -> web.WebSocketResponse:
    async with session_ws(request, protocols=("graphql-ws",)) as wsr:
        async for msg in wsr:
            await wsr.send_str(f"Heard: {msg.data}")
        return wsr


def make_app(registry: SessionWSRegistry | None = None, **pages: Page) -> web.Application:
    app = web.Application(
        middlewares=[
            aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage()),
            session_ws_middleware,
        ]
    )
    app.router.add_get("/", handle_root)
    app.router.add_get("/reset", handle_reset)
    for name, page in pages.items():
        app.router.add_get(f"/{name}", page)

    setup_session_websockets(app, SessionWSRegistry() if registry is None else registry)
    return app


async def text_of(client: Client, path: str) -> str:
    """Return the text of a page."""
    async with client.get(path) as response:
        assert response.status == 200
        return await response.text()


async def expect_close(ws: Any, code: int) -> None:
    """Read until the server closes."""
    message = await ws.receive(timeout=PATIENCE)
    while message.type is WSMsgType.TEXT:
        message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.CLOSE
    assert message.data == code


class TestBasicExample:
    async def test_first_visit(self, aiohttp_client: AiohttpClient) -> None:
        """The first page gives the visitor a session, before any websocket."""
        client = await aiohttp_client(make_app())
        assert await text_of(client, "/") == "Hello world"

        cookies = client.session.cookie_jar.filter_cookies(client.make_url("/"))
        assert "aiohttp_session_ws_id" in cookies["AIOHTTP_SESSION"].value

    async def test_reset(self, aiohttp_client: AiohttpClient) -> None:
        """A reset closes the sockets of the session, which reconnect with another id."""
        client = await aiohttp_client(make_app(ws=handle_clock))
        await text_of(client, "/")
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            greeting = await one.receive_str(timeout=PATIENCE)
            assert await other.receive_str(timeout=PATIENCE) == greeting
            session_ws_id = greeting.partition("[")[2].partition("]")[0]
            assert greeting.endswith("connected for 0")

            text = await text_of(client, "/reset")
            assert text == f"Reset called on session {session_ws_id}!"
            await expect_close(one, 4403)
            await expect_close(other, 4403)

        async with client.ws_connect("/ws") as again:
            assert session_ws_id not in await again.receive_str(timeout=PATIENCE)
            await text_of(client, "/reset")  # a handler that only sends isn't ended by our close
            await expect_close(again, 4403)

    async def test_reset_of_another(self, aiohttp_client: AiohttpClient) -> None:
        """A reset doesn't affect the sockets of other sessions."""
        client = await aiohttp_client(make_app(ws=handle_websocket))
        await text_of(client, "/")
        async with client.ws_connect("/ws") as ws:
            client.session.cookie_jar.clear()
            async with client.get("/reset") as response:
                assert response.status == 200
            await ws.send_str("still here")

            assert await ws.receive_str(timeout=PATIENCE) == "Heard: still here"

    async def test_id_made_on_connect(self, aiohttp_client: AiohttpClient) -> None:
        """A client that connects without an id gets one with the handshake's response."""
        client = await aiohttp_client(make_app(ws=handle_clock))
        async with client.ws_connect("/ws") as ws:
            greeting = await ws.receive_str(timeout=PATIENCE)
            session_ws_id = greeting.partition("[")[2].partition("]")[0]

            assert session_ws_id in await text_of(client, "/reset")
            await expect_close(ws, 4403)


class TestLogout:
    @pytest.mark.filterwarnings("ignore:returning HTTPException:DeprecationWarning")
    @pytest.mark.parametrize("handle_logout", [handle_logout_returned, handle_logout_raised])
    async def test_pattern(self, aiohttp_client: AiohttpClient, handle_logout: Page) -> None:
        """A log-out by the pattern closes the sockets and refuses the old cookie."""
        client = await aiohttp_client(make_app(ws=handle_websocket, logout=handle_logout))
        await text_of(client, "/")
        jar = client.session.cookie_jar
        stale = jar.filter_cookies(client.make_url("/"))["AIOHTTP_SESSION"]
        async with client.ws_connect("/ws") as ws:
            async with client.get("/logout", allow_redirects=False) as response:
                assert response.status == 302
                assert response.headers["Location"] == "/"
            await expect_close(ws, 4403)

        async with client.ws_connect("/ws") as ws:
            await ws.send_str("back")
            assert await ws.receive_str(timeout=PATIENCE) == "Heard: back"
        jar.clear()
        jar.update_cookies({"AIOHTTP_SESSION": stale.value}, client.make_url("/"))
        async with client.ws_connect("/ws") as ws:
            await expect_close(ws, 4403)  # for the grace: the right cookie may be on its way

    async def test_answer_ends_keep_alive(self, aiohttp_client: AiohttpClient) -> None:
        """The response that closes sockets closes its own connection as well."""
        client = await aiohttp_client(make_app())
        async with client.get("/reset") as response:
            connection = response.headers.get("Connection")

        assert connection == "close"


class TestSessionWS:
    async def test_echo(self, aiohttp_client: AiohttpClient) -> None:
        """The context manager gives an ordinary websocket response."""
        client = await aiohttp_client(make_app(ws=handle_websocket))
        async with client.ws_connect("/ws") as ws:
            await ws.send_str("hello")

            assert await ws.receive_str(timeout=PATIENCE) == "Heard: hello"

    @pytest.mark.parametrize(
        ("offered", "chosen"),
        [(("graphql-ws",), "graphql-ws"), (("other", "graphql-ws"), "graphql-ws"), ((), None)],
    )
    async def test_protocols(
        self, aiohttp_client: AiohttpClient, offered: tuple[str, ...], chosen: str | None
    ) -> None:
        """Options are passed to the websocket response."""
        client = await aiohttp_client(make_app(ws=handle_graphql))
        async with client.ws_connect("/ws", protocols=offered) as ws:
            await ws.send_str("hello")
            assert await ws.receive_str(timeout=PATIENCE) == "Heard: hello"

            assert ws.protocol == chosen


class TestRegistry:
    def test_string_key(self) -> None:
        """The application holds the registry under its documented string key."""
        registry = SessionWSRegistry()

        assert make_app(registry)["aiohttp_session_ws_registry"] is registry

    async def test_string_key_in_a_handler(self, aiohttp_client: AiohttpClient) -> None:
        """A handler finds the registry by that key, and can close sockets."""

        async def handle_kick(request: web.Request) -> web.Response:
            registry = request.app["aiohttp_session_ws_registry"]
            report = await registry.close_all_session(await get_session_ws_id(request))
            return web.Response(text=str(report.sockets))

        client = await aiohttp_client(make_app(ws=handle_websocket, kick=handle_kick))
        await text_of(client, "/")
        async with client.ws_connect("/ws") as ws:
            kicked = asyncio.create_task(text_of(client, "/kick"))
            await expect_close(ws, 4403)

        assert await kicked == "1"

    async def test_options(self, aiohttp_client: AiohttpClient) -> None:
        """``id_factory`` and ``session_key`` are keywords, and the factory may be async."""

        async def id_factory(request: web.Request) -> Hashable:
            return 42

        registry = SessionWSRegistry(id_factory=id_factory, session_key="my_key")
        client = await aiohttp_client(make_app(registry))

        assert await text_of(client, "/reset") == "Reset called on session 42!"
        cookies = client.session.cookie_jar.filter_cookies(client.make_url("/"))
        assert "my_key" in cookies["AIOHTTP_SESSION"].value

    async def test_helpers(self, aiohttp_client: AiohttpClient) -> None:
        """The helpers ensure, renew and delete the id."""

        async def page(request: web.Request) -> web.Response:
            ids = [await get_session_ws_id(request)]
            for helper in (ensure_session_ws_id, new_session_ws_id, delete_session_ws_id):
                await helper(request)
                ids.append(await get_session_ws_id(request))
            await ensure_session_ws_id(request)
            return web.json_response(ids)

        client = await aiohttp_client(make_app(page=page))
        async with client.get("/page") as response:
            first, ensured, renewed, deleted = await response.json()

        assert first == ensured != renewed
        assert deleted is None

    async def test_broker(self, aiohttp_client: AiohttpClient) -> None:
        """Overridden ``register`` and ``unregister`` can subscribe to a broker."""
        subscribed: dict[Hashable, int] = {}
        quiet = asyncio.Event()

        class BrokerRegistry(SessionWSRegistry):
            async def register(self, session_ws_id: Hashable, ws: SupportsClose) -> None:  # type: ignore[override]  # as 1.1.1 had it
                super().register(session_ws_id, ws)
                subscribed[session_ws_id] = subscribed.get(session_ws_id, 0) + 1

            async def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
                super().unregister(session_ws_id, ws)
                subscribed[session_ws_id] -= 1
                if not any(subscribed.values()):
                    quiet.set()

        registry = BrokerRegistry(id_factory=lambda request: "anna")
        client = await aiohttp_client(make_app(registry, ws=handle_websocket))
        async with client.ws_connect("/ws") as one, client.ws_connect("/ws") as other:
            for ws in (one, other):
                await ws.send_str("there?")
                await ws.receive_str(timeout=PATIENCE)
            assert subscribed == {"anna": 2}
            assert len(registry["anna"]) == 2
            message = asyncio.create_task(registry.close_all_session("anna"))
            await expect_close(one, 4403)
            await expect_close(other, 4403)
        await message
        await asyncio.wait_for(quiet.wait(), PATIENCE)

        assert not len(registry)
