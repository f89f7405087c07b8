"""
Helpers for redis-py clients: creation, reconnecting, closing, and classification of errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from ..._logging import describe_error
from ...exceptions import NotSetUp, RedisUnavailable

__all__ = ["MakeClient"]

Client: TypeAlias = "Redis | RedisCluster"
MakeClient: TypeAlias = Callable[[], Client]

REDIS_ERRORS: Final = (RedisError, OSError, TimeoutError)

REPLY_TIMEOUT: Final = 1.0  # seconds without any reply after which Redis counts as away
MAX_BACKOFF: Final = 0.5  # seconds between two attempts to connect, at most
CONNECT_TIMEOUT: Final = 3.0  # seconds to connect: several round trips, to a cluster a few more

#: Code words of a server that executes nothing for now.
BUSY_WORDS: Final = ("BUSY", "LOADING", "TRYAGAIN")
#: Code words of a server that refuses writes for now, but is not away.
REFUSALS: Final = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "NOPERM")
#: Errors without a code word whose text quotes no argument. Redis 6 puts the place in the script
#: first.
PLAIN: Final = re.compile(
    r"(?:error running script \(call to \w+\): (?:@user_script: ?\d+: )*)?"
    r"(unknown command ['`]\w+['`]|unknown redis command called from (?:lua )?script"
    r"|db index is out of range|the user executing the script can't (?:run|access)[a-z ]+?command"
    r"|acl failure in script: [\w' ]+)",
    re.IGNORECASE,
)


def client_maker(redis: str | MakeClient) -> MakeClient:
    """
    Return a function that creates clients: from a URL, with short timeouts and without retries.

    Raises:
        ValueError: If *redis* is not a URL that redis-py understands.
        TypeError: If *redis* is neither a str nor a callable.
    """
    if callable(redis):
        return lambda: _without_retries(_usable(redis()))
    if not isinstance(redis, str):
        raise TypeError(
            f"redis is a URL or a callable that makes a client, not a {type(redis).__name__}:"
            " pass 'redis://localhost:6379', or lambda: RedisCluster(...)"
        )

    if not _understands(redis):
        url, _, options = redis.partition("?")
        msg = (
            "the URL for Redis has an option behind the '?' that redis-py doesn't know, or that"
            " can't be used here, as decode_responses"
            if options and _understands(url)
            else "not a URL for Redis: use redis://, rediss:// or unix://, as"
            " redis://localhost:6379/0"
        )
        raise ValueError(msg)
    return partial(_client_at, redis)


def _client_at(url: str) -> Client:
    return Redis.from_url(
        url,
        socket_timeout=REPLY_TIMEOUT,
        socket_connect_timeout=REPLY_TIMEOUT,
        retry=_once(),
        decode_responses=False,
    )


def _understands(url: str) -> bool:
    """
    Return whether redis-py accepts a URL. Its errors may quote the password, so they are caught.
    """
    try:
        _ = _usable(_client_at(url)).connection_pool.make_connection()  # checks the options
    except (ValueError, TypeError, AttributeError, NotSetUp):
        return False
    return True


def channel_of(client: Client, prefix: str, name: str) -> str:
    """
    Return the full channel name; it includes the database, since all of them share channels.
    """
    db = (
        0
        if isinstance(client, RedisCluster)
        else client.connection_pool.connection_kwargs.get("db")
    )
    return f"{{{prefix}}}@{db}:{name}" if db else f"{{{prefix}}}:{name}"


def _without_retries(client: Client) -> Client:
    """
    Make a client try each Sentinel once: there are others that share :data:`CONNECT_TIMEOUT`.
    """
    for sentinel in _sentinels_of(client):
        sentinel.set_retry(_once())
    return client


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _sentinels_of(client: Client) -> Sequence[Redis]:
    """
    Return the clients by which *client* queries its Sentinels, if it has any.
    """
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return getattr(manager, "sentinels", ())


def _usable(client: Any) -> Any:
    """
    Return *client* if it is a client of redis.asyncio that returns bytes.

    Raises:
        NotSetUp: If it isn't.
    """
    if not isinstance(client, Redis | RedisCluster):
        if isinstance(client, Coroutine):
            client.close()
        raise NotSetUp(
            f"redis= is a callable that returned a {type(client).__name__}: it must return a"
            " redis.asyncio client, such as lambda: redis.asyncio.Redis(...)"
        )
    if client.get_encoder().decode_responses:
        raise NotSetUp(
            "redis= is a callable that returned a client which decodes replies, but pushes may"
            " be bytes: create it with decode_responses=False"
        )
    return client


def reason(exc: BaseException) -> str:
    """
    Return what may be logged of an error: its code word or meaning, but no argument of a command.
    """
    if isinstance(exc, RedisUnavailable):
        return str(exc)
    if isinstance(exc, RedisConnectionError | NoPermissionError | NotSetUp | OSError) and str(exc):
        return f"{type(exc).__name__}: {exc}"
    if isinstance(exc, RedisError):
        if plain := PLAIN.match(str(exc)):
            return f"{type(exc).__name__}: {plain[1]}"
        return code_word(exc) or type(exc).__name__
    return describe_error(exc)


def code_word(exc: BaseException) -> str:
    """
    Return the code word of an error of Redis, "" if there is none.

    It needn't come first: Redis 6.2 puts the place in the script before it.
    """
    for word in str(exc).replace("-", " ").replace(":", " ").split():
        if len(word) > 2 and word.isalpha() and word.isupper() and word != "ERR":
            return word
    return ""


def refusal(exc: BaseException) -> str:
    """
    Return the code word of an error if Redis refuses writes for now, else "".
    """
    if not isinstance(exc, ResponseError):
        return ""
    words = str(exc).replace("-", " ").split()
    word = next((word for word in REFUSALS if word in words), "") or _by_class(exc)
    if word == "NOPERM" and "script" not in words:
        return ""  # scripts aren't permitted at all: nothing was published
    return word


def _by_class(exc: BaseException) -> str:
    # redis-py drops the code word of errors that it has classes for.
    return {
        "OutOfMemoryError": "OOM",
        "ReadOnlyError": "READONLY",
        "NoPermissionError": "NOPERM",
    }.get(type(exc).__name__, "")


async def keep_trying(
    serve: Callable[[], Coroutine[Any, Any, None]], failed: Callable[[str], None], steady: float
) -> None:
    """
    Run *serve* again and again, with a back-off, until cancelled.

    Args:
        serve: Connects and serves the connection; raises when that fails.
        failed: Called with the reason of each failure.
        steady: Seconds of service after which a connection counts as good, which resets the
            back-off.
    """
    loop, tries = asyncio.get_running_loop(), 0
    while True:
        began = loop.time()
        try:
            await serve()
        except Exception as exc:  # noqa: BLE001  redis-py raises other errors than its own
            failed(reason(exc))
        if loop.time() - began > steady:
            tries = 0
        await asyncio.sleep(random.uniform(0.5, 1.0) * min(MAX_BACKOFF, 0.02 * 2**tries))
        tries = min(tries + 1, 10)


async def close_client(client: Client) -> None:
    """
    Close all connections of a client, within :data:`REPLY_TIMEOUT`.
    """
    with contextlib.suppress(*REDIS_ERRORS):
        async with asyncio.timeout(REPLY_TIMEOUT):
            await client.aclose()
            for sentinel in _sentinels_of(client):
                await sentinel.aclose()


async def end_tasks(tasks: Collection[asyncio.Future[Any]]) -> None:
    """
    Cancel tasks repeatedly until they end, for :data:`REPLY_TIMEOUT` at most.
    """
    for _ in range(10):
        pending = {task for task in tasks if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=REPLY_TIMEOUT / 10)


def fail(future: asyncio.Future[Any], exc: BaseException) -> None:
    """
    Fail a future unless it is done, without a warning if it is never awaited.
    """
    if not future.done():
        future.set_exception(exc)
        _ = future.exception()


def is_unknown_script(exc: BaseException) -> bool:
    """
    Return whether Redis doesn't know a script's digest, or doesn't permit EVALSHA.
    """
    unknown = isinstance(exc, ResponseError) and str(exc).startswith("unknown command")
    return unknown or isinstance(exc, NoScriptError | NoPermissionError)


def is_temporary(exc: BaseException) -> bool:
    """
    Return whether Redis executes nothing for now, as while it loads or runs a slow script.
    """
    loads = isinstance(exc, BusyLoadingError)  # redis-py drops the code word
    return loads or (isinstance(exc, ResponseError) and code_word(exc) in BUSY_WORDS)


def needs_other_server(exc: BaseException) -> bool:
    """
    Return whether another server is to be used: the slot has moved, or this one can't serve it.
    """
    return isinstance(exc, AskError | MovedError | ClusterDownError | MasterDownError)
