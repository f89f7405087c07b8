"""
What is registered by hand is judged as a handshake is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import SessionWSRegistry, get_session_ws_id, registry_from
from aiohttp_session_ws.exceptions import NotSetUp, SessionEnded
from tests.promise.conftest import Serve
from tests.promise.site import user_of
from tests.support import QUICK


class Stream:
    """Anything that has a ``close()``."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def close(self, **how: Any) -> None:
        """Note that it was closed."""
        self.closed.set()


@pytest.fixture
async def registry(serve: Serve) -> SessionWSRegistry:
    """A registry that runs."""
    return (await serve(identify=user_of)).registry


class TestRegister:
    async def test_it_is_closed(self, registry: SessionWSRegistry) -> None:
        """An end of its id closes it."""
        stream = Stream()
        registry.register("id", stream)
        await registry.end_session("id")

        assert stream.closed.is_set()

    async def test_under_an_ended_id(self, registry: SessionWSRegistry) -> None:
        """It is refused, with an error that says why."""
        await registry.end_session("id")
        stream = Stream()

        with pytest.raises(SessionEnded):
            registry.register("id", stream)
        assert "id" not in registry

    async def test_its_identity(self, registry: SessionWSRegistry) -> None:
        """An end of its identity closes it; one of another doesn't."""
        ann, bob = Stream(), Stream()
        registry.register("id-1", ann, identity="ann")
        registry.register("id-2", bob, identity="bob")
        await registry.end_identity("ann")

        assert (ann.closed.is_set(), bob.closed.is_set()) == (True, False)
        assert "id-2" in registry
        registry.unregister("id-2", bob)

    async def test_without_its_identity(self, registry: SessionWSRegistry) -> None:
        """Without one it belongs to nobody: only an end of its session closes it."""
        stream = Stream()
        registry.register("id", stream)
        report = await registry.end_identity("ann")
        assert (report.sockets, stream.closed.is_set()) == (0, False)

        await registry.end_session("id")
        assert stream.closed.is_set()

    async def test_close_all_identity(self, registry: SessionWSRegistry) -> None:
        """A mere close finds it by its identity too."""
        stream = Stream()
        registry.register("id", stream, identity="ann")
        report = await registry.close_all_identity("ann")

        assert (report.sockets, stream.closed.is_set()) == (1, True)

    async def test_by_a_later_session(self, serve: Serve) -> None:
        """A log-out everywhere of last week keeps nobody from registering today."""
        streams: list[Stream] = []

        async def stream(request: web.Request) -> web.Response:
            streams.append(Stream())
            id_, who = await get_session_ws_id(request), await user_of(request)
            registry_from(request).register(id_, streams[-1], identity=who)
            return web.Response()

        site = await serve(views={"/stream": stream}, identify=user_of)
        await site.registry.end_identity("ann")
        browser = await site.logged_in()
        answer = await browser.get("/stream")
        assert (answer.status, streams[0].closed.is_set()) == (200, False)

        await browser.get("/everywhere")
        await streams[0].closed.wait()

    async def test_an_identity_without_identify(self, serve: Serve) -> None:
        """It could be found by nobody: an error says what is missing."""
        registry = (await serve(timeouts=QUICK)).registry

        with pytest.raises(NotSetUp, match="identify"):
            registry.register("id", Stream(), identity="ann")
