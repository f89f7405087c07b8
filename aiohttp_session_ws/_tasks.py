"""
Background tasks with an owner that stops them and logs their errors, and helpers for awaiting.
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

_FIRST_PAUSE: Final = 0.1  # seconds before the first restart
_MAX_PAUSE: Final = 30.0


async def maybe_await(value: Any) -> Any:
    """
    Return *value*, awaited if it is awaitable: for callables that may be sync or async.
    """
    if inspect.isawaitable(value):
        return await value
    return value


def expect_awaitable(made: object, function: object) -> Awaitable[Any]:
    """
    Return what the application's *function* has returned, if it is awaitable.

    Raises:
        TypeError: If it isn't.
    """
    if inspect.isawaitable(made):
        return made
    raise TypeError(
        f"{function!r} returned {type(made).__name__}, which can't be awaited: write 'async def'"
    )


def is_coroutine_function(function: object) -> bool:
    """
    Return whether calling *function*, a function or any other callable, makes a coroutine.
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
    Return whether the current task is being cancelled. If not, a ``CancelledError`` came from
    another task or future that was awaited, and is an error like any other.
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
    Await *run()* until it returns, and restart it whenever it raises.

    The pause before a restart doubles each time, up to 30 s, with a jitter of 20 %.

    Args:
        run: What to keep running. It is never run twice at the same time.
        name: Its name in the log.
        sleep: Waits for a number of seconds.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            await run()
        except Exception as exc:  # noqa: BLE001  it is logged below
            # Without the traceback, which could show the key of a session.
            log.error("%s failed and is restarted: %s", name, describe_error(exc))
        else:
            return
        await sleep(pause * random.uniform(0.8, 1.2))
        pause = min(2 * pause, _MAX_PAUSE)


class BackgroundTasks:
    """
    Tasks that outlive their caller: its end doesn't cancel them.

    asyncio keeps only weak references to tasks, and the error of a task that nothing awaits
    is easily lost. These are referenced here until they are done, and their errors are logged.
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
            coro: The coroutine.
            name: Its name in the log.
            context: The context to run in; by default a copy of the caller's, kept until it
                is done.
        """
        task = asyncio.create_task(coro, name=f"aiohttp_session_ws: {name}", context=context)
        if task.done():  # an eager task that never suspended
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
        if not isinstance(exc, IdentifyFailed | InvalidIdentity):  # these are logged already
            log.error("a background task failed: %s", task.get_name(), exc_info=exc)

    async def stop(self, timeout: float) -> None:
        """
        Cancel all tasks but the current one, and wait until they are done.

        Args:
            timeout: Seconds to wait; a task that is still running then is named in the log.
        """
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, still_running = await asyncio.wait(tasks, timeout=timeout)
            for task in still_running:
                log.warning("a task is still running after it was cancelled: %s", task.get_name())
