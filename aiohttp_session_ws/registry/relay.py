"""
Relayed messages: from an endpoint of one node to the same endpoint of all other nodes.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from .._logging import OncePerMinute, log
from .._tasks import BackgroundTasks, expect_awaitable, is_cancelled

__all__ = ["RelayHandler"]

#: Called with the bytes of a message from another node.
RelayHandler: TypeAlias = Callable[[bytes], Awaitable[object]]

LARGEST: Final = 65_536  # bytes of one message
WAITING: Final = 1000  # queued messages of one name


class Relays:
    """
    The handlers of messages from other nodes: one per name, awaited for one message at a time.

    Args:
        tasks: The background tasks that handlers run in.
    """

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._handlers: dict[str, RelayHandler] = {}
        self._waiting: dict[str, deque[bytes]] = {}
        self._dropped = OncePerMinute()

    def add(self, name: str, handler: RelayHandler) -> None:
        """
        Register *handler* for messages to *name*.

        Raises:
            ValueError: If *name* already has a handler.
        """
        if name in self._handlers:
            raise ValueError(f"there is a relay handler for {name!r} already")
        self._handlers[name] = handler

    def handler(self, name: str) -> RelayHandler | None:
        """
        Return the handler for *name*.
        """
        return self._handlers.get(name)

    def check(self, data: bytes) -> None:
        """
        Check that *data* can be relayed.

        Raises:
            TypeError: If it isn't bytes.
            ValueError: If it is too large.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"a relayed message is bytes, not {type(data).__name__}")
        if len(data) > LARGEST:
            raise ValueError(f"a relayed message has {LARGEST} bytes at most, not {len(data)}")

    def receive(self, name: str, data: bytes) -> None:
        """
        Handle or queue a message from another node; drop it if *name* has no handler here.
        """
        if name not in self._handlers:
            return
        waiting = self._waiting.get(name)
        if waiting is not None:
            if len(waiting) >= WAITING:
                _ = waiting.popleft()
                if self._dropped.allows(name):
                    log.warning("the relay handler %r is too slow: messages are dropped", name)
            waiting.append(data)
            return
        self._waiting[name] = deque([data])
        # An empty context: that of this message would be kept as long as more messages follow.
        _ = self._tasks.spawn(self._work(name), f"relay {name}", contextvars.Context())

    async def _work(self, name: str) -> None:
        waiting, handler = self._waiting[name], self._handlers[name]
        try:
            while waiting:
                try:
                    await expect_awaitable(handler(waiting.popleft()), handler)
                except asyncio.CancelledError:
                    if is_cancelled():
                        raise  # the application ends
                    log.exception(
                        "the relay handler %r failed: something it awaited was cancelled", name
                    )
                except Exception:
                    log.exception("the relay handler %r failed", name)
        finally:
            del self._waiting[name]
