"""
State of the close engine: one object per close order, one per connection that is being closed.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSMsgType

from ..close_codes import Close
from .connection import TrackedConnection
from .frames import encode_frame

__all__: list[str] = []

_MAX_CLOSE_FRAME: Final = 131  # bytes of a close frame of a client
_PACK_CODE: Final = struct.Struct("!H").pack


class Closing(asyncio.Protocol):
    """
    A connection that is being closed; meanwhile also the protocol of its transport.

    Args:
        connection: The connection.
        set_gone: Called when its transport has ended.
        close_soon: Called when its client's close frame has arrived, to close the transport soon.

    Attributes:
        connection: The connection.
        begun: Whether the engine has begun to close it; false during its handshake.
        forwards_data: Whether received data is forwarded to aiohttp, which had already closed
            the websocket.
        gone: Whether its transport has ended.
        removed: Whether it is out of the index, and the hook has returned or timed out.
        aborted: Whether it was aborted: the deadline passed, or closing it failed.
        short_wait: Whether to wait only shortly for the client's close frame.
        ends_handler: Whether its handler is to be cancelled when the grace is over.
        first_order: The order that began to close it.
        orders: The orders whose deadlines apply to its transport.
        after_removal: The orders that wait for its removal.
        after_handler: The orders that wait for the end of its handler.
    """

    __slots__ = (
        "_close_soon",
        "_inner",
        "_set_gone",
        "_tail",
        "aborted",
        "after_handler",
        "after_removal",
        "begun",
        "connection",
        "ends_handler",
        "first_order",
        "forwards_data",
        "gone",
        "orders",
        "removed",
        "short_wait",
    )

    def __init__(
        self,
        connection: TrackedConnection,
        set_gone: Callable[[Closing], None],
        close_soon: Callable[[Closing], None],
    ) -> None:
        self._set_gone = set_gone
        self._close_soon = close_soon
        self._inner: Any = None  # aiohttp's protocol
        self._tail = b""
        self.connection = connection
        self.begun = False
        self.forwards_data = False
        self.short_wait = False
        self.gone = False
        self.removed = False
        self.aborted = False
        self.ends_handler = False
        self.first_order: CloseOrder | None = None
        self.orders: list[CloseOrder] = []
        self.after_removal: list[CloseOrder] = []
        self.after_handler: list[CloseOrder] = []

    @property
    def handler_ended(self) -> bool:
        """
        Whether there is no handler to wait for: none exists, it has left, or it was cancelled.
        """
        connection = self.connection
        return connection.task is None or connection.handler_left or connection.cancelled

    def watch(self, transport: asyncio.Transport) -> None:
        """
        Become the protocol of *transport*, in place of aiohttp's.
        """
        assert self.connection.request is not None
        self._inner = self.connection.request.protocol
        # Not transport.get_protocol(), which fails on a TLS transport that has ended.
        transport.set_protocol(self)
        if not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()  # aiohttp pauses it while its queue of messages is full

    def data_received(self, data: bytes) -> None:
        """
        Drop what the client sends, and detect its close frame.
        """
        if self.forwards_data:
            self._inner.data_received(data)
            return
        # A close frame is the last thing that a client may send (RFC 6455, 5.5.1), so it is
        # enough to check the end of the data, without parsing frames. A false match only closes
        # the transport a bit early. The tail is kept for a frame that arrives in two pieces.
        tail = self._tail + data
        self._tail = tail[-_MAX_CLOSE_FRAME:]
        if ends_with_close(tail) and self.first_order is not None:
            if self.first_order.writing:
                self.first_order.answered.append(self)
            else:
                self._close_soon(self)

    def close_transport(self) -> None:
        """
        Close the transport once its write buffer is sent.
        """
        transport = self.connection.transport
        # Closing a TLS transport twice makes asyncio lose the connection under it.
        if transport is not None and not transport.is_closing():
            transport.close()

    def pause_writing(self) -> None:
        """
        Forward to aiohttp, where senders wait for it.
        """
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """
        Forward to aiohttp, where senders wait for it.
        """
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Forward to aiohttp, then remove the connection.
        """
        try:
            self._inner.connection_lost(exc)
        finally:
            self._set_gone(self)


def ends_with_close(data: bytes) -> bool:
    """
    Return whether *data* ends with a close frame of a client, which is masked.
    """
    end = len(data)
    for size in (0, *range(2, 126)):
        at = end - 6 - size
        if at < 0:
            return False
        if data[at] == 0x88 and data[at + 1] == 0x80 | size:
            # The payload begins with the code, masked by the first two bytes of the mask.
            code = (
                (data[at + 6] ^ data[at + 2]) << 8 | data[at + 7] ^ data[at + 3] if size else 1000
            )
            if 1000 <= code <= 4999:
                return True
    return False


@functools.lru_cache(maxsize=64)  # most orders share a few codes and reasons
def close_frame(code: int, reason: str) -> bytes:
    """
    Return a close frame.
    """
    return encode_frame(_PACK_CODE(code) + reason.encode(), WSMsgType.CLOSE)


class CloseOrder:
    """
    The progress of one order: what it still waits for, and its deadline.

    Args:
        close: The close for all peers; ``None`` for the ``close_order`` of each connection.
        done: The future to resolve when the order is complete.
        given: When it was given, by the event loop's clock.

    Attributes:
        given: When it was given.
        writing: Whether some close frames are still to be written.
        answered: The connections whose clients' close frames arrived before all were written.
        done: Resolved when nothing is left to wait for, with the number of sockets aborted and
            the number of handlers cancelled. Cancelling it stops nothing.
        pending: The number of events it waits for, plus one while it is writing.
        transports: The number of transports that must end before its deadline.
        closings: The connections of these transports.
        aborted: The number of sockets aborted.
        cancelled: The number of handlers cancelled.
        timer: Closes the ``short_wait`` transports, and at the deadline aborts the rest.
    """

    __slots__ = (
        "_close",
        "aborted",
        "answered",
        "cancelled",
        "closings",
        "done",
        "given",
        "pending",
        "timer",
        "transports",
        "writing",
    )

    def __init__(
        self, close: Close | None, done: asyncio.Future[tuple[int, int]], given: float
    ) -> None:
        self._close = close
        self.given = given
        self.writing = True
        self.answered: list[Closing] = []
        self.done = done
        self.pending = 1
        self.transports = 0
        self.closings: list[Closing] = []
        self.aborted = 0
        self.cancelled = 0
        self.timer: asyncio.TimerHandle | None = None

    def close_for(self, connection: TrackedConnection) -> Close:
        """
        Return the close for the peer of a connection.
        """
        close = self._close or connection.close_order
        assert close is not None
        return close

    def add_transport(self, closing: Closing) -> None:
        """
        Apply the deadline of the order to a transport.
        """
        self.transports += 1
        self.closings.append(closing)
        closing.orders.append(self)

    def settle(self) -> None:
        """
        Count down one event that it waited for; the last one resolves ``done``.
        """
        self.pending -= 1
        if not self.pending and not self.done.done():
            self.done.set_result((self.aborted, self.cancelled))

    def transport_ended(self) -> None:
        """
        Count down one transport; the last one stops the timer.
        """
        self.transports -= 1
        if not self.transports:
            self.closings.clear()
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
