"""
The queue of messages pushed to one peer, bounded in size and in time.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType

from .._logging import fingerprint, log
from .._tasks import BackgroundTasks, is_cancelled
from ..options import PushQueue
from .connection import TrackedConnection

__all__: list[str] = []

_POLL: Final = 0.05  # seconds between two checks of a transport's buffer, which has no event
_BLIND_WAIT: Final = 1.0  # seconds to wait if there is no transport to check


async def send_frame(connection: TrackedConnection, payload: bytes, opcode: WSMsgType) -> None:
    """
    Send a frame, and wait as long as the peer reads too slowly; to be run in a task of its own.

    In aiohttp all senders that wait on a websocket share one future: cancelling one cancels it for
    all, later ones included. This function distinguishes that from a cancellation of its own task.

    Raises:
        ConnectionError: If the websocket is closing.
    """
    try:
        await connection.ws.send_frame(payload, opcode)
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        # Another sender was cancelled. The frame is written: aiohttp waits afterwards.
        await _wait_drained(connection)


async def _wait_drained(connection: TrackedConnection) -> None:
    """
    Wait until the transport has room again, or has ended.
    """
    transport = connection.transport
    if transport is None:
        await asyncio.sleep(_BLIND_WAIT)
        return
    low, _ = transport.get_write_buffer_limits()
    while not transport.is_closing() and transport.get_write_buffer_size() > low:
        await asyncio.sleep(_POLL)


class SendQueue:
    """
    The messages that were pushed to one connection and are not sent yet.

    The first one in the queue is being sent. So the queue is empty only if nothing is being
    sent, and there is a task only while it is not empty.

    Args:
        connection: The connection to send to.
        limit: How much it holds.
        tasks: Runs its task.
        close_slow: Closes a connection whose queue has been full for too long.
    """

    __slots__ = (
        "_bytes",
        "_close_slow",
        "_connection",
        "_deadline",
        "_limit",
        "_queue",
        "_tasks",
        "_warned",
        "_writer",
    )

    def __init__(
        self,
        connection: TrackedConnection,
        limit: PushQueue,
        tasks: BackgroundTasks,
        close_slow: Callable[[TrackedConnection], None],
    ) -> None:
        self._queue: deque[tuple[bytes, WSMsgType]] = deque()
        self._bytes = 0
        self._connection = connection
        self._close_slow = close_slow
        self._limit = limit
        self._deadline: asyncio.TimerHandle | None = None  # runs while the queue is full
        self._tasks = tasks
        self._warned = False
        self._writer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def empty(self) -> bool:
        """
        Whether no message is waiting or being sent.
        """
        return not self._queue

    def put(self, payload: bytes, opcode: WSMsgType) -> bool:
        """
        Queue a message, or drop it if there is no room; return whether it was queued.
        """
        size = self._bytes + len(payload)
        if self._queue and (len(self._queue) >= self._limit.messages or size > self._limit.bytes):
            self._start_deadline()
            return False
        self._queue.append((payload, opcode))
        self._bytes = size
        if len(self._queue) == 1:
            # In an empty context: a request's would be kept alive as long as the peer is slow.
            self._writer = self._tasks.spawn(self._write(), "push", contextvars.Context())
        return True

    def drop(self) -> None:
        """
        Discard the messages that are not sent; the connection is not closed.
        """
        self._empty()
        if self._connection.transport is None and self._writer is not None:
            self._writer.cancel()
        # Otherwise the engine ends the transport, which wakes the writer. Cancelling it would
        # cancel a handler that sends as well: in aiohttp all wait for the same future.

    def _start_deadline(self) -> None:
        """
        Set a deadline for the peer to catch up, the first time with a warning.
        """
        if self._deadline is not None:
            return
        if not self._warned:
            self._warned = True
            log.warning(
                "messages pushed to a websocket of session %s are dropped: its peer reads too"
                " slowly, and the socket is closed if it doesn't catch up within %s s",
                fingerprint(self._connection.session_ws_id),
                self._limit.patience,
            )
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(
            self._limit.patience,
            self._close_slow,
            self._connection,
            context=contextvars.Context(),
        )

    async def _write(self) -> None:
        try:
            while self._queue:
                await send_frame(self._connection, *self._queue[0])
                self._count_sent()
        except ConnectionError:
            pass  # the socket is closing, so its queue is dropped
        except Exception:
            log.warning("pushing to a websocket failed", exc_info=True)
        finally:
            self._empty()

    def _count_sent(self) -> None:
        if self._queue:  # it was not dropped meanwhile
            payload, _ = self._queue.popleft()
            self._bytes -= len(payload)
        limit = self._limit
        if 2 * len(self._queue) <= limit.messages and 2 * self._bytes <= limit.bytes:
            self._stop_deadline()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _empty(self) -> None:
        self._queue.clear()
        self._bytes = 0
        self._stop_deadline()
