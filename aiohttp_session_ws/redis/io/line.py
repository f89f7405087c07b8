"""
One connection that takes many commands at once, and is made anew after every trouble.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final

from redis.asyncio import Connection, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError, ResponseError

from ...exceptions import RedisUnavailable
from ..entries import Argument
from .connect import LIMIT, TROUBLE, Client, MakeClient, close_client, end_tasks, reason

pack: Callable[[Any], bytes] | None = None
try:  # redis-py looks at each argument in Python
    import hiredis
except ImportError:
    pass
else:
    pack = hiredis.pack_command

__all__: list[str] = []

LONGEST: Final = 0.5  # seconds between two tries to connect
AT_ONCE: Final = 16384  # bytes that can be written without a task: less than a transport holds


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
            pool = self.client.connection_pool
            self._connection = pool.make_connection()  # type: ignore[no-untyped-call]  # theirs
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
        command = self._connection.pack_command(*args) if pack is None else [pack(args)]
        self._send(command)
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
            if self._ending:
                await asyncio.wait(self._ending, timeout=LIMIT)
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
            both: set[asyncio.Future[Any]] = {reading, self._dropped}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            raise TimeoutError(self._dropped.result() if self._dropped.done() else "it broke")
        finally:
            self.line = None
            if reading is not None:
                _ = reading.cancel()
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
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
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
            error: BaseException | None = None
            try:
                yield awaited
            except BaseException as exc:  # noqa: BLE001  a cancellation goes where it waits
                error = exc
            try:
                awaited = self._coro.send(None) if error is None else self._coro.throw(error)
            except StopIteration:
                return
