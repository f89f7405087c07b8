"""
The record of one websocket, and the index that finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import WSCloseCode, WSMessage, web

if TYPE_CHECKING:
    from .closing import Close
    from .deadlines import Deadline
    from .outbox import Outbox

__all__ = ["Connection", "SupportsClose"]


class SupportsClose(Protocol):
    """
    What may be registered by hand: anything that can be closed.
    """

    @property
    def close(self) -> Any:
        """
        Called with ``code=`` and ``message=`` where it takes them; may be async.
        """


class ServedWebSocket(web.WebSocketResponse):
    """
    A websocket response that remembers whether the server began to close it, and when its
    handler last turned to its messages.
    """

    # Not in its dictionary, which has no room for more without a table of its own.
    __slots__ = ("closed_with", "heard_at")

    closed_with: int | None
    heard_at: float | None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.closed_with = None
        self.heard_at = None

    # aiohttp's are the same, but written in Python; the index asks for them all the time.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def _send_heartbeat(self) -> None:
        super()._send_heartbeat()
        transport = None if self._req is None else self._req.transport
        if self._pong_response_cb is None or transport is None or transport.is_closing():
            return
        if not transport.is_reading():
            # The pong of a peer that is held up can't be heard, so don't wait for it; aiohttp
            # has nothing public for this. If the peer is dead, TCP finds out by the ping.
            self._reset_heartbeat()

    def receive(self, timeout: float | None = None) -> Coroutine[Any, Any, WSMessage]:
        """
        Receive as aiohttp does.
        """
        # Not a coroutine of its own, which would be half a kilobyte more for an idle socket.
        self.heard_at = time.monotonic()
        return super().receive(timeout)

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """
        Close as aiohttp does.
        """
        # receive() sets close_code before it answers the client's close, with 1000. No code
        # yet, or another one, means that nobody but this side has asked.
        if not self.closed and (self.close_code is None or code != WSCloseCode.OK):
            self.closed_with = code
        return await super().close(code=code, message=message, drain=drain)


class Connection:
    """
    One websocket and what is known of it.

    Attributes:
        session_ws_id: The id of the session it belongs to.
        identity: Whom the session belongs to, as ``identify`` said at the handshake;
            ``None`` if it said nobody.
        ws: The websocket, or the object that was registered by hand.
        request: The request that was upgraded; ``None`` if registered by hand.
        task: The task that runs the handler.
        started: When the handshake began, by the event loop's clock, in seconds.
        opened_at: When the handshake was over, by the same clock; ``None`` until then.
    """

    __slots__ = (
        "_data",
        "_left",
        "admitted",
        "cancelled",
        "close",
        "closing",
        "deadline",
        "gone",
        "identity",
        "last_words",
        "left",
        "opened_at",
        "outbox",
        "refusal",
        "registered",
        "request",
        "seen",
        "session_ws_id",
        "started",
        "takes_pushes",
        "task",
        "tls_socket",
        "transport",
        "ws",
    )

    def __init__(
        self,
        session_ws_id: Hashable,
        ws: Any,
        request: web.Request | None = None,
        task: asyncio.Task[Any] | None = None,
        started: float = 0.0,
    ) -> None:
        self.session_ws_id = session_ws_id
        self.identity: Hashable | None = None
        self.ws = ws
        self.request = request
        self.task = task
        self.started = started
        # request.transport is None once aiohttp gave the connection up, which may be
        # before the peer has taken what is in the transport's buffer.
        self.transport = request.transport if request is not None else None
        self.tls_socket: Any = None
        if self.transport is not None and self.transport.get_extra_info("sslcontext"):
            self.tls_socket = self.transport.get_extra_info("socket")
        self.admitted = 0  # when it took its place, as counted by the index
        self.refusal: Close | None = None  # an order that came during the handshake
        self.close: Close | None = None  # the order that closes it
        self.closing: asyncio.Task[bool] | None = None  # the engine at work
        self.opened_at: float | None = None
        self.deadline: Deadline | None = None  # when to look whether its session lives
        self.outbox: Outbox | None = None  # what was pushed and is not sent yet
        # What the endpoint says right before the close frame, and whether it takes pushes.
        self.last_words: Callable[[Close], str | bytes | None] | None = None
        self.takes_pushes = True
        self.seen: object = None  # the orders that its handshake found recorded
        self.registered = False  # the register() hook was called
        self.gone = False  # out of the index for good
        self.cancelled = False  # the engine has cancelled the handler
        self.left = False  # the handler has left session_ws
        self._left: asyncio.Future[None] | None = None
        self._data: dict[str, Any] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """
        What the application keeps with the connection.
        """
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def opened(self) -> bool:
        """
        Whether the handshake is over.
        """
        return self.opened_at is not None

    def refuse(self, close: Close) -> None:
        """
        Let an order keep this handshake from opening; the gravest one is told.
        """
        if self.refusal is None or close.code == 4401:
            self.refusal = close

    def leave(self) -> None:
        """
        Note that the handler has left ``session_ws``.
        """
        self.left = True
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    async def wait_left(self, timeout: float) -> bool:
        """
        Wait until the handler has left, for *timeout* seconds at most.
        """
        if not self.left:
            if self._left is None:
                self._left = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._left}, timeout=timeout)
        return self.left

    @property
    def disconnected(self) -> bool:
        """
        Whether nothing can reach the peer any more, nor is left to be sent.
        """
        transport = self.transport
        if transport is None:
            return True
        if not transport.is_closing():
            return False
        if self.tls_socket is None:
            return not transport.get_write_buffer_size()
        # A TLS transport doesn't count what its inner transport still has to send. It is
        # done when its socket is closed, or when aiohttp hears of it (uvloop).
        gone = self.request is not None and self.request.transport is None
        return gone or self.tls_socket.fileno() == -1

    def cut(self) -> None:
        """
        End the transport now; nothing happens to one that has ended by itself.
        """
        if self.transport is None:
            return
        done = self.disconnected
        self.transport.abort()
        if not done and self.tls_socket is not None:
            # asyncio's abort() does nothing to a TLS transport that was closed twice.
            with contextlib.suppress(OSError, TypeError):  # uvloop's has no shutdown()
                self.tls_socket.shutdown(socket.SHUT_RDWR)


class Index:
    """
    Connections by a key; a key that has none is not in it.

    Most sessions have one socket. Such a connection stands for itself, without a
    dictionary around it: that would be a quarter of what a socket costs us.
    """

    __slots__ = ("_groups", "size")

    def __init__(self) -> None:
        self.size = 0  # how many connections there are
        self._groups: dict[Hashable, Connection | dict[Any, Connection]] = {}

    def add(self, key: Hashable, connection: Connection) -> None:
        """
        File *connection*, which is not there yet, under *key*.
        """
        self.size += 1
        group = self._groups.setdefault(key, connection)
        if isinstance(group, dict):
            group[connection.ws] = connection
        elif group is not connection:
            self._groups[key] = {group.ws: group, connection.ws: connection}

    def discard(self, key: Hashable, ws: object) -> None:
        """
        Take *ws* out, if it is there.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            self.size -= group.pop(ws, None) is not None
            if not group:
                del self._groups[key]
        elif group is not None and group.ws is ws:
            self.size -= 1
            del self._groups[key]

    def get(self, key: Hashable, ws: object) -> Connection | None:
        """
        Return the connection of *ws* under *key*.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            return group.get(ws)
        return group if group is not None and group.ws is ws else None

    def of(self, key: Hashable) -> list[Connection]:
        """
        Return the connections under *key*.
        """
        group = self._groups.get(key)
        if isinstance(group, dict):
            return list(group.values())
        return [] if group is None else [group]

    def keys(self) -> tuple[Hashable, ...]:
        """
        Return the keys that have connections.
        """
        return tuple(self._groups)

    def __iter__(self) -> Iterator[Connection]:
        return iter([connection for key in self._groups for connection in self.of(key)])

    def __len__(self) -> int:
        return len(self._groups)
