"""
ServedWebSocket: sending and receiving, before and after the close engine has closed it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import WSMsgType

from aiohttp_session_ws.close_codes import SESSION_ENDED
from aiohttp_session_ws.connections.connection import TrackedConnection

from .served import answer, served, until

SENDS: dict[str, tuple[Any, ...]] = {
    "send_str": ("x",),
    "send_bytes": (b"x",),
    "send_json": ({},),
    "send_frame": (b"x", WSMsgType.BINARY),
    "ping": (),
    "pong": (),
}


class TestOpen:
    @pytest.mark.parametrize("name", SENDS)
    async def test_sends_as_aiohttp_does(self, name: str) -> None:
        """A frame sent by any of aiohttp's methods arrives, and the websocket stays open."""
        async with served() as s:
            peer, connection = await s.connect()
            await getattr(connection.ws, name)(*SENDS[name])

            assert await peer.frame() is not None
            assert not connection.ws.closed
            assert connection.ws.close_code is None

    async def test_knows_whether_somebody_receives(self) -> None:
        """``receiving`` is true while a handler waits for a message, not while it handles one."""
        go = asyncio.Event()

        async def handle(connection: TrackedConnection) -> None:
            await connection.ws.receive()
            await go.wait()
            await connection.ws.receive()

        async with served(handle=handle) as s:
            peer, connection = await s.connect("/handle")
            await until(lambda: connection.ws.receiving)
            await peer.say(1, b"x")
            await until(lambda: not connection.ws.receiving)
            go.set()
            await until(lambda: connection.ws.receiving)

            assert connection.ws.last_receive_at is not None

    async def test_closed_by_its_handler(self) -> None:
        """``closed_with`` is the code with which the handler has closed the websocket."""

        async def leave(connection: TrackedConnection) -> None:
            await connection.ws.close(code=4000)

        async with served(leave=leave) as s:
            peer, connection = await s.connect("/leave")
            await answer(peer)
            await until(lambda: s.left)

            assert connection.ws.closed_with == 4000

    async def test_closed_by_its_client(self) -> None:
        """If the client closes first, only ``close_code`` is set: ``closed_with`` is ``None``."""
        async with served() as s:
            peer, connection = await s.connect()
            await peer.say(8, (4001).to_bytes(2))
            await until(lambda: s.left)

            assert connection.ws.closed_with is None
            assert connection.ws.close_code == 4001


class TestEnded:
    @pytest.mark.parametrize("name", SENDS)
    async def test_sends_nothing(self, name: str) -> None:
        """Sending after the close frame raises aiohttp's error and writes no frame."""
        async with served() as s:
            peer, connection = await s.connect()
            s.manager.close_soon([connection], SESSION_ENDED)
            with pytest.raises(ConnectionResetError, match="closing transport"):
                await getattr(connection.ws, name)(*SENDS[name])
            frames = await answer(peer)

            assert [opcode for opcode, _ in frames] == [8]

    async def test_is_closed_already(self) -> None:
        """A further close() does nothing, and the code stays."""
        async with served() as s:
            peer, connection = await s.connect()
            s.manager.close_soon([connection], SESSION_ENDED)

            assert await connection.ws.close(code=4000) is False
            assert (connection.ws.closed, connection.ws.close_code) == (True, 4401)
            await answer(peer)
            assert connection.ws.close_code == 4401

    async def test_a_handler_that_reads_for_ever(self) -> None:
        """A RuntimeError ends a handler that calls receive() for ever; nothing else would."""
        errors: list[str] = []

        async def reader(connection: TrackedConnection) -> None:
            try:
                while True:
                    await connection.ws.receive()
            except RuntimeError as exc:
                errors.append(str(exc))

        async with served(reader=reader) as s:
            peer, connection = await s.connect("/reader")
            await asyncio.gather(answer(peer), s.manager.close_now([connection], SESSION_ENDED))

            assert errors == [
                "receive() was called repeatedly on a closed websocket: return from the handler,"
                " or use 'async for'"
            ]

    async def test_pings_nobody(self) -> None:
        """No heartbeat ping follows the close frame."""
        async with served(options={"compress": False, "heartbeat": 0.02}) as s:
            peer, connection = await s.connect("/deaf")
            while (frame := await peer.frame()) is not None and frame[0] == 9:
                if connection.ws.closed:
                    continue
                s.manager.close_soon([connection], SESSION_ENDED)
            # The deadline is far off, so that many pings would be due before either side hangs up.
            await asyncio.get_running_loop().create_task(_turns(0.1))
            await peer.say(8, b"\x03\xe8")

            assert frame is not None
            assert frame[0] == 8
            assert await peer.frame() is None
            assert connection.task is not None
            connection.task.cancel()


async def _turns(seconds: float) -> None:
    """Let the event loop run for some time, since the absence of a ping can't be awaited."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.call_later(seconds, done.set)
    await done.wait()
