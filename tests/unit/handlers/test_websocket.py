"""
The ``WebSocket`` object: connecting or refusing, sending and receiving.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web

from aiohttp_session_ws import (
    Connection,
    SessionWSRegistry,
    WebSocket,
    WebSocketDisconnect,
    session_ws_middleware,
)
from aiohttp_session_ws.exceptions import WebSocketStateError
from aiohttp_session_ws.signals import FailDetails
from tests.support import (
    AiohttpClient,
    Client,
    expect_close,
    until,
)
from tests.unit.handlers.talks import is_quiet, serving


async def status_of(client: Client, **options: Any) -> int:
    """Return the status that a handshake is refused with."""
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect("/talk", **options)
    return refused.value.status


class TestConnect:
    async def test_states(self, aiohttp_client: AiohttpClient) -> None:
        """A websocket is connecting, then connected, then closed, always exactly one of them."""
        states: list[tuple[bool, bool, bool]] = []

        async def talk(ws: WebSocket) -> None:
            def look() -> None:
                states.append((ws.connecting, ws.connected, ws.closed))

            look()
            await ws.connect()
            look()
            await ws.close()
            look()

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            await expect_close(ws)
        await until(lambda: len(states) == 3)

        assert states == [(True, False, False), (False, True, False), (False, False, True)]

    async def test_too_early(self, aiohttp_client: AiohttpClient) -> None:
        """Using a websocket before ``connect()`` raises an error that names the remedy."""

        async def talk(ws: WebSocket) -> None:
            tries: list[Callable[[], Any]] = [
                lambda: ws.send("x"),
                lambda: ws.receive(),
                lambda: ws.recv(),
                lambda: anext(ws),
                lambda: ws.session_ws_id,
                lambda: ws.identity,
                lambda: ws["name"],
                lambda: "name" in ws,
            ]
            for attempt in tries:
                with pytest.raises(WebSocketStateError, match=r"await ws\.connect\(\) first"):
                    await attempt()
            await ws.accept()
            await ws.send("good")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "good"

    async def test_twice(self, aiohttp_client: AiohttpClient) -> None:
        """A second ``connect()`` raises an error, and the socket stays connected."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            with pytest.raises(WebSocketStateError, match=r"check ws\.connecting first"):
                await ws.connect()
            await ws.send("good")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "good"

    @pytest.mark.parametrize("way", ["return", "close"])
    async def test_never(self, aiohttp_client: AiohttpClient, way: str) -> None:
        """A handler that doesn't connect refuses with 403, and ``on_fail`` is called."""
        failed: list[FailDetails] = []

        async def talk(ws: WebSocket) -> None:
            if way == "close":
                await ws.close(4000)
                assert ws.closed

        registry = SessionWSRegistry()
        registry.on_fail.append(lambda details: note(details))

        async def note(details: FailDetails) -> None:
            failed.append(details)

        client = await aiohttp_client(serving(talk, registry))

        assert await status_of(client) == 403
        assert [type(details.exception) for details in failed] == [web.HTTPForbidden]

    async def test_another_answer(self, aiohttp_client: AiohttpClient) -> None:
        """A response that a handler returns without connecting is sent to the client."""

        async def talk(ws: WebSocket) -> web.Response:
            return web.Response(status=418)

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 418

    async def test_http_exception(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An HTTP exception before connecting is sent to the client, and logs no error."""

        async def talk(ws: WebSocket) -> None:
            raise web.HTTPNotFound

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 404
        assert is_quiet(caplog)

    async def test_a_disconnect_without_a_connection(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A ``WebSocketDisconnect`` raised by hand before connecting is a crash: 500, logged."""

        async def talk(ws: WebSocket) -> None:
            raise WebSocketDisconnect(1000)

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 500
        assert not is_quiet(caplog)

    async def test_and_close(self, aiohttp_client: AiohttpClient) -> None:
        """``connect(close=...)`` connects and closes at once with the given code."""
        states: list[bool] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect(close=4000)
            states.append(ws.closed)

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await expect_close(ws) == 4000
        await until(lambda: states == [True])

    async def test_a_subprotocol(self, aiohttp_client: AiohttpClient) -> None:
        """The subprotocol that the handler chooses is used, whatever the client prefers."""

        async def talk(ws: WebSocket) -> None:
            assert ws.subprotocols == ws.protocols == ["first", "second"]
            await ws.connect(subprotocol="second")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk", protocols=["first", "second"]) as ws:
            assert ws.protocol == "second"

    @pytest.mark.parametrize("offered", [(), ("other",)])
    async def test_a_subprotocol_that_was_not_offered(
        self,
        aiohttp_client: AiohttpClient,
        offered: tuple[str, ...],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A subprotocol that the client didn't offer closes with 1002 and the reason."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect(subprotocol="mine")

        registry = SessionWSRegistry()
        client = await aiohttp_client(serving(talk, registry))
        async with client.ws_connect("/talk", protocols=offered) as ws:
            message = await ws.receive()

        assert (message.data, message.extra) == (1002, "subprotocol mine is required")
        assert not [r for r in caplog.records if r.name == "aiohttp_session_ws"]

    async def test_no_websocket(self, aiohttp_client: AiohttpClient) -> None:
        """A plain GET reaches neither hooks nor handler."""
        reached: list[WebSocket] = []

        async def note(ws: WebSocket) -> None:
            reached.append(ws)

        registry = SessionWSRegistry()
        registry.on_request.append(note)
        client = await aiohttp_client(serving(note, registry))
        async with client.get("/talk") as response:
            assert response.status == 400

        assert reached == []

    async def test_an_ended_session(self, aiohttp_client: AiohttpClient) -> None:
        """``connect()`` with an ended session closes with 4401, and ``on_fail`` is called."""
        after: list[str] = []

        async def talk(ws: WebSocket) -> None:
            try:
                await ws.connect()
            finally:
                after.append("closed" if ws.closed else "open")
            await ws.send("secret")

        registry = SessionWSRegistry()
        failed: asyncio.Queue[FailDetails] = asyncio.Queue()
        registry.on_fail.append(failed.put)
        client = await aiohttp_client(serving(talk, registry))
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)
        async with client.ws_connect("/talk") as ws:
            message = await ws.receive()

        assert (message.type, message.data) == (WSMsgType.CLOSE, 4401)
        assert after == ["closed"]
        assert failed.qsize() == 1

    async def test_without_the_middleware(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An HTTP exception in an open socket is no error, even without the middleware."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            raise web.HTTPForbidden

        app = serving(talk)
        app.middlewares.remove(session_ws_middleware)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            assert await expect_close(ws) == 1008
        await client.close()

        (warning,) = caplog.records
        assert "session_ws_middleware is missing" in warning.getMessage()


class TestTalk:
    async def test_texts_bytes_and_json(self, aiohttp_client: AiohttpClient) -> None:
        """Text and bytes come back unchanged; JSON is sent as text."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            for _ in range(2):
                await ws.send(await ws.receive())
            await ws.send_json(await ws.receive_json())
            await ws.send_json(await ws.receive_json(loads=len), dumps=lambda data: f"<{data}>")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            await ws.send_str("text")
            await ws.send_bytes(b"bytes")
            await ws.send_json({"a": [1]})
            await ws.send_str("four")

            assert await ws.receive_str() == "text"
            assert await ws.receive_bytes() == b"bytes"
            assert json.loads(await ws.receive_str()) == {"a": [1]}
            assert await ws.receive_str() == "<4>"

    async def test_anything_else(self, aiohttp_client: AiohttpClient) -> None:
        """Data that is neither text nor bytes raises an error that names the remedy."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            with pytest.raises(TypeError, match=r"can't send dict, .* use send_json\(\)"):
                await ws.send({})  # type: ignore[arg-type]  # that's the point
            await ws.send(b"good")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_bytes() == b"good"

    async def test_whose_it_is(self, aiohttp_client: AiohttpClient) -> None:
        """A websocket has its session id, its identity, its request and the connection's data."""
        seen: list[object] = []

        async def context(connection: Connection) -> AsyncIterator[None]:
            connection.data["rights"] = "all"
            yield
            seen.append(connection.data["name"])

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            ws["name"] = "Ann"
            words = [word for word in ("name", "rank") if word in ws]
            whose = [ws.session_ws_id, ws.identity, ws["rights"], ws.request.path]
            await ws.send_json([words, *whose])

        registry = SessionWSRegistry(identify=lambda request: "ann")
        registry.connection_ctx.append(context)
        client = await aiohttp_client(serving(talk, registry))
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_json() == [["name"], id_, "ann", "all", "/talk"]
            await expect_close(ws)

        assert seen == ["Ann"]
