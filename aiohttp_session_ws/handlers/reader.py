"""
Reads a websocket for its handler, also while the handler is busy.

A handler that only sends never learns from aiohttp that its client has closed, since nothing
reads the socket. A task that always reads would cost each message a detour. So the handler reads
itself while it waits for a message, and a task reads ahead while it doesn't.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Final

from aiohttp import WSMessage, WSMsgType

from .._tasks import BackgroundTasks
from ..close_codes import Close
from ..connections.connection import TrackedConnection
from ..connections.manager import ConnectionManager
from ..connections.websocket import ServedWebSocket
from ..exceptions import WebSocketDisconnect, WebSocketStateError
from ..web.session_ws import end_of

__all__: list[str] = []

#: How much is read ahead: so many messages, or bytes and the message that exceeds them. Further
#: data stays in aiohttp's buffer, and finally with the client.
AHEAD_MESSAGES: Final = 64
AHEAD_BYTES: Final = 65_536
BUSY_AFTER: Final = 0.05  # seconds that a handler may be busy before a task reads in its place

_TEXT: Final = WSMsgType.TEXT
_BINARY: Final = WSMsgType.BINARY
_ENDS: Final = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})


class Reader:
    """
    Reads the messages of one websocket.

    Args:
        connection: The connection.
        manager: The connection manager, whose tasks run the background work.

    Attributes:
        connection: The connection.
        disconnected: Whether a caller has been given a :class:`WebSocketDisconnect`.
        reason: The reason of the close, by the client or the handler; or the error.
    """

    __slots__ = (
        "_ahead_task",
        "_busy_timer",
        "_manager",
        "_queue",
        "_receiving",
        "_size",
        "connection",
        "disconnected",
        "reason",
    )

    def __init__(self, connection: TrackedConnection, manager: ConnectionManager) -> None:
        self.connection = connection
        self.disconnected = False
        self.reason = ""
        self._manager = manager
        self._queue: list[str | bytes] | None = None  # messages that were read ahead
        self._size = 0  # their total size
        self._receiving = False
        self._ahead_task: asyncio.Task[None] | None = None
        self._busy_timer: asyncio.TimerHandle | None = None  # checks whether the handler is
        self._schedule_busy_check()

    @property
    def tasks(self) -> BackgroundTasks:
        """
        Runs background work for the socket.
        """
        return self._manager.tasks

    async def receive(self, *, iterates: bool = False) -> str | bytes:
        """
        Return the next message.

        Args:
            iterates: Whether it is called by ``async for``, which ends instead of raising.

        Raises:
            WebSocketDisconnect: If the socket is closed. After a close by the server, messages
                that arrived before it aren't delivered: the session may have ended.
            WebSocketStateError: If another task is receiving.
        """
        if self._receiving:
            raise WebSocketStateError("another task is receiving: receive in one task only")
        response: ServedWebSocket = self.connection.ws
        if self.disconnected:
            await asyncio.sleep(0)  # so that a handler in an endless loop can be cancelled
        self._receiving = True
        try:
            while True:
                if (
                    self._queue
                    and self.connection.close_order is None
                    and response.closed_with is None
                ):
                    return self._take(self._queue)
                if self._ahead_task is not None and not self._ahead_task.done():
                    await asyncio.wait({self._ahead_task})  # it ends with the next message
                    continue
                if self.disconnected and response.closed:
                    break
                message = await response.receive()
                if message.type is _TEXT or message.type is _BINARY:
                    data: str | bytes = message.data
                    return data
                if message.type in _ENDS:
                    self._set_reason(message)
                    break
        finally:
            self._receiving = False
            if self._busy_timer is None and not response.closed:
                self._schedule_busy_check()
        disconnect = self.disconnect()
        raise StopAsyncIteration if iterates else disconnect

    def disconnect(self) -> WebSocketDisconnect:
        """
        Return the exception to raise, now that the socket is closed.
        """
        self.disconnected = True
        close = self.connection.close_order
        reason = self.reason if close is None else close.reason
        return WebSocketDisconnect(end_of(self.connection)[1], reason, self.connection)

    async def close(self, close: Close) -> None:
        """
        Close the socket and wait until its transport has ended.
        """
        self.reason = close.reason
        await self.stop()
        await self._manager.wait_closed(self.connection, close)

    async def stop(self) -> None:
        """
        Stop reading ahead, since whatever closes the socket reads by itself.
        """
        if self._busy_timer is not None:
            self._busy_timer.cancel()
        if self._ahead_task is not None and not self._ahead_task.done():
            self._ahead_task.cancel()
            await asyncio.wait({self._ahead_task})

    def _schedule_busy_check(self) -> None:
        self._busy_timer = asyncio.get_running_loop().call_later(BUSY_AFTER, self._check_busy)

    def _check_busy(self) -> None:
        self._busy_timer = None
        idle = self._ahead_task is None or self._ahead_task.done()
        if idle and self._has_room() and not (self._receiving or self.connection.ws.closed):
            # In an empty context: a request's would be kept alive as long as the handler is busy.
            context = contextvars.Context()
            self._ahead_task = self.tasks.spawn(self._read_ahead(), "read ahead", context)

    def _has_room(self) -> bool:
        return len(self._queue or ()) < AHEAD_MESSAGES and self._size < AHEAD_BYTES

    async def _read_ahead(self) -> None:
        """
        Read until there is no more room, or until a handler that waits has its message.
        """
        response: ServedWebSocket = self.connection.ws
        while self._has_room():
            try:
                message = await response.receive()
            except TimeoutError:  # receive_timeout is for a handler that waits
                if self._receiving:
                    return
                continue
            if message.type in _ENDS:
                self._set_reason(message)
                return
            if message.type is _TEXT or message.type is _BINARY:
                if self._queue is None:
                    self._queue = []
                self._queue.append(message.data)
                self._size += len(message.data)
                if self._receiving:
                    return

    def _take(self, queue: list[str | bytes]) -> str | bytes:
        data = queue.pop(0)
        self._size -= len(data)
        return data

    def _set_reason(self, end: WSMessage) -> None:
        if end.type is WSMsgType.CLOSE:
            self.reason = end.extra or ""
        elif end.type is WSMsgType.ERROR:
            self.reason = str(end.data)
