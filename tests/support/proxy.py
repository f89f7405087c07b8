"""
A TCP proxy that a test puts in front of a server to make the network fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Self

CHUNK = 65536
NO_LINGER = struct.pack("ii", 1, 0)  # closing a socket with it sends a reset


class Proxy:
    """
    A TCP proxy that forwards all data, until a test makes it fail.

    ``async with Proxy(server.port) as proxy:`` listens on ``proxy.port``; the exit cuts all
    connections.

    Args:
        port: The server's port.
        host: The server's address.
        tls: The context for TLS with clients; the connection to the server is plain TCP.

    Attributes:
        port: The proxy's port.
        delay: Seconds to delay every chunk, in both directions.
        tears: Whether to break each connection after forwarding half of its next chunk.
        connections: How many connections have been accepted so far.
        bytes_up: How many bytes were forwarded to the server.
        bytes_down: How many bytes were forwarded from the server.
    """

    def __init__(
        self, port: int, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.port = 0
        self.delay = 0.0
        self.tears = False
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._target = (host, port)
        self._tls = tls
        self._up, self._down = asyncio.Event(), asyncio.Event()  # set while data passes
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    @property
    def open(self) -> int:
        """How many connections are being served."""
        return len(self._tasks)

    def url(self, scheme: str = "redis") -> str:
        """The proxy's URL for a Redis client; *scheme* is ``rediss`` with TLS."""
        return f"{scheme}://127.0.0.1:{self.port}/0"

    def black_hole(self, *, up: bool = True, down: bool = True) -> None:
        """
        Forward nothing, keep all connections open and accept new ones.

        Like a network that loses packets: data sent meanwhile arrives after :meth:`heal`.

        Args:
            up: Whether to block data to the server.
            down: Whether to block data from the server.
        """
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def heal(self) -> None:
        """Forward everything again, without delay."""
        self.delay = 0.0
        self.tears = False
        self._up.set()
        self._down.set()

    def cut(self, *, reset: bool = False) -> int:
        """Abort all connections, with a TCP reset if *reset*; return their number."""
        for writer in self._writers:
            if reset:
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
            writer.transport.abort()
        return self.open

    async def start(self) -> Self:
        """Listen, on the previous port if started before."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening, and abort all connections, until started again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(to_client)
        self.connections += 1
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
            self._writers.add(to_server)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(from_client, to_server, up=True))
                    both.create_task(self._pump(from_server, to_client, up=False))
            finally:
                self._writers.discard(to_server)
                to_server.transport.abort()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one side has ended, which ends the other; only stop() cancels
        finally:
            self._writers.discard(to_client)
            to_client.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        passes = self._up if up else self._down
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            await passes.wait()
            torn = self.tears
            if torn:
                data = data[: len(data) // 2]
            if up:
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if torn:
                break
        raise ConnectionResetError
