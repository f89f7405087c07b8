"""
Handles: names of sessions that may be shown to a page.
"""

from __future__ import annotations

import pytest

from aiohttp_session_ws import NotSetUp, SessionWSRegistry
from aiohttp_session_ws.exceptions import InvalidSessionWSId
from aiohttp_session_ws.registry import handles
from aiohttp_session_ws.results import Handle
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Started,
    expect_close,
    make_app,
    user_of,
)

KEY = "a secret of this test"


class Thing:
    """Something that can be closed."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, handle_key=KEY, timeouts=QUICK)


class TestHandle:
    def test_same(self) -> None:
        """A handle depends on the key and on the id, and doesn't contain the id."""
        one, same, other = [
            SessionWSRegistry(handle_key=key) for key in (KEY, KEY.encode(), "?" * 16)
        ]
        handle = one.handle("id")

        assert handle == same.handle("id")
        assert handle not in (other.handle("id"), one.handle("id2"), one.handle(("id",)))
        assert isinstance(handle, Handle)
        assert "id" not in handle

    def test_no_key(self) -> None:
        """A registry without a ``handle_key`` raises an error that names it."""
        with pytest.raises(NotSetUp, match="handle_key"):
            SessionWSRegistry().handle("id")

    @pytest.mark.parametrize(("key", "error"), [("short", ValueError), (7, TypeError)])
    def test_wrong_key(self, key: object, error: type[Exception]) -> None:
        """A ``handle_key`` that is too short, or of a wrong type, is refused at once."""
        with pytest.raises(error, match="handle_key"):
            SessionWSRegistry(handle_key=key)  # type: ignore[arg-type]  # that's the test

    def test_no_id(self, registry: SessionWSRegistry) -> None:
        """A value that can't be an id has no handle."""
        with pytest.raises(InvalidSessionWSId):
            registry.handle(None)


class TestEnd:
    async def test_by_handle(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session with an open socket is ended by its handle, which was sent as text."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            (session_ws_id, _) = await ws.receive_json(timeout=PATIENCE)
            text = str(registry.handle(session_ws_id))
            report = await registry.end_session(Handle(text))

            assert await expect_close(ws) == 4401
        assert (report.sockets, report.stored) == (1, True)

    async def test_unknown(self, started: Started, registry: SessionWSRegistry) -> None:
        """A handle of a session without an open socket ends nothing, and the report says so."""
        await started(registry)
        report = await registry.end_session(registry.handle("id"))

        assert (report.sockets, report.stored) == (0, False)

    async def test_text(self, started: Started, registry: SessionWSRegistry) -> None:
        """A plain string is taken for an id, even if it reads like a handle."""
        await started(registry)
        registry.register("id", Thing())
        report = await registry.end_session(str(registry.handle("id")))

        assert (report.sockets, report.stored) == (0, True)

    async def test_many(
        self,
        started: Started,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A handle's session is found among more ids than are hashed in a row."""
        monkeypatch.setattr(handles, "PART", 3)
        await started(registry)
        for n in range(10):
            registry.register(n, Thing())
        report = await registry.end_session(registry.handle(9))

        assert report.sockets == 1
        assert 9 not in registry
