"""
Async generators with two halves: state handlers and topics.

The first half is awaited by whoever begins something, the second by whoever ends it, however
it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

__all__ = ["Entered"]

log = logging.getLogger("aiohttp_session_ws")

Entered: TypeAlias = tuple[str, AsyncGenerator[Any, None]]

_OVER: Final = object()  # what a generator that has ended is taken to return
_LEAST: Final = 0.05  # seconds that each has, also when others have used up the time


async def leave(entered: Sequence[Entered], deadline: float) -> None:
    """
    Run second halves, the last one first.

    Args:
        entered: Generators whose first half has run, and how an error calls them, in order.
        deadline: By the event loop's clock.
    """
    await run_all((partial(second_half, *one) for one in reversed(entered)), deadline)


async def first_half(name: str, generator: AsyncGenerator[Any, None]) -> None:
    """
    Run what stands before the ``yield``.
    """
    if await anext(generator, _OVER) is _OVER:
        raise RuntimeError(f"{name}() has not yielded: it needs one 'yield' between its halves")


async def second_half(name: str, generator: AsyncGenerator[Any, None]) -> None:
    """
    Run what stands behind the ``yield``; log what goes wrong.
    """
    try:
        if await anext(generator, _OVER) is not _OVER:
            log.error("%s() has yielded twice: it needs one 'yield' between its halves", name)
            await generator.aclose()
    except Exception:
        log.exception("the second half of %s() failed", name)


async def run_all(steps: Iterable[Callable[[], Awaitable[object]]], deadline: float) -> None:
    """
    Run each step, whatever became of those before it, also if this task is cancelled.

    Args:
        steps: What to run.
        deadline: When a step is cancelled, by the event loop's clock.

    Raises:
        asyncio.CancelledError: At the end, if the task was cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    loop = asyncio.get_running_loop()
    for step in steps:
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + _LEAST)):
                await step()
        except TimeoutError:
            log.warning("what ends a session took too long, and was cancelled")
        except asyncio.CancelledError as exc:
            cancelled = exc  # the server cancels handlers that linger: the rest runs all the same
        except Exception:
            log.exception("what ends a session failed")
    if cancelled is not None:
        raise cancelled
