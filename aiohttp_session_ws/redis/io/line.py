"""
One connection that takes many commands at once, and is made anew after every trouble.
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
    CONNECT,
    LIMIT,
    TROUBLE,
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
    One connection, whose commands are written at once and answered in their order.

    redis-py's clients would need a task and a place in a pool for each command.

    Args:
        client: Who makes the connection; it is closed with it.
        prefix: What all keys begin with; in a cluster it decides which node is asked.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._wire: Wire | None = None
        self._closed = False
        # Who waits for which answer, and if it is that of a script, which and with what.
        self._waiting: deque[tuple[asyncio.Future[Any], Script | None, Sequence[Argument]]]
        self._waiting = deque()

    async def connect(self) -> None:
        """
        Connect.
        """
        connection = await connect(self._client, self._prefix)
        if self._closed:  # redis-py has swallowed that it was given up
            await connection.disconnect(nowait=True)
            raise RedisUnavailable("Redis was connected to too late")
        self._wire = Wire(connection, self._take)
        self._wire.ended.add_done_callback(lambda _: self.fail())

    def channel(self, name: str) -> str:
        """
        Return the channel of ours that is called *name*.
        """
        return channel_of(self._client, self._prefix, name)

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """
        Send a command; the future has its answer, or the error that came instead.
        """
        return self._ask(args)

    def run(self, script: Script, *args: Argument) -> asyncio.Future[Any]:
        """
        Run a script: by its digest, or by its text if Redis doesn't know that, or lets nobody use
        digests.
        """
        return self._ask(("EVALSHA", script.digest, *args), script, args)

    def _ask(
        self,
        command: Sequence[Argument],
        script: Script | None = None,
        args: Sequence[Argument] = (),
    ) -> asyncio.Future[Any]:
        assert self._wire is not None, "not connected"
        self._wire.send(*command)  # if that breaks, whoever reads learns of it
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, script, args))
        return answer

    def _take(self, reply: Any) -> None:
        """
        Hand out an answer.
        """
        if isinstance(reply, hiredis.PushNotification):
            return  # nobody has asked for it
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
        Done when there is trouble; the exception tells which.
        """
        assert self._wire is not None, "not connected"
        return self._wire.ended

    def fail(self) -> None:
        """
        Let nobody wait for an answer any more.
        """
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            fail(future, RedisUnavailable("the connection to Redis broke"))

    async def close(self) -> None:
        """
        Let go of the connection and of the client.
        """
        self._closed = True
        self.fail()
        if self._wire is not None:
            with contextlib.suppress(*TROUBLE):
                await self._wire.close()
        await close_client(self._client)


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
        try:
            await keep_trying(self._serve, self._down, LIMIT)
        finally:
            if self._ending:
                await asyncio.wait(self._ending, timeout=LIMIT)
            await end_tasks(self._ending)

    async def _serve(self) -> None:
        """
        Connect and hand out answers until there is trouble, and raise it.
        """
        line = Line(self._make(), self._prefix)
        # In a task of its own, for redis-py now and then swallows a cancellation, and the end of a
        # timeout with it.
        connecting = asyncio.create_task(line.connect())
        connecting.add_done_callback(_hear)
        try:
            await asyncio.wait({connecting}, timeout=CONNECT)
            if not connecting.done():
                raise TimeoutError(f"not connected within {CONNECT:g} s")
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
            # It may take a second, and the next one needn't wait for it.
            task = asyncio.create_task(_end(line, connecting))
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


async def _end(line: Line, connecting: asyncio.Task[None]) -> None:
    await end_tasks({connecting})  # it might still be connected otherwise
    await line.close()


def _hear(task: asyncio.Task[None]) -> None:
    """
    Take note of how a task ended that nobody may wait for any more: the reason has been told.
    """
    if not task.cancelled():
        _ = task.exception()
