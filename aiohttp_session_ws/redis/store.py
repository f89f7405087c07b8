"""
The commands to Redis: each is bounded in time, and a failure is remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from redis.asyncio import RedisCluster

from ..exceptions import RedisAway
from .client import LIMIT, Client, MakeClient, channel_of, close_client, end_tasks, reason
from .recording import RECENT, record
from .wire import Order

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

T = TypeVar("T")
CHUNK: Final = 1000  # keys in one MGET

# The time comes first; what was there tells whether Redis has lost something since.
_PULSE: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local was = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[2] == '1' then redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600)
return {t[1], t[2], was, redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[3], '+inf')}
"""


class Store:
    """
    The connection for commands.

    Args:
        make: Makes a client.
        prefix: What all keys begin with.
        changed: Called when Redis has gone away, and when it is back.

    Attributes:
        away: Whether the last command failed, or none was tried yet.
        why: Why it is away, for messages.
    """

    def __init__(self, make: MakeClient, prefix: str, changed: Callable[[], None]) -> None:
        self._make = make
        self._prefix = prefix
        self._changed = changed
        self._client: Client | None = None
        self._proven = False  # whether this client has worked
        self._tasks: set[asyncio.Future[Any]] = set()  # that are ending
        self._batch: tuple[list[str], asyncio.Task[list[bytes | None]]] | None = None
        self.away = True
        self.why = "not connected yet"

    async def call(self, command: Callable[[Client], Awaitable[T]]) -> T:
        """
        Run *command* with the client.

        Raises:
            RedisAway: If it failed or took too long.
        """
        try:
            client = self._client = self._client or self._make()
        except Exception as exc:  # noqa: BLE001  the application's
            self._fail(None, reason(exc))
            raise RedisAway(f"Redis is away: {self.why}") from None
        # A client of a cluster has to find out first where everything is.
        limit = LIMIT if self._proven or not isinstance(client, RedisCluster) else 3 * LIMIT
        # In a task of its own, for redis-py now and then swallows a cancellation, and the end
        # of a timeout with it.
        task = asyncio.ensure_future(command(client))
        try:
            await asyncio.wait({task}, timeout=limit)
        finally:
            if not task.done():
                self._abandon(task)
        try:
            if not task.done():
                raise TimeoutError(f"no answer within {limit:g} s")
            result = task.result()
        except Exception as exc:  # noqa: BLE001  redis-py has others than its own
            self._fail(client, reason(exc))
            raise RedisAway(f"Redis is away: {self.why}") from None
        if client is self._client:
            self._proven = True
            if self.away:
                self.away, self.why = False, ""
                self._changed()
        return result

    def _fail(self, client: Client | None, why: str) -> None:
        self.why = why
        if client is not None and client is self._client:
            # The next begins anew: with a new connection, and whoever is primary by then.
            self._client, self._proven = None, False
            self._keep(asyncio.create_task(close_client(client)))
        if not self.away:
            self.away = True
            self._changed()

    def _abandon(self, task: asyncio.Future[Any]) -> None:
        task.cancel()
        task.add_done_callback(_seen)
        self._keep(task)

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """
        Read records; what is asked for at the same time is read in one round trip.

        Args:
            keys: Without the prefix, :data:`CHUNK` at most.

        Raises:
            RedisAway: If that failed or took too long.
        """
        if self._batch is None or len(self._batch[0]) + len(keys) > CHUNK:
            all_keys: list[str] = []
            self._batch = all_keys, asyncio.create_task(self._read(all_keys))
            self._batch[1].add_done_callback(_seen)
        all_keys, task = self._batch
        start = len(all_keys)
        all_keys += [f"{self._prefix}:{key}" for key in keys]
        return (await asyncio.shield(task))[start : start + len(keys)]

    async def _read(self, keys: list[str]) -> list[bytes | None]:
        await asyncio.sleep(0)  # until all who ask now have asked
        if self._batch is not None and self._batch[0] is keys:
            self._batch = None

        async def mget(client: Client) -> Any:
            if isinstance(client, RedisCluster):
                return await client.mget_nonatomic(keys)
            return await client.mget(keys)

        result: list[bytes | None] = await self.call(mget)
        return result

    async def write(
        self, orders: Sequence[Order], texts: Sequence[str], channel: str, message: str | None
    ) -> list[bytes | None]:
        """
        Record orders, then publish what tells of them.

        Args:
            orders: The orders.
            texts: The same as JSON.
            channel: Where to publish, without the prefix.
            message: What, if anything.

        Returns:
            For each order what was recorded before.

        Raises:
            RedisAway: If that failed or took too long; part of it may be done.
        """
        return await self.call(
            lambda client: record(client, self._prefix, orders, texts, channel, message)
        )

    async def recent(self, since: float) -> AsyncIterator[bytes]:
        """
        Read what was recorded lately, the newest first.

        Args:
            since: By Redis' clock.

        Raises:
            RedisAway: If that failed or took too long.
        """
        log, start = f"{self._prefix}:{RECENT}", 0
        while True:
            # What comes meanwhile comes before; nothing is passed over.
            keys = await self.call(partial(_page, key=log, since=since, start=start))
            if not keys:
                return
            names = [name.decode().removeprefix(f"{self._prefix}:") for name in keys]
            for value in await self.read(names):
                if value is not None:
                    yield value
            start += len(keys)

    async def pulse(
        self, node: str, *, member: bool, counts: float
    ) -> tuple[float, float | None, list[str]]:
        """
        Tell that *node* lives, if it is a *member*.

        Returns:
            The time by Redis' clock, when this node had told it before, as far as Redis
            knows, and who has told it within *counts* seconds.
        """
        key = f"{self._prefix}:nodes"
        seconds, micros, was, nodes = await self.call(
            lambda client: client.eval(_PULSE, 1, key, node, int(member), counts)
        )
        at = int(seconds) + int(micros) / 1_000_000
        return at, None if was is None else float(was), [name.decode() for name in nodes]

    async def leave(self, node: str) -> None:
        """
        Tell that *node* doesn't live any more.
        """
        await self.call(lambda client: client.zrem(f"{self._prefix}:nodes", node))

    async def publish(self, messages: Sequence[tuple[str, str | bytes]]) -> None:
        """
        Publish messages, each to a channel named without the prefix.
        """

        async def publish(client: Client) -> None:
            if isinstance(client, RedisCluster):
                for channel, message in messages:
                    await client.publish(channel_of(client, self._prefix, channel), message)
                return
            async with client.pipeline(transaction=False) as pipeline:
                for channel, message in messages:
                    _ = pipeline.publish(channel_of(client, self._prefix, channel), message)
                await pipeline.execute()

        await self.call(publish)

    async def stop(self) -> None:
        """
        Let go of the connection.
        """
        client, self._client = self._client, None
        if client is not None:
            await close_client(client)
        await end_tasks(self._tasks)


def _seen(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        _ = task.exception()  # those who asked may have gone


async def _page(client: Client, *, key: str, since: float, start: int) -> list[bytes]:
    keys: Any = await client.zrevrangebyscore(key, "+inf", since, start=start, num=CHUNK)
    return list(keys)
