from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Hashable, Iterable, Mapping
from typing import Any, cast

import aiohttp_session
import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws import (
    REGISTRY_KEY,
    SessionWSRegistry,
    Timeouts,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.exceptions import InvalidSessionWSId, SessionWSClosed
from aiohttp_session_ws.results import CloseReport
from aiohttp_session_ws.signals import OpenDetails
from aiohttp_session_ws.typing import SupportsClose
from tests.support import PATIENCE, AiohttpClient, Started

SOON = 0.05  # seconds until a call that hangs is given up


class FullSocket:
    """A socket to register by hand whose ``close`` takes the arguments of aiohttp's."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> None:
        """Record the call."""
        self.calls.append((code, message))


class PlainSocket:
    """A socket to register by hand whose ``close`` takes no arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[()]] = []

    async def close(self) -> None:
        """Record the call."""
        self.calls.append(())


class SyncSocket:
    """A socket to register by hand whose ``close`` isn't async."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes]] = []

    def close(self, code: int, message: bytes) -> None:
        """Record the call."""
        self.calls.append((code, message))


class FailingSocket:
    """A socket to register by hand whose ``close`` raises."""

    async def close(self) -> None:
        """Fail."""
        raise OSError("no such pipe")


class HangingSocket:
    """A socket to register by hand whose ``close`` never returns."""

    async def close(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Echo all messages."""
    async with session_ws(request) as ws:
        async for message in ws:
            await ws.send_str(message.data)
    return ws


def make_app(registry: SessionWSRegistry) -> web.Application:
    """Return an app with a websocket at /."""
    storage = aiohttp_session.SimpleCookieStorage()
    middlewares = [aiohttp_session.session_middleware(storage), session_ws_middleware]
    app = web.Application(middlewares=middlewares)
    setup(app, registry)
    app.router.add_get("/", echo)
    return app


async def expect_close(ws: Any, code: int) -> None:
    """Wait for the server's close frame, and check its code."""
    message = await ws.receive(timeout=PATIENCE)
    assert message.type is WSMsgType.CLOSE
    assert message.data == code


class Watching(SessionWSRegistry):
    """A registry that puts calls of ``register`` and ``unregister`` into a queue."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heard: asyncio.Queue[tuple[str, Hashable, object]] = asyncio.Queue()

    def register(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:  # type: ignore[override]  # as 1.1.1 had it
        """Record the start of a socket."""
        self.heard.put_nowait(("register", session_ws_id, ws))
        return super().register(session_ws_id, ws)

    def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:
        """Record the end of a socket."""
        self.heard.put_nowait(("unregister", session_ws_id, ws))
        return super().unregister(session_ws_id, ws)


class AsyncWatching(Watching):
    """The same with coroutine functions that yield to the event loop first."""

    async def register(self, session_ws_id: Hashable, ws: SupportsClose) -> None:  # type: ignore[override]  # as 1.1.1 had it
        """Record the start of a socket."""
        await asyncio.sleep(0)
        Watching.register(self, session_ws_id, ws)

    async def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
        """Record the end of a socket."""
        await asyncio.sleep(0)
        Watching.unregister(self, session_ws_id, ws)


class TestMapping:
    def test_empty(self) -> None:
        """A registry without sockets is an empty mapping, but true in a boolean context."""
        registry = SessionWSRegistry()

        assert isinstance(registry, Mapping)
        assert registry
        assert len(registry) == 0
        assert list(registry) == []
        assert registry.get("a") is None
        assert "a" not in registry

    def test_setup_takes_an_empty_one(self) -> None:
        """``setup()`` keeps and returns the registry that it is given, though that is empty."""
        app = web.Application()
        registry = SessionWSRegistry()

        assert setup(app, registry) is registry
        assert app[REGISTRY_KEY] is registry

    def test_setup_makes_one(self) -> None:
        """``setup()`` without a registry makes a new one for each app."""
        one, other = web.Application(), web.Application()

        assert setup(one) is one[REGISTRY_KEY]
        assert setup(other) is not one[REGISTRY_KEY]

    async def test_missing(self) -> None:
        """Looking up an id without sockets raises ``KeyError``."""
        with pytest.raises(KeyError):
            _ = SessionWSRegistry()["a"]

    async def test_filled(self, started: Started) -> None:
        """The registry maps each id to its own sockets."""
        registry = await started(SessionWSRegistry())
        one, two, three = FullSocket(), PlainSocket(), SyncSocket()
        registry.register("a", one)
        registry.register("a", two)
        registry.register("b", three)

        assert len(registry)
        assert dict(registry) == {"a": frozenset({one, two}), "b": frozenset({three})}
        assert "a" in registry
        assert len(registry) == 2

    async def test_snapshots(self, started: Started) -> None:
        """A set of sockets that was looked up doesn't change later."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.register("a", ws)
        before = registry["a"]
        registry.register("a", FullSocket())

        assert isinstance(before, frozenset)
        assert before == {ws}
        assert len(registry["a"]) == 2

    async def test_iteration_while_it_changes(self, started: Started) -> None:
        """Ids may be added and removed during an iteration."""
        registry = await started(SessionWSRegistry())
        for name in "abc":
            registry.register(name, FullSocket())
        seen = []
        for session_ws_id in registry:
            seen.append(session_ws_id)
            registry.register((session_ws_id, "more"), FullSocket())
            for ws in registry[session_ws_id]:
                registry.unregister(session_ws_id, ws)

        assert seen == ["a", "b", "c"]
        assert list(registry) == [("a", "more"), ("b", "more"), ("c", "more")]

    async def test_served_sockets(self, aiohttp_client: AiohttpClient) -> None:
        """Served sockets are listed under the id of their session while they are open."""
        registry = Watching()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/"), client.ws_connect("/"):
            _, one, first = await registry.heard.get()
            _, other, second = await registry.heard.get()
            assert one == other  # the first handshake set the cookie
            assert registry[one] == {first, second}
        await registry.heard.get()
        await registry.heard.get()

        assert not len(registry)


