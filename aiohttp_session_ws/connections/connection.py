"""
The state of one websocket: the public ``Connection``, and what the library adds to it.

A connection is ``OPENING`` while its handshake runs, ``OPEN`` from then on, ``CLOSING`` from the
moment the engine has begun to close it, and ``CLOSED`` once it is out of the index. Each
transition is one method of :class:`TrackedConnection`; there is no way back.

More than 300 lines, half of which document attributes: all layers above rely on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import socket
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, Protocol, TypeVar

from aiohttp import web

from .._lineage import Lineage, Subject
from .._logging import fingerprint
from ..close_codes import NORMAL, Close, as_close

__all__ = ["Connection"]

V = TypeVar("V")

_monotonic: Final = time.monotonic  # as the event loop's clock, but quicker


class State(enum.Enum):
    """
    The lifecycle of a connection.
    """

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


# Looking up an enum's members is slow, and each push needs these.
OPENING: Final = State.OPENING
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
CLOSED: Final = State.CLOSED

#: The lineage of connections that have none, like most objects registered by hand.
NO_LINEAGE: Final = Lineage("", 0, 0.0)


class Queue(Protocol):
    """
    The messages that were pushed to a connection and are not sent yet.
    """

    @property
    def empty(self) -> bool:
        """
        Whether no message is waiting or being sent.
        """

    def drop(self) -> None:
        """
        Discard the messages that are not sent.
        """


class Closer(Protocol):
    """
    Closes a connection: the manager that it is filed with.
    """

    async def close_connection(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close *connection*, and wait until its transport has ended.
        """


class SparseAttribute(Generic[V]):
    """
    An attribute that few connections set: it takes no memory in the others.

    Args:
        default: Its value until it is set.
    """

    __slots__ = ("_default", "_name")

    def __init__(self, default: V) -> None:
        self._default = default
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, connection: Connection, owner: type) -> V:
        sparse = connection._sparse
        return self._default if sparse is None else sparse.get(self._name, self._default)

    def __set__(self, connection: Connection, value: V) -> None:
        if connection._sparse is not None:
            connection._sparse[self._name] = value
        elif value is not self._default:
            connection._sparse = {self._name: value}


class Connection:
    """
    One open websocket, stream or object registered by hand, with the session it belongs to.

    Attributes:
        session_ws_id: The id of the session it belongs to.
        identity: The identity of its session, as ``identify`` returned it at the handshake;
            ``None`` if anonymous.
        request: The request that was upgraded; ``None`` if registered by hand.
        opened_at: When the handshake was complete, by the event loop's clock, in seconds;
            ``None`` until then.
        ws: The websocket, the stream, or the object that was registered by hand.
        last_words: Called with the close when an order, a limit, an expiry, the shutdown or
            :meth:`close` closes the socket; the text or bytes that it returns are sent right
            before the close frame, if nothing else waits to be sent. It must not block.
        takes_pushes: Whether pushed messages are sent to it; false for an endpoint that
            speaks a protocol of its own.
    """

    __slots__ = (
        "_sparse",
        "identity",
        "opened_at",
        "request",
        "session_ws_id",
        "takes_pushes",
        "ws",
    )

    last_words = SparseAttribute[Callable[[Close], str | bytes | None] | None](None)
    _data = SparseAttribute[dict[str, Any] | None](None)

    # Set by the only implementation, TrackedConnection.
    session_ws_id: Hashable
    identity: Hashable | None
    request: web.Request | None
    opened_at: float | None
    ws: Any
    takes_pushes: bool
    _sparse: dict[str, Any] | None

    @property
    def id(self) -> str:
        """
        Its own id, unique in this process.
        """
        # No two share an address at a time, and a later one at that address is opened later.
        return fingerprint((id(self), self.opened_at or 0.0))

    @property
    def data(self) -> dict[str, Any]:
        """
        The data that the application keeps with the connection.
        """
        data = self._data
        if data is None:
            data = self._data = {}
        return data

    async def close(self, close: Close | int = NORMAL, reason: str | None = None) -> None:
        """
        Close it, and wait until its transport and its handler have ended.

        That takes ``timeouts.close + timeouts.handler_grace`` seconds at most: its handler is
        notified as of any close, and cancelled if it runs on for longer than the grace. A handler
        that calls this itself is neither waited for nor cancelled. Nothing happens if it is
        closed already. The session stays alive.

        Args:
            close: The close to send to the peer, or its code alone.
            reason: The reason in the close frame, for the developer at the other end.

        Raises:
            TypeError: If *close* is neither, or *reason* is not a string.
            ValueError: If a close frame cannot carry them.
        """
        checked_close = as_close(close, reason, NORMAL)
        if isinstance(self, TrackedConnection) and self.closer is not None:  # it is in an index
            await self.closer.close_connection(self, checked_close)


