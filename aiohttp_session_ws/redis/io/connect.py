"""
Clients of Redis: how they are made, and one connection that takes many commands at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from typing import Any, Final, TypeAlias

from redis.asyncio import Connection, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
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
Argument: TypeAlias = "str | int | bytes"

TROUBLE: Final = (RedisError, OSError, TimeoutError)

LONGEST: Final = 0.5  # seconds between two tries to connect
LIMIT: Final = 1.0  # seconds without any answer until Redis is taken to be away
AT_ONCE: Final = 16384  # bytes that can be written without a task: less than a transport holds

#: How Redis says that it takes no writes now; it is there all the same.
REFUSALS: Final = ("OOM", "MISCONF", "NOREPLICAS", "READONLY", "NOPERM")


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
    return f"{{{prefix}}}@{db}:{name}" if db else f"{{{prefix}}}:{name}"


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
    Return what may be logged of an error of Redis: its code word, and nothing it quotes.
    """
    if isinstance(exc, RedisUnavailable):
        return str(exc)
    if isinstance(exc, RedisConnectionError | NoPermissionError | NotSetUp | OSError) and str(exc):
        return f"{type(exc).__name__}: {exc}"
    if isinstance(exc, RedisError):
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
    return next((word for word in REFUSALS if word in words), "") or _by_class(exc)


def _by_class(exc: BaseException) -> str:
    # redis-py drops the word of those it has classes for.
    return {
        "OutOfMemoryError": "OOM",
        "ReadOnlyError": "READONLY",
        "NoPermissionError": "NOPERM",
    }.get(type(exc).__name__, "")


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


def is_unknown_script(exc: BaseException) -> bool:
    """
    Tell whether Redis doesn't know a script's digest, or lets nobody use digests.
    """
    return isinstance(exc, NoScriptError | NoPermissionError)


def is_elsewhere(exc: BaseException) -> bool:
    """
    Tell whether the server isn't the one in charge: a node of a cluster that has moved.
    """
    return isinstance(exc, AskError | MovedError | ClusterDownError | MasterDownError)


