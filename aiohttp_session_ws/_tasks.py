"""
Background tasks that have an owner, so that they are stopped and their errors are logged.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from ._logging import describe_error, log
from .exceptions import IdentifyFailed, InvalidIdentity

__all__: list[str] = []

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.1  # seconds before what failed is started again
_LONGEST_PAUSE: Final = 30.0


async def maybe_await(value: Any) -> Any:
    """
    Return *value*, or what it gives if it is an awaitable: for callables, sync or async.
    """
    if inspect.isawaitable(value):
        return await value
    return value


def expect_awaitable(made: object, function: object) -> Awaitable[Any]:
    """
    Return what the application's *function* has made.

    Raises:
        TypeError: If it is no awaitable.
    """
    if inspect.isawaitable(made):
        return made
    raise TypeError(
        f"{function!r} returned {type(made).__name__}, which can't be awaited: write 'async def'"
    )


def is_coroutine_function(function: object) -> bool:
    """
    Tell whether *function*, or the object that stands for one, makes coroutines.
    """
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  an object with an async one
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        return True
    code = getattr(function, "__code__", None)  # one made by types.coroutine()
    return code is not None and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def is_cancelled() -> bool:
    """
    Tell whether this task is being cancelled; else a ``CancelledError`` is that of another task or
    future, which was awaited, and an error like any other.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def supervise(
    run: Callable[[], Awaitable[None]],
    name: str,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """
    Await *run()* until it returns, and start it again whenever it raises.

    The pause before a new start doubles each time, up to 30 s, give or take a fifth.

    Args:
        run: What to keep running. It is never run twice at the same time.
        name: What it is called in the log.
        sleep: Waits for some seconds.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            await run()
        except Exception as exc:  # noqa: BLE001  it is logged below
            # Without the traceback, which would tell what a session's key is.
            log.error("%s failed and starts again: %s", name, describe_error(exc))
        else:
            return
        await sleep(pause * random.uniform(0.8, 1.2))
        pause = min(2 * pause, _LONGEST_PAUSE)


class BackgroundTasks:
    """
    Tasks that no caller's end can cancel.

    asyncio keeps no reference to a task, and nobody hears of the error of one that is not
    awaited. These are kept here until they are done, and an error is logged.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        name: str,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """
        Run *coro* in a task.

        Args:
            coro: What to run.
            name: What it is called in the log.
            context: What it runs in; by default a copy of the caller's, which it keeps.
        """
        task = asyncio.create_task(coro, name=f"aiohttp_session_ws: {name}", context=context)
        if task.done():  # an eager task, which never waited
            self._log_error(task)
            return task
        self._tasks.add(task)
        task.add_done_callback(self._finished, context=context)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._log_error(task)

    @staticmethod
    def _log_error(task: asyncio.Task[Any]) -> None:
        if task.cancelled() or (exc := task.exception()) is None:
            return
        if not isinstance(exc, IdentifyFailed | InvalidIdentity):  # which are logged by then
            log.error("a background task failed: %s", task.get_name(), exc_info=exc)

    async def stop(self, timeout: float) -> None:
        """
        Cancel all tasks but the current one, and wait until they are done.

        Args:
            timeout: Seconds; a task that goes on for longer is named in the log.
        """
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=timeout)
            for task in stubborn:
                log.warning("a task goes on though it was cancelled: %s", task.get_name())
