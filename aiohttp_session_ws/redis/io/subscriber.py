"""
Pub/sub subscriber with reconnect, ping and back-off.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from redis.asyncio import RedisCluster
from redis.asyncio.client import PubSub

from ..._logging import OncePerMinute, describe_error, log
from .connect import LIMIT, TROUBLE, MakeClient, channel_of, close_client, reason

__all__: list[str] = []

Handle: TypeAlias = Callable[[bytes], Awaitable[None] | None]
Handlers: TypeAlias = Mapping[str, Handle]

LONGEST: Final = 0.5  # seconds between two tries
IDLE: Final = 1.0  # seconds of silence before a PING, and again for its answer
TURN: Final = 0.001  # seconds of messages before others have their turn


class Subscriber:
    """
    A subscription of its own connection, made anew after every trouble.

    Args:
        make: Makes a client.
        prefix: What all channels begin with.
        handlers: By channel, what is called with each message, and awaited if it returns
            an awaitable.
        subscribed: Called whenever a subscription was confirmed: what was published
            before has perhaps not been heard.
        lost: Called with the reason when nothing can be heard any more.
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

    async def run(self) -> None:
        """
        Listen until cancelled.
        """
        tries = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._listen()
            except Exception as exc:  # noqa: BLE001  redis-py has others than its own
                self._lost(reason(exc))
            if asyncio.get_running_loop().time() - began > 10 * LIMIT:
                tries = 0
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST, 0.02 * 2**tries))
            tries = min(tries + 1, 10)

    async def _handle(self, handle: Handle, data: bytes) -> None:
        try:
            waiting = handle(data)
            if waiting is not None:
                await waiting
        except Exception as exc:  # noqa: BLE001  one message must not make us deaf for others
            if self._errors.allows(type(exc).__name__):
                # No traceback, which may hold an id.
                log.error("a message of another node failed: %s", describe_error(exc))

    async def _listen(self) -> None:
        """
        Listen until there is trouble, and raise it.
        """
        client = self._make()
        pubsub: PubSub | None = None
        try:
            async with asyncio.timeout(2 * LIMIT):
                if isinstance(client, RedisCluster):
                    _ = await client.initialize()  # its pubsub() takes that for done
                pubsub = client.pubsub()
                handlers = {
                    channel_of(client, self._prefix, name).encode(): handle
                    for name, handle in self._handlers.items()
                }
                await pubsub.subscribe(*handlers)
            await self._get_messages(pubsub, handlers)
        finally:
            if pubsub is not None:
                with contextlib.suppress(*TROUBLE):
                    async with asyncio.timeout(LIMIT):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py's
            await close_client(client)

    async def _get_messages(self, pubsub: PubSub, handlers: Mapping[bytes, Handle]) -> None:
        loop = asyncio.get_running_loop()
        pinged, turn = False, loop.time()
        while True:
            asked = loop.time()
            # Never listen() or a get_message() without end: where the system finds a
            # connection dead, redis-py takes that for silence, and asks for ever.
            message = await pubsub.get_message(timeout=IDLE)
            if message is None:
                if pinged or loop.time() - asked < IDLE / 2:
                    raise TimeoutError("Redis doesn't answer")
                pinged = True
                async with asyncio.timeout(LIMIT):
                    await pubsub.ping()
                continue
            pinged = False
            if message["type"] == "subscribe":
                # redis-py reconnects without a word but this one.
                self._subscribed()
            elif message["type"] == "message":
                await self._handle(handlers[message["channel"]], message["data"])
            if loop.time() - turn > TURN:
                await asyncio.sleep(0)  # get_message() gives way only if there is none
                turn = loop.time()
