"""
``WebSocket``: the object that a handler uses to connect to a client, receive, send and close.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Hashable
from typing import Any, Final, NoReturn, Self

from aiohttp import WSMsgType, web
from aiohttp.typedefs import JSONDecoder, JSONEncoder

from ..close_codes import NORMAL, Close, as_close
from ..connections.connection import Connection
from ..exceptions import WebSocketProtocolError, WebSocketStateError
from ..typing import WebSocketOptions
from ..web.session_ws import SessionWS
from .reader import Reader
from .sending import is_sent_at_once, send_and_wait

__all__ = ["WebSocket"]

_NOT_CONNECTED: Final = "not connected: await ws.connect() first"


class WebSocket:
    """
    One client's websocket: connect, receive, send and close.

    Handlers and hooks are given one before its handshake. Once it is closed, by either side,
    receiving and sending raise :class:`WebSocketDisconnect`, in a loop that only sends as well:
    while the handler is busy, a task reads in its place, answers pings and closes, and keeps up to
    64 messages or 64 KiB. Beyond that the client has to wait, and its close is noticed when the
    handler reads on, or when the client disconnects.

    One task at a time may receive; any may send. ``ws.request`` is the handshake request. Item
    access is for data of the connection: ``ws["name"] = "Ann"`` is in ``data`` of the
    :class:`Connection` that ``connection_ctx`` is given.
    """

    __slots__ = (
        "__weakref__", "_began", "_options", "_pushed", "_reader", "_session_ws", "request",
    )  # fmt: skip

    def __init__(
        self, request: web.Request, options: WebSocketOptions, *, pushed: bool = True
    ) -> None:
        self.request: web.Request = request
        self._options = options
        self._pushed = pushed
        self._began = False  # whether it has begun to connect, or was refused
        self._session_ws: SessionWS | None = None
        self._reader: Reader | None = None

    @property
    def connecting(self) -> bool:
        """
        Whether it waits for ``connect()``.
        """
        return not self._began

    @property
    def connected(self) -> bool:
        """
        Whether it is open.
        """
        if self._reader is None or self._reader.disconnected:
            return False
        return not self._reader.connection.ws.closed

    @property
    def closed(self) -> bool:
        """
        Whether it was refused or closed, by either side.
        """
        return self._began and not self.connected

    @property
    def subprotocols(self) -> list[str]:
        """
        The subprotocols that the client offers.
        """
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        return [name.strip() for name in offered.split(",") if name.strip()]

    protocols = subprotocols

    @property
    def subprotocol(self) -> str | None:
        """
        The negotiated subprotocol.
        """
        ws: web.WebSocketResponse = self._opened().connection.ws
        return ws.ws_protocol

    @property
    def connection(self) -> Connection:
        """
        The connection, with its identity and the application's data.
        """
        return self._opened().connection

    @property
    def session_ws_id(self) -> Hashable:
        """
        The id of the session that it belongs to.
        """
        return self._opened().connection.session_ws_id

    @property
    def identity(self) -> Hashable | None:
        """
        The identity of the session; ``None`` if anonymous.
        """
        return self._opened().connection.identity

    def __getitem__(self, key: str) -> Any:
        return self._opened().connection.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._opened().connection.data[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._opened().connection.data

    async def connect(
        self,
        subprotocol: str | None = None,
        close: Close | int | bool = False,
        reason: str | None = None,
        *,
        save: bool = True,
    ) -> None:
        """
        Perform the handshake, as :func:`session_ws` does on entry; raise what that raises.

        Args:
            subprotocol: The subprotocol to select; the client must have offered it.
            close: The close to send at once, so that a page's script learns of a refusal.
            reason: The reason in that close frame.
            save: Whether an id that is created for this connection is saved in the session;
                else it ends with the connection and sets no cookie.

        Raises:
            WebSocketStateError: If it was connected or refused before.
            WebSocketProtocolError: If the client hasn't offered *subprotocol*.
        """
        if self._began:
            msg = "already connected or refused: if a hook may do so, check ws.connecting first"
            raise WebSocketStateError(msg)
        options = self._options
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise WebSocketProtocolError(f"subprotocol {subprotocol} is required")
            options = options | WebSocketOptions(protocols=(subprotocol,))
        self._began = True
        self._session_ws = entered = SessionWS(
            self.request, options, save=save, pushed=self._pushed
        )
        await entered.__aenter__()
        self._reader = Reader(entered.connection, entered.core.connections)
        if close is not False:
            await self.close(NORMAL if close is True else close, reason)

    async def accept(self, subprotocol: str | None = None) -> None:
        """
        Same as :meth:`connect`.
        """
        await self.connect(subprotocol)

    def receive(self) -> Coroutine[Any, Any, str | bytes]:
        """
        Wait for a message. Those received before a client's close are delivered before it.

        Raises:
            WebSocketDisconnect: If the socket is closed.
            WebSocketStateError: If it isn't connected yet, or another task is receiving.
        """
        # Not a coroutine around it, which would cost memory for each socket that waits.
        return _not_connected() if self._reader is None else self._reader.receive()

    async def receive_json(self, loads: JSONDecoder = json.loads) -> Any:
        """
        Wait for a message and decode it; what *loads* raises is for the caller to handle.
        """
        return loads(await self.receive())  # type: ignore[arg-type]  # json takes bytes too

    async def recv(self) -> str | bytes | None:
        """
        Wait for a message; return ``None`` if the socket is closed.
        """
        return await anext(self, None)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, str | bytes]:
        # It must not raise here: CPython 3.11 crashes in anext(ws, default).
        return _not_connected() if self._reader is None else self._reader.receive(iterates=True)

    def send(self, data: str | bytes) -> Coroutine[Any, Any, None]:
        """
        Send a text, or bytes as a binary message; wait if the client reads too slowly.

        Raises:
            WebSocketDisconnect: If the socket is closed.
            WebSocketStateError: If it isn't connected yet.
            TypeError: If *data* is neither text nor bytes.
        """
        if isinstance(data, str):
            return self._send(data.encode(), WSMsgType.TEXT)
        if isinstance(data, (bytes, bytearray, memoryview)):
            return self._send(bytes(data), WSMsgType.BINARY)
        raise TypeError(f"can't send {type(data).__name__}, only str or bytes: use send_json()")

    def send_text(self, data: bytes) -> Coroutine[Any, Any, None]:
        """
        Send a text that is already encoded in UTF-8, as :meth:`send` does.
        """
        return self._send(data, WSMsgType.TEXT)

    async def _send(self, data: bytes, opcode: WSMsgType) -> None:
        reader = self._opened()
        connection = reader.connection
        ws: web.WebSocketResponse = connection.ws
        if reader.disconnected or ws.closed:
            await asyncio.sleep(0)  # so that a handler in an endless loop can be cancelled
            raise reader.disconnect()
        try:
            if is_sent_at_once(connection, len(data)):
                await ws.send_frame(data, opcode)
            else:
                await send_and_wait(reader.tasks, connection, data, opcode)
        except ConnectionError:
            raise reader.disconnect() from None

    async def send_json(self, data: Any, dumps: JSONEncoder = json.dumps) -> None:
        """
        Send *data* as JSON, in a text message.
        """
        await self.send(dumps(data))

    async def close(self, close: Close | int = NORMAL, reason: str | None = None) -> None:
        """
        Close the socket and wait until its transport has ended; before ``connect()``, refuse it.

        It takes ``timeouts.close`` seconds at most. Nothing happens if it is closed already.

        Args:
            close: The close to send to the client, or its code alone.
            reason: The reason in the close frame, for the developer at the other end.

        Raises:
            TypeError: If *close* is neither, or *reason* is not a string.
            ValueError: If a close frame cannot carry them.
        """
        checked_close = as_close(close, reason, NORMAL)
        self._began = True
        if self._reader is not None and self.connected:
            await self._reader.close(checked_close)

    def _opened(self) -> Reader:
        if self._reader is None:
            raise WebSocketStateError(_NOT_CONNECTED)
        return self._reader


async def _not_connected() -> NoReturn:
    raise WebSocketStateError(_NOT_CONNECTED)


def reader_of(ws: WebSocket) -> Reader | None:
    """
    Return the reader of a websocket that is or was connected; else ``None``.
    """
    return ws._reader


def has_begun(ws: WebSocket) -> bool:
    """
    Return whether a websocket has begun its handshake.
    """
    return ws._session_ws is not None


async def exit_session_ws(ws: WebSocket, error: BaseException | None) -> None:
    """
    Leave ``session_ws``, if it was entered.
    """
    reader, session_ws = ws._reader, ws._session_ws
    if reader is not None and session_ws is not None:
        try:
            await reader.stop()
        finally:
            await session_ws.__aexit__(None, error, None)
