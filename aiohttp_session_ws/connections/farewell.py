"""
Last words before a close frame, and the ``close()`` of objects that the engine can't close.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from aiohttp import WSMsgType, web

from .._logging import log
from ..close_codes import Close
from .connection import TrackedConnection
from .websocket import COMPRESSED_AT_ONCE, step_once

__all__: list[str] = []


def write_last_words(
    connection: TrackedConnection, transport: asyncio.Transport, close: Close
) -> None:
    """
    Write the last words of an endpoint, unless that would have to wait.
    """
    last_words = connection.last_words
    if last_words is None:
        return
    try:
        words = last_words(close)
        if not words or transport.get_write_buffer_size() or connection.ws.closed:
            return
        if not isinstance(words, str | bytes):
            raise TypeError(f"last words are str or bytes, not {type(words).__name__}")
        opcode = WSMsgType.TEXT if isinstance(words, str) else WSMsgType.BINARY
        payload = words.encode() if isinstance(words, str) else words
        if connection.ws.compress and len(payload) > COMPRESSED_AT_ONCE:
            return
        step_once(connection.ws.send_frame(payload, opcode))  # dropped if another send is running
    except Exception:
        log.exception("the last words of a websocket could not be sent")


async def call_close(ws: Any, close: Close) -> None:
    """
    Call the ``close()`` of an object registered by hand, or of another library's websocket.
    """
    code, reason = close.code, close.reason.encode()
    if isinstance(ws, web.WebSocketResponse):
        # Without drain, which would block forever if the peer has stopped reading.
        await ws.close(code=code, message=reason, drain=False)
        return
    try:
        inspect.signature(ws.close).bind(code=code, message=b"")
    except (TypeError, ValueError):
        result = ws.close()
    else:
        result = ws.close(code=code, message=reason)
    if inspect.isawaitable(result):
        # In a task of its own, since it may suppress its cancellation.
        task = asyncio.ensure_future(result)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        finally:
            task.cancel()
