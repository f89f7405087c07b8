"""
The conversation object: connecting, talking, and every way in which it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSCloseCode, WSMsgType, WSServerHandshakeError, web

from aiohttp_session_ws import (
    SLOW_CONSUMER,
    Connection,
    FailDetails,
    SessionWSRegistry,
    WebSocket,
    WebSocketDisconnect,
    WebSocketProtocolError,
    WebSocketStateError,
    session_ws_middleware,
    websocket_handler,
)
from aiohttp_session_ws.reader import AHEAD_BYTES, AHEAD_MESSAGES
from tests.support import (
    NORMAL_CLOSE,
    PATIENT,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    expect_close,
    make_app,
    until,
)

Talk = Callable[[WebSocket], Awaitable[object]]


def serving(talk: Talk, registry: SessionWSRegistry | None = None, **options: Any) -> Any:
    """Return an app that serves *talk* as ``/talk``."""
    app = make_app(SessionWSRegistry(timeouts=PATIENT) if registry is None else registry)
    app.router.add_get("/talk", websocket_handler(talk, **options))
    return app


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a frame of any size, masked with zeros."""
    return struct.pack("!BBQI", 128 | opcode, 255, len(payload), 0) + payload


def is_quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Tell whether nothing was logged that somebody should look at."""
    return not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def status_of(client: Client, **options: Any) -> int:
    """Return the status that a handshake is refused with."""
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect("/talk", **options)
    return refused.value.status


class TestConnect:
    async def test_states(self, aiohttp_client: AiohttpClient) -> None:
        """It is connecting, then connected, then closed, and always one of the three."""
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
        """What needs a socket says that there is none yet, and how to get one."""

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
        """It is connected once; a failed try counts."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            with pytest.raises(WebSocketStateError, match=r"ask ws\.connecting first"):
                await ws.connect()
            await ws.send("good")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "good"

    @pytest.mark.parametrize("way", ["return", "close"])
    async def test_never(self, aiohttp_client: AiohttpClient, way: str) -> None:
        """Who doesn't connect refuses with 403, and ``on_fail`` is told."""
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
        """A response that is returned in place of a connection is the answer."""

        async def talk(ws: WebSocket) -> web.Response:
            return web.Response(status=418)

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 418

    async def test_http_exception(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that is raised before is the answer, and no error."""

        async def talk(ws: WebSocket) -> None:
            raise web.HTTPNotFound

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 404
        assert is_quiet(caplog)

    async def test_a_disconnect_without_a_connection(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Who raises it by hand has crashed: it ends no conversation of its own."""

        async def talk(ws: WebSocket) -> None:
            raise WebSocketDisconnect(1000)

        client = await aiohttp_client(serving(talk))

        assert await status_of(client) == 500
        assert not is_quiet(caplog)

    async def test_and_close(self, aiohttp_client: AiohttpClient) -> None:
        """To connect and close at once tells a page's script why."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect(close=True, close_code=4000)
            assert ws.closed

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await expect_close(ws) == 4000

    async def test_a_subprotocol(self, aiohttp_client: AiohttpClient) -> None:
        """The one that is chosen is answered, whatever the client likes better."""

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
        """It can't be chosen, and the client is told so."""

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
        """The core decides who gets in."""
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
        """No middleware is needed for an HTTP exception in an open socket to be no error."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            raise web.HTTPForbidden

        app = serving(talk)
        app.middlewares.remove(session_ws_middleware)
        client = await aiohttp_client(app)
        async with client.ws_connect("/talk") as ws:
            assert await expect_close(ws) == 1008
        await client.close()

        assert is_quiet(caplog)


class TestTalk:
    async def test_texts_bytes_and_json(self, aiohttp_client: AiohttpClient) -> None:
        """A message comes back as it went; JSON goes as text."""

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
        """What is neither text nor bytes can't be sent, and the remedy is named."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            with pytest.raises(TypeError, match=r"dict can't be sent: take send_json\(\)"):
                await ws.send({})  # type: ignore[arg-type]  # that's the point
            await ws.send(b"good")

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_bytes() == b"good"

    async def test_whose_it_is(self, aiohttp_client: AiohttpClient) -> None:
        """It knows its session and whom that belongs to, and keeps what it is given."""
        seen: list[object] = []

        async def context(connection: Connection) -> AsyncIterator[None]:
            connection.data["rights"] = "all"
            yield
            seen.append(connection.data["name"])

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            ws["name"] = "Ann"
            assert "name" in ws
            assert "rank" not in ws
            await ws.send_json([ws.session_ws_id, ws.identity, ws["rights"], ws.request.path])

        registry = SessionWSRegistry(identify=lambda request: "ann")
        registry.connection_ctx.append(context)
        client = await aiohttp_client(serving(talk, registry))
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_json() == [id_, "ann", "all", "/talk"]
            await expect_close(ws)

        assert seen == ["Ann"]


class Ended:
    """What a handler found at the end of its conversation."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[Any] = asyncio.Queue()

    def note(self, error: WebSocketDisconnect) -> None:
        """Keep the error."""
        self.found.put_nowait((error.code, error.reason))

    async def __call__(self) -> Any:
        """Wait for what was found."""
        return await asyncio.wait_for(self.found.get(), 10)


async def send_only(ws: WebSocket) -> None:
    while True:
        await ws.send("x")
        await asyncio.sleep(0)


async def receive_only(ws: WebSocket) -> None:
    while True:
        await ws.receive()


async def both(ws: WebSocket) -> None:
    await asyncio.gather(send_only(ws), receive_only(ws))


async def neither(ws: WebSocket) -> None:
    await until(lambda: ws.closed)
    await ws.send("x")


TALKS: list[Talk] = [send_only, receive_only, both, neither]


@pytest.mark.parametrize("talk", TALKS)
class TestDisconnect:
    """Whatever a handler does, it learns of the end and of its reason."""

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
        """A polite close comes with its code and reason, and is no error when let through."""
        ended = Ended()
        registry = SessionWSRegistry()
        client = await aiohttp_client(self.app(talk, ended, registry))
        ws = await client.ws_connect("/talk")
        await ws.receive_str()
        await ws.close(code=4321, message=b"enough")

        assert await ended() == (4321, "enough")
        await until(lambda: not registry._sockets._tasks)
        assert not registry
        assert is_quiet(caplog)

    async def test_by_a_client_that_gives_no_code(
        self, aiohttp_client: AiohttpClient, talk: Talk
    ) -> None:
        """The code is 1005."""
        ended = Ended()
        client = await aiohttp_client(self.app(talk, ended))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.say(8, b"")

        assert await ended() == (1005, "")
        peer.close()

    async def test_by_a_client_that_vanishes(
        self, aiohttp_client: AiohttpClient, talk: Talk, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The code is 1006."""
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
        """The code and the reason are those of the order."""
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
        """Another task of the handler may close it."""
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
        await until(lambda: registry)
        (connection,) = registry._sockets.open
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
        """Return the code that *talk* ends with, and how many lines were logged."""

        async def handler(ws: WebSocket) -> object:
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
        """It is closed when its handler returns, whatever that returns."""

        async def talk(ws: WebSocket) -> object:
            return web.Response(status=418)

        assert await self.end(aiohttp_client, talk, caplog) == (1000, 0)

    async def test_crash(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It closes with 1011 and is logged once."""

        async def talk(ws: WebSocket) -> None:
            raise LookupError("a bug")

        assert await self.end(aiohttp_client, talk, caplog) == (1011, 1)
        assert "LookupError: a bug" in caplog.text

    async def test_http_exception(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An open socket takes no HTTP: it becomes a close code."""

        async def talk(ws: WebSocket) -> None:
            raise web.HTTPForbidden

        assert await self.end(aiohttp_client, talk, caplog) == (1008, 0)

    async def test_protocol_error(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is the client's fault, which is told as much of it as a close frame takes."""

        async def talk(ws: WebSocket) -> None:
            raise WebSocketProtocolError("é" * 100)

        assert await self.end(aiohttp_client, talk, caplog) == (1002, 0)

    @pytest.mark.parametrize("code", [WSCloseCode.MESSAGE_TOO_BIG, 4000, SLOW_CONSUMER])
    async def test_close(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture, code: Any
    ) -> None:
        """A handler may close with any code there is, and go on; twice does no harm."""

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
        """It is refused before anything happens."""

        async def talk(ws: WebSocket) -> None:
            for code in (1005, 1006, 2000, 5000):
                with pytest.raises(ValueError, match="can't be sent"):
                    await ws.close(code)
            assert ws.connected

        assert await self.end(aiohttp_client, talk, caplog) == (1000, 0)

    async def test_a_group_of_tasks(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two tasks that let the same disconnect through are no error either."""
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
        """A handler that stumbles over somebody else's closed socket has crashed."""
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
        """Once its handler has returned it is closed for everybody who still has it."""
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
        """What aiohttp refuses to read ends the conversation with its code."""
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


class TestReading:
    async def test_what_came_before_the_close(self, aiohttp_client: AiohttpClient) -> None:
        """It is delivered first, though the close is known; but no more is sent."""
        heard: asyncio.Queue[list[str | bytes]] = asyncio.Queue()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await until(lambda: ws.closed)
            with pytest.raises(WebSocketDisconnect):
                await ws.send("x")
            heard.put_nowait([message async for message in ws])

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            for number in range(9):
                await ws.send_str(str(number))

        assert await heard.get() == list("012345678")

    async def test_what_came_before_an_order(self, aiohttp_client: AiohttpClient) -> None:
        """It is not: the session has ended."""
        heard: asyncio.Queue[list[str | bytes]] = asyncio.Queue()
        registry = SessionWSRegistry(timeouts=PATIENT)
        sockets: list[WebSocket] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            sockets.append(ws)
            await until(lambda: ws.closed)
            heard.put_nowait([message async for message in ws])

        client = await aiohttp_client(serving(talk, registry))
        async with client.ws_connect("/talk") as ws:
            await ws.send_str("transfer all")
            await until(lambda: sockets and sockets[0]._opened()._queue)
            await registry.close_all()

        assert await heard.get() == []

    async def test_two_at_a_time(self, aiohttp_client: AiohttpClient) -> None:
        """The second task that wants to receive is told so; the first is not disturbed."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            first = asyncio.ensure_future(ws.receive())
            await asyncio.sleep(0)
            for attempt in (ws.receive, ws.recv, lambda: anext(ws)):
                with pytest.raises(WebSocketStateError, match="another task is receiving"):
                    await attempt()
            await ws.send("say something")
            await ws.send(await first)

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            await ws.receive_str()
            await ws.send_str("something")

            assert await ws.receive_str() == "something"

    async def test_a_handler_that_is_slow_now_and_then(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """Whoever reads, all comes in order and once, and nobody reads any more at the end."""
        registry = SessionWSRegistry(timeouts=PATIENT)
        readers: list[Any] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            reader = ws._opened()
            readers.append(reader)
            for number in range(300):
                if number % 30 == 0:
                    await until(lambda: reader._queue)  # it is read ahead
                await ws.send(await ws.receive())
            assert reader._ahead is None or reader._ahead.done()

        client = await aiohttp_client(serving(talk, registry))
        async with client.ws_connect("/talk") as ws:
            for number in range(10):
                for more in range(30):
                    await ws.send_str(str(30 * number + more))
                for more in range(30):
                    assert await ws.receive_str() == str(30 * number + more)
            await expect_close(ws)

        assert readers[0]._busy is None or readers[0]._busy.cancelled()
        await until(lambda: not registry._sockets._tasks)

    async def test_the_last_word(self, aiohttp_client: AiohttpClient) -> None:
        """Who has read ahead leaves the client's answer to the close to who waits for it."""
        registry = SessionWSRegistry(timeouts=PATIENT)

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await until(lambda: ws._opened()._ahead)

        client = await aiohttp_client(serving(talk, registry))
        peer = await RawPeer.open(client.make_url("/talk"))
        (connection,) = registry._sockets.open
        frame = await peer.frame()
        for _ in range(20):
            await asyncio.sleep(0)

        assert frame == (8, NORMAL_CLOSE)
        assert connection.transport is not None
        assert not connection.transport.is_closing()
        await peer.say(8, NORMAL_CLOSE)
        assert await peer.closed() is None
        peer.close()

    async def test_a_receive_that_is_cancelled(self, aiohttp_client: AiohttpClient) -> None:
        """It loses no message, whoever was reading."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            for ahead in (False, True):
                if ahead:
                    await until(lambda: ws._opened()._ahead)
                task = asyncio.ensure_future(ws.receive())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await ws.send("go on")
                await ws.send(await ws.receive())

        client = await aiohttp_client(serving(talk))
        async with client.ws_connect("/talk") as ws:
            for text in "ab":
                assert await ws.receive_str() == "go on"
                await ws.send_str(text)

                assert await ws.receive_str() == text

    async def test_pings_are_answered(self, aiohttp_client: AiohttpClient) -> None:
        """A client may ask a busy handler whether it is there."""
        done = asyncio.Event()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await done.wait()

        client = await aiohttp_client(serving(talk))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.say(9, b"there?")

        assert await peer.frame() == (10, b"there?")
        done.set()
        peer.close()

    async def test_a_receive_timeout(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Aiohttp's option is for a handler that waits, not for who reads in its place."""
        busy = 0

        async def talk(ws: WebSocket) -> None:
            nonlocal busy
            await ws.connect()
            reader = ws._opened()
            for _ in range(3):
                await until(lambda: reader._ahead is not None and reader._ahead.done())
                busy += 1
                with pytest.raises(TimeoutError):
                    await ws.receive()
            await ws.send("still there")
            assert await ws.receive() == "so am I"

        client = await aiohttp_client(serving(talk, receive_timeout=0.01))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "still there"
            await ws.send_str("so am I")
            await expect_close(ws)

        assert busy == 3
        assert is_quiet(caplog)

    async def test_pings_for_the_handler(self, aiohttp_client: AiohttpClient) -> None:
        """Without ``autoping`` they are not taken for messages."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await ws.send(await ws.receive())
            await until(lambda: ws._opened()._queue)
            await ws.send(await ws.receive())

        client = await aiohttp_client(serving(talk, autoping=False))
        async with client.ws_connect("/talk") as ws:
            for text in ("one", "two"):
                await ws.ping()
                await ws.send_str(text)

                assert await ws.receive_str() == text


class TestFlood:
    """A client that sends more than its handler reads."""

    SIZE = 60_000

    async def test_is_held_up(self, aiohttp_client: AiohttpClient) -> None:
        """It can send no more, nothing is lost, and its connection lives on."""
        registry = SessionWSRegistry(timeouts=PATIENT)
        go, held = asyncio.Event(), asyncio.Event()
        messages = 400
        got: list[int] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            reader = ws._opened()
            transport = reader.connection.transport
            await until(lambda: transport is not None and not transport.is_reading())
            await until(lambda: reader._ahead is not None and reader._ahead.done())
            assert 0 < len(reader._queue) <= AHEAD_MESSAGES
            assert reader._size < AHEAD_BYTES + self.SIZE
            held.set()
            await go.wait()
            for _ in range(messages):
                got.append(len(await ws.receive()))
            await ws.send("all")

        client = await aiohttp_client(serving(talk, registry, heartbeat=0.2))
        peer = await RawPeer.open(client.make_url("/talk"))
        flood = masked(2, bytes(self.SIZE)) * messages
        flooding = asyncio.ensure_future(peer.send(flood))
        await held.wait()
        # It is pinged all the same; before, the first ping without an answer was the end.
        for _ in range(4):
            assert await peer.frame() == (9, b"")
        assert not flooding.done()
        go.set()
        frame: tuple[int, bytes] | None = (9, b"")
        while frame == (9, b""):
            frame = await peer.frame()

        assert frame == (1, b"all")
        assert got == [self.SIZE] * messages
        await flooding
        peer.close()

    async def test_many_small_messages(self, aiohttp_client: AiohttpClient) -> None:
        """Their number is bounded too."""
        client = await aiohttp_client(serving(self.busy))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.send(b"\x81\x80\0\0\0\0" * 10 * AHEAD_MESSAGES)

        assert await peer.frame() == (1, str(AHEAD_MESSAGES).encode())
        peer.close()

    async def busy(self, ws: WebSocket) -> None:
        await ws.connect()
        reader = ws._opened()
        await until(lambda: reader._ahead is not None and reader._ahead.done())
        await ws.send(str(len(reader._queue)))
        for _ in range(10 * AHEAD_MESSAGES):
            assert await ws.receive() == ""

    async def test_a_dead_peer(self, aiohttp_client: AiohttpClient) -> None:
        """One that is silent, not held up, is found dead as before."""
        ended = Ended()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            try:
                await neither(ws)
            except WebSocketDisconnect as exc:
                ended.note(exc)

        client = await aiohttp_client(serving(talk, heartbeat=0.2))
        peer = await RawPeer.open(client.make_url("/talk"))

        assert (await ended())[0] == 1006
        peer.close()
