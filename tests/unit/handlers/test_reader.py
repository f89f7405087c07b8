"""
Reading ahead: what is read while the handler isn't receiving, and how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest

from aiohttp_session_ws import SessionWSRegistry, WebSocket, WebSocketDisconnect
from aiohttp_session_ws.exceptions import WebSocketStateError
from aiohttp_session_ws.handlers.reader import AHEAD_BYTES, AHEAD_MESSAGES
from tests.support import (
    NORMAL_CLOSE,
    PATIENT,
    AiohttpClient,
    RawPeer,
    Turnstile,
    expect_close,
    until,
)
from tests.support.inspect import bytes_ahead, connections, looks_later, quiet, read_ahead, reading
from tests.unit.handlers.talks import Ended, is_quiet, neither, serving


def masked(opcode: int, payload: bytes) -> bytes:
    """Return a frame of any size, masked with zeros."""
    return struct.pack("!BBQI", 128 | opcode, 255, len(payload), 0) + payload


def is_reading(ws: WebSocket) -> bool:
    """Return whether a task is reading ahead for the handler."""
    task = reading(ws)
    return task is not None and not task.done()


def has_read(ws: WebSocket) -> bool:
    """Return whether a task has read ahead for the handler, up to the limit."""
    task = reading(ws)
    return task is not None and task.done()


class TestReading:
    async def test_what_came_before_the_close(self, aiohttp_client: AiohttpClient) -> None:
        """Messages that came before the client's close are still delivered; sending fails."""
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
        """Messages that came before an order are not delivered: the session has ended."""
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
            await until(lambda: sockets and read_ahead(sockets[0]))
            await registry.close_all()

        assert await heard.get() == []

    async def test_two_at_a_time(self, aiohttp_client: AiohttpClient) -> None:
        """A second task that tries to receive gets an error; the first is not disturbed."""

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
        """Messages come once and in order, read ahead or not; no reading task remains."""
        registry = SessionWSRegistry(timeouts=PATIENT)
        sockets: list[WebSocket] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            sockets.append(ws)
            for number in range(300):
                if number % 30 == 0:
                    await until(lambda: read_ahead(ws))  # messages are read ahead
                await ws.send(await ws.receive())

        client = await aiohttp_client(serving(talk, registry))
        async with client.ws_connect("/talk") as ws:
            for number in range(10):
                for more in range(30):
                    await ws.send_str(str(30 * number + more))
                for more in range(30):
                    assert await ws.receive_str() == str(30 * number + more)
            assert await expect_close(ws) == 1000  # 1011 if the handler has failed

        assert not looks_later(sockets[0])
        await quiet(registry)
        assert not is_reading(sockets[0])

    async def test_the_last_word(self, aiohttp_client: AiohttpClient) -> None:
        """Reading ahead leaves the client's close frame to the closing handshake."""
        registry = SessionWSRegistry(timeouts=PATIENT)

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await until(lambda: reading(ws))

        client = await aiohttp_client(serving(talk, registry))
        peer = await RawPeer.open(client.make_url("/talk"))
        (connection,) = connections(registry)
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
        """A cancelled receive loses no message, read ahead or not."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            for ahead in (False, True):
                if ahead:
                    await until(lambda: reading(ws))
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
        """A ping is answered while the handler is busy."""
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
        """``receive_timeout`` applies to a handler that receives, and not to reading ahead."""
        busy = 0

        async def talk(ws: WebSocket) -> None:
            nonlocal busy
            await ws.connect()
            for _ in range(3):
                await until(lambda: is_reading(ws))
                busy += 1
                with pytest.raises(TimeoutError):
                    await ws.receive()
            await ws.send("still there")
            word: str | bytes = ""
            while not word:
                with contextlib.suppress(TimeoutError):
                    word = await ws.receive()
            await ws.send(word)

        client = await aiohttp_client(serving(talk, receive_timeout=0.01))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "still there"
            await ws.send_str("so am I")
            assert await ws.receive_str() == "so am I"
            assert await expect_close(ws) == 1000

        assert busy == 3
        assert is_quiet(caplog)

    async def test_a_receive_timeout_of_one_who_only_sends(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """``receive_timeout`` doesn't end reading ahead: even a late close is detected."""
        ended = Ended()

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await until(lambda: is_reading(ws))
            later = Turnstile()
            later.shut = True
            asyncio.get_running_loop().call_later(0.1, later.let)
            await later()
            await ws.send("still there")
            await until(lambda: ws.closed)
            with pytest.raises(WebSocketDisconnect) as gone:
                await ws.send("anybody?")
            ended.note(gone.value)

        client = await aiohttp_client(serving(talk, receive_timeout=0.01))
        async with client.ws_connect("/talk") as ws:
            assert await ws.receive_str() == "still there"
            await ws.close(code=4000, message=b"enough")

        assert await ended() == (4000, "enough")

    async def test_pings_for_the_handler(self, aiohttp_client: AiohttpClient) -> None:
        """Without ``autoping``, pings are not delivered as messages."""

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            await ws.send(await ws.receive())
            await until(lambda: read_ahead(ws))
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
        """A flooding client is held up, loses no message, and isn't closed for missing pongs."""
        registry = SessionWSRegistry(timeouts=PATIENT)
        go, held = asyncio.Event(), asyncio.Event()
        messages = 400
        got: list[int] = []

        async def talk(ws: WebSocket) -> None:
            await ws.connect()
            (connection,) = connections(registry)
            transport = connection.transport
            await until(lambda: transport is not None and not transport.is_reading())
            await until(lambda: has_read(ws))
            assert 0 < len(read_ahead(ws)) <= AHEAD_MESSAGES
            assert bytes_ahead(ws) < AHEAD_BYTES + self.SIZE
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
        # Pings are sent nonetheless; one without an answer doesn't end a client that is held up.
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
        """The number of messages read ahead is bounded, too."""
        client = await aiohttp_client(serving(self.busy))
        peer = await RawPeer.open(client.make_url("/talk"))
        await peer.send(b"\x81\x80\0\0\0\0" * 10 * AHEAD_MESSAGES)

        assert await peer.frame() == (1, str(AHEAD_MESSAGES).encode())
        assert await peer.frame() == (1, b"all were empty")
        peer.close()

    async def busy(self, ws: WebSocket) -> None:
        await ws.connect()
        await until(lambda: has_read(ws))
        await ws.send(str(len(read_ahead(ws))))
        found = {await ws.receive() for _ in range(10 * AHEAD_MESSAGES)}
        await ws.send(f"all were {'empty' if found == {''} else found}")

    async def test_a_dead_peer(self, aiohttp_client: AiohttpClient) -> None:
        """A silent peer that isn't held up is closed with 1006 by the heartbeat."""
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
