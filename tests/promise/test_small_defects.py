"""
Regression tests of small defects.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import (
    Close,
    Connection,
    SessionWSRegistry,
    WebSocket,
    WebSocketDisconnect,
    WebSocketView,
    session_ws,
    websocket_handler,
)
from aiohttp_session_ws.close_codes import GOING_AWAY, SLOW_CONSUMER
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, Site
from tests.support import PATIENCE, PATIENT, RawPeer, until


class TestRegistry:
    def test_is_true_while_empty(self) -> None:
        """An empty registry is true, so that ``registry or SessionWSRegistry()`` keeps it."""
        registry = SessionWSRegistry(session_key="mine")

        assert registry
        assert (registry or SessionWSRegistry()) is registry
        assert len(registry) == 0

    @pytest.mark.parametrize("close", [SLOW_CONSUMER, Close(4000, "bye"), 4000])
    async def test_one_vocabulary(self, serve: Serve, close: Close | int) -> None:
        """Every closing method takes a ``Close`` or a code; orders also take a reason."""
        site = await serve()
        code = close if isinstance(close, int) else close.code
        for order in ("close_all_session", "end_session"):
            browser = await site.logged_in()
            socket = await browser.open()
            await getattr(site.registry, order)(socket.id, close=close, reason="so")
            message = await socket.ws.receive()
            assert (message.data, message.extra) == (code, "so")
        socket = await (await site.logged_in()).open()
        await site.registry.close_all(close=close)
        assert await socket.code() == code


class TestTaskGroup:
    async def test_a_log_out_is_no_error(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A log-out of a handler that uses a task group logs no error."""

        async def both(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:

                async def read() -> None:
                    async for _ in ws:
                        pass

                async def write() -> None:
                    while True:
                        await ws.send_json({"user": None, "id": "?"})
                        await asyncio.sleep(0.001)

                async with asyncio.TaskGroup() as group:
                    group.create_task(read())
                    group.create_task(write())
            return ws

        site = await serve(views={"/both": both})
        browser = await site.logged_in()
        socket = await browser.open("/both")
        await browser.get("/out/helper")

        assert await socket.code() == DEAD
        await site.stack.aclose()
        assert not [one for one in caplog.records if one.levelno >= logging.ERROR]

    async def test_an_error_of_its_own(
        self, serve: Serve, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another error in a handler's task group closes with 1011 and is logged."""

        async def fails(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                await ws.send_json({"user": None, "id": "?"})

                async def fail() -> None:
                    raise ValueError("the application's")

                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
            return ws

        site = await serve(views={"/fails": fails})
        socket = await (await site.logged_in()).open("/fails")

        assert await socket.code() == 1011
        await until(lambda: "the application's" in caplog.text)


class Stalled:
    """Tasks that send to a peer that doesn't read."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.done = asyncio.Event()
        self.ready = asyncio.Event()

    async def send(self, ws: WebSocket, name: str) -> None:
        """Send until the peer must read."""
        try:
            for _ in range(100):
                await ws.send("x" * 100_000)
            self.said[name] = "all sent"
        except asyncio.CancelledError:
            self.said[name] = "cancelled"
            raise
        except WebSocketDisconnect:
            self.said[name] = "disconnected"

    def begin(self, ws: WebSocket, name: str) -> None:
        """Start a task that sends."""
        self.tasks[name] = asyncio.ensure_future(self.send(ws, name))


class TestSending:
    async def peer(self, site: Site, path: str) -> RawPeer:
        """Open a socket whose client reads nothing."""
        return await RawPeer.open(site.url.joinpath(path), receive_buffer=4096)

    async def test_a_cancelled_sender_harms_nobody(self, serve: Serve) -> None:
        """Cancelling one blocked sender affects no other, begun earlier or later."""
        stalled = Stalled()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            stalled.begin(ws, "one")
            stalled.begin(ws, "two")
            assert ws.request.transport is not None
            transport = ws.request.transport
            await until(lambda: transport.get_write_buffer_size() > 100_000)
            stalled.tasks["one"].cancel()
            await asyncio.wait({stalled.tasks["one"]})
            stalled.begin(ws, "three")
            for _ in range(20):
                await asyncio.sleep(0)
            stalled.ready.set()
            await asyncio.gather(stalled.tasks["two"], stalled.tasks["three"])

        site = await serve(views={"/talk": websocket_handler(talk)}, timeouts=PATIENT)
        peer = await self.peer(site, "talk")
        async with asyncio.timeout(PATIENCE):
            await stalled.ready.wait()
            assert stalled.said == {"one": "cancelled"}
            while stalled.said.keys() < {"one", "two", "three"}:
                await peer.receive()
        peer.close()

        assert stalled.said == {"one": "cancelled", "two": "all sent", "three": "all sent"}

    async def test_one_with_a_time_limit(self, serve: Serve) -> None:
        """A time-out of one blocked sender doesn't affect another."""
        stalled = Stalled()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            stalled.begin(ws, "patient")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await stalled.send(ws, "limited")
            stalled.ready.set()
            await stalled.tasks["patient"]

        site = await serve(views={"/talk": websocket_handler(talk)}, timeouts=PATIENT)
        peer = await self.peer(site, "talk")
        async with asyncio.timeout(PATIENCE):
            await stalled.ready.wait()
            assert stalled.said == {"limited": "cancelled"}
            while "patient" not in stalled.said:
                await peer.receive()
        peer.close()

        assert stalled.said["patient"] == "all sent"

    async def test_a_cancelled_sender_past_it(self, serve: Serve) -> None:
        """A sender cancelled in ``ws.connection.ws`` doesn't let others flood a slow peer."""
        stalled, kept = Stalled(), list[int]()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            transport = ws.request.transport
            assert transport is not None
            stalled.begin(ws, "patient")
            await until(lambda: transport.get_write_buffer_size() > 100_000)
            past = asyncio.ensure_future(ws.connection.ws.send_bytes(b"x" * 1_000_000))
            await asyncio.sleep(0)
            kept.append(transport.get_write_buffer_size())
            past.cancel()
            await asyncio.wait({past})
            for _ in range(1000):
                await asyncio.sleep(0)
            kept.append(transport.get_write_buffer_size())
            stalled.ready.set()
            await stalled.tasks["patient"]

        site = await serve(views={"/talk": websocket_handler(talk)}, timeouts=PATIENT)
        peer = await self.peer(site, "talk")
        async with asyncio.timeout(PATIENCE):
            await stalled.ready.wait()
            assert kept[1] <= kept[0] + 200_000
            while "patient" not in stalled.said:
                await peer.receive()
        peer.close()

        assert stalled.said == {"patient": "all sent"}

    async def test_closed_after_a_disconnect(self, serve: Serve) -> None:
        """The socket is closed as soon as a method raises ``WebSocketDisconnect``."""
        seen: list[tuple[bool, bool]] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()

            async def send() -> None:
                try:
                    while True:
                        await ws.send("x" * 1000)
                        await asyncio.sleep(0)
                except WebSocketDisconnect:
                    seen.append((ws.connected, ws.closed))

            sending = asyncio.ensure_future(send())
            async for _ in ws:
                pass
            await sending

        site = await serve(views={"/talk": websocket_handler(talk)})
        for _ in range(5):
            peer = await RawPeer.open(site.url.joinpath("talk"))
            await peer.receive()
            peer.vanish()
        await until(lambda: len(seen) == 5)

        assert set(seen) == {(False, True)}


class TestHandlers:
    def test_no_coroutine_function(self) -> None:
        """``websocket_handler`` rejects a function that isn't a coroutine function."""

        def plain(ws: WebSocket) -> None:
            """Do nothing."""

        def generator(ws: WebSocket) -> Generator[Any, Any, None]:
            """Connect in an old-style coroutine."""
            yield from ws.connect().__await__()

        for function in (plain, generator):
            with pytest.raises(TypeError, match=r"async def|coroutine"):
                websocket_handler(function)  # type: ignore[arg-type]  # that is the point

    def test_unknown_options(self) -> None:
        """An option unknown to aiohttp raises an error when the decorator is applied."""
        unknown: Any = {"heart_beat": 30.0}

        async def talk(ws: WebSocket) -> None:
            """Do nothing."""

        with pytest.raises(TypeError, match="heart_beat"):
            websocket_handler(**unknown)(talk)

    async def test_of_generators(self, serve: Serve) -> None:
        """A generator function decorated with ``types.coroutine`` is accepted."""

        @types.coroutine
        def old(ws: WebSocket) -> Generator[Any, Any, None]:
            yield from ws.connect().__await__()
            yield from ws.send_json({"user": None, "id": "?"}).__await__()

        site = await serve(views={"/old": websocket_handler(old)})
        assert await site.knock("", "/old") is None

    @pytest.mark.parametrize("value", ["text", 5, {"a": 1}])
    async def test_a_value_that_is_no_response(
        self, serve: Serve, caplog: pytest.LogCaptureFixture, value: object
    ) -> None:
        """A handler's return value that is no response closes with 1011 and is logged."""

        async def answer(ws: WebSocket) -> Any:
            await ws.connect()
            return value

        site = await serve(views={"/answer": websocket_handler(answer)})
        ws = await site.thief.ws_connect(site.url.joinpath("answer"))

        assert (await ws.receive(timeout=PATIENCE)).data == 1011
        await until(lambda: "TypeError" in caplog.text)

    async def test_decorators_give_the_function_back(self) -> None:
        """A decorator returns the function that it registers."""
        registry = SessionWSRegistry()

        @registry.on_request
        async def first(ws: WebSocket) -> None:
            """Do nothing."""

        @registry.on_response
        async def last(ws: WebSocket) -> None:
            """Do nothing."""

        @registry.connection_ctx
        async def around(connection: Connection) -> AsyncIterator[None]:
            yield

        @registry.on_open
        async def opened(details: object) -> None:
            """Do nothing."""

        assert all(map(callable, (first, last, around, opened)))

    async def test_a_hook_as_decorator(self, serve: Serve) -> None:
        """A hook registered by a decorator is called like one that is appended."""
        said: list[str] = []
        site = await serve(views={"/echo": Echo})

        @site.registry.on_request
        async def first(ws: WebSocket) -> None:
            said.append("request")

        @site.registry.connection_ctx
        async def around(connection: Connection) -> AsyncIterator[None]:
            said.append("opened")
            yield
            said.append("closed")

        ws = await site.thief.ws_connect(site.url.joinpath("echo"))
        await ws.receive_str(timeout=PATIENCE)
        await ws.close()
        await until(lambda: "closed" in said)

        assert said == ["request", "opened", "closed"]


class Echo(WebSocketView):
    """A view that sends a greeting."""

    async def on_open(self) -> None:
        """Send the greeting."""
        await self.send("hello")


class TestConnection:
    async def test_close(self, serve: Serve) -> None:
        """``Connection.close()`` closes the socket with the given code and reason."""
        site = await serve()
        mine: list[Connection] = []

        @site.registry.connection_ctx
        async def keep(connection: Connection) -> AsyncIterator[None]:
            mine.append(connection)
            yield

        for close, code, reason in (
            ((), 1000, ""),
            ((GOING_AWAY,), 1001, GOING_AWAY.reason),
            ((4000, "bye"), 4000, "bye"),
        ):
            socket = await (await site.logged_in()).open()
            await mine[-1].close(*close)
            message = await socket.ws.receive(timeout=PATIENCE)
            assert (message.data, message.extra or "") == (code, reason)

    async def test_it_is_small(self, serve: Serve) -> None:
        """A ``Connection`` has only the documented public attributes."""
        site = await serve()
        seen: list[set[str]] = []

        @site.registry.connection_ctx
        async def look(connection: Connection) -> AsyncIterator[None]:
            assert isinstance(connection, Connection)
            seen.append({name for name in dir(Connection) if not name.startswith("_")})
            yield

        await (await site.logged_in()).open()

        assert seen[0] == {
            "id",
            "session_ws_id",
            "identity",
            "request",
            "opened_at",
            "data",
            "ws",
            "close",
            "last_words",
            "takes_pushes",
        }
