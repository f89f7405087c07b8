"""
In-memory clients of aiohttp's server that see what a browser sees.

The server is aiohttp's own, from the first byte of a request on; only the TCP connection is
replaced, by an in-memory transport, so that nothing depends on the kernel's timing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
from collections.abc import Callable
from typing import Any, Protocol

#: Creates the server's protocol for a connection: ``AppRunner.server``.
ServerFactory = Callable[[], asyncio.Protocol]

UPGRADE = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", base64.b64encode(bytes(16)).decode()),
)
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10  # opcodes


class End(Protocol):
    """The client's end of a connection."""

    def receive(self, data: bytes) -> None:
        """Receive data that the server has sent."""

    def lose(self) -> None:
        """Handle that the server has closed the connection."""


class MemoryTransport(asyncio.Transport):
    """The server's end of an in-memory connection."""

    def __init__(self, protocol: asyncio.Protocol, client: End) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 80)})
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._client = client
        self._closing = False
        self._received: list[bytes] | None = None  # data held while reading is paused

    def feed(self, data: bytes) -> None:
        """Deliver data that the client has sent."""
        if self._received is not None:
            self._received.append(data)
        elif not self._closing:
            self._protocol.data_received(data)

    def lose(self, exc: Exception | None = None) -> None:
        """Report the loss of the connection to the server."""
        if not self._closing:
            self._closing = True
            self._protocol.connection_lost(exc)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the client at once; the write buffer is always empty."""
        if not self._closing:
            self._loop.call_soon(self._client.receive, bytes(data))

    def close(self) -> None:
        """Close the connection after all data has been sent."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._loop.call_soon(self._client.lose)

    def abort(self) -> None:
        """Close the connection now."""
        self.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closing or closed."""
        return self._closing

    def pause_reading(self) -> None:
        """Hold the data that the client sends."""
        if self._received is None:
            self._received = []

    def resume_reading(self) -> None:
        """Deliver the data that was held."""
        kept, self._received = self._received or [], None
        for data in kept:
            self.feed(data)

    def is_reading(self) -> bool:
        """Return whether reading is neither paused nor closed."""
        return self._received is None and not self._closing

    def get_write_buffer_size(self) -> int:
        """Return 0: all data has been sent."""
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return asyncio's defaults."""
        return 16_384, 65_536

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore the limits: the buffer is always empty."""

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the server's protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Switch protocols."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol


class Client:
    """One request, its response, and the websocket it may become.

    Attributes:
        status: The status of the response, ``None`` before it has come.
        set_cookie: The value of the ``Set-Cookie`` header, ``None`` without one.
        answered: Whether the response is complete, or the connection is gone.
        hello: The first message that the server sent over the websocket or the stream.
        left: Whether the client has cut the connection.
        closed: The code with which the websocket was closed; 1006 without a close frame, and
            for a stream that has ended.
    """

    def __init__(self, server: ServerFactory, path: str, headers: list[tuple[str, str]]) -> None:
        self._buffer = b""
        self._loop = asyncio.get_running_loop()
        self.status: int | None = None
        self.set_cookie: str | None = None
        self.answered = False
        self.hello: dict[str, Any] | None = None
        self.closed: int | None = None
        self.left = False
        self.streams = path == "/stream"
        self._length: int | None = None  # of the response's body
        self._chunked = False
        protocol = server()
        self._transport = MemoryTransport(protocol, self)
        protocol.connection_made(self._transport)
        lines = [f"GET {path} HTTP/1.1", "Host: world"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._send("\r\n".join([*lines, "", ""]).encode())

    def vanish(self) -> None:
        """Cut the connection without a close frame."""
        self.left = True
        self._transport.lose(ConnectionResetError("the client has gone"))
        self.lose()

    def leave(self) -> None:
        """Close the websocket, or the stream, as a browser does when its page is left."""
        if self.streams:
            self.vanish()
            return
        self._send_frame(CLOSE, struct.pack("!H", 1001))

    def say(self, text: str) -> None:
        """Send a short text over the websocket."""
        self._send_frame(TEXT, text.encode())

    def receive(self, data: bytes) -> None:
        """Parse data that the server has sent."""
        self._buffer += data
        if self.status is None:
            self._read_head()
        if self.status == 101:
            self._read_frames()
        elif self._streaming:
            self._read_stream()
        elif self._complete() and not self.answered:
            self._finish()

    def lose(self) -> None:
        """Record that the server has closed the connection."""
        opened = self.status == 101 or (self.streams and self.status in (None, 200))
        if opened and self.closed is None:
            self.closed = 1006
        self.answered = True

    @property
    def _streaming(self) -> bool:
        return self.streams and self.status == 200

    def _read_stream(self) -> None:
        size, _, rest = self._buffer.partition(b"\r\n")
        if self.hello is None and rest.endswith(b"\r\n"):  # each event is one chunk
            self.hello = json.loads(rest[: int(size, 16)])

    def _complete(self) -> bool:
        if self._chunked:
            return self._buffer.endswith(b"0\r\n\r\n")
        return self._length is not None and len(self._buffer) >= self._length

    def _finish(self) -> None:
        self.answered = True
        self._loop.call_soon(self._transport.lose)  # a browser would keep it alive

    def _read_head(self) -> None:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        text, self._buffer = head.decode(), rest
        self.status = int(text.split()[1])
        if found := re.search(r'(?im)^set-cookie: [^=]+=("(?:\\.|[^"\\\r])*"|[^;\r]*)', text):
            self.set_cookie = found[1]
        if found := re.search(r"(?im)^content-length: (\d+)", text):
            self._length = int(found[1])
        self._chunked = "transfer-encoding: chunked" in text.lower()
        self.answered = self.status == 101 or self._streaming

    def _read_frames(self) -> None:
        while len(self._buffer) >= 2 and self.closed is None:
            size, start = self._buffer[1] & 127, 2
            if size == 126:
                size, start = int.from_bytes(self._buffer[2:4], "big"), 4
            if len(self._buffer) < start + size:
                return
            opcode, payload = self._buffer[0] & 15, self._buffer[start : start + size]
            self._buffer = self._buffer[start + size :]
            self._take_frame(opcode, payload)

    def _take_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.hello = self.hello or json.loads(payload)
        elif opcode == PING:
            self._send_frame(PONG, payload)
        elif opcode == CLOSE:
            self.closed = struct.unpack("!H", payload[:2])[0] if payload else 1005
            self._send_frame(CLOSE, payload)

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        self._send(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)

    def _send(self, data: bytes) -> None:
        self._loop.call_soon(self._transport.feed, data)
