"""
Reading and writing on a connection that redis-py has made, directly on its transport.

redis-py knows how to connect: TLS, passwords, Sentinels, clusters. But its path from the socket to
the reader (a stream, a task, a timer and five coroutines for each message) would be most of the
time that an order takes from node to node, and it has a pitfall: when the operating system finds a
connection dead, redis-py takes that for silence. So once connected, this module takes over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import hiredis
from redis.asyncio import Connection, RedisCluster
from redis.asyncio.connection import DefaultParser
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.exceptions import ConnectionError as RedisConnectionError, ReadOnlyError, RedisError

from ..entries import Argument
from .connect import Client

__all__: list[str] = []

#: Called with each reply; if it returns an awaitable, the next reply follows when that is done.
Take: TypeAlias = Callable[[Any], Awaitable[None] | None]

TURN: Final = 0.001  # seconds of handling replies before other tasks have their turn
_monotonic: Final = time.monotonic  # the event loop's clock, but faster to call
NOTHING: Final = object()  # stands for: no reply is complete yet


async def connect(client: Client, prefix: str) -> Connection:
    """
    Make a connection of *client*; in a Redis Cluster, to the node that holds our keys.

    Args:
        client: Creates the connection.
        prefix: The prefix of all keys.
    """
    if isinstance(client, RedisCluster):
        _ = await client.initialize()
        node = client.get_node_from_key(f"{{{prefix}}}")
        if node is None:
            raise RedisConnectionError("no node of the Redis Cluster serves our hash slot")
        connection: Connection = node.connection_class(**node.connection_kwargs)
    else:
        pool = client.connection_pool
        connection = pool.make_connection()  # type: ignore[no-untyped-call]  # theirs
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # theirs
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


def transport_of(connection: Connection) -> asyncio.Transport:
    """
    Return the transport of a connection, by the only private name of redis-py that is used.
    """
    writer = connection._writer
    if writer is None:
        raise RedisConnectionError("the connection broke before it was used")
    return cast(asyncio.Transport, writer.transport)


class Wire(asyncio.Protocol):
    """
    Writes commands and handles replies at once, in the same turn of the event loop.

    Args:
        connection: A connection that is established, and that nothing else reads from.
        take: Called with each reply, errors of Redis included.

    Attributes:
        ended: Done when the connection has ended; the exception says why.
        received_at: When data was last received, by the event loop's clock.
        paused: Whether replies are held back, until *take* is done or other tasks have run.
    """

    def __init__(self, connection: Connection, take: Take) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.received_at = loop.time()
        self.paused = False
        self._connection = connection
        self._take = take
        self._loop = loop
        self._task: asyncio.Future[None] | None = None
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError, replyError=_error, notEnoughData=NOTHING
        )
        self._transport = transport = transport_of(connection)
        self._inner = transport.get_protocol()
        transport.set_protocol(self)

    def send(self, *args: Argument) -> None:
        """
        Send a command; do nothing if the connection has ended.
        """
        if not self._transport.is_closing():  # also once the wire has ended
            self._transport.write(hiredis.pack_command(args))  # type: ignore[arg-type]  # any len

    def data_received(self, data: bytes) -> None:
        """
        Handle the replies that are complete.
        """
        self.received_at = now = _monotonic()
        self._reader.feed(data)
        if not self.paused:
            self._handle_replies(now)

    def _handle_replies(self, now: float) -> None:
        gets, take = self._reader.gets, self._take
        turn = now + TURN
        try:
            while (reply := gets()) is not NOTHING:
                if isinstance(reply, Exception) and self._is_fatal(reply):
                    self.end(reply)
                    return
                waiting = take(reply)
                if waiting is not None:
                    self._pause()
                    self._task = asyncio.ensure_future(waiting)
                    self._task.add_done_callback(self._resume)
                    return
                if _monotonic() > turn:
                    self._pause()
                    _ = self._loop.call_soon(self._resume)
                    return
        except Exception as exc:  # noqa: BLE001  it ends the wire, and is reported
            self.end(exc)

    def _is_fatal(self, error: Exception) -> bool:
        if isinstance(error, ReadOnlyError):
            # There is another primary by now, and the Sentinels know it.
            return isinstance(self._connection, SentinelManagedConnection)
        return isinstance(error, RedisConnectionError) or not isinstance(error, RedisError)

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _resume(self, task: asyncio.Future[None] | None = None) -> None:
        self._task = None
        if task is not None and not task.cancelled():
            _ = task.exception()  # handled by whoever takes replies
        if self.ended.done():
            return
        self.paused = False
        self._handle_replies(_monotonic())
        if not self.paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self, why: Exception) -> None:
        """
        End the connection because of *why*, unless it has ended.
        """
        if self.ended.done():
            return
        self.ended.set_exception(why)
        _ = self.ended.exception()  # no warning if it is never awaited
        if self._task is not None:
            _ = self._task.cancel()
        self._transport.abort()

    async def close(self) -> None:
        """
        End the connection, and close redis-py's.
        """
        task = self._task
        self.end(RedisConnectionError("this process closed the connection"))
        if task is not None:
            _ = await asyncio.wait({task})
        await self._connection.disconnect(nowait=True)

    def pause_writing(self) -> None:
        """
        Forward it to redis-py, which may be waiting to close.
        """
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """
        Forward it to redis-py, which may be waiting to close.
        """
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Forward it to redis-py, and end the wire.
        """
        self._inner.connection_lost(exc)
        self.end(exc or RedisConnectionError("Redis closed the connection"))


def _error(text: str) -> Exception:
    """
    Return redis-py's exception for the text of an error of Redis.
    """
    error: Exception = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call]  # theirs
    return error
