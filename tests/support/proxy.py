"""
A TCP proxy that a test puts in front of a server to spoil the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Self

CHUNK = 65536
NO_LINGER = struct.pack("ii", 1, 0)  # what is closed so is reset


class Proxy:
    """
    It passes on what comes, until told otherwise.

    ``async with Proxy(server.port) as proxy:`` listens on ``proxy.port``; leaving cuts all.

    Args:
        port: Where the server is.
        host: Its address.
        tls: To speak TLS with clients, whatever the server speaks.

    Attributes:
        port: Where the proxy is.
        delay: Seconds to wait with every chunk, in both directions.
        tears: Whether half of what comes is passed on, and then the connection is broken.
        connections: How many have come so far.
        bytes_up: How many bytes went to the server.
        bytes_down: How many bytes came from it.
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
        self._up, self._down = asyncio.Event(), asyncio.Event()  # set: passes
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    @property
    def open(self) -> int:
        """How many connections are being served."""
        return len(self._tasks)

    def url(self, scheme: str = "redis") -> str:
        """Where it is, for a Redis client; ``rediss`` if it speaks TLS."""
        return f"{scheme}://127.0.0.1:{self.port}/0"

    def black_hole(self, *, up: bool = True, down: bool = True) -> None:
        """
        Pass nothing on, keep all connections open and take new ones.

        Like a network that loses packets: what was sent meanwhile arrives when it is healed.

        Args:
            up: Nothing reaches the server.
            down: Nothing comes from it.
        """
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def heal(self) -> None:
        """Pass everything on again, at once."""
        self.delay = 0.0
        self.tears = False
        self._up.set()
        self._down.set()

    def cut(self, *, reset: bool = False) -> int:
        """Break all connections without a word, or by a reset; return their number."""
        for writer in self._writers:
            if reset:
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
            writer.transport.abort()
        return self.open

    async def start(self) -> Self:
        """Listen, on the port it had before if it had one."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Refuse connections and break those there are, until started again."""
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
            pass  # the end of one side is the end of the other; only stop() cancels
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
