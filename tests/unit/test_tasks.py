"""
Background tasks that have an owner, and helpers for awaiting.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable

import pytest

from aiohttp_session_ws._tasks import BackgroundTasks, maybe_await, supervise


class TestMaybeAwait:
    async def test_plain(self) -> None:
        """A value that isn't awaitable is returned."""
        assert await maybe_await(3) == 3

    async def test_awaitable(self) -> None:
        """A coroutine or a future is awaited, and its result returned."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(3)
        coro: Awaitable[int] = asyncio.sleep(0, 3)

        of_coro: int = await maybe_await(coro)
        of_future: int = await maybe_await(future)
        assert of_coro == of_future == 3


class TestBackgroundTasks:
    async def test_kept_until_done(self) -> None:
        """A task is referenced until it is done, and its name begins with that of the package."""
        tasks, gate = BackgroundTasks(), asyncio.Event()
        task = tasks.spawn(gate.wait(), "wait")
        assert len(tasks) == 1
        gate.set()

        assert await task is True
        assert len(tasks) == 0
        assert task.get_name() == "aiohttp_session_ws: wait"

    async def test_error_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error of a task is logged as an error, with the name of the task."""

        async def fail() -> None:
            raise LookupError("secret")

        tasks = BackgroundTasks()
        task = tasks.spawn(fail(), "look up")
        await asyncio.wait([task])
        await asyncio.sleep(0)

        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "look up" in record.getMessage()

    async def test_context(self) -> None:
        """A task may run in a context other than its caller's."""
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
        variable.set(1)
        tasks = BackgroundTasks()

        async def read() -> int:
            return variable.get()

        assert await tasks.spawn(read(), "read") == 1
        assert await tasks.spawn(read(), "read", contextvars.Context()) == 0

    async def test_stop(self) -> None:
        """``stop()`` cancels all tasks but the one that calls it, and waits for them."""
        tasks = BackgroundTasks()
        waiting = [tasks.spawn(asyncio.Event().wait(), "wait") for _ in range(3)]
        await tasks.spawn(tasks.stop(5.0), "stop")

        assert all(task.cancelled() for task in waiting)

    async def test_stubborn(self, caplog: pytest.LogCaptureFixture) -> None:
        """A task that doesn't end when it is cancelled is named in the log."""
        started, gate = asyncio.Event(), asyncio.Event()

        async def stubborn() -> None:
            try:
                started.set()
                await gate.wait()
            except asyncio.CancelledError:
                await gate.wait()

        tasks = BackgroundTasks()
        task = tasks.spawn(stubborn(), "mule")
        await started.wait()
        await tasks.stop(0.0)
        assert "aiohttp_session_ws: mule" in caplog.text
        gate.set()
        await task


class TestSupervise:
    async def test_again(self, caplog: pytest.LogCaptureFixture) -> None:
        """A function that raises is restarted after a growing pause; its message isn't logged."""
        pauses: list[float] = []
        runs = 0

        async def run() -> None:
            nonlocal runs
            runs += 1
            if runs <= 12:
                raise LookupError("secret")

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        await supervise(run, "the listener", sleep=sleep)

        assert runs == 13
        assert pauses == [pytest.approx(min(0.1 * 2**n, 30), rel=0.2) for n in range(12)]
        assert caplog.text.count("the listener failed and is restarted") == 12
        assert "secret" not in caplog.text

    async def test_cancelled(self) -> None:
        """Cancelling ``supervise()`` ends it."""
        task = asyncio.ensure_future(supervise(asyncio.Event().wait, "wait"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
