"""
The floor: an ``asyncio.Protocol`` with a handshake built by hand, a dictionary of sets, and close
frames written directly to the transports. Bare hiredis connections link several servers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
from collections import deque
from typing import Any, Final, cast

from .control import BACKLOG, HOST, Control

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE: Final = b"\x88\x02\x03\xe8"
CHANNEL: Final = b"floor"


class Socket(asyncio.Protocol):
    """
    One websocket.
    """

    __slots__ = ("_closing", "_head", "_server", "_transport", "sid")

    def __init__(self, server: Raw) -> None:
        self._server = server
        self._head = b""
        self._closing = False
        self.sid = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Keep the transport.
        """
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """
        Answer the handshake; close the transport when the close frame is answered.
        """
        if self.sid:
            if self._closing and data[0] == 0x88:
                self._transport.close()
            return
        self._head += data
        if b"\r\n\r\n" not in self._head:
            return
        head, self._head = self._head, b""
        key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        self.sid = head.partition(b"sid=")[2].partition(b" ")[0].decode()
        self._server.sessions.setdefault(self.sid, set()).add(self)
        self._server.open += 1
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def send(self, frame: bytes) -> None:
        """
        Write a frame.
        """
        self._transport.write(frame)

    def close(self) -> None:
        """
        Write the close frame.
        """
        self._closing = True
        self._transport.write(CLOSE)

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Remove the socket from its session.
        """
        sockets = self._server.sessions.get(self.sid)
        if sockets is not None:
            self._server.open -= 1
            sockets.discard(self)
            if not sockets:
                del self._server.sessions[self.sid]


class RedisConnection(asyncio.Protocol):
    """
    A minimal client of Redis.
    """

    def __init__(self, server: Raw) -> None:
        import hiredis

        self._reader: Any = hiredis.Reader()
        self._server = server
        self._waiting: deque[asyncio.Future[object]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Keep the transport.
        """
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """
        Close the session that a message names; resolve the future of a command by its reply.
        """
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list) and reply[0] == b"message":
                for socket in tuple(self._server.sessions.get(reply[2].decode(), ())):
                    socket.close()
            elif self._waiting:
                self._waiting.popleft().set_result(reply)

    def call(self, *words: bytes) -> asyncio.Future[object]:
        """
        Send a command; return the future of its reply.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self._transport.write(b"*%d\r\n" % len(words) + b"".join(parts))
        return future


class Raw(Control):
    """
    The server.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, set[Socket]] = {}

    async def close_session(self, sid: str) -> None:
        """
        Write close frames to the sockets of a session.
        """
        for socket in tuple(self.sessions.get(sid, ())):
            socket.close()

    async def shutdown(self) -> None:
        """
        Write close frames to all sockets.
        """
        for sid in tuple(self.sessions):
            await self.close_session(sid)

    async def broadcast(self, text: str) -> None:
        """
        Write one frame to all sockets.
        """
        frame = bytes([0x81, len(text)]) + text.encode()
        for sockets in tuple(self.sessions.values()):
            for socket in tuple(sockets):
                socket.send(frame)

    async def order(self, sid: str) -> None:
        """
        Publish the id of a session to close.
        """
        await self._publisher.call(b"PUBLISH", CHANNEL, sid.encode())

    async def serve(self, redis: int | None) -> None:
        """
        Serve until the process is killed.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Socket(self), HOST, 0, backlog=BACKLOG)
        if redis is not None:
            connect = loop.create_connection
            _, self._publisher = await connect(lambda: RedisConnection(self), HOST, redis)
            _, subscriber = await connect(lambda: RedisConnection(self), HOST, redis)
            await subscriber.call(b"SUBSCRIBE", CHANNEL)
        self.listen(server.sockets[0].getsockname()[1])
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int)
    asyncio.run(Raw().serve(parser.parse_args().redis))
