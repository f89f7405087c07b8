"""
The websocket response that the close engine can close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from types import CoroutineType
from typing import Any, Final

from aiohttp import ClientConnectionResetError, WSCloseCode, WSMessage, WSMsgType, web

__all__: list[str] = []

COMPRESSED_AT_ONCE: Final = 1024  # bytes up to which aiohttp compresses without a task or a wait

_monotonic: Final = time.monotonic  # as the event loop's clock, but quicker

# aiohttp's own methods, to avoid the cost of super() for each socket or message.
_init: Final = web.WebSocketResponse.__init__
_send_str: Final = web.WebSocketResponse.send_str
_send_bytes: Final = web.WebSocketResponse.send_bytes
_send_frame: Final = web.WebSocketResponse.send_frame
_receive: Final[Any] = web.WebSocketResponse.receive
#: Whether aiohttp has closed a websocket, which doesn't include a close by the engine.
is_closed: Final[Any] = web.WebSocketResponse.__dict__["closed"].fget

#: How often a handler may read after the server has closed; aiohttp's limit is the same.
_READS_AFTER_CLOSE: Final = 5


class ServedWebSocket(web.WebSocketResponse):
    """
    A websocket response that the engine can close.

    Once the engine has written the close frame, it sends nothing more and delivers nothing that
    the client has sent. aiohttp's own ``close()`` is called when the transport has ended: before,
    it would write a frame of its own, and wait.

    It uses four private names of aiohttp: ``_send_heartbeat``, ``_reset_heartbeat``, ``_req``
    and ``_pong_response_cb``, all in :meth:`_send_heartbeat`. Without them a peer would be
    considered dead while backpressure keeps it unread; nothing else depends on them.

    Attributes:
        closed_with: The code with which this side began to close it.
        last_receive_at: When its handler last called ``receive()``, by the event loop's clock.
    """

    # Slots, since its dictionary can't take more names without a key table of its own.
    __slots__ = ("_ended", "_last_receive", "closed_with", "last_receive_at")

    _ended: int  # 0; once the engine has closed it, 1 and the number of reads since then
    _last_receive: CoroutineType[Any, Any, WSMessage] | None
    closed_with: int | None
    last_receive_at: float | None

    def __init__(self, **options: Any) -> None:
        _init(self, **options)
        self._ended = 0
        self._last_receive = None
        self.closed_with = None
        self.last_receive_at = None

    # aiohttp's do the same, but are written in Python; the index uses them all the time.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def receiving(self) -> bool:
        """
        Whether a task is waiting for a message.
        """
        return self._last_receive is not None and self._last_receive.cr_frame is not None

    @property
    def closed(self) -> bool:
        """
        Whether nothing can be sent or received any more.
        """
        return self._ended > 0 or bool(is_closed(self))

    @property
    def close_code(self) -> int | None:
        """
        The code that it was closed with; ``None`` while it is open.
        """
        return self.closed_with if self._ended else super().close_code

    def write_close(self, transport: asyncio.Transport, code: int, frame: bytes) -> None:
        """
        Write an encoded close frame now.
        """
        self._ended = 1
        self.closed_with = code
        transport.write(frame)

    def release(self) -> None:
        """
        Release what aiohttp keeps for an open websocket, after the transport has ended.
        """
        if self._ended:
            # This stops the heartbeat. It can't write, so there is nothing to wait for.
            step_once(super().close())
            error = self.exception()
            if error is not None:  # the failed write; its traceback would be a reference cycle
                error.__traceback__ = None

    def _send_heartbeat(self) -> None:
        if self._ended:
            return
        super()._send_heartbeat()
        transport = None if self._req is None else self._req.transport
        if self._pong_response_cb is None or transport is None or transport.is_closing():
            return
        if not transport.is_reading():
            # While reading is paused no pong can arrive, so don't wait for it; aiohttp has no
            # public API for this. If the peer is dead, TCP finds out by the ping.
            self._reset_heartbeat()

    def receive(self, timeout: float | None = None) -> Coroutine[Any, Any, WSMessage]:
        """
        Receive as aiohttp does.
        """
        # Not a coroutine of its own, which would cost an idle socket half a kilobyte.
        self.last_receive_at = _monotonic()
        if self._ended:
            return self._receive_end()
        self._last_receive = receive = _receive(self, timeout)
        return receive  # type: ignore[no-any-return]

    async def _receive_end(self) -> WSMessage:
        self._ended += 1
        if self._ended > _READS_AFTER_CLOSE:
            await asyncio.sleep(0)  # so that a handler in an endless loop can be cancelled
            raise RuntimeError(
                "receive() was called repeatedly on a closed websocket: return from the handler,"
                " or use 'async for'"
            )
        return WSMessage(WSMsgType.CLOSED, None, None)

    def send_str(self, data: str, compress: int | None = None) -> Coroutine[Any, Any, None]:
        """
        Send a text as aiohttp does.
        """
        return _refuse_to_send() if self._ended else _send_str(self, data, compress)

    def send_bytes(self, data: bytes, compress: int | None = None) -> Coroutine[Any, Any, None]:
        """
        Send a binary message as aiohttp does.
        """
        return _refuse_to_send() if self._ended else _send_bytes(self, data, compress)

    def send_frame(
        self, message: bytes, opcode: WSMsgType, compress: int | None = None
    ) -> Coroutine[Any, Any, None]:
        """
        Send a frame as aiohttp does.
        """
        if self._ended:
            return _refuse_to_send()
        return _send_frame(self, message, opcode, compress)

    def ping(self, message: bytes = b"") -> Coroutine[Any, Any, None]:
        """
        Send a ping as aiohttp does.
        """
        return _refuse_to_send() if self._ended else super().ping(message)

    def pong(self, message: bytes = b"") -> Coroutine[Any, Any, None]:
        """
        Send a pong as aiohttp does.
        """
        return _refuse_to_send() if self._ended else super().pong(message)

    def close(
        self, *, code: int = 1000, message: bytes = b"", drain: bool = True
    ) -> Coroutine[Any, Any, bool]:
        """
        Close as aiohttp does; nothing happens if the engine has closed it.
        """
        if self._ended:
            return _no_close()
        # receive() sets close_code before it answers the client's close, with 1000. No code
        # yet, or another *code*, means that this side has begun to close.
        if not self.closed and (self.close_code is None or code != WSCloseCode.OK):
            self.closed_with = code
        return super().close(code=code, message=message, drain=drain)


async def _refuse_to_send() -> None:
    await asyncio.sleep(0)  # so that a handler in an endless loop can be cancelled
    raise ClientConnectionResetError("Cannot write to closing transport")


async def _no_close() -> bool:
    return False


def step_once(coro: Coroutine[Any, Any, object]) -> bool:
    """
    Run a coroutine up to its first wait, without a task; return whether it ran to its end.
    """
    try:
        coro.send(None)
    except StopIteration:
        return True
    coro.close()
    return False
