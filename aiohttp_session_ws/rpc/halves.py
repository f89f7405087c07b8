"""
State handlers and topics, async generators with two halves; and what ends a session, whatever
happens.

The first half is awaited by whoever begins a session or a subscription, the second by whoever
ends it, however it ends.
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

_OVER: Final = object()  # what a generator that has ended is taken to return
_LEAST: Final = 0.05  # seconds that each step has, also when others have used up the time


async def first_half(name: str, generator: AsyncGenerator[Any, None]) -> Step:
    """
    Run what stands before the ``yield``; return the step that runs what stands behind it.
    """
    if await anext(generator, _OVER) is _OVER:
        raise RuntimeError(f"{name}() has not yielded: it needs one 'yield' between its halves")
    return partial(_second_half, name, generator)


async def _second_half(name: str, generator: AsyncGenerator[Any, None]) -> None:
    try:
        if await anext(generator, _OVER) is not _OVER:
            log.error("%s() has yielded twice: it needs one 'yield' between its halves", name)
            await generator.aclose()
    except Exception:
        log.exception("the second half of %s() failed", name)


async def run_all(steps: Iterable[Step], grace: float) -> None:
    """
    Run each step, whatever became of those before it.

    Args:
        steps: What to run.
        grace: Seconds for all of them, after which each is cancelled.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    for step in steps:
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + _LEAST)):
                await step()
        except (TimeoutError, asyncio.CancelledError):
            log.warning("what ends a session took too long, and was cancelled")
        except Exception:
            log.exception("what ends a session failed")


async def outlast(future: asyncio.Future[T]) -> T:
    """
    Wait until something is done, also while this task is being cancelled.

    Raises:
        asyncio.CancelledError: At the end, if the task was cancelled.
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
        future.exception()  # which nobody will ask for
    raise cancelled
