"""
Sending a frame so that a sender who is cancelled harms no other.

aiohttp lets all senders of one socket wait for the same future while its peer reads too slowly.
Cancelling one of them cancels that future, and with it everybody's send. So a task that nobody
else cancels waits in place of the sender; most sends need neither a wait nor a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any

from .._tasks import BackgroundTasks

__all__: list[str] = []


async def send_whole(tasks: BackgroundTasks, sending: Coroutine[Any, Any, None]) -> None:
    """
    Await *sending*, a coroutine of aiohttp that sends one message.

    Args:
        tasks: Where the wait runs, if there is one.
        sending: The coroutine, not started yet.

    Raises:
        ConnectionError: If the socket is closed.
    """
    try:
        first = sending.send(None)
    except StopIteration:
        return
    # In no request's context, or it would be kept as long as the peer is slow.
    waiting = tasks.spawn(_quietly(_resume(sending, first)), "send", contextvars.Context())
    error = await asyncio.shield(waiting)
    if error is not None:
        raise error


async def _quietly(resumed: Any) -> ConnectionError | None:
    """
    Return an error that the sender may not be there any more to hear.
    """
    try:
        await resumed
    except ConnectionError as exc:
        return exc
    return None


@coroutine
def _resume(sending: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """
    Go on with a coroutine that has been started, and waits for something.
    """
    with contextlib.suppress(StopIteration):
        while True:
            try:
                value = yield waits_for
            except BaseException as exc:  # noqa: BLE001  it is the coroutine's
                waits_for = sending.throw(exc)
            else:
                waits_for = sending.send(value)
