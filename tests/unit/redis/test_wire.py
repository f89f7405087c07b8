"""
Reading and writing on the transport of a connection that redis-py has opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError, ResponseError

from aiohttp_session_ws.redis.io import wire as module
from aiohttp_session_ws.redis.io.wire import Wire, connect, transport_of
from tests.support import PATIENCE, until


class Wired:
    """A wire, and the replies that it has received."""

    def __init__(self, connection: Connection) -> None:
        self.replies: list[Any] = []
        self.wait_for: asyncio.Event | None = None
        self.connection = connection
        self.transport = transport_of(connection)
        self.wire = Wire(connection, self.take)

    def take(self, reply: Any) -> Any:
        """Record a reply; return a wait for the event if there is one."""
        self.replies.append(reply)
        return None if self.wait_for is None else self.wait_for.wait()

    async def receive(self, count: int) -> list[Any]:
        """Wait for this many replies, and return all."""
        await until(lambda: len(self.replies) >= count)
        return self.replies


@pytest.fixture
async def wired(redis_port: int) -> AsyncIterator[Wired]:
    async with Redis(port=redis_port) as client:
        wired = Wired(await connect(client, "p"))
        yield wired
        await wired.wire.close()


async def test_private_name(redis_port: int) -> None:
    """redis-py has the private name that leads to the transport until the connection closes."""
    async with Redis(port=redis_port) as client:
        connection = await connect(client, "p")
        assert isinstance(transport_of(connection), asyncio.Transport)
        await connection.disconnect()
        with pytest.raises(RedisConnectionError):
            transport_of(connection)


async def test_replies(wired: Wired) -> None:
    """Replies arrive in the order of the commands; an error reply is an exception of redis-py."""
    wired.wire.send("ECHO", "one")
    wired.wire.send("NONSENSE")
    wired.wire.send("ECHO", b"x" * 100_000)
    one, error, large = await wired.receive(3)
    assert one == b"one"
    assert isinstance(error, ResponseError)
    assert len(large) == 100_000
    assert not wired.wire.ended.done()


async def test_waits(wired: Wired) -> None:
    """While the handling of a reply is awaited, the wire is paused and later replies wait."""
    wired.wait_for = asyncio.Event()
    wired.wire.send("ECHO", "one")
    await wired.receive(1)
    for text in ("two", "three"):
        wired.wire.send("ECHO", text)
    await asyncio.sleep(0)
    assert wired.wire.paused
    assert wired.replies == [b"one"]
    wired.wait_for.set()
    assert await wired.receive(3) == [b"one", b"two", b"three"]
    await until(lambda: not wired.wire.paused)


async def test_turns(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other callbacks of the event loop run between the replies of a burst."""
    monkeypatch.setattr(module, "TURN", 0.0)
    turns: list[int] = []

    def count() -> None:
        turns.append(len(wired.replies))
        if len(wired.replies) < 500:
            asyncio.get_running_loop().call_soon(count)

    for number in range(500):
        wired.wire.send("ECHO", number)
    count()
    assert await wired.receive(500) == [str(number).encode() for number in range(500)]
    assert len(set(turns)) > 100


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError(), None])
async def test_broken(wired: Wired, error: Exception | None) -> None:
    """A lost connection ends the wire with an error, and sending afterwards raises nothing."""
    wired.transport.get_protocol().connection_lost(error)
    with pytest.raises((OSError, RedisConnectionError)):
        await asyncio.wait_for(wired.wire.ended, PATIENCE)
    wired.wire.send("PING")


async def test_nonsense(wired: Wired) -> None:
    """Data that isn't Redis' protocol ends the wire with a connection error."""
    wired.wire.data_received(b"?nonsense\r\n")
    with pytest.raises(RedisConnectionError):
        await wired.wire.ended


async def test_taker_fails(wired: Wired) -> None:
    """An error of the callback for replies ends the wire with that error."""
    wired.replies = None  # type: ignore[assignment]
    wired.wire.send("PING")
    with pytest.raises(AttributeError):
        await asyncio.wait_for(wired.wire.ended, PATIENCE)