class TrackedConnection(Connection):
    """
    A connection, with the state that the manager and the engine keep of it.

    Args:
        session_ws_id: The id of its session.
        ws: The websocket.
        request: The request that is upgraded; ``None`` if registered by hand.
        task: The task that runs the handler.
        started: When the handshake began, or it was registered by hand, by the event loop's
            clock, in seconds.

    Attributes:
        state: Its lifecycle state.
        closer: The manager that it is filed with.
        lineage: The lineage that its session belongs to.
        labels: Further names that its session can be ended by.
        started: When the handshake began, or it was registered by hand.
        task: The task that runs the handler.
        transport: The transport.
        rejected_with: The close with which its handshake was rejected, by an order or a limit.
        close_order: The close of the order that closes it.
        closing: The engine's state of it, once it is being closed.
        send_queue: The messages that were pushed and are not sent yet.
        admitted: Its number in the order of admission, counted by the manager; 0 before.
        first_id: Its first id, if its session was given another one since.
        registered: Whether the ``unregister()`` hook is to be called.
        cancelled: Whether the engine has cancelled the handler.
        handler_left: Whether the handler has left ``session_ws``.
        check_at: When to check its session next, by the event loop's clock.
        session_ends: When the session expires, by the wall clock, as far as is known.
        server_side: Whether the session is known to be stored on the server.
        tries: How many times in a row its session could not be checked.
        until: Until when its session belongs to its identity, by the wall clock.
        proven: An identity that its client has proven over the socket, and since when.
        keeps_id: Whether its session was saved with the id; else the id ends with the connection.
    """

    __slots__ = (
        "admitted",
        "check_at",
        "close_order",
        "closer",
        "closing",
        "handler_left",
        "lineage",
        "send_queue",
        "server_side",
        "session_ends",
        "started",
        "state",
        "task",
        "tls_socket",
        "transport",
    )

    #: The attributes below that differ from their defaults; ``None`` if none does.
    sparse = Connection._sparse  # type: ignore[misc]  # the slot, for other modules

    cancelled = SparseAttribute(False)
    first_id = SparseAttribute[Hashable](None)
    keeps_id = SparseAttribute(True)
    labels = SparseAttribute[tuple[Subject, ...]](())
    proven = SparseAttribute[tuple[Hashable, float] | None](None)
    registered = SparseAttribute(False)
    rejected_with = SparseAttribute[Close | None](None)
    tries = SparseAttribute(0)
    until = SparseAttribute(math.inf)

    def __init__(
        self,
        session_ws_id: Hashable,
        ws: Any,
        request: web.Request | None = None,
        task: asyncio.Task[Any] | None = None,
        started: float = 0.0,
    ) -> None:
        self.session_ws_id = session_ws_id
        self.identity = None
        self.request = request
        self.opened_at = None
        self.ws = ws
        self.takes_pushes = True
        self._sparse = None
        self.state = OPENING
        self.closer: Closer | None = None
        self.lineage = NO_LINEAGE
        self.started = started
        self.task = task
        self.admitted = 0
        self.close_order: Close | None = None
        self.closing: Any = None  # a close_order.Closing; that module imports this one
        self.send_queue: Queue | None = None
        self.handler_left = False
        self.check_at = math.inf
        self.session_ends = math.inf
        self.server_side = False
        self.transport: asyncio.Transport | None = None
        self.tls_socket: Any = None
        if request is not None:
            # request.transport is None once aiohttp has released the connection, which may be
            # before the transport's write buffer is sent.
            self.transport = transport = request.transport
            if transport is not None and transport.get_extra_info("sslcontext"):
                self.tls_socket = transport.get_extra_info("socket")

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.state.value} {fingerprint(self.session_ws_id)}>"

    @property
    def is_stream(self) -> bool:
        """
        Whether it is a streamed response, not a websocket.
        """
        return self.request is not None and not isinstance(self.ws, web.WebSocketResponse)

    @property
    def removed(self) -> bool:
        """
        Whether it is out of the index for good.
        """
        return self.state is CLOSED

    def reject(self, close: Close) -> None:
        """
        Reject this handshake; of several closes the first one counts, or the last with 4401.
        """
        if self.rejected_with is None or close.code == 4401:
            self.rejected_with = close

    def set_open(self) -> None:
        """
        Go from ``OPENING`` to ``OPEN``: the handshake is complete.
        """
        assert self.state is OPENING, f"only an OPENING connection can open, not {self.state}"
        self.state = OPEN
        self.opened_at = _monotonic()

    def set_closing(self) -> None:
        """
        Go to ``CLOSING``: the engine has begun to close it.
        """
        assert self.state in (OPENING, OPEN), f"already {self.state}"
        self.state = CLOSING

    def set_closed(self) -> None:
        """
        Go to ``CLOSED``: it is out of the index, or its handshake has failed.
        """
        self.state = CLOSED

    @property
    def disconnected(self) -> bool:
        """
        Whether the transport has ended, with nothing left to be sent.
        """
        transport = self.transport
        if transport is None:
            return True
        if not transport.is_closing():
            return False
        if self.tls_socket is None:
            return not transport.get_write_buffer_size()
        # A TLS transport doesn't count what its inner transport still has to send. It has
        # ended when its socket is closed, or when aiohttp has been notified (uvloop).
        gone = self.request is not None and self.request.transport is None
        return gone or self.tls_socket.fileno() == -1

    def abort(self) -> None:
        """
        Abort the transport; nothing happens to one that has ended by itself.
        """
        if self.transport is None:
            return
        done = self.disconnected
        # On a TLS transport that was closed twice asyncio's abort() has no effect; in 3.11.2 it
        # raises AttributeError.
        with contextlib.suppress(AttributeError):
            self.transport.abort()
        if not done and self.tls_socket is not None:
            with contextlib.suppress(OSError, TypeError):  # uvloop's has no shutdown()
                self.tls_socket.shutdown(socket.SHUT_RDWR)


def registered_object(
    session_ws_id: Hashable, ws: Any, closer: Closer, at: float
) -> TrackedConnection:
    """
    Return the connection of an object registered by hand; it is open from the beginning.

    Args:
        session_ws_id: The id of its session.
        ws: The object.
        closer: Closes it.
        at: When it was registered, by the event loop's clock.
    """
    connection = TrackedConnection(session_ws_id, ws, started=at)
    connection.closer = closer
    connection.opened_at, connection.state = at, OPEN
    return connection
