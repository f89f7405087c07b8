"""
What several test modules need: an app, ways to log out, gates, and a rude peer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeAlias, TypeVar

import aiohttp_session
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from conftest import Client
from yarl import URL

from aiohttp_session_ws import (
    SessionWSRegistry,
    Timeouts,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)

COOKIE = "AIOHTTP_SESSION"
PATIENCE = 20.0  # seconds after which a test gives up waiting for an event
QUICK = Timeouts(close=0.2, handler_grace=0.1, response=0.5)
PATIENT = Timeouts(close=PATIENCE, handler_grace=PATIENCE)  # for peers that behave, at any pace

T = TypeVar("T")

Way: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def log_in(request: web.Request) -> web.Response:
    """Put a user into the session, so that it holds more than an id."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query.get("user", "ann")
    return web.Response(text=str(await get_session_ws_id(request)))


async def whoami(request: web.Request) -> web.Response:
    """Tell the user and the id of the session."""
    session = await aiohttp_session.get_session(request)
    return web.json_response({"user": session.get("user"), "id": await get_session_ws_id(request)})


async def converse(request: web.Request) -> web.WebSocketResponse:
    """Say whose socket it is, then echo."""
    async with session_ws(request) as ws:
        session = await aiohttp_session.get_session(request)
        await ws.send_json([await get_session_ws_id(request), session.get("user")])
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def out_by_helper(request: web.Request) -> web.Response:
    """Log out by our helper."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def out_by_pattern(request: web.Request) -> web.Response:
    """Log out as the README of 1.1.1 told."""
    response = web.HTTPFound("/")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    raise response


async def out_by_invalidate(request: web.Request) -> web.Response:
    """Log out without a word to us."""
    (await aiohttp_session.get_session(request)).invalidate()
    return web.Response()


async def out_by_new_session(request: web.Request) -> web.Response:
    """Log out without a word to us, another way."""
    await aiohttp_session.new_session(request)
    return web.Response()


async def reset(request: web.Request) -> web.Response:
    """Close the sockets and take another id."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    await new_session_ws_id(request)
    return response


async def renew(request: web.Request) -> web.Response:
    """Take another id, by our helper."""
    response = web.Response()
    await renew_session_ws(request, response)
    return response


async def only_close(request: web.Request) -> web.Response:
    """Close the sockets and keep the id."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    return response


WAYS: dict[str, Way] = {
    "end_session_ws": out_by_helper,
    "pattern": out_by_pattern,
    "invalidate": out_by_invalidate,
    "new_session": out_by_new_session,
}


def make_app(
    registry: SessionWSRegistry | None = None,
    storage: AbstractStorage | None = None,
    *extra: Any,
) -> web.Application:
    """Build an app with everything above; *extra* middlewares stand inside ours."""
    if storage is None:
        storage = SimpleCookieStorage()
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware, *extra]
    app = web.Application(middlewares=middlewares)
    setup(app, registry)
    app.router.add_get("/login", log_in)
    app.router.add_get("/whoami", whoami)
    app.router.add_get("/ws", converse)
    app.router.add_get("/reset", reset)
    app.router.add_get("/renew", renew)
    app.router.add_get("/close", only_close)
    for name, way in WAYS.items():
        app.router.add_get(f"/out/{name}", way)
    return app


def cookie_of(client: Client) -> str:
    """Return the session cookie that *client* has, as a header's value."""
    cookies = client.session.cookie_jar.filter_cookies(client.make_url("/"))
    return f"{COOKIE}={cookies[COOKIE].coded_value}"


async def expect_close(ws: Any) -> int:
    """Read on until the server closes; return its code."""
    while True:
        message = await ws.receive(timeout=PATIENCE)
        if message.type is WSMsgType.CLOSE:
            return int(message.data)
        assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until *condition* holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


class Turnstile:
    """A place where whoever comes is held, if it is shut."""

    def __init__(self) -> None:
        self.shut = False
        self.waiting: list[asyncio.Future[None]] = []
        self.arrived = asyncio.Event()

    async def __call__(self) -> None:
        """Pass, now or when let."""
        if self.shut:
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            self.arrived.set()
            await waiter

    def let(self) -> None:
        """Open, and let everybody pass."""
        self.shut = False
        self.arrived.clear()
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()


class GatedStorage(AbstractStorage):
    """A storage that can be held up while it loads."""

    def __init__(self, inner: AbstractStorage) -> None:
        super().__init__()
        self.inner = inner
        self.loading = Turnstile()
        self.loads = 0

    async def load_session(self, request: web.Request) -> aiohttp_session.Session:
        """Load, then wait: what was loaded may be old by then."""
        self.loads += 1
        session = await self.inner.load_session(request)
        await self.loading()
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: aiohttp_session.Session
    ) -> None:
        """Save at once."""
        await self.inner.save_session(request, response, session)


class RawPeer:
    """A websocket client that does what it is told and nothing else."""

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
        """Do what comes before the first request."""

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def read_head(self) -> bytes:
        """Read up to the end of the answer's headers."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._fill():
                break
        self.head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return self.head

    async def receive(self) -> bytes:
        """Receive bytes; none at the end."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self._sock, 65536)

    async def _fill(self) -> bool:
        data = await self.receive()
        self._buffer += data
        return bool(data)

    async def frame(self) -> tuple[int, bytes] | None:
        """Read a frame: opcode and payload; ``None`` at the end."""
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
        """Read to the end of the connection; return the close code that came."""
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
        """Go without a word, as when the power fails."""
        linger = struct.pack("ii", 1, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._sock.close()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class TlsPeer(RawPeer):
    """One that speaks TLS, and may say that it has said all without closing its socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    async def begin(self) -> None:
        """Agree on keys."""
        await self._go_on(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Send bytes, encrypted."""
        await self._go_on(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """Receive bytes, decrypted; none at the end."""
        try:
            return await self._go_on(lambda: self._tls.read(65536))
        except ssl.SSLZeroReturnError:
            return b""

    async def notify(self) -> None:
        """Send TLS's word for the end, close_notify, and don't wait for the answer."""
        with contextlib.suppress(ssl.SSLError):  # no answer yet, or something else before it
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


NORMAL_CLOSE = struct.pack("!H", WSCloseCode.OK)
