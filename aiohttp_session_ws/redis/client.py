"""
Clients of Redis: how they are made, and let go of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError, NoPermissionError, RedisError

from ..exceptions import NotSetUp
from ..records import blame

__all__ = ["MakeClient"]

Client: TypeAlias = "Redis | RedisCluster"
MakeClient: TypeAlias = Callable[[], Client]

TROUBLE: Final = (RedisError, OSError, TimeoutError)

LIMIT: Final = 1.0  # seconds that a command may take


def client_maker(redis: str | MakeClient) -> MakeClient:
    """
    Return what makes a client with short timeouts and without retries.

    Raises:
        ValueError: If *redis* is not a URL that redis-py understands.
        TypeError: If it is something else.
    """
    if callable(redis):
        return lambda: _usable(redis())
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
        _ = _usable(make()).connection_pool.make_connection()  # it knows its options, we don't
    except (ValueError, TypeError, AttributeError, NotSetUp):
        # Not with its cause: that may quote the password.
        msg = (
            "not a URL for Redis: use redis://, rediss:// or unix://, as redis://localhost:6379/0"
        )
        raise ValueError(msg) from None
    return make


def channel_of(client: Client, prefix: str, name: str) -> str:
    """
    Return a channel of a database: Redis has the same for all of them.
    """
    db = (
        0
        if isinstance(client, RedisCluster)
        else client.connection_pool.connection_kwargs.get("db")
    )
    return f"{prefix}@{db}:{name}" if db else f"{prefix}:{name}"


def _usable(client: Any) -> Any:
    """
    Return *client* if it is one that speaks in bytes.

    Raises:
        NotSetUp: If not.
    """
    if not isinstance(client, Redis | RedisCluster):
        raise NotSetUp(
            f"what makes a client returned a {type(client).__name__}, not a redis.asyncio client"
        )
    if client.get_encoder().decode_responses:
        raise NotSetUp("pushes may be bytes: make the client with decode_responses=False")
    return client


def reason(exc: BaseException) -> str:
    """
    Return what may be logged of an error of Redis: nothing that quotes a command.
    """
    if isinstance(exc, RedisConnectionError | NoPermissionError | NotSetUp | OSError) and str(exc):
        return f"{type(exc).__name__}: {exc}"
    return blame(exc)


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
