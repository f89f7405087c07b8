"""
The commands to Redis: each is bounded in time, and a failure is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import chain, groupby, islice
from typing import Any, Final, TypeAlias, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError, NoPermissionError, RedisError

from ..exceptions import RedisAway
from .wire import Order

__all__ = ["MakeClient"]

log = logging.getLogger("aiohttp_session_ws")

T = TypeVar("T")
Client: TypeAlias = "Redis | RedisCluster"
MakeClient: TypeAlias = Callable[[], Client]

TROUBLE: Final = (RedisError, OSError, TimeoutError)

LIMIT: Final = 1.0  # seconds that a command may take
CHUNK: Final = 1000  # keys in one MGET

# One script, so that what is known already decides, whoever comes first: an end beats a
# move, moves add up, the later end of an identity beats the earlier. It returns what was there.
# Orders of the same sort follow one upon the other: what they share is said once, before them.
_WRITE: Final = """
local olds = {}
local op, ttl
local at, left = 0, 0
for i, key in ipairs(KEYS) do
    if left == 0 then
        op, ttl, left, at = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), at + 3
    end
    at, left = at + 1, left - 1
    local value = ARGV[at]
    local old
    if op == 'set' or op == 'end' then
        old = redis.pcall('SET', key, value, 'PX', ttl, 'GET')
        if type(old) == 'table' then redis.call('SET', key, value, 'PX', ttl) end
    else
        old = redis.pcall('GET', key)
    end
    if type(old) ~= 'string' then old = false end
    if op == 'lift' then
        redis.call('DEL', key)
    elseif op == 'move' or op == 'identity' then
        local ok, was = false, nil
        if old then
            ok, was = pcall(cjson.decode, old)
            ok = ok and type(was) == 'table'
        end
        if ok and op == 'move' then
            if was['do'] == 'end' then
                value = old
            elseif was['do'] == 'move' and type(was.to) == 'table' then
                local now = cjson.decode(value)
                local known = {}
                for _, id in ipairs(now.to) do known[id] = true end
                for _, id in ipairs(was.to) do
                    if not known[id] then table.insert(now.to, id) end
                end
                if #now.to > 0 then value = cjson.encode(now) end
            end
        elseif ok and op == 'identity' then
            local before = tonumber(was.before)
            if before and before > tonumber(cjson.decode(value).before) then value = old end
        end
        redis.call('SET', key, value, 'PX', ttl)
    end
    olds[i] = old
end
if ARGV[at + 1] then redis.call('PUBLISH', ARGV[at + 1], ARGV[at + 2]) end
return olds
"""

# The time comes first; what was there tells whether Redis has lost something since.
_PULSE: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local was = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[2] == '1' then redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 3600)
return {t[1], t[2], was, redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[3], '+inf')}
"""


def client_maker(redis: str | MakeClient) -> MakeClient:
    """
    Return what makes a client with short timeouts and without retries.

    Raises:
        ValueError: If *redis* is not a URL that redis-py understands.
        TypeError: If it is something else.
    """
    if callable(redis):
        return redis
    if not isinstance(redis, str):
        raise TypeError(
            f"redis is a URL or a callable that makes a client, not a {type(redis).__name__}:"
            " pass 'redis://localhost:6379', or lambda: RedisCluster(...)"
        )

    def make() -> Client:
        return Redis.from_url(
            redis,
            socket_timeout=LIMIT,
            socket_connect_timeout=LIMIT,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )

    try:
        make()
    except (ValueError, TypeError):
        # Not with its cause: that may quote the password.
        msg = (
            "not a URL for Redis: use redis://, rediss:// or unix://, as redis://localhost:6379/0"
        )
        raise ValueError(msg) from None
    return make


