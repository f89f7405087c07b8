"""
Running async generators in two halves (state handlers, topics), and running the steps that end
a session.

The first half, before the ``yield``, is awaited at the beginning of a session or subscription,
the second at its end, however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from .._logging import log

__all__ = ["Step"]

Step: TypeAlias = Callable[[], Awaitable[object]]
T = TypeVar("T")

_EXHAUSTED: Final = object()  # returned by anext() for a generator that has ended
_MIN_STEP_TIME: Final = 0.05  # seconds for each step, even if others have used up the time


async def enter_generator(name: str, generator: AsyncGenerator[Any, None]) -> Step:
    """
    Run the half before the ``yield``; return the step that runs the half after it.
    """
    if await anext(generator, _EXHAUSTED) is _EXHAUSTED:
        raise RuntimeError(f"{name}() has not yielded: it must yield exactly once")
    return partial(_exit_generator, name, generator)


async def _exit_generator(name: str, generator: AsyncGenerator[Any, None]) -> None:
    try:
        if await anext(generator, _EXHAUSTED) is not _EXHAUSTED:
            log.error("%s() has yielded twice: it must yield exactly once", name)
            await generator.aclose()
    except Exception:
        log.exception("%s() failed after its 'yield'", name)


async def run_steps(steps: Iterable[Step], grace: float) -> None:
    """
    Run each step in order, even if one before it failed.

    Args:
        steps: What to run.
        grace: Seconds for all of them; then the running step is cancelled, and others have 0.05 s.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    for step in steps:
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + _MIN_STEP_TIME)):
                await step()
        except (TimeoutError, asyncio.CancelledError):
            log.warning("a session cleanup step timed out and was cancelled")
        except Exception:
            log.exception("a session cleanup step failed")


async def wait_until_done(future: asyncio.Future[T]) -> T:
    """
    Wait until a future is done, even if this task is cancelled meanwhile.

    Raises:
        asyncio.CancelledError: Once it is done, if the task was cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # retrieved, or asyncio would log it
    raise cancelled
