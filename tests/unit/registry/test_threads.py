"""
``registry.threadsafe``: the registry's methods for other threads.
"""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from aiohttp_session_ws import NotSetUp, SessionWSRegistry
from aiohttp_session_ws.exceptions import InvalidIdentity, WrongLoop
from aiohttp_session_ws.registry.threads import ThreadSafe
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    Started,
    Turnstile,
    expect_close,
    make_app,
    until,
    user_of,
)

CALLS = [
    name
    for name, member in vars(ThreadSafe).items()
    if inspect.isfunction(member) and hasattr(member, "__wrapped__")
]


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


class TestThreads:
    async def test_end(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """A thread may query, push and end sessions, and gets the results."""
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")

        def work() -> tuple[int, int, int]:
            there = registry.threadsafe
            found = there.connections(identity="ann")
            pushed = there.send_identity_json("ann", "bye")
            return len(found), pushed.sockets, there.end_identity("ann", by="a job").sockets

        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            done = await asyncio.to_thread(work)

            assert await ws.receive_json(timeout=PATIENCE) == "bye"
            assert await expect_close(ws) == 4401
        assert done == (1, 1, 1)

    async def test_override(self, started: Started) -> None:
        """A call runs the method that the application has overridden."""
        called: list[object] = []

        class Registry(SessionWSRegistry):
            async def close_all_session(self, session_ws_id, **options):  # type: ignore[no-untyped-def]
                called.append(session_ws_id)
                return await super().close_all_session(session_ws_id, **options)

        registry = await started(Registry())
        await asyncio.to_thread(registry.threadsafe.close_all_session, "x")

        assert called == ["x"]

    async def test_sync_override(self, started: Started) -> None:
        """An override may be a plain function, as for all other callers."""

        class Registry(SessionWSRegistry):
            def close_all_session(self, session_ws_id, **options):  # type: ignore[no-untyped-def]
                return f"told of {session_ws_id}"

        registry = await started(Registry())
        told: object = await asyncio.to_thread(registry.threadsafe.close_all_session, "x")

        assert told == "told of x"

    async def test_error(self, started: Started, registry: SessionWSRegistry) -> None:
        """An exception of a call is raised in the thread."""
        await started(registry)
        with pytest.raises(InvalidIdentity):
            await asyncio.to_thread(registry.threadsafe.end_identity, None)

    async def test_timeout(self, started: Started) -> None:
        """A call that exceeds its timeout raises ``TimeoutError``, and is cancelled."""
        cancelled = asyncio.Event()

        class Slow(SessionWSRegistry):
            async def count(self):  # type: ignore[no-untyped-def]
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()

        registry = await started(Slow())
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            await asyncio.to_thread(registry.threadsafe.within(0.05).count)
        async with asyncio.timeout(PATIENCE):
            await cancelled.wait()

    async def test_an_order_is_not_given_up(self, aiohttp_client: AiohttpClient) -> None:
        """An order is carried out even if its call has timed out."""
        gate = Turnstile()

        class Audited(SessionWSRegistry):
            async def end_identity(self, identity, **options):  # type: ignore[no-untyped-def]
                await gate()
                return await super().end_identity(identity, **options)

        registry = Audited(identify=user_of, timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        await client.get("/login")
        async with client.ws_connect("/ws") as ws:
            await ws.receive(timeout=PATIENCE)
            gate.shut = True
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(registry.threadsafe.within(0.05).end_identity, "ann")
            gate.let()

            assert await expect_close(ws) == 4401

    async def test_own_timeout(self, started: Started) -> None:
        """A ``TimeoutError`` that a method raises is passed on as it is."""

        class Failing(SessionWSRegistry):
            async def count(self):  # type: ignore[no-untyped-def]
                raise TimeoutError("mine")

        registry = await started(Failing())
        with pytest.raises(TimeoutError, match="mine"):
            await asyncio.to_thread(registry.threadsafe.count)

    async def test_in_the_loop(self, started: Started, registry: SessionWSRegistry) -> None:
        """A call in the event loop itself raises ``WrongLoop``, since it would block for ever."""
        await started(registry)
        with pytest.raises(WrongLoop, match="await the registry's own"):
            registry.threadsafe.count()

    def test_not_started(self, registry: SessionWSRegistry) -> None:
        """A call before the registry is started raises ``NotSetUp``."""
        with pytest.raises(NotSetUp):
            registry.threadsafe.count()

    @pytest.mark.parametrize("name", CALLS)
    def test_like_its_twin(self, name: str) -> None:
        """Each method has the signature and the docstring of the registry's method."""
        twin = getattr(SessionWSRegistry, name)

        assert inspect.signature(getattr(ThreadSafe, name)) == inspect.signature(twin)
        assert getattr(ThreadSafe, name).__doc__ == twin.__doc__

    async def test_many(self, started: Started, registry: SessionWSRegistry) -> None:
        """Several threads may call at the same time."""
        await started(registry)
        threads = [
            threading.Thread(target=registry.threadsafe.end_session, args=(str(n),))
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))

        assert registry.stats().orders_given == 20