def reason(exc: BaseException) -> str:
    """
    Return what may be logged of an error of Redis: nothing that quotes a command.
    """
    known = isinstance(exc, RedisConnectionError | NoPermissionError | OSError) and str(exc)
    return f"{type(exc).__name__}: {exc}" if known else type(exc).__name__


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
        if self._client is None:
            self._client = self._make()
        client = self._client
        # In a task of its own, for redis-py now and then swallows a cancellation, and the end
        # of a timeout with it.
        task = asyncio.ensure_future(command(client))
        try:
            await asyncio.wait({task}, timeout=LIMIT)
        finally:
            if not task.done():
                self._abandon(task)
        try:
            if not task.done():
                raise TimeoutError(f"no answer within {LIMIT:g} s")
            result = task.result()
        except TROUBLE as exc:
            self._fail(client, reason(exc))
            raise RedisAway(f"Redis is away: {self.why}") from None
        if self.away and client is self._client:
            self.away, self.why = False, ""
            self._changed()
        return result

    def _fail(self, client: Client, why: str) -> None:
        self.why = why
        if client is self._client:
            # The next begins anew: with a new connection, and whoever is primary by then.
            self._client = None
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
        self,
        orders: Sequence[Sequence[Order]],
        texts: Sequence[Sequence[str]],
        channel: str,
        message: Callable[[int], str | None],
    ) -> list[list[bytes | None]]:
        """
        Record groups of orders, then publish what tells of them.

        Args:
            orders: The groups.
            texts: For each group its orders as JSON.
            channel: Where to publish, without the prefix.
            message: Called with the number of a group, or with -1 for all; returns a
                message, if there is one.

        Returns:
            For each group what was recorded before.

        Raises:
            RedisAway: If that failed or took too long; part of it may be done.
        """
        channel = f"{self._prefix}:{channel}"

        async def write(client: Client) -> list[list[bytes | None]]:
            if not isinstance(client, RedisCluster):
                flat = list(chain.from_iterable(orders)), list(chain.from_iterable(texts))
                olds = iter(await self._eval(client, *flat, channel, message(-1)))
                return [list(islice(olds, len(group))) for group in orders]
            results = [
                self._write_group(client, orders[n], texts[n], channel, message(n))
                for n in range(len(orders))
            ]
            return list(await asyncio.gather(*results))

        return await self.call(write)

    async def _write_group(
        self,
        client: Client,
        group: Sequence[Order],
        texts: Sequence[str],
        channel: str,
        message: str | None,
    ) -> list[bytes | None]:
        # The keys of a cluster are in many places; the message follows the last.
        olds = []
        for n, (order, text) in enumerate(zip(group, texts, strict=True), 1):
            last = message if n == len(group) else None
            olds += await self._eval(client, [order], [text], channel, last)
        if not group and message is not None:
            await client.publish(channel, message)
        return olds

    async def _eval(
        self,
        client: Client,
        orders: Sequence[Order],
        texts: Sequence[str],
        channel: str,
        message: str | None,
    ) -> list[bytes | None]:
        # As bytes: redis-py would look at each of them to find out what it is.
        keys = [f"{self._prefix}:{order.key()}".encode() for order in orders]
        args: list[str | int | bytes] = []
        start = 0
        for (op, ttl), alike in groupby(orders, lambda order: (order.op, order.ttl)):
            count = sum(1 for _ in alike)
            args += op, int(ttl * 1000) + 1, count
            args += [text.encode() for text in texts[start : start + count]]
            start += count
        if message is not None:
            args += channel, message
        olds: list[bytes | None] = await client.eval(_WRITE, len(keys), *keys, *args)
        return olds

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
                    await client.publish(f"{self._prefix}:{channel}", message)
                return
            async with client.pipeline(transaction=False) as pipeline:
                for channel, message in messages:
                    _ = pipeline.publish(f"{self._prefix}:{channel}", message)
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


async def close_client(client: Client) -> None:
    """
    Let go of all connections of a client, within :data:`LIMIT`.
    """
    sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    with contextlib.suppress(*TROUBLE):
        async with asyncio.timeout(LIMIT):
            await client.aclose()
            for sentinel in getattr(sentinels, "sentinels", ()):
                await sentinel.aclose()


async def end_tasks(tasks: Collection[asyncio.Future[Any]]) -> None:
    """
    Cancel tasks until they end, for :data:`LIMIT` at most.
    """
    for _ in range(10):
        pending = {task for task in tasks if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=LIMIT / 10)


def _seen(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        _ = task.exception()  # those who asked may have gone