class TestByHand:
    async def test_close_all_session(self, started: Started) -> None:
        """Sockets registered by hand are closed, with code and reason if ``close`` takes them."""
        registry = await started(SessionWSRegistry())
        full, plain, sync, other = FullSocket(), PlainSocket(), SyncSocket(), FullSocket()
        for ws in cast("list[SupportsClose]", [full, plain, sync]):
            registry.register("a", ws)
        registry.register("b", other)
        report = await registry.close_all_session("a", close=4000, reason="why")

        assert report == CloseReport(sockets=3)
        assert full.calls == sync.calls == [(4000, b"why")]
        assert plain.calls == [()]
        assert other.calls == []
        assert list(registry) == ["b"]

    @pytest.mark.parametrize(
        ("order", "code"), [("close_all_session", 4403), ("end_session", 4401)]
    )
    async def test_default_codes(self, order: str, code: int, started: Started) -> None:
        """Sockets registered by hand get the default close code of the order."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.register("a", ws)
        report = await getattr(registry, order)("a")

        assert report == CloseReport(sockets=1)
        assert [call[0] for call in ws.calls] == [code]
        assert not len(registry)

    async def test_close_all(self, started: Started) -> None:
        """``close_all()`` closes the sockets of all sessions."""
        registry = await started(SessionWSRegistry())
        sockets = [FullSocket() for _ in range(3)]
        for number, ws in enumerate(sockets):
            registry.register(number, ws)
        report = await registry.close_all(close=4001, reason="bye")

        assert report == CloseReport(sockets=3)
        assert [ws.calls for ws in sockets] == [[(4001, b"bye")]] * 3
        assert not len(registry)

    async def test_nothing_to_close(self, started: Started) -> None:
        """An order that matches no socket reports 0 sockets."""
        registry = await started(SessionWSRegistry())

        assert await registry.close_all_session("a") == CloseReport()
        assert await registry.close_all() == CloseReport()

    async def test_second_order(self, started: Started) -> None:
        """A socket that is closed already isn't closed again by further orders."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.register("a", ws)
        await asyncio.gather(registry.close_all_session("a"), registry.close_all())
        await registry.close_all()

        assert len(ws.calls) == 1

    async def test_fails(self, caplog: pytest.LogCaptureFixture, started: Started) -> None:
        """A socket whose ``close`` raises is logged and removed; the others are closed."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.register("a", FailingSocket())
        registry.register("a", ws)
        report = await registry.close_all_session("a")

        assert report == CloseReport(sockets=2, aborted=1)
        assert len(ws.calls) == 1
        assert not len(registry)
        assert "no such pipe" in caplog.text

    async def test_hangs(self, started: Started) -> None:
        """A socket whose ``close`` hangs is given up after the close timeout."""
        registry = await started(SessionWSRegistry(timeouts=Timeouts(close=SOON)))
        ws = FullSocket()
        registry.register("a", HangingSocket())
        registry.register("a", ws)
        async with asyncio.timeout(PATIENCE):
            report = await registry.close_all_session("a")

        assert report.sockets == 2
        assert report.aborted  # on a very slow machine the other is late as well
        assert len(ws.calls) == 1
        assert not len(registry)

    async def test_twice(self, started: Started) -> None:
        """Registering a socket twice changes nothing."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.register("a", ws)
        registry.register("a", ws)

        assert registry["a"] == {ws}
        assert await registry.close_all() == CloseReport(sockets=1)
        assert len(ws.calls) == 1

    async def test_unregister(self, started: Started) -> None:
        """An unregistered socket is not closed by an order."""
        registry = await started(SessionWSRegistry())
        ws, other = FullSocket(), FullSocket()
        registry.register("a", ws)
        registry.register("a", other)
        registry.unregister("a", ws)
        assert registry["a"] == {other}

        registry.unregister("a", other)
        assert not len(registry)
        await registry.close_all()
        assert ws.calls == other.calls == []

    async def test_unregister_unknown(self, started: Started) -> None:
        """Unregistering an unknown socket is no error."""
        registry = await started(SessionWSRegistry())
        ws = FullSocket()
        registry.unregister("a", ws)
        registry.register("a", ws)
        registry.unregister("a", FullSocket())
        registry.unregister("b", ws)

        assert registry["a"] == {ws}

    @pytest.mark.parametrize(("session_ws_id", "match"), [(None, "None"), ([], "hashable")])
    async def test_bad_id(self, session_ws_id: Any, match: str, started: Started) -> None:
        """An invalid id is refused with an error that says why."""
        registry = await started(SessionWSRegistry())
        with pytest.raises(InvalidSessionWSId, match=match):
            registry.register(session_ws_id, FullSocket())

        assert not len(registry)

    @pytest.mark.parametrize("order", ["close_all_session", "end_session"])
    @pytest.mark.parametrize("session_ws_id", [None, []])
    async def test_order_to_a_bad_id(
        self, order: str, session_ws_id: Any, started: Started
    ) -> None:
        """An order to an invalid id is refused."""
        registry = await started(SessionWSRegistry())
        with pytest.raises(InvalidSessionWSId):
            await getattr(registry, order)(session_ws_id)

    async def test_beside_served_ones(self, aiohttp_client: AiohttpClient) -> None:
        """An order closes served sockets and those registered by hand."""
        registry = Watching()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws:
            _, session_ws_id, _ = await registry.heard.get()
            by_hand = FullSocket()
            registry.register(session_ws_id, by_hand)
            report = asyncio.create_task(registry.close_all_session(session_ws_id))
            await expect_close(ws, 4403)

        assert await report == CloseReport(sockets=2)
        assert len(by_hand.calls) == 1

    async def test_shutdown(self, aiohttp_client: AiohttpClient) -> None:
        """The app's shutdown closes sockets registered by hand, even if one of them fails."""
        registry = SessionWSRegistry()
        client = await aiohttp_client(make_app(registry))
        ws = FullSocket()
        registry.register("a", FailingSocket())
        registry.register("a", ws)
        await client.close()

        assert [call[0] for call in ws.calls] == [1001]
        assert not len(registry)


