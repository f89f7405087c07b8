"""
Processes that do what a benchmark asks of them.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any, TypeAlias


class Work:
    """
    What a process does; its methods are what it can be asked.
    """

    def cpu(self) -> float:
        """
        Return the CPU time that the process has used.
        """
        return time.process_time()


Role: TypeAlias = Callable[..., AbstractAsyncContextManager[Work]]


class Child:
    """
    The parent's end.
    """

    def __init__(self, pipe: Pipe[Any, Any]) -> None:
        self._pipe = pipe

    async def ask(self, method: str, *args: Any) -> Any:
        """
        Call a method of the process's work.
        """
        self._pipe.send((method, args))
        return await asyncio.to_thread(self._pipe.recv)


async def _work(role: Role, args: tuple[Any, ...], pipe: Pipe[Any, Any]) -> None:
    async with role(*args) as work:
        pipe.send(None)
        while (asked := await asyncio.to_thread(pipe.recv)) is not None:
            method, arguments = asked
            result = getattr(work, method)(*arguments)
            pipe.send(await result if inspect.isawaitable(result) else result)


def _run(role: Role, args: tuple[Any, ...], pipe: Pipe[Any, Any]) -> None:
    logging.getLogger("aiohttp_session_ws").setLevel(logging.ERROR)
    asyncio.run(_work(role, args, pipe))


@asynccontextmanager
async def child(role: Role, *args: Any) -> AsyncIterator[Child]:
    """
    Start a process that plays *role*; end it without a word.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_run, args=(role, args, other), daemon=True)
    process.start()
    other.close()
    try:
        await asyncio.to_thread(pipe.recv)
        yield Child(pipe)
    finally:
        process.kill()
        process.join()
