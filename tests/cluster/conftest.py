from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol

import pytest
from aiohttp_session import AbstractStorage, SimpleCookieStorage

from aiohttp_session_ws.redis import RedisSessionWSRegistry
from tests.promise.site import Site, user_of
from tests.support import QUICK, until
from tests.support.inspect import inspect
from tests.support.redis_servers import RedisServer


class Sites(Protocol):
    """Start two sites that share a Redis; the options apply to both registries."""

    def __call__(
        self,
        views: Any = None,
        storage: AbstractStorage | None = None,
        *,
        site: dict[str, Any] | None = None,
        **options: Any,
    ) -> Awaitable[tuple[Site, Site]]: ...


@pytest.fixture
async def sites(redis_server: RedisServer) -> AsyncIterator[Sites]:
    """Return a function that starts two nodes that know each other; stop them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            views: Any = None,
            storage: AbstractStorage | None = None,
            *,
            site: dict[str, Any] | None = None,
            **options: Any,
        ) -> tuple[Site, Site]:
            found = []
            for name in ("a", "b"):
                settings = {"timeouts": QUICK, "identify": user_of, **options}
                registry = RedisSessionWSRegistry(redis_server.url, node=name, **settings)
                one = Site(registry, storage or SimpleCookieStorage())
                await stack.enter_async_context(one.stack)
                found.append(await one.start(views or {}, **(site or {})))
            await _acquaint(found)
            a, b = found
            return a, b

        yield start


async def _acquaint(sites: list[Site]) -> None:
    for one in sites:
        members = inspect(one.registry).cluster.membership  # type: ignore[attr-defined]
        members.heartbeat_soon()
        await until(lambda m=members: len(m.members) >= len(sites))  # type: ignore[misc]
