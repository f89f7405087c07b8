"""
The end of a websocket's conversation: by its client, an order, its handler or an error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import WSCloseCode, web

from aiohttp_session_ws import SessionWSRegistry, WebSocket, WebSocketDisconnect
from aiohttp_session_ws.close_codes import SLOW_CONSUMER
from aiohttp_session_ws.exceptions import WebSocketProtocolError
from tests.support import (
    PATIENT,
    QUICK,
    AiohttpClient,
    RawPeer,
    expect_close,
    until,
)
from tests.support.inspect import connections, quiet
from tests.unit.handlers.talks import Ended, Talk, is_quiet, neither, serving


async def send_only(ws: WebSocket) -> None:
    while True:
        await ws.send("x")
        await asyncio.sleep(0)


async def receive_only(ws: WebSocket) -> None:
    while True:
        await ws.receive()


async def both(ws: WebSocket) -> None:
    await asyncio.gather(send_only(ws), receive_only(ws))


TALKS: list[Talk] = [send_only, receive_only, both, neither]


@pytest.mark.parametrize("talk", TALKS)
class TestDisconnect:
    """Whatever a handler does, it gets the end of its socket with its code and reason."""

    def app(self, talk: Talk, ended: Ended, registry: SessionWSRegistry | None = None) -> Any:
        async def handler(ws: WebSocket) -> None:
            await ws.connect()
            await ws.send("hello")
            try:
                await talk(ws)
            except WebSocketDisconnect as exc:
                ended.note(exc)
                raise

        return serving(handler, registry)

    async def test_by_the_client(
        self, aiohttp_client: AiohttpClient, talk: Talk, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A client's close reaches the handler with its code and reason, and logs no error."""
        ended = Ended()
        registry = SessionWSRegistry()
        client = await aiohttp_client(self.app(talk, ended, registry))
        ws = await client.ws_connect("/talk")
        await ws.receive_str()
        await ws.close(code=4321, message=b"enough")

        assert await ended() == (4321, "enough")
        await quiet(registry)
        assert not len(registry)
        assert is_quiet(caplog)

    async def test_by_a_client_that_gives_no_code(
        self, aiohttp_client: AiohttpClient, talk: Talk
    ) -> None:
        """A close frame without a code is reported to the handler as 1005."""
        ended = Ended()
        client = await aiohttp_client(self.app(talk, ended))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.say(8, b"")

        assert await ended() == (1005, "")
        peer.close()

    async def test_by_a_client_that_vanishes(
        self, aiohttp_client: AiohttpClient, talk: Talk, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A lost connection is reported to the handler as 1006, and logs no error."""
        ended = Ended()
        client = await aiohttp_client(self.app(talk, ended))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.frame()
        peer.vanish()

        assert (await ended())[0] == 1006
        assert is_quiet(caplog)

    async def test_by_an_order(
        self, aiohttp_client: AiohttpClient, talk: Talk, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An order's code and reason are reported to the handler."""
        ended = Ended()
        registry = SessionWSRegistry(timeouts=PATIENT)
        client = await aiohttp_client(self.app(talk, ended, registry))
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/talk") as ws:
            await ws.receive_str()
            ending = asyncio.ensure_future(registry.end_session(id_))

            assert await expect_close(ws) == 4401
            assert await ended() == (4401, "session ended")
            report = await ending
        assert (report.sockets, report.aborted, report.cancelled) == (1, 0, 0)
        assert is_quiet(caplog)

    async def test_by_itself(self, aiohttp_client: AiohttpClient, talk: Talk) -> None:
        """A close by another task is reported to the handler with its code and reason."""
        ended = Ended()
        sockets: list[WebSocket] = []

        async def noted(ws: WebSocket) -> None:
            sockets.append(ws)
            await talk(ws)

        client = await aiohttp_client(self.app(noted, ended))
        async with client.ws_connect("/talk") as ws:
            await ws.receive_str()
            await until(lambda: sockets)
            closing = asyncio.ensure_future(sockets[0].close(SLOW_CONSUMER, "hurry"))

            assert await expect_close(ws) == 1013
            assert await ended() == (1013, "hurry")
            await closing


class TestStuckPeer:
    async def test_a_send_that_waits(self, aiohttp_client: AiohttpClient) -> None:
        """An order ends a send that waits for a peer who doesn't read."""
        ended = Ended()
        registry = SessionWSRegistry(timeouts=QUICK)

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            try:
                while True:
                    await ws.send(bytes(2**20))
            except WebSocketDisconnect as exc:
                ended.note(exc)

        client = await aiohttp_client(serving(talk, registry))
        peer = await RawPeer.open(client.make_url("/talk"), receive_buffer=4096)
        await until(lambda: len(registry))
        (connection,) = connections(registry)
        assert connection.transport is not None
        await until(connection.transport.get_write_buffer_size)
        report = await registry.close_all()

        assert await ended() == (4403, "reconnect")
        assert (report.aborted, report.cancelled) == (1, 0)
        peer.close()


class TestWaysToEnd:
    async def end(
        self, aiohttp_client: AiohttpClient, talk: Talk, caplog: pytest.LogCaptureFixture
    ) -> tuple[int, int]:
        """Return the close code after *talk*, and how many warnings were logged."""

        async def handler(ws: WebSocket) -> web.StreamResponse | None:
            await ws.connect()
            return await talk(ws)

        client = await aiohttp_client(serving(handler))
        async with client.ws_connect("/talk") as ws:
            code = await expect_close(ws)
        await client.close()
        return code, len([r for r in caplog.records if r.levelno >= logging.WARNING])

    async def test_return(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A socket closes with 1000 when its handler returns, whatever the handler returns."""

        async def talk(ws: WebSocket) -> web.StreamResponse | None:
            return web.Response(status=418)

        assert await self.end(aiohttp_client, talk, caplog) == (1000, 0)

    async def test_crash(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that crashes closes with 1011, and is logged once."""

        async def talk(ws: WebSocket) -> None:
            raise LookupError("a bug")

        assert await self.end(aiohttp_client, talk, caplog) == (1011, 1)
        assert "LookupError: a bug" in caplog.text

    async def test_http_exception(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An HTTP exception in an open socket becomes a close code."""

        async def talk(ws: WebSocket) -> None:
            raise web.HTTPForbidden

        assert await self.end(aiohttp_client, talk, caplog) == (1008, 0)

    async def test_protocol_error(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A ``WebSocketProtocolError`` with a message too long for a frame closes with 1002."""

        async def talk(ws: WebSocket) -> None:
            raise WebSocketProtocolError("é" * 100)

        assert await self.end(aiohttp_client, talk, caplog) == (1002, 0)

    @pytest.mark.parametrize("code", [WSCloseCode.MESSAGE_TOO_BIG, 4000, SLOW_CONSUMER])
    async def test_close(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture, code: Any
    ) -> None:
        """A handler may close with any valid code and continue; a second close has no effect."""

        async def talk(ws: WebSocket) -> None:
            await ws.close(code)
            await ws.close(4001)
            assert await ws.recv() is None
            with pytest.raises(WebSocketDisconnect):
                await ws.send("x")

        number = code if isinstance(code, int) else code.code
        assert await self.end(aiohttp_client, talk, caplog) == (number, 0)

    async def test_a_code_that_no_frame_can_carry(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A code that no close frame can carry is refused, and the socket stays connected."""

        async def talk(ws: WebSocket) -> None:
            for code in (1005, 1006, 2000, 5000):
                with pytest.raises(ValueError, match="can't be sent"):
                    await ws.close(code)
            assert ws.connected

        assert await self.end(aiohttp_client, talk, caplog) == (1000, 0)

    async def test_a_group_of_tasks(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A disconnect that two tasks of a group raise is not logged as an error."""
        registry = SessionWSRegistry()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            async with asyncio.TaskGroup() as group:
                group.create_task(send_only(ws))
                group.create_task(receive_only(ws))

        client = await aiohttp_client(serving(talk, registry))
        closed: list[int] = []
        registry.on_close.append(lambda details: note(details.code))

        async def note(code: int) -> None:
            closed.append(code)

        ws = await client.ws_connect("/talk")
        await ws.receive_str()
        await ws.close(code=4000)
        await until(lambda: closed)
        await client.close()

        assert closed == [4000]
        assert is_quiet(caplog)

    async def test_the_disconnect_of_another(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that raises the disconnect of another socket has crashed."""
        sockets: list[WebSocket] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            sockets.append(ws)
            if len(sockets) == 1:
                return
            await sockets[0].send("hello")

        client = await aiohttp_client(serving(talk))
        codes = []
        for _ in range(2):
            async with client.ws_connect("/talk") as ws:
                codes.append(await expect_close(ws))
        await client.close()

        assert codes == [1000, 1011]
        assert caplog.text.count("WebSocketDisconnect: 1000") == 1

    async def test_used_afterwards(self, aiohttp_client: AiohttpClient) -> None:
        """A socket whose handler has returned is closed for every task that still uses it."""
        sockets: list[WebSocket] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            sockets.append(ws)

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            await expect_close(ws)
        (talked,) = sockets

        assert talked.closed
        assert await talked.recv() is None
        assert [message async for message in talked] == []
        for _ in range(9):
            with pytest.raises(WebSocketDisconnect, match="1000"):
                await talked.receive()
        with pytest.raises(WebSocketDisconnect, match="1000"):
            await talked.send("x")
        await talked.close()

    async def test_a_message_that_is_too_long(self, aiohttp_client: AiohttpClient) -> None:
        """A message over aiohttp's size limit ends the conversation with aiohttp's code."""
        ended = Ended()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            try:
                await ws.receive()
            except WebSocketDisconnect as exc:
                ended.note(exc)

        client = await aiohttp_client(serving(talk, max_msg_size=4096))
        async with client.ws_connect("/talk") as ws:
            await ws.send_bytes(bytes(5000))
            code, reason = await ended()

            assert code == await expect_close(ws) == 1009
        assert "4096" in reason
