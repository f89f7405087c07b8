"""
Clients of Redis: how they are made, and what their errors say.
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

TROUBLE: Final = (RedisError, OSError, TimeoutError)

LIMIT: Final = 1.0  # seconds without any answer until Redis is taken to be away
LONGEST: Final = 0.5  # seconds between two tries to connect
CONNECT: Final = 3.0  # seconds to connect, which takes some answers; of a cluster a few more

#: How Redis says that it does nothing now.
WAIT: Final = ("BUSY", "LOADING", "TRYAGAIN")
#: How Redis says that it takes no writes now; it is there all the same.
REFUSALS: Final = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "NOPERM")
#: What Redis says without a code word, as far as it quotes no argument. Redis 6 begins with where
#: in a script that was.
PLAIN: Final = re.compile(
    r"(?:error running script \(call to \w+\): (?:@user_script: ?\d+: )*)?"
    r"(unknown command ['`]\w+['`]|unknown redis command called from (?:lua )?script"
    r"|db index is out of range|the user executing the script can't (?:run|access)[a-z ]+?command"
    r"|acl failure in script: [\w' ]+)",
    re.IGNORECASE,
)


def client_maker(redis: str | MakeClient) -> MakeClient:
    """
    Return what makes a client with short timeouts and without retries.

    Raises:
        ValueError: If *redis* is not a URL that redis-py understands.
        TypeError: If it is something else.
    """
    if callable(redis):
        return lambda: _impatient(_usable(redis()))
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
        socket_timeout=LIMIT,
        socket_connect_timeout=LIMIT,
        retry=_once(),
        decode_responses=False,
    )


def _understands(url: str) -> bool:
    """
    Tell whether redis-py understands a URL. Its own errors may quote the password.
    """
    try:
        _ = _usable(_client_at(url)).connection_pool.make_connection()  # it knows its options
    except (ValueError, TypeError, AttributeError, NotSetUp):
        return False
    return True


def channel_of(client: Client, prefix: str, name: str) -> str:
    """
    Return a channel of a database: Redis has the same for all of them.
    """
    db = (
        0
        if isinstance(client, RedisCluster)
        else client.connection_pool.connection_kwargs.get("db")
    )
    return f"{{{prefix}}}@{db}:{name}" if db else f"{{{prefix}}}:{name}"


def _impatient(client: Client) -> Client:
    """
    Let a client try each Sentinel once: there are others, and all have :data:`CONNECT` together.
    """
    for sentinel in _sentinels_of(client):
        sentinel.set_retry(_once())
    return client


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _sentinels_of(client: Client) -> Sequence[Redis]:
    """
    Return the clients of the Sentinels that a client asks.
    """
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return getattr(manager, "sentinels", ())


def _usable(client: Any) -> Any:
    """
    Return *client* if it is one that speaks in bytes.

    Raises:
        NotSetUp: If not.
    """
    if not isinstance(client, Redis | RedisCluster):
        if isinstance(client, Coroutine):
            client.close()
        raise NotSetUp(
            f"redis= is a callable that returned a {type(client).__name__}: let it return a"
            " redis.asyncio client, as lambda: redis.asyncio.Redis(...)"
        )
    if client.get_encoder().decode_responses:
        raise NotSetUp(
            "redis= is a callable that made a client which decodes answers, but pushes may be"
            " bytes: make it with decode_responses=False"
        )
    return client


def reason(exc: BaseException) -> str:
    """
    Return what may be logged of an error of Redis: its code word or meaning, and no argument.
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
    Return the word that an error of Redis begins with, "" if there is none.

    Redis 6.2 puts it behind the place in the script.
    """
    for word in str(exc).replace("-", " ").replace(":", " ").split():
        if len(word) > 2 and word.isalpha() and word.isupper() and word != "ERR":
            return word
    return ""


def refusal(exc: BaseException) -> str:
    """
    Return the code word of an error if it says that Redis takes no writes now, else "".
    """
    if not isinstance(exc, ResponseError):
        return ""
    words = str(exc).replace("-", " ").split()
    word = next((word for word in REFUSALS if word in words), "") or _by_class(exc)
    if word == "NOPERM" and "script" not in words:
        return ""  # who may not run scripts has published nothing
    return word


def _by_class(exc: BaseException) -> str:
    # redis-py drops the word of those it has classes for.
    return {
        "OutOfMemoryError": "OOM",
        "ReadOnlyError": "READONLY",
        "NoPermissionError": "NOPERM",
    }.get(type(exc).__name__, "")


async def keep_trying(
    serve: Callable[[], Coroutine[Any, Any, None]], failed: Callable[[str], None], steady: float
) -> None:
    """
    Serve a connection, and another one after every trouble, until cancelled.

    Args:
        serve: Connects, and raises when there is trouble.
        failed: Called with the reason.
        steady: Seconds after which one that has worked so long counts as good: the next is made
            at once.
    """
    loop, tries = asyncio.get_running_loop(), 0
    while True:
        began = loop.time()
        try:
            await serve()
        except Exception as exc:  # noqa: BLE001  redis-py has others than its own
            failed(reason(exc))
        if loop.time() - began > steady:
            tries = 0
        await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST, 0.02 * 2**tries))
        tries = min(tries + 1, 10)


async def close_client(client: Client) -> None:
    """
    Let go of all connections of a client, within :data:`LIMIT`.
    """
    with contextlib.suppress(*TROUBLE):
        async with asyncio.timeout(LIMIT):
            await client.aclose()
            for sentinel in _sentinels_of(client):
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


def fail(future: asyncio.Future[Any], exc: BaseException) -> None:
    """
    Let a future fail unless it is done; nobody need wait for it.
    """
    if not future.done():
        future.set_exception(exc)
        _ = future.exception()


def is_unknown_script(exc: BaseException) -> bool:
    """
    Tell whether Redis doesn't know a script's digest, or lets nobody use digests.
    """
    unknown = isinstance(exc, ResponseError) and str(exc).startswith("unknown command")
    return unknown or isinstance(exc, NoScriptError | NoPermissionError)


def is_for_later(exc: BaseException) -> bool:
    """
    Tell whether Redis does nothing now, whatever it is asked: it loads, or runs a slow script.
    """
    loads = isinstance(exc, BusyLoadingError)  # redis-py drops the word
    return loads or (isinstance(exc, ResponseError) and code_word(exc) in WAIT)


def is_elsewhere(exc: BaseException) -> bool:
    """
    Tell whether the server isn't the one in charge: a node of a cluster that has moved.
    """
    return isinstance(exc, AskError | MovedError | ClusterDownError | MasterDownError)
