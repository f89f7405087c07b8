"""
Pub/sub subscriber with reconnect, ping and back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError

from ..._logging import OncePerMinute, describe_error, log
from .connect import (
    CONNECT_TIMEOUT,
    REDIS_ERRORS,
    REPLY_TIMEOUT,
    MakeClient,
    channel_of,
    close_client,
    keep_trying,
    refusal,
)
from .wire import Wire, connect

__all__: list[str] = []

Handle: TypeAlias = Callable[[bytes], Awaitable[None] | None]
Handlers: TypeAlias = Mapping[str, Handle]

IDLE: Final = 1.0  # seconds of silence before a PING, and as long for its reply


class Subscriber:
    """
    A subscription on a connection of its own, which is replaced whenever it fails.

    Args:
        make: Creates a client.
        prefix: The prefix of all channels.
        handlers: By channel, the function that is called with each message; if it returns
            an awaitable, that is awaited.
        subscribed: Called whenever a subscription was confirmed: messages published before
            may have been missed.
        lost: Called with the reason when the connection was lost or could not be made.
    """

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        handlers: Handlers,
        subscribed: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._make = make
        self._prefix = prefix
        self._handlers = handlers
        self._subscribed = subscribed
        self._lost = lost
        self._errors = OncePerMinute()
        self._wire: Wire | None = None

    async def run(self) -> None:
        """
        Receive messages until cancelled.
        """
        await keep_trying(self._listen, self._lost, 10 * REPLY_TIMEOUT)

    def drop(self, why: str) -> None:
        """
        Replace a connection that may lead to the wrong server.
        """
        if self._wire is not None:
            self._wire.end(RedisConnectionError(why))

    def _wait_for(self, waiting: Awaitable[None]) -> Awaitable[None]:
        task = asyncio.ensure_future(waiting)
        task.add_done_callback(self._note_done)
        return asyncio.shield(task)  # finish it though the wire breaks: it isn't sent again

    def _note_done(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and isinstance(exc := task.exception(), Exception):
            self._log_failed(exc)

    def _log_failed(self, exc: Exception) -> None:
        if self._errors.allows(type(exc).__name__):
            # No traceback, which may hold an id.
            log.error("a message of another node could not be processed: %s", describe_error(exc))

    async def _listen(self) -> None:
        """
        Connect and receive messages until the connection fails; raise the error.
        """
        client = self._make()
        wire: Wire | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await connect(client, self._prefix)
            handlers = {
                channel_of(client, self._prefix, name).encode(): handle
                for name, handle in self._handlers.items()
            }
            self._wire = wire = Wire(connection, partial(self._handle, handlers))
            wire.send("SUBSCRIBE", *handlers)
            await self._watch(wire)
        finally:
            self._wire = None
            if wire is not None:
                with contextlib.suppress(*REDIS_ERRORS):
                    await wire.close()
            await close_client(client)

    def _handle(self, handlers: Mapping[bytes, Handle], reply: Any) -> Awaitable[None] | None:
        if isinstance(reply, list):
            kind = reply[0]
            if kind == b"message":
                try:
                    waiting = handlers[reply[1]](reply[2])
                except Exception as exc:  # noqa: BLE001  other messages must still be received
                    self._log_failed(exc)
                    return None
                return None if waiting is None else self._wait_for(waiting)
            if kind == b"subscribe":
                self._subscribed()
        elif isinstance(reply, Exception) and not refusal(reply):  # a full disk refuses PING, too
            raise reply  # as without permission to subscribe
        return None

    async def _watch(self, wire: Wire) -> None:
        """
        Ping Redis after a silence; raise when it doesn't reply or the wire ends.
        """
        loop = asyncio.get_running_loop()
        pinged = -math.inf
        while True:
            silent = 0.0 if wire.paused else loop.time() - wire.received_at
            if silent >= IDLE:
                if pinged > wire.received_at:
                    raise TimeoutError("Redis doesn't answer")
                wire.send("PING")
                pinged, silent = loop.time(), 0.0
            # No less than the resolution of the clock, or this would be a busy loop.
            _ = await asyncio.wait({wire.ended}, timeout=max(IDLE - silent, 0.01))
            if wire.ended.done():
                wire.ended.result()
