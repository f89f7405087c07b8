"""
Clients that do no more than a measurement needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, cast

import aiohttp_session
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiohttp_session_ws import DEFAULT_SESSION_KEY

from .server import HOST, SECRET, Server

Manner: TypeAlias = Literal["answers", "mute", "reads", "stopped"]

_CLOSE: Final = b"\x88\x82\0\0\0\0\x03\xe8"  # 1000, masked with zeros
_AT_ONCE: Final = 50  # handshakes; the server's backlog is 128


async def cookie(number: int) -> str:
    """
    Return the cookie of a visitor who has been here before.
    """
    storage = EncryptedCookieStorage(SECRET)
    session = aiohttp_session.Session(None, data=None, new=True)
    session[DEFAULT_SESSION_KEY] = f"{number:032x}"
    session["user"] = "me"
    response = web.Response()
    await storage.save_session(make_mocked_request("GET", "/"), response, session)
    return f"{storage.cookie_name}={response.cookies[storage.cookie_name].value}"


def handshake(path: str, cookie: str) -> bytes:
    """
    Return what a client sends first.
    """
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {HOST}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"Cookie: {cookie}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Peer(asyncio.Protocol):
    """
    A client of one websocket.

    Attributes:
        opened: Done when the server has accepted the handshake.
        ended: Done when the connection is gone.
    """

    __slots__ = ("_buffer", "_hello", "_manner", "_transport", "ended", "opened")

    def __init__(self, hello: bytes, manner: Manner) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._hello = hello
        self._manner = manner
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """
        Shake hands.
        """
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        """
        Find the end of the handshake, then the close frame: nothing else comes, but to
        those who only read.
        """
        if self._manner == "reads" and self.opened.done():
            return
        self._buffer += data
        if not self.opened.done():
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self.opened.set_result(None)
            if self._manner == "stopped":
                self._transport.pause_reading()
        if self._manner == "answers" and self._buffer[:1] == b"\x88":
            self._transport.write(_CLOSE)

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Say that it is over.
        """
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("handshake refused"))
        self.ended.set_result(None)

    def close(self) -> None:
        """
        Send the close frame.
        """
        self._manner = "mute"
        self._transport.write(_CLOSE)

    def abort(self) -> None:
        """
        Go without a word.
        """
        self._transport.abort()


async def connect(server: Server, hello: bytes, manner: Manner = "answers") -> Peer:
    """
    Open a websocket.
    """
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(lambda: Peer(hello, manner), HOST, server.port)
    await peer.opened
    return peer


async def connect_all(server: Server, hellos: Sequence[tuple[bytes, Manner]]) -> list[Peer]:
    """
    Open many websockets, some at a time.
    """
    peers: list[Peer] = []
    for start in range(0, len(hellos), _AT_ONCE):
        batch = hellos[start : start + _AT_ONCE]
        peers += await asyncio.gather(*[connect(server, *hello) for hello in batch])
    return peers
