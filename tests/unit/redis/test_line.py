"""
A connection attempt to Redis that fails after it was given up.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from redis.asyncio import Redis

from aiohttp_session_ws.redis.io import line as module
from aiohttp_session_ws.redis.io.line import Link
from tests.support import until


class Stubborn:
    """A connection that turns a cancellation into an error, as redis-py's do."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    async def connect(self) -> None:
        """Wait until cancelled, and fail."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told.append("cancelled")
            raise ConnectionError("too late") from None

    async def disconnect(self, nowait: bool = False) -> None:
        """Do nothing."""


async def test_fails_after_it_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection attempt that fails after its timeout leaves no task with an unread error."""
    told: list[str] = []
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    monkeypatch.setattr(module, "REPLY_TIMEOUT", 0.01)
    monkeypatch.setattr(
        "redis.asyncio.connection.ConnectionPool.make_connection", lambda pool: Stubborn(told)
    )
    reasons: list[str] = []
    link = Link(Redis, "prefix", lambda line: None, reasons.append)
    running = asyncio.create_task(link.run())
    await until(lambda: told and len(reasons) > 1)
    running.cancel()
    await asyncio.wait({running})
    gc.collect()

    assert not unheard
