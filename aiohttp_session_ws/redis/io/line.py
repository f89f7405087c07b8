"""
A pipelined connection to Redis, and a wrapper that reconnects it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from ...exceptions import RedisUnavailable
from ..entries import Argument
from .connect import (
    CONNECT_TIMEOUT,
    REDIS_ERRORS,
    REPLY_TIMEOUT,
    Client,
    MakeClient,
    channel_of,
    close_client,
    end_tasks,
    fail,
    is_unknown_script,
    keep_trying,
)
from .scripts import Script
from .wire import Wire, connect

__all__: list[str] = []


class Line:
    """
    A pipelined connection: commands are written at once, and replies arrive in the same order.

    redis-py's clients would need a task and a pooled connection for each pending command.

    Args:
        client: Creates the connection, and is closed together with it.
        prefix: The prefix of all keys; in a Redis Cluster it decides on the node to connect to.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._wire: Wire | None = None
        self._closed = False
        # The futures of pending commands; for a script, with the script and its arguments.
        self._waiting: deque[tuple[asyncio.Future[Any], Script | None, Sequence[Argument]]]
        self._waiting = deque()

    async def connect(self) -> None:
        """
        Connect.
        """
        connection = await connect(self._client, self._prefix)
        if self._closed:  # redis-py has swallowed the cancellation
            await connection.disconnect(nowait=True)
            raise RedisUnavailable("the attempt to connect was cancelled")
        self._wire = Wire(connection, self._resolve_oldest)
        self._wire.ended.add_done_callback(lambda _: self.fail())

    def channel(self, name: str) -> str:
        """
        Return the full name of a channel.
        """
        return channel_of(self._client, self._prefix, name)

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """
        Send a command; return the future of its reply or error.
        """
        return self._send(args)

    def run(self, script: Script, *args: Argument) -> asyncio.Future[Any]:
        """
        Run a script by its digest, or by its text if Redis doesn't know the digest or doesn't
        permit EVALSHA.
        """
        return self._send(("EVALSHA", script.digest, *args), script, args)

    def _send(
        self,
        command: Sequence[Argument],
        script: Script | None = None,
        args: Sequence[Argument] = (),
    ) -> asyncio.Future[Any]:
        assert self._wire is not None, "not connected"
        self._wire.send(*command)  # on a broken connection the future fails later
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, script, args))
        return answer

    def _resolve_oldest(self, reply: Any) -> None:
        """
        Resolve the oldest pending future with a reply.
        """
        if isinstance(reply, hiredis.PushNotification):
            return  # not a reply to a command
        future, script, args = self._waiting.popleft()
        if future.done():
            return
        if isinstance(reply, Exception):
            if script is not None and self._wire is not None and is_unknown_script(reply):
                self._wire.send("EVAL", script.text, *args)
                self._waiting.append((future, None, ()))
                return
            fail(future, reply)
        else:
            future.set_result(reply)

    @property
    def ended(self) -> asyncio.Future[None]:
        """
        Done when the connection has ended; the exception says why.
        """
        assert self._wire is not None, "not connected"
        return self._wire.ended

    def fail(self) -> None:
        """
        Fail all pending commands.
        """
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            fail(future, RedisUnavailable("the connection to Redis broke"))

    async def close(self) -> None:
        """
        Close the connection and the client.
        """
        self._closed = True
        self.fail()
        if self._wire is not None:
            with contextlib.suppress(*REDIS_ERRORS):
                await self._wire.close()
        await close_client(self._client)


class Link:
    """
    Keeps a :class:`Line` connected: replaces it whenever it fails.

    Args:
        make: Creates a client.
        prefix: The prefix of all keys.
        up: Called with each new line when it is connected.
        down: Called with the reason when a line has failed or could not be connected.

    Attributes:
        line: The line while it is connected, else ``None``.
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
        Keep a line connected until cancelled.
        """
        try:
            await keep_trying(self._serve, self._down, REPLY_TIMEOUT)
        finally:
            if self._ending:
                await asyncio.wait(self._ending, timeout=REPLY_TIMEOUT)
            await end_tasks(self._ending)

    async def _serve(self) -> None:
        """
        Connect a line and wait until it fails; raise the error.
        """
        line = Line(self._make(), self._prefix)
        # In a task of its own: redis-py sometimes swallows a cancellation, and with it a timeout.
        connecting = asyncio.create_task(line.connect())
        connecting.add_done_callback(_retrieve_exception)
        try:
            await asyncio.wait({connecting}, timeout=CONNECT_TIMEOUT)
            if not connecting.done():
                raise TimeoutError(f"not connected within {CONNECT_TIMEOUT:g} s")
            connecting.result()
            self._dropped = asyncio.get_running_loop().create_future()
            self.line = line
            self._up(line)
            both: set[asyncio.Future[Any]] = {line.ended, self._dropped}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if line.ended.done():
                line.ended.result()
            raise TimeoutError(self._dropped.result())
        finally:
            self.line = None
            # Closing may take a second; the next attempt needn't wait for it.
            task = asyncio.create_task(_end(line, connecting))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def drop(self, why: str) -> None:
        """
        Replace a line that doesn't reply or leads to the wrong server.
        """
        line, self.line = self.line, None
        if line is not None and self._dropped is not None and not self._dropped.done():
            self._dropped.set_result(why)
            line.fail()


async def _end(line: Line, connecting: asyncio.Task[None]) -> None:
    await end_tasks({connecting})  # else it might still connect
    await line.close()


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    """
    Retrieve the error of a task that is perhaps not awaited any more: the failure was reported.
    """
    if not task.cancelled():
        _ = task.exception()
