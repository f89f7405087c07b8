"""
Sends frames so that cancelling one sender doesn't affect the others.

In aiohttp all senders of one socket wait for the same future while its peer reads too slowly.
Cancelling one of them cancels that future, and with it all other sends. So a task that callers
can't cancel waits in place of the sender; most sends need neither a wait nor a task.
"""

from __future__ import annotations

import asyncio
import contextvars

from aiohttp import WSMsgType

from .._tasks import BackgroundTasks
from ..connections.connection import TrackedConnection
from ..connections.send_queue import send_frame
from ..connections.websocket import COMPRESSED_AT_ONCE

__all__: list[str] = []


async def send_and_wait(
    tasks: BackgroundTasks, connection: TrackedConnection, data: bytes, opcode: WSMsgType
) -> None:
    """
    Send a message that may have to wait, because the client reads too slowly.

    Args:
        tasks: Runs the task that waits.
        connection: The connection to send to.
        data: The payload.
        opcode: Whether it is text or binary.

    Raises:
        ConnectionError: If the socket is closed.
    """
    # In an empty context: a request's would be kept alive as long as the peer is slow.
    sending = tasks.spawn(_send(connection, data, opcode), "send", contextvars.Context())
    error = await asyncio.shield(sending)
    if error is not None:
        raise error


def is_sent_at_once(connection: TrackedConnection, size: int) -> bool:
    """
    Return whether the transport is sure to have room, so that sending doesn't wait.
    """
    transport = connection.transport
    if transport is None or transport.get_write_buffer_size():
        return False
    if connection.ws.compress and size > COMPRESSED_AT_ONCE:
        return False
    return 2 * size < transport.get_write_buffer_limits()[1]  # with headers, and what TLS adds


async def _send(
    connection: TrackedConnection, data: bytes, opcode: WSMsgType
) -> ConnectionError | None:
    """
    Send a message; return an error instead of raising it, since the sender may be gone.
    """
    try:
        await send_frame(connection, data, opcode)
    except ConnectionError as exc:
        return exc
    return None
