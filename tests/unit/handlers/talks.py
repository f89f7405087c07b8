"""
An app that serves a handler, and helpers that record how the handler ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, WebSocket, WebSocketDisconnect, websocket_handler
from tests.support import (
    PATIENCE,
    PATIENT,
    make_app,
    until,
)

Talk = Callable[[WebSocket], Awaitable[web.StreamResponse | None]]


def serving(talk: Talk, registry: SessionWSRegistry | None = None, **options: Any) -> Any:
    """Return an app that serves *talk* as ``/talk``."""
    app = make_app(SessionWSRegistry(timeouts=PATIENT) if registry is None else registry)
    app.router.add_get("/talk", websocket_handler(talk, **options))
    return app


def is_quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether nothing was logged at the level of a warning or above."""
    return not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Ended:
    """The close codes and reasons that a handler received."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[Any] = asyncio.Queue()

    def note(self, error: WebSocketDisconnect) -> None:
        """Record the code and the reason of a disconnect."""
        self.found.put_nowait((error.code, error.reason))

    async def __call__(self) -> Any:
        """Wait for the next code and reason, and return them."""
        return await asyncio.wait_for(self.found.get(), PATIENCE)


async def neither(ws: WebSocket) -> None:
    await until(lambda: ws.closed)
    await ws.send("x")