class Line:
    """
    One connection, whose commands are written at once and answered in their order.

    redis-py makes the connection, with all it knows of TLS, passwords, Sentinels and clusters. Its
    clients would need a task and a place in a pool for each command.

    Args:
        client: Who makes the connection; it is closed with it.
        prefix: What all keys begin with; in a cluster it decides which node is asked.

    Attributes:
        client: The same.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self.client = client
        self._prefix = prefix
        self._connection: Connection | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """
        Connect.
        """
        if isinstance(self.client, RedisCluster):
            _ = await self.client.initialize()
            node = self.client.get_node_from_key(f"{{{self._prefix}}}")
            if node is None:
                raise RedisConnectionError("the cluster has no node for our slot")
            self._connection = node.connection_class(**node.connection_kwargs)
        else:
            self._connection = self.client.connection_pool.make_connection()
        await self._connection.connect()
        # The limits are ours: redis-py's would need a timer for each command.
        self._connection.socket_timeout = None

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """
        Send a command; the future has its answer, or the error that came instead.
        """
        assert self._connection is not None, "not connected"
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._send(self._connection.pack_command(*args))
        return answer

    def _send(self, command: Sequence[bytes]) -> None:
        assert self._connection is not None
        if not self._connection.is_connected:
            return  # redis-py would connect again; whoever reads learns that it broke
        coro = self._connection.send_packed_command(command, check_health=False)
        if self._sending is not None or sum(map(len, command)) > AT_ONCE:
            self._sending = asyncio.create_task(_behind(self._sending, coro))
            self._sending.add_done_callback(self._sent)
            return
        try:
            awaited = coro.send(None)
        except StopIteration:
            return  # it is with the transport, and no task was needed
        except TROUBLE:
            return  # whoever reads learns of it
        self._sending = asyncio.create_task(_rest_of(coro, awaited))
        self._sending.add_done_callback(self._sent)

    @property
    def is_connected(self) -> bool:
        """
        Whether commands can be sent.
        """
        return self._connection is not None and self._connection.is_connected

    def _sent(self, task: asyncio.Task[None]) -> None:
        if self._sending is task:
            self._sending = None
        if not task.cancelled():
            _ = task.exception()  # whoever reads learns of it

    async def read(self) -> None:
        """
        Hand out the answers until there is trouble, and raise it.
        """
        connection, waiting = self._connection, self._waiting
        assert connection is not None
        try:
            while True:
                try:
                    answer, failed = await connection.read_response(timeout=math.inf), None
                except ResponseError as exc:
                    answer, failed = None, exc
                future = waiting.popleft()
                if not future.done():
                    if failed is None:
                        future.set_result(answer)
                    else:
                        future.set_exception(failed)
        finally:
            self.fail()

    def fail(self) -> None:
        """
        Let nobody wait for an answer any more.
        """
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(RedisUnavailable("the connection to Redis broke"))
                _ = future.exception()  # nobody need wait for it

    async def close(self) -> None:
        """
        Let go of the connection and of the client.
        """
        self.fail()
        if self._sending is not None:
            await end_tasks([self._sending])
        if self._connection is not None:
            with contextlib.suppress(*TROUBLE):
                await self._connection.disconnect(nowait=True)
        await close_client(self.client)


class Link:
    """
    A line that is made anew after every trouble.

    Args:
        make: Makes a client.
        prefix: What all keys begin with.
        up: Called when it is connected.
        down: Called when it isn't any more, or couldn't be, with the reason.

    Attributes:
        line: The line while it is connected.
    """

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        up: Callable[[Line], None],
        down: Callable[[str], None],
    ) -> None:
        self._make = make
        self._prefix = prefix
        self._up = up
        self._down = down
        self._dropped: asyncio.Future[str] | None = None
        self._ending: set[asyncio.Task[Any]] = set()
        self.line: Line | None = None

    async def run(self) -> None:
        """
        Keep it connected until cancelled.
        """
        tries = 0
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                try:
                    await self._serve(Line(self._make(), self._prefix))
                except Exception as exc:  # noqa: BLE001  redis-py has others than its own
                    self._down(reason(exc))
                if loop.time() - began > LIMIT:
                    tries = 0
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST, 0.02 * 2**tries))
                tries = min(tries + 1, 10)
        finally:
            await end_tasks(self._ending)

    async def _serve(self, line: Line) -> None:
        """
        Connect and hand out answers until there is trouble, and raise it.
        """
        # A client of a cluster has to find out first where everything is.
        limit = 3 * LIMIT if isinstance(line.client, RedisCluster) else LIMIT
        reading: asyncio.Task[None] | None = None
        try:
            await _within(limit, line.connect())
            self._dropped = asyncio.get_running_loop().create_future()
            self.line = line
            self._up(line)
            reading = asyncio.create_task(line.read())
            await asyncio.wait({reading, self._dropped}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            raise TimeoutError(self._dropped.result() if self._dropped.done() else "it broke")
        finally:
            self.line = None
            # It may take a second, and the next one needn't wait for it.
            task = asyncio.create_task(_end(line, reading))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def drop(self, why: str) -> None:
        """
        Give up the line, which doesn't answer or leads to the wrong server.
        """
        line, self.line = self.line, None
        if line is not None and self._dropped is not None and not self._dropped.done():
            self._dropped.set_result(why)
            line.fail()


async def _end(line: Line, reading: asyncio.Task[None] | None) -> None:
    if reading is not None:
        await end_tasks([reading])
    await line.close()


async def _within(limit: float, coro: Coroutine[Any, Any, None]) -> None:
    """
    Run *coro* for *limit* seconds at most.

    In a task of its own, for redis-py now and then swallows a cancellation, and the end of a
    timeout with it.
    """
    task = asyncio.ensure_future(coro)
    try:
        await asyncio.wait({task}, timeout=limit)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        raise TimeoutError(f"no answer within {limit:g} s")
    task.result()


async def _behind(previous: asyncio.Task[None] | None, coro: Coroutine[Any, Any, None]) -> None:
    if previous is not None:
        await asyncio.wait({previous})
    await coro


async def _rest_of(coro: Coroutine[Any, Any, None], awaited: Any) -> None:
    """
    Go on with a coroutine that has begun outside of a task, and waits for *awaited*.
    """
    await _Rest(coro, awaited)


class _Rest:
    def __init__(self, coro: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._coro = coro
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as exc:  # noqa: BLE001  a cancellation goes where it waits
                step = self._coro.throw
                argument: Any = exc
            else:
                step, argument = self._coro.send, value
            try:
                awaited = step(argument)
            except StopIteration:
                return
