"""
Ordered sending to one peer, with back-pressure and a deadline for peers that don't read.
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

_MAX_DIRECT: Final = 32_768  # bytes that an empty transport takes without a wait
_MAX_BATCHED: Final = 1024  # bytes; a larger answer is not batched
_BATCH_LENGTH: Final = 64  # answers after which a batch is written at once
_POLL_INTERVAL: Final = 0.05  # seconds between checks of a transport, which has no event for us


@dataclass(slots=True, eq=False)
class Sender:
    """
    Sends frames to one peer.

    A frame of up to 32 KiB is written at once if the transport's buffer is empty. Everything
    else is queued; there is a task only while something waits.

    Args:
        ws: The socket.
        binary: Whether frames are binary ones.
        limits: How much may wait, and for how long.

    Attributes:
        queued: How many bytes are in the queue.
    """

    ws: WebSocket
    binary: bool
    limits: CallLimits
    queued: int = 0
    _transport: asyncio.Transport = field(init=False)
    _response: web.WebSocketResponse = field(init=False)
    _max_direct: int = field(init=False)  # bytes that an empty transport takes without a wait
    _opcode: WSMsgType = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _queue: deque[tuple[bytes, asyncio.Future[None] | None]] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None
    _closing: asyncio.Task[None] | None = None
    _progress_timer: asyncio.TimerHandle = field(init=False)  # runs while _task does
    _sent: int = 0  # queued frames that were sent
    _batch: list[bytes] | None = None  # the batch that is written next

    def __post_init__(self) -> None:
        transport = self.ws.request.transport
        if transport is None:
            raise SessionGone("the client has disconnected")
        self._transport = transport
        self._response = self.ws.connection.ws
        # With compression, every frame goes through aiohttp's writer, which compresses.
        self._max_direct = -1 if self._response.compress else _MAX_DIRECT
        self._opcode = WSMsgType.BINARY if self.binary else WSMsgType.TEXT

    @property
    def is_full(self) -> bool:
        """
        Whether more bytes than allowed wait to be sent, here and in the transport.
        """
        return self.queued + self._transport.get_write_buffer_size() > self.limits.outgoing

    @property
    def is_closed(self) -> bool:
        """
        Whether nothing can be sent any more.
        """
        # The reader may not have noticed that the transport is closing.
        return self.ws.closed or self._transport.is_closing()

    def write_soon(self, data: bytes) -> bool:
        """
        Write an answer now, or with others of this iteration of the loop; return false if it has
        to be sent by :meth:`send`.

        A write takes longer than most calls, so answers of one iteration are written together.
        A frame that no event may overtake must be sent by :meth:`write`.

        Raises:
            SessionGone: If the socket is closed.
        """
        if self._batch is None:
            if not self.write(data):
                return False
            self._batch = []
            self._loop.call_soon(self._write_batch)
        elif len(data) > _MAX_BATCHED:
            return False
        else:
            self._batch.append(encode_frame(data, self._opcode))
            if len(self._batch) >= _BATCH_LENGTH:
                self._write_batch()
                self._batch = []
        return True

    def _write_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch and not (self._response.closed or self._transport.is_closing()):
            self._transport.write(b"".join(batch))

    def write(self, data: bytes) -> bool:
        """
        Write a frame now, unless it has to be queued; return whether it was written.

        Like a push, it bypasses aiohttp's writer, which would repeat the same checks.

        Raises:
            SessionGone: If the socket is closed.
        """
        if self._response.closed or self._transport.is_closing():
            raise SessionGone("the socket is closed")
        if self._batch:
            self._write_batch()
            self._batch = []  # later answers of this iteration: the next writes them
        transport = self._transport
        if self._queue or len(data) > self._max_direct or transport.get_write_buffer_size():
            return False
        transport.write(encode_frame(data, self._opcode))
        return True

    async def send(self, data: bytes) -> None:
        """
        Send a frame; if it is queued, wait until the transport has it and has room again.

        Raises:
            SessionGone: If the socket is closed.
        """
        if not self.write(data):
            sent = self._loop.create_future()
            self._enqueue(data, sent)
            await sent

    def post(self, data: bytes, then: Callable[[], object] | None = None) -> None:
        """
        Send a frame after those that are queued, without waiting for it.

        Args:
            data: The frame.
            then: Called when the transport has the frame.
        """
        with contextlib.suppress(SessionGone):  # the peer is gone
            if not self.write(data):
                sent = None if then is None else self._loop.create_future()
                if sent is not None and then is not None:
                    sent.add_done_callback(lambda done: done.exception() or then())
                self._enqueue(data, sent)
            elif then is not None:
                then()

    async def drain(self) -> None:
        """
        Wait until the bytes that wait to be sent are within the limit, or the socket is closed,
        as it is when the peer reads nothing for ``CallLimits.patience``.
        """
        while self.is_full and not self.is_closed:
            await asyncio.wait({self._ensure_task()}, timeout=_POLL_INTERVAL)

    def close(self, close: Close) -> None:
        """
        Close the socket, without waiting for it.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self.ws.close(close), name="close a websocket")

    def _enqueue(self, data: bytes, sent: asyncio.Future[None] | None) -> None:
        self._queue.append((data, sent))
        self.queued += len(data)
        _ = self._ensure_task()

    def _ensure_task(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            # In an empty context: a slow peer would keep the context of a call alive.
            self._task = asyncio.create_task(
                self._send_queued(), name="send", context=contextvars.Context()
            )
        return self._task

    async def _send_queued(self) -> None:
        # Delayed, because the first frame has not reached the transport yet.
        self._progress_timer = self._loop.call_later(_POLL_INTERVAL, self._schedule_check)
        try:
            while (self._queue or self.is_full) and not self.is_closed:
                if self._queue:
                    await self._send_first(*self._queue[0])
                else:
                    await asyncio.sleep(_POLL_INTERVAL)
        except WebSocketDisconnect:
            pass
        finally:
            self._fail_queued()
            self._progress_timer.cancel()

    async def _send_first(self, data: bytes, sent: asyncio.Future[None] | None) -> None:
        if sent is None or not sent.done():  # else its sender was cancelled meanwhile
            await (self.ws.send if self.binary else self.ws.send_text)(data)
        self._sent += 1
        self._queue.popleft()
        self.queued -= len(data)
        if sent is not None and not sent.done():
            sent.set_result(None)

    def _schedule_check(self) -> None:
        before = self._sent, self._transport.get_write_buffer_size()
        self._progress_timer = self._loop.call_later(
            self.limits.patience, self._check_progress, *before, context=contextvars.Context()
        )

    def _check_progress(self, sent: int, size: int) -> None:
        """
        Close the socket if the peer has read nothing since the last check. A buffer that has
        grown doesn't show whether it has, so the check is repeated.
        """
        if self._sent == sent and self._transport.get_write_buffer_size() == size:
            self.close(SLOW_CONSUMER)
        else:
            self._schedule_check()

    def _fail_queued(self) -> None:
        for _, sent in self._queue:
            if sent is not None and not sent.done():
                sent.set_exception(SessionGone("the socket is closed"))
        self._queue.clear()
        self.queued = 0
