"""
Sending to one peer: in order, no faster than it reads, and for no longer than it is patient for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import WSMsgType, web

from ..close_codes import SLOW_CONSUMER, Close
from ..connections.frames import encode_frame
from ..exceptions import WebSocketDisconnect
from ..handlers.websocket import WebSocket
from .errors import SessionGone
from .limits import CallLimits

__all__ = ["Sender"]

_AT_ONCE: Final = 32_768  # bytes that an empty transport takes without a wait
_TOGETHER: Final = 1024  # bytes of an answer that may be written with others
_MANY: Final = 64  # answers that are written without waiting for more
_POLL: Final = 0.05  # seconds between two looks at a transport; it has no event for us


@dataclass(slots=True, eq=False)
class Sender:
    """
    The one way out to a peer.

    What the transport has room for is written at once. Everything else waits in a queue, and
    there is a task only as long as it isn't empty.

    Args:
        ws: The socket.
        binary: Whether frames are binary ones.
        limits: How much may wait, and for how long.

    Attributes:
        queued: How many bytes wait here.
    """

    ws: WebSocket
    binary: bool
    limits: CallLimits
    queued: int = 0
    _out: asyncio.Transport = field(init=False)
    _response: web.WebSocketResponse = field(init=False)
    _at_once: int = field(init=False)  # bytes that an empty transport takes without a wait
    _opcode: WSMsgType = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _queue: deque[tuple[bytes, asyncio.Future[None] | None]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None
    _closing: asyncio.Task[None] | None = None
    _patience: asyncio.TimerHandle = field(init=False)  # runs while the task does
    _sent: int = 0  # how many had to wait
    _together: list[bytes] | None = None  # answers that are written next

    def __post_init__(self) -> None:
        transport = self.ws.request.transport
        if transport is None:
            raise SessionGone("the client has hung up")
        self._out = transport
        self._response = self.ws.connection.ws
        # aiohttp's writer compresses, where that was agreed on.
        self._at_once = -1 if self._response.compress else _AT_ONCE
        self._opcode = WSMsgType.BINARY if self.binary else WSMsgType.TEXT

    @property
    def is_full(self) -> bool:
        """
        Whether more than allowed waits to be sent, here or in the transport.
        """
        return self.queued + self._out.get_write_buffer_size() > self.limits.outgoing

    @property
    def is_closed(self) -> bool:
        """
        Whether nothing can be sent any more.
        """
        return self.ws.closed or self._out.is_closing()  # which the reader may not have seen

    def write_soon(self, data: bytes) -> bool:
        """
        Send an answer now, or with others of this turn of the loop; tell whether nothing is in
        the way.

        To write takes longer than most calls do, and those that come together are answered
        together. Whatever must not be overtaken by an event goes by :meth:`write`.

        Raises:
            SessionGone: If the socket is closed.
        """
        if self._together is None:
            if not self.write(data):
                return False
            self._together = []
            self._loop.call_soon(self._write_together)
        elif len(data) > _TOGETHER:
            return False
        else:
            self._together.append(encode_frame(data, self._opcode))
            if len(self._together) >= _MANY:
                self._write_together()
                self._together = []
        return True

    def _write_together(self) -> None:
        together, self._together = self._together, None
        if together and not (self._response.closed or self._out.is_closing()):
            self._out.write(b"".join(together))

    def write(self, data: bytes) -> bool:
        """
        Send a frame now, if nothing is in the way; tell whether it was sent.

        It goes to the transport as a push does, without aiohttp's writer, which would look for
        the same things once more.

        Raises:
            SessionGone: If the socket is closed.
        """
        if self._response.closed or self._out.is_closing():
            raise SessionGone("the socket is closed")
        if self._together:
            self._write_together()
            self._together = []  # and what comes in this turn is written in the next
        transport = self._out
        if self._queue or len(data) > self._at_once or transport.get_write_buffer_size():
            return False
        transport.write(encode_frame(data, self._opcode))
        return True

    async def send(self, data: bytes) -> None:
        """
        Send a frame, and wait until the transport has it and has room again.

        Raises:
            SessionGone: If the socket is closed.
        """
        if not self.write(data):
            sent = self._loop.create_future()
            self._put(data, sent)
            await sent

    def post(self, data: bytes, then: Callable[[], object] | None = None) -> None:
        """
        Send a frame, behind what waits; don't wait for it.

        Args:
            data: The frame.
            then: Called when the transport has it.
        """
        with contextlib.suppress(SessionGone):  # whoever it is for is gone as well
            if not self.write(data):
                sent = None if then is None else self._loop.create_future()
                if sent is not None and then is not None:
                    sent.add_done_callback(lambda done: done.exception() or then())
                self._put(data, sent)
            elif then is not None:
                then()

    async def room(self) -> None:
        """
        Wait until no more waits to be sent than is allowed, or the socket is closed; the peer
        has not much time.
        """
        while self.is_full and not self.is_closed:
            await asyncio.wait({self._working()}, timeout=_POLL)

    def close(self, close: Close) -> None:
        """
        Close the socket, without waiting for it.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self.ws.close(close), name="close a websocket")

    def _put(self, data: bytes, sent: asyncio.Future[None] | None) -> None:
        self._queue.append((data, sent))
        self.queued += len(data)
        _ = self._working()

    def _working(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            # In no call's context, or it would be kept as long as the peer is slow.
            self._task = asyncio.create_task(
                self._work(), name="send", context=contextvars.Context()
            )
        return self._task

    async def _work(self) -> None:
        # When the first frame is on its way: the transport hasn't got it yet.
        self._patience = self._loop.call_later(_POLL, self._look_later)
        try:
            while (self._queue or self.is_full) and not self.is_closed:
                if self._queue:
                    await self._send_first(*self._queue[0])
                else:
                    await asyncio.sleep(_POLL)
        except WebSocketDisconnect:
            pass
        finally:
            self._drop()  # what is left is nobody's
            self._patience.cancel()

    async def _send_first(self, data: bytes, sent: asyncio.Future[None] | None) -> None:
        if sent is None or not sent.done():  # or its sender was cancelled meanwhile
            await (self.ws.send if self.binary else self.ws.send_text)(data)
        self._sent += 1
        self._queue.popleft()
        self.queued -= len(data)
        if sent is not None and not sent.done():
            sent.set_result(None)

    def _look_later(self) -> None:
        before = self._sent, self._out.get_write_buffer_size()
        self._patience = self._loop.call_later(
            self.limits.patience, self._look, *before, context=contextvars.Context()
        )

    def _look(self, sent: int, size: int) -> None:
        """
        Close a peer that has taken nothing since the last look; if more waits than did then, that
        isn't known.
        """
        if self._sent == sent and self._out.get_write_buffer_size() == size:
            self.close(SLOW_CONSUMER)
        else:
            self._look_later()

    def _drop(self) -> None:
        for _, sent in self._queue:
            if sent is not None and not sent.done():
                sent.set_exception(SessionGone("the socket is closed"))
        self._queue.clear()
        self.queued = 0
