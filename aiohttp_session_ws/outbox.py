"""
What waits to be sent to one peer: bounded in size and in time.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from aiohttp import WSMsgType

from .closing import SLOW_CONSUMER
from .connection import Connection
from .records import fingerprint
from .sockets import Sockets

__all__ = ["PushQueue"]

log = logging.getLogger("aiohttp_session_ws")

_POLL: Final = 0.05  # seconds between two looks at a transport; it has no event for us
_BLIND: Final = 1.0  # seconds to wait where there is no transport to look at


@dataclass(frozen=True, slots=True)
class PushQueue:
    """
    How much may wait for one peer, and for how long.

    Args:
        messages: How many messages.
        bytes: How many bytes of payload. A message that is larger is taken by an empty
            queue only.
        patience: Seconds after which a peer is closed with 1013 whose queue is full. It
            is full from the first message that finds no room until half of it is sent.
    """

    messages: int = 256
    bytes: int = 1_048_576
    patience: float = 5.0

    def __post_init__(self) -> None:
        if self.messages < 1 or self.bytes < 1:
            raise ValueError("a push queue has room for at least 1 message and 1 byte")
        if self.patience < 0:
            raise ValueError("the patience of a push queue is a number of seconds >= 0")


class Outbox:
    """
    What was pushed to one connection and is not sent yet.

    The first in the queue is the one that is being sent. So the queue is empty only when
    nothing is on its way, and there is a task only as long as it is not.

    Args:
        connection: Where to.
        sockets: Whose tasks it runs in.
        limit: How much it holds.
    """

    __slots__ = (
        "_bytes",
        "_connection",
        "_limit",
        "_overdue",
        "_sockets",
        "_warned",
        "_writer",
        "queue",
    )

    def __init__(self, connection: Connection, sockets: Sockets, limit: PushQueue) -> None:
        self.queue: deque[tuple[bytes, WSMsgType]] = deque()
        self._bytes = 0
        self._connection = connection
        self._limit = limit
        self._overdue: asyncio.TimerHandle | None = None  # runs while the queue is full
        self._sockets = sockets
        self._warned = False
        self._writer: asyncio.Task[None] | None = None

    def put(self, payload: bytes, opcode: WSMsgType) -> bool:
        """
        Take a message, or let the peer miss it; tell which.
        """
        size = self._bytes + len(payload)
        if self.queue and (len(self.queue) >= self._limit.messages or size > self._limit.bytes):
            self._miss()
            return False
        self.queue.append((payload, opcode))
        self._bytes = size
        if len(self.queue) == 1:
            # In no request's context, or it would be kept as long as the peer is slow.
            self._writer = self._sockets.spawn(self._write(), "push", contextvars.Context())
        return True

    def drop(self) -> None:
        """
        Forget what is not sent; do nothing more.
        """
        self._empty()
        if self._connection.transport is None and self._writer is not None:
            self._writer.cancel()
        # Otherwise the engine ends the transport, which wakes the writer. To cancel it would
        # cancel a handler that sends as well: in aiohttp all wait for the same future.

    def _miss(self) -> None:
        if self._overdue is not None:
            return
        if not self._warned:
            self._warned = True
            log.warning(
                "a websocket of session %s misses what is pushed to it: its peer reads too"
                " slowly, and will be closed if it doesn't catch up within %s s",
                fingerprint(self._connection.session_ws_id),
                self._limit.patience,
            )
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(
            self._limit.patience, self._give_up, context=contextvars.Context()
        )

    def _give_up(self) -> None:
        closing = self._sockets.close([self._connection], SLOW_CONSUMER)
        _ = self._sockets.spawn(closing, "close a slow consumer")

    async def _write(self) -> None:
        try:
            while self.queue:
                await self._send(*self.queue[0])
                self._sent()
        except ConnectionError:
            pass  # the socket is going, and what waits for it goes along
        finally:
            self._empty()

    async def _send(self, payload: bytes, opcode: WSMsgType) -> None:
        try:
            await self._connection.ws.send_frame(payload, opcode)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Somebody else was cancelled who sent on this socket, and with him the future
            # that we both waited for; it is of no use until the transport is drained. The
            # frame is written: aiohttp waits afterwards.
            await self._drained()

    async def _drained(self) -> None:
        """
        Wait until the transport has room again.
        """
        transport = self._connection.transport
        if transport is None:
            await asyncio.sleep(_BLIND)
            return
        low, _ = transport.get_write_buffer_limits()
        while self.queue and transport.get_write_buffer_size() > low:
            await asyncio.sleep(_POLL)

    def _sent(self) -> None:
        if self.queue:  # it was not dropped meanwhile
            payload, _ = self.queue.popleft()
            self._bytes -= len(payload)
        half = 2 * len(self.queue) <= self._limit.messages and 2 * self._bytes <= self._limit.bytes
        if half:
            self._in_time()

    def _in_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _empty(self) -> None:
        self.queue.clear()
        self._bytes = 0
        self._in_time()
