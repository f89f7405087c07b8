"""
Raw websocket clients, over TCP and TLS, that send nothing by themselves.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Self, TypeVar

from aiohttp import WSCloseCode
from yarl import URL

from .clients import PATIENCE

T = TypeVar("T")

NORMAL_CLOSE = struct.pack("!H", WSCloseCode.OK)


class RawPeer:
    """A websocket client over a plain socket; it answers neither pings nor close frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self.head = b""

    @classmethod
    async def connect(cls, url: URL, cookie: str = "", *, receive_buffer: int = 0) -> Self:
        """Connect and send a handshake."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (url.host, url.port))
        peer = cls(sock)
        await peer.begin()
        key = base64.b64encode(os.urandom(16)).decode()
        await peer.send(
            f"GET {url.path_qs} HTTP/1.1\r\nHost: {url.authority}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Cookie: {cookie}\r\n\r\n".encode(errors="surrogateescape")
        )
        return peer

    @classmethod
    async def open(cls, url: URL, cookie: str = "", *, receive_buffer: int = 0) -> Self:
        """Connect and complete the handshake."""
        peer = await cls.connect(url, cookie, receive_buffer=receive_buffer)
        await peer.read_head()
        assert peer.head.startswith(b"HTTP/1.1 101"), peer.head
        return peer

    async def begin(self) -> None:
        """Prepare the connection for the first request; nothing to do without TLS."""

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read_head(self) -> bytes:
        """Read up to the end of the response's headers."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._fill():
                break
        self.head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return self.head

    async def receive(self) -> bytes:
        """Receive bytes; empty at the end of the stream."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self._sock, 65536)

    async def _fill(self) -> bool:
        data = await self.receive()
        self._buffer += data
        return bool(data)

    async def frame(self) -> tuple[int, bytes] | None:
        """Read a frame: opcode and payload; ``None`` at the end of the stream."""
        while True:
            if len(self._buffer) >= 2:
                length, start = self._buffer[1], 2
                if length >= 126 and len(self._buffer) >= 10:
                    size, start = (2, 4) if length == 126 else (8, 10)
                    length = int.from_bytes(self._buffer[2 : 2 + size])
                if (self._buffer[1] < 126 or start > 2) and len(self._buffer) >= start + length:
                    opcode = self._buffer[0] & 15
                    payload = self._buffer[start : start + length]
                    self._buffer = self._buffer[start + length :]
                    return opcode, payload
            if not await self._fill():
                return None

    async def closed(self) -> int | None:
        """Read to the end of the connection; return the received close code, if any."""
        code = None
        try:
            while (frame := await self.frame()) is not None:
                if frame[0] == 8:
                    (code,) = struct.unpack("!H", frame[1][:2])
        except ConnectionResetError:
            pass
        return code

    async def say(self, opcode: int, payload: bytes) -> None:
        """Send a short frame, masked with zeros."""
        assert len(payload) < 126
        head = bytes([128 | opcode, 128 | len(payload), 0, 0, 0, 0])
        await self.send(head + payload)

    def vanish(self) -> None:
        """Reset the TCP connection, without a close frame."""
        linger = struct.pack("ii", 1, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._sock.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class TlsPeer(RawPeer):
    """A peer over TLS, which can send close_notify without closing its socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    async def begin(self) -> None:
        """Perform the TLS handshake."""
        await self._go_on(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Send bytes, encrypted."""
        await self._go_on(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """Receive bytes, decrypted; empty at the end of the stream."""
        try:
            return await self._go_on(lambda: self._tls.read(65536))
        except ssl.SSLZeroReturnError:
            return b""

    async def notify(self) -> None:
        """Send TLS's close_notify, and don't wait for the server's."""
        with contextlib.suppress(ssl.SSLError):  # not there yet, or behind other data
            self._tls.unwrap()
        await super().send(self._outgoing.read())

    async def _go_on(self, step: Callable[[], T]) -> T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await super().send(self._outgoing.read())
                data = await super().receive()
                self._incoming.write(data)
                if not data:
                    self._incoming.write_eof()
            else:
                await super().send(self._outgoing.read())
                return result
