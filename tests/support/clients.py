"""
Test clients and servers, and helpers that wait for a close or a condition.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web_runner import BaseRunner

from aiohttp_session_ws import SessionWSRegistry

COOKIE = "AIOHTTP_SESSION"
PATIENCE = float(os.environ.get("PATIENCE", "60"))  # seconds after which a test gives up waiting

R = TypeVar("R", bound=SessionWSRegistry)

Client: TypeAlias = TestClient[web.Request, web.Application]
AiohttpClient: TypeAlias = Callable[..., Awaitable[Client]]


class Started(Protocol):
    """The type of the ``started`` fixture: it starts a registry and returns it."""

    async def __call__(self, registry: R) -> R:
        """Start *registry*."""


class Server(TestServer):
    """A test server with the handler cancellation of ``run_app()``: off by default."""

    def __init__(self, app: web.Application, *, handler_cancellation: bool = False) -> None:
        super().__init__(app)
        self._handler_cancellation = handler_cancellation

    async def _make_runner(self, **kwargs: Any) -> BaseRunner:
        # aiohttp's test server cancels the handlers of vanished clients; run_app() doesn't.
        kwargs["handler_cancellation"] = self._handler_cancellation
        return await super()._make_runner(**kwargs)


def cookie_of(client: Client) -> str:
    """Return the session cookie of *client* as the value of a ``Cookie`` header."""
    cookies = client.session.cookie_jar.filter_cookies(client.make_url("/"))
    return f"{COOKIE}={cookies[COOKIE].coded_value}"


async def expect_close(ws: Any) -> int:
    """Read messages until the close frame; return its code."""
    async with asyncio.timeout(PATIENCE):  # receive() restarts its own timeout with every ping
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.CLOSE:
                return int(message.data)
            assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message


async def until(condition: Callable[[], object]) -> None:
    """
    Let the event loop run until *condition* holds.

    A coroutine that *condition* returns is awaited. After 200 turns of the loop there is a pause
    between two checks, because another process or a thread may need the processor.
    """
    async with asyncio.timeout(PATIENCE):
        for turn in itertools.count():
            holds = condition()
            if await holds if inspect.iscoroutine(holds) else holds:
                return
            await asyncio.sleep(0 if turn < 200 else 0.005)
