"""A server for the RPC tests, and hand-written clients that fail on unexpected messages."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from types import TracebackType
from typing import Any, Self

import aiohttp_session
import msgspec
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import (
    SessionWSRegistry,
    Timeouts,
    end_session_ws,
    rpc,
    session_ws_middleware,
    setup,
)
from tests.support.inspect import transport_of

PATIENCE = 20.0  # seconds after which a test gives up waiting for an event
QUICK = Timeouts(close=0.3, handler_grace=0.2, response=0.5)


async def log_in(request: web.Request) -> web.Response:
    """Put a user into the session."""
    session = await aiohttp_session.get_session(request)
    session["user"] = request.query.get("user", "ann")
    return web.Response()


async def log_out(request: web.Request) -> web.Response:
    """End the session."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def who(request: web.Request) -> str | None:
    """Return the user of the session."""
    session = await aiohttp_session.get_session(request)
    user: str | None = session.get("user")
    return user


class Server:
    """An RPC application, served at ``/rpc``."""

    def __init__(self, calls: rpc.Application, registry: SessionWSRegistry | None = None) -> None:
        if registry is None:
            registry = SessionWSRegistry(identify=who, timeouts=QUICK)
        self.calls = calls
        self.registry = registry
        storage = SimpleCookieStorage()
        middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
        self.app = web.Application(middlewares=middlewares)
        setup(self.app, registry)
        self.app.router.add_get("/rpc", calls.handler)
        self.app.router.add_get("/login", log_in)
        self.app.router.add_get("/logout", log_out)
        self.client: Any = None

    def wamp(self, protocol: str = "wamp.2.json", **options: Any) -> WampPeer:
        """Return a WAMP client, an async context manager that connects."""
        connecting = self.client.ws_connect("/rpc", protocols=[protocol], **options)
        return WampPeer(connecting, protocol)

    def wsrpc(self, **options: Any) -> WsrpcPeer:
        """Return a wsrpc client, an async context manager that connects."""
        return WsrpcPeer(self.client.ws_connect("/rpc", **options))


class Peer:
    """A client that sends what a test passes to it."""

    ws: ClientWebSocketResponse

    def __init__(self, connecting: Any) -> None:
        self._connecting = connecting

    async def __aenter__(self) -> Self:
        self.ws = await self._connecting.__aenter__()
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._connecting.__aexit__(kind, exc, traceback)

    async def begin(self) -> None:
        """Exchange the first messages of the protocol."""

    async def closed(self) -> int:
        """Expect a close frame as the next message; return its code."""
        message = await self.ws.receive(timeout=PATIENCE)
        assert message.type is WSMsgType.CLOSE, message
        return int(message.data)


class WampPeer(Peer):
    """A WAMP client that sends and receives raw messages."""

    def __init__(self, connecting: Any, protocol: str) -> None:
        super().__init__(connecting)
        self.protocol = protocol
        self.joins: list[Any] | None = [1, "realm", {"roles": {"caller": {}}}]
        self.welcome: list[Any] = []
        self._batch: list[Any] = []

    async def begin(self) -> None:
        """Join a realm, unless :meth:`stranger` was called."""
        assert self.ws.protocol == self.protocol
        if self.joins is not None:
            self.welcome = await self.ask(self.joins)
            assert self.welcome[0] in (2, 4), self.welcome

    def stranger(self) -> Self:
        """Send no HELLO on connecting."""
        self.joins = None
        return self

    def joining(self, realm: str, **details: Any) -> Self:
        """Send HELLO for a realm, with these details, on connecting."""
        self.joins = [1, realm, {"roles": {"caller": {}}} | details]
        return self

    async def say(self, *messages: list[Any]) -> None:
        """Send messages; in one batch, if the subprotocol is batched."""
        if ".msgpack" in self.protocol:
            parts = [msgspec.msgpack.encode(message) for message in messages]
            if self.protocol.endswith("batched"):
                parts = [b"".join(len(p).to_bytes(4, "big") + p for p in parts)]
            for part in parts:
                await self.ws.send_bytes(part)
            return
        texts = [json.dumps(message) for message in messages]
        if self.protocol.endswith("batched"):
            texts = ["".join(text + "\x1e" for text in texts)]
        for text in texts:
            await self.ws.send_str(text)

    async def hear(self) -> list[Any]:
        """Return the next message."""
        if not self._batch:
            message = await self.ws.receive(timeout=PATIENCE)
            assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
            self._batch = self._decode(message.data)
        heard: list[Any] = self._batch.pop(0)
        return heard

    def _decode(self, data: Any) -> list[Any]:
        if isinstance(data, str):
            return [json.loads(text) for text in data.split("\x1e") if text]
        if not self.protocol.endswith("batched"):
            return [msgspec.msgpack.decode(data)]
        found = []
        while data:
            size = int.from_bytes(data[:4], "big")
            found.append(msgspec.msgpack.decode(data[4 : 4 + size]))
            data = data[4 + size :]
        return found

    async def ask(self, message: list[Any]) -> list[Any]:
        """Send a message and return the next one received."""
        await self.say(message)
        return await self.hear()

    async def call(self, name: str, *args: Any, number: int = 1, **kwargs: Any) -> list[Any]:
        """Call a procedure, and return the next message received."""
        return await self.ask([48, number, {}, name, list(args), kwargs])


class WsrpcPeer(Peer):
    """A wsrpc client that sends and receives raw objects."""

    async def begin(self) -> None:
        """Answer the first ping."""
        ping = await self.ws.receive_json(timeout=PATIENCE)
        assert ping["method"] == "ping"
        await self.say({"id": ping["id"], "result": ping["params"]})

    async def say(self, message: Any) -> None:
        """Send an object."""
        await self.ws.send_str(json.dumps(message))

    async def hear(self) -> Any:
        """Return the next object."""
        return await self.ws.receive_json(timeout=PATIENCE)

    async def ask(self, method: str, params: Any = None, number: int = 3) -> Any:
        """Call a procedure, and return the next object received."""
        await self.say({"id": number, "method": method, "params": params})
        return await self.hear()


def expect_clients(path: pathlib.Path) -> None:
    """
    Skip a test that needs Node.js and packages of npm; without the packages, CI fails.

    Args:
        path: A file or directory that ``npm install`` creates.
    """
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    if not path.exists():
        reason = "not installed: npm install --ignore-scripts, in tests/rpc"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def send_together(ws: ClientWebSocketResponse, *texts: str) -> None:
    """Send short text frames in one write."""
    transport = transport_of(ws)
    assert transport is not None
    frames = [bytes([0x81, 0x80 | len(one)]) + bytes(4) + one.encode() for one in texts]
    transport.write(b"".join(frames))
