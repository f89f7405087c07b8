"""
What the close engine knows of an order, and of each connection that is being closed.
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

_LONGEST_CLOSE: Final = 131  # bytes of a close frame of a client
_PACK_CODE: Final = struct.Struct("!H").pack


class Closing(asyncio.Protocol):
    """
    A connection that is being closed, and what its transport talks to meanwhile.

    Args:
        connection: Which one.
        set_gone: Called when its transport has ended.
        hang_up: Called when its client has answered, to close the transport soon.

    Attributes:
        connection: Which one.
        begun: Whether its close frame was written; not for a handshake.
        aside: Whether aiohttp is left to hear the client, since it has closed by itself.
        gone: Whether its transport has ended.
        removed: Whether it is out of the index, and the hook has been called.
        aborted: Whether it had to be cut: the deadline passed, or closing it failed.
        brief: Whether its transport is closed after a moment, without an answer.
        ends_handler: Whether its handler is to be cancelled when the grace is over.
        told: The order that has begun to close it.
        orders: The orders whose deadlines it must meet.
        after_removal: The orders that wait for its removal.
        after_handler: The orders that wait for the end of its handler.
    """

    __slots__ = (
        "_hang_up",
        "_inner",
        "_set_gone",
        "_tail",
        "aborted",
        "after_handler",
        "after_removal",
        "aside",
        "begun",
        "brief",
        "connection",
        "ends_handler",
        "gone",
        "orders",
        "removed",
        "told",
    )

    def __init__(
        self,
        connection: TrackedConnection,
        set_gone: Callable[[Closing], None],
        hang_up: Callable[[Closing], None],
    ) -> None:
        self._set_gone = set_gone
        self._hang_up = hang_up
        self._inner: Any = None  # aiohttp's protocol
        self._tail = b""
        self.connection = connection
        self.begun = False
        self.aside = False
        self.brief = False
        self.gone = False
        self.removed = False
        self.aborted = False
        self.ends_handler = False
        self.told: CloseOrder | None = None
        self.orders: list[CloseOrder] = []
        self.after_removal: list[CloseOrder] = []
        self.after_handler: list[CloseOrder] = []

    @property
    def handler_ended(self) -> bool:
        """
        Whether the handler needn't be waited for any more.
        """
        connection = self.connection
        return connection.task is None or connection.handler_left or connection.cancelled

    def watch(self, transport: asyncio.Transport) -> None:
        """
        Step between *transport* and aiohttp.
        """
        assert self.connection.request is not None
        self._inner = self.connection.request.protocol
        # Not transport.get_protocol(), which fails on a TLS transport that has ended.
        transport.set_protocol(self)
        if not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()  # aiohttp's queue may be full, and nobody will read it

    def data_received(self, data: bytes) -> None:
        """
        Drop what the client sends, and see whether it answers with a close frame.
        """
        if self.aside:
            self._inner.data_received(data)
            return
        # It is the last thing that a client may send (RFC 6455, 5.5.1), so the end of what came
        # tells, wherever its frames begin. Should something else look like it, this is a bit
        # early; should it come in two pieces, the first one is kept.
        tail = self._tail + data
        self._tail = tail[-_LONGEST_CLOSE:]
        if ends_with_close(tail) and self.told is not None:
            if self.told.writing:
                self.told.answered.append(self)
            else:
                self._hang_up(self)

    def close_transport(self) -> None:
        """
        Close the transport when all that was written is sent.
        """
        transport = self.connection.transport
        # To close a TLS transport twice makes asyncio lose the connection under it.
        if transport is not None and not transport.is_closing():
            transport.close()

    def pause_writing(self) -> None:
        """
        Tell aiohttp, for those who wait to send.
        """
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """
        Tell aiohttp, for those who wait to send.
        """
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Tell aiohttp, and remove the connection.
        """
        try:
            self._inner.connection_lost(exc)
        finally:
            self._set_gone(self)


def ends_with_close(data: bytes) -> bool:
    """
    Tell whether *data* ends with a close frame of a client, which is masked.
    """
    end = len(data)
    for size in (0, *range(2, 126)):
        at = end - 6 - size
        if at < 0:
            return False
        if data[at] == 0x88 and data[at + 1] == 0x80 | size:
            # The first two bytes of the payload are the code, masked by the first two of four.
            code = (
                (data[at + 6] ^ data[at + 2]) << 8 | data[at + 7] ^ data[at + 3] if size else 1000
            )
            if 1000 <= code <= 4999:
                return True
    return False


@functools.lru_cache(maxsize=64)  # most orders say what others have said
def close_frame(code: int, reason: str) -> bytes:
    """
    Return a close frame.
    """
    return encode_frame(_PACK_CODE(code) + reason.encode(), WSMsgType.CLOSE)


class CloseOrder:
    """
    What one order waits for, and until when.

    Args:
        close: What the peers are told; ``None`` if that is their connections' ``close_order``.
        done: The future that tells of its end.
        given: When it was given, by the event loop's clock.

    Attributes:
        given: When it was given.
        writing: Whether not all frames are written yet.
        answered: Those whose clients have answered before that.
        done: Has its result when nothing is left to wait for: how many sockets were aborted, and
            how many handlers cancelled. Who awaits it may be cancelled, which stops nothing.
        pending: How many things it waits for, and one more while it is writing.
        transports: How many transports have to end before its deadline.
        closings: What these belong to.
        aborted: How many sockets were aborted.
        cancelled: How many handlers were cancelled.
        timer: Aborts what is left.
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
        Return what the peer of a connection is told.
        """
        close = self._close or connection.close_order
        assert close is not None
        return close

    def bound(self, closing: Closing) -> None:
        """
        Let a transport end before the deadline.
        """
        self.transports += 1
        self.closings.append(closing)
        closing.orders.append(self)

    def settle(self) -> None:
        """
        Count down one thing that it waited for.
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