class TestOverrides:
    @pytest.mark.parametrize("cls", [Watching, AsyncWatching])
    async def test_called(self, aiohttp_client: AiohttpClient, cls: type[Watching]) -> None:
        """Overrides, sync or async, are called for a served socket and for its end."""
        registry = cls()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/"):
            name, session_ws_id, ws = await registry.heard.get()
            assert name == "register"
            assert isinstance(ws, web.WebSocketResponse)
            assert registry == {session_ws_id: frozenset({ws})}

        async with asyncio.timeout(PATIENCE):
            assert await registry.heard.get() == ("unregister", session_ws_id, ws)
        assert registry.heard.empty()
        assert not len(registry)

    @pytest.mark.parametrize("cls", [Watching, AsyncWatching])
    async def test_called_at_an_order(
        self, aiohttp_client: AiohttpClient, cls: type[Watching]
    ) -> None:
        """An ``unregister`` override is called once for a socket that an order closed."""
        registry = cls()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws:
            _, session_ws_id, served = await registry.heard.get()
            order = asyncio.create_task(registry.end_session(session_ws_id))
            await expect_close(ws, 4401)
        await order

        assert await registry.heard.get() == ("unregister", session_ws_id, served)
        assert registry.heard.empty()

    async def test_unregister_when_cancelled(self, aiohttp_client: AiohttpClient) -> None:
        """An ``unregister`` override isn't cancelled when the server cancels the handler."""
        heard: asyncio.Queue[BaseException | None] = asyncio.Queue()

        class Registry(SessionWSRegistry):
            async def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
                error: BaseException | None = None
                try:
                    for _ in range(100):  # aiohttp cancels in one of the loop's next iterations
                        await asyncio.sleep(0)
                except asyncio.CancelledError as exc:
                    error = exc
                    raise
                finally:
                    heard.put_nowait(error)

        client = await aiohttp_client(make_app(Registry()), handler_cancellation=True)
        async with client.ws_connect("/") as ws:
            await ws.send_str("there?")
            await ws.receive_str(timeout=PATIENCE)

        assert await asyncio.wait_for(heard.get(), PATIENCE) is None

    @pytest.mark.parametrize("late", [False, True])
    async def test_register_raises(self, aiohttp_client: AiohttpClient, late: bool) -> None:
        """A ``register`` override that raises closes the socket with 1011; nothing is left."""
        failure = RuntimeError("no broker")

        class Registry(Watching):
            def register(self, session_ws_id: Hashable, ws: Any) -> Awaitable[None] | None:  # type: ignore[override]  # as 1.1.1 had it
                if late:
                    return self._fail()
                raise failure

            async def _fail(self) -> None:
                await asyncio.sleep(0)
                raise failure

        registry = Registry()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws:
            await expect_close(ws, 1011)
        await registry.heard.get()

        assert not len(registry)

    async def test_unregister_raises(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An ``unregister`` override that raises is logged; the socket is removed nonetheless."""
        raised = asyncio.Event()

        class Registry(SessionWSRegistry):
            async def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
                asyncio.get_running_loop().call_soon(raised.set)
                raise RuntimeError("no broker")

        registry = Registry()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/"):
            pass
        await asyncio.wait_for(raised.wait(), PATIENCE)
        await client.close()

        assert not len(registry)
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
            "unregister() failed"
        ]

    async def test_slow_unregister(self, aiohttp_client: AiohttpClient) -> None:
        """An ``unregister`` override that hangs is given up after the close timeout."""

        class Registry(SessionWSRegistry):
            async def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
                await asyncio.Event().wait()

        registry = Registry(timeouts=Timeouts(close=SOON))
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws, asyncio.timeout(PATIENCE):
            order = asyncio.create_task(registry.close_all())
            await expect_close(ws, 4403)
            report = await order

        assert report.sockets == 1
        assert not len(registry)

    async def test_order_during_register(self, aiohttp_client: AiohttpClient) -> None:
        """A socket that an order closes during ``register`` never gets to its handler's body."""
        entered, closed, ran = asyncio.Event(), asyncio.Event(), False

        class Registry(SessionWSRegistry):
            async def register(self, session_ws_id: Hashable, ws: SupportsClose) -> None:  # type: ignore[override]  # as 1.1.1 had it
                entered.set()
                await closed.wait()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            nonlocal ran
            async with session_ws(request) as ws:
                ran = True
            return ws

        registry = Registry()
        app = make_app(registry)
        app.router.add_get("/handler", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/handler") as ws:
            await entered.wait()
            order = asyncio.create_task(registry.close_all())
            await expect_close(ws, 4403)
            closed.set()
        await order

        assert not ran
        assert not len(registry)

    async def test_ignored_override(self, aiohttp_client: AiohttpClient) -> None:
        """An override needn't call the base method: the registry tracks sockets without it."""

        class Registry(SessionWSRegistry):
            def register(self, session_ws_id: Hashable, ws: SupportsClose) -> None:  # type: ignore[override]  # as 1.1.1 had it
                pass

            def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> None:
                pass

        registry = Registry()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws:
            await ws.send_str("there?")
            await ws.receive_str(timeout=PATIENCE)
            assert len(registry) == 1
            order = asyncio.create_task(registry.close_all())
            await expect_close(ws, 4403)
        assert await order == CloseReport(sockets=1)

        assert not len(registry)

    async def test_live_socket_stays(self, aiohttp_client: AiohttpClient) -> None:
        """``unregister()`` doesn't remove a socket that ``session_ws`` still serves."""
        registry = Watching()
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/") as ws:
            _, session_ws_id, served = await registry.heard.get()
            assert isinstance(served, web.WebSocketResponse)
            registry.unregister(session_ws_id, served)
            assert registry[session_ws_id] == {served}

            order = asyncio.create_task(registry.close_all_session(session_ws_id))
            await expect_close(ws, 4403)
        assert await order == CloseReport(sockets=1)


class TestInsideTheHandler:
    @pytest.mark.parametrize("order", ["close_all_session", "end_session"])
    async def test_own_session(self, aiohttp_client: AiohttpClient, order: str) -> None:
        """A handler's order to its own session doesn't wait for that handler, which continues."""
        registry = Watching()
        reports: asyncio.Queue[CloseReport] = asyncio.Queue()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                report = await getattr(registry, order)(await registry.get_id(request))
            reports.put_nowait(report)
            return ws

        app = make_app(registry)
        app.router.add_get("/handler", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/handler") as ws:
            await expect_close(ws, 4403 if order == "close_all_session" else 4401)

        assert await asyncio.wait_for(reports.get(), PATIENCE) == CloseReport(sockets=1)

    async def test_lost_socket_is_explained(self, aiohttp_client: AiohttpClient) -> None:
        """A handler that sends to a socket closed by order fails with ``SessionWSClosed``."""
        raised: asyncio.Queue[BaseException] = asyncio.Queue()
        closed = asyncio.Event()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            try:
                async with session_ws(request) as ws:
                    await closed.wait()
                    await ws.send_str("too late")
            except SessionWSClosed as exc:
                raised.put_nowait(exc)
                raise
            return ws

        registry = Watching()
        app = make_app(registry)
        app.router.add_get("/handler", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/handler") as ws:
            order = asyncio.create_task(registry.close_all())
            await expect_close(ws, 4403)
            closed.set()
            error = await asyncio.wait_for(raised.get(), PATIENCE)
        await order

        assert isinstance(error.__cause__, ConnectionError)


def test_supports_close() -> None:
    """Sockets with a sync or async ``close``, with arguments or without, may be registered."""
    sockets: Iterable[SupportsClose] = [FullSocket(), PlainSocket(), SyncSocket()]

    assert all(ws.close for ws in sockets)


async def test_details_fit(aiohttp_client: AiohttpClient) -> None:
    """``OpenDetails`` has the session id and the socket that the mapping has."""
    registry = SessionWSRegistry()
    opened: asyncio.Queue[OpenDetails] = asyncio.Queue()
    registry.on_open.append(opened.put)
    client = await aiohttp_client(make_app(registry))
    async with client.ws_connect("/"):
        details = await opened.get()

        assert registry[details.session_ws_id] == {details.ws}
