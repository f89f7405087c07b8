from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Protocol

import pytest
from aiohttp_session import AbstractStorage, SimpleCookieStorage
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiohttp_session_ws import SessionWSRegistry
from tests.promise.site import Site, View
from tests.support import QUICK
from tests.support.clock import Wall


class Serve(Protocol):
    """Start a site; *options* are passed to its registry."""

    def __call__(
        self,
        storage: AbstractStorage | None = None,
        views: Mapping[str, View] | None = None,
        *,
        registry: SessionWSRegistry | None = None,
        site: dict[str, Any] | None = None,
        **options: Any,
    ) -> Awaitable[Site]: ...


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start sites, and stop them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            storage: AbstractStorage | None = None,
            views: Mapping[str, View] | None = None,
            *,
            registry: SessionWSRegistry | None = None,
            site: dict[str, Any] | None = None,
            **options: Any,
        ) -> Site:
            if registry is None:
                registry = SessionWSRegistry(**{"timeouts": QUICK, **options})
            started = Site(registry, storage or SimpleCookieStorage())
            await stack.enter_async_context(started.stack)
            return await started.start(views or {}, **(site or {}))

        yield start


@pytest.fixture(params=["simple", "encrypted"])
def cookies(request: pytest.FixtureRequest) -> AbstractStorage:
    """A storage that keeps the whole session in the cookie."""
    if request.param == "simple":
        return SimpleCookieStorage()
    return EncryptedCookieStorage(b"k" * 32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The wall clock of registries created later; ``advance()`` moves it."""
    return Wall(monkeypatch)
