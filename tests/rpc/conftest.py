"""Fixtures of the RPC tests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, rpc
from tests.browser.conftest import browser, executable
from tests.support import PATIENCE

from .support import Server

__all__ = ["Serve", "browser", "complaints", "executable", "quiet", "serve"]

_OURS = frozenset({"aiohttp", "aiohttp_session_ws", "asyncio"})

Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(aiohttp_client: Any) -> AsyncIterator[Serve]:
    """Serve RPC applications; no session may be left after the test, and tasks are awaited."""
    servers: list[Server] = []

    async def start(
        calls: rpc.Application | rpc.Routes | None = None,
        registry: SessionWSRegistry | None = None,
        *,
        routes: Iterable[web.AbstractRouteDef] = (),
        below: web.Application | None = None,
        **options: Any,
    ) -> Server:
        if isinstance(calls, rpc.Routes):
            own, calls = calls, rpc.Application(**options)
            calls.default.add_rpc_routes(own)
        server = Server(rpc.Application(**options) if calls is None else calls, registry)
        server.app.add_routes(routes)
        if below is not None:
            server.app.add_subapp("/below", below)
        server.client = await aiohttp_client(server.app)
        servers.append(server)
        return server

    before = asyncio.all_tasks()
    yield start
    for server in servers:
        await server.client.close()
        await server.client.server.close()
        assert not server.calls.sessions
    async with asyncio.timeout(PATIENCE):
        while left := [t for t in asyncio.all_tasks() - before if _is_ours(t)]:
            await asyncio.wait(left)


def _is_ours(task: asyncio.Task[Any]) -> bool:
    return "aiohttp_session_ws" in str(task.get_coro())


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the messages logged at WARNING or above."""

    def look() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

    return look


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs a warning or an error, unless it uses ``complaints``."""
    yield
    if "complaints" not in request.fixturenames:
        # After the yield, caplog.records holds the records of the teardown only.
        records = (*caplog.get_records("call"), *caplog.records)
        ours = [r for r in records if r.name.partition(".")[0] in _OURS]  # not those of clients
        loud = [r for r in ours if r.levelno >= logging.WARNING]
        # In debug mode asyncio logs slow callbacks.
        assert [r.getMessage() for r in loud if "Executing <" not in r.getMessage()] == []
