"""
Queries of connections, secrets in logs and reprs, calls from other threads, the heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web

from aiohttp_session_ws import NotSetUp, SessionWSError, SessionWSRegistry, session_ws
from aiohttp_session_ws._logging import fingerprint
from aiohttp_session_ws.exceptions import InvalidSessionWSId, WrongLoop
from aiohttp_session_ws.results import ConnectionInfo
from aiohttp_session_ws.signals import AuthDetails, CloseDetails, HandshakeDetails, OpenDetails
from aiohttp_session_ws.web import handshake
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Started,
    cookie_of,
    make_app,
    until,
    user_of,
)
from tests.support.inspect import connections, records

PING = 9


def beats_of(ws: web.WebSocketResponse) -> float | None:
    """Return the seconds between two pings; aiohttp has nothing public for that."""
    beats: float | None = vars(ws)["_heartbeat"]
    return beats


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of, timeouts=QUICK)


class TestConnections:
    async def test_whose(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """``connections()`` returns those of all, of a session, of an identity, or of both."""
        client = await aiohttp_client(make_app(registry))
        cookies = []
        for user in ("ann", "ann", "bob"):
            client.session.cookie_jar.clear()
            await client.get("/login", params={"user": user})
            cookies.append(cookie_of(client))
        client.session.cookie_jar.clear()
        sockets = [await client.ws_connect("/ws", headers={"Cookie": c}) for c in cookies]
        ids = [(await ws.receive()).json()[0] for ws in sockets]

        everybody = await registry.connections()
        assert [info.session_ws_id for info in everybody] == ids
        assert [info.identity for info in everybody] == ["ann", "ann", "bob"]
        assert everybody.complete
        assert await registry.count() == 3
        names = [info.id for info in everybody]
        for whose, expected in [
            ({"session": ids[2]}, names[2:]),
            ({"identity": "ann"}, names[:2]),
            ({"session": ids[0], "identity": "ann"}, names[:1]),
            ({"session": ids[0], "identity": "bob"}, []),
        ]:
            assert [info.id for info in await registry.connections(**whose)] == expected
        assert await registry.connections(session="nobody's") == ()
        assert await registry.connections(session=None) == ()
        assert await registry.connections(identity=None) == ()
        assert await registry.connections(identity="nobody") == ()
        for ws in sockets:
            await ws.close()
        await until(lambda: not len(registry))
        assert await registry.connections() == ()
        assert await registry.count() == 0

    async def test_info(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """A ``ConnectionInfo`` describes a connection, and doesn't change after its end."""
        client = await aiohttp_client(make_app(registry))
        before = time.time()
        async with client.ws_connect("/ws?token=secret") as ws, client.ws_connect("/ws") as other:
            await asyncio.gather(ws.receive(), other.receive())
            first, second = await registry.connections()

            assert first.remote == "127.0.0.1"
            assert first.path == "/ws"
            assert before - 1 <= first.opened_at <= second.opened_at <= time.time() + 1
            assert first.id != second.id
            assert (await registry.connections())[0].id == first.id
        await until(lambda: not len(registry))
        assert first.path == "/ws"
        with pytest.raises(AttributeError):
            first.path = "/"  # type: ignore[misc]  # that's the test

    async def test_idle(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """``idle`` counts the seconds since a socket last received a message."""
        client = await aiohttp_client(make_app(registry))
        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            loop = asyncio.get_running_loop()
            (connection,) = connections(registry)
            assert connection.opened_at is not None
            connection.opened_at -= 1000.0
            connection.ws.last_receive_at = loop.time() - 100.0
            (info,) = await registry.connections()
            assert info.idle == pytest.approx(100.0, abs=PATIENCE)
            await ws.send_str("still there?")
            await ws.receive()
            (info,) = await registry.connections()
            assert info.idle < 90.0

    async def test_by_hand(self, started: Started) -> None:
        """A socket that was registered by hand is listed, too."""

        class Thing:
            def close(self) -> None:
                pass

        registry = await started(SessionWSRegistry())
        registry.register("mine", Thing())
        (info,) = await registry.connections(session="mine")

        assert (info.remote, info.path, info.identity) == (None, "", None)

    async def test_in_flight(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake in progress is not listed."""
        seen: list[tuple[ConnectionInfo, ...]] = []

        async def authorize(request: web.Request) -> bool:
            seen.append(await mine.connections())
            seen.append(await mine.connections(identity="ann"))
            return True

        mine = SessionWSRegistry(identify=lambda request: "ann", authorize=authorize)
        client = await aiohttp_client(make_app(mine))
        async with client.ws_connect("/ws"):
            assert seen == [(), ()]

    @pytest.mark.parametrize(
        ("whose", "error"),
        [({"session": []}, InvalidSessionWSId), ({"identity": []}, SessionWSError)],
    )
    async def test_bad(
        self, whose: Any, error: type[Exception], registry: SessionWSRegistry, started: Started
    ) -> None:
        """An unhashable id or identity raises an error that says so."""
        await started(registry)
        with pytest.raises(error, match="hashable"):
            await registry.connections(**whose)

    @pytest.mark.parametrize("label", ["device", ("device",), ("device", "phone", 1)])
    async def test_bad_label(self, started: Started, label: Any) -> None:
        """A label that isn't a pair raises an error that says so."""
        registry = await started(SessionWSRegistry(labels=lambda request: {}))
        with pytest.raises(TypeError, match="label is a pair of a name and a value"):
            await registry.connections(label=label)


class TestNoSecrets:
    async def test_repr(self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry) -> None:
        """Neither the session id nor the identity is in the repr of details and infos."""
        details: list[Any] = []

        async def note(given: HandshakeDetails | AuthDetails | OpenDetails | CloseDetails) -> None:
            details.append(given)

        registry.on_handshake.append(note)
        registry.on_auth_success.append(note)
        registry.on_open.append(note)
        registry.on_close.append(note)
        client = await aiohttp_client(make_app(registry))
        await client.get("/login", params={"user": "ann-marie"})
        async with client.ws_connect("/ws") as ws:
            id_ = (await ws.receive()).json()[0]
            infos = await registry.connections()
        await until(lambda: len(details) == 4)

        assert [d.identity for d in details[1:]] == ["ann-marie"] * 3
        for text in (repr(infos), str(infos[0]), *map(repr, details)):
            assert id_ not in text
            assert "ann-marie" not in text
        assert fingerprint(id_) in repr(infos)
        assert fingerprint("ann-marie") in repr(infos)

    async def test_logs(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The log names the session of a handler that doesn't end by its fingerprint only."""
        caplog.set_level(logging.DEBUG, logger="aiohttp_session_ws")
        let = asyncio.Event()

        async def stubborn(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                while not let.is_set():
                    try:
                        await let.wait()
                    except asyncio.CancelledError:
                        continue
            return ws

        app = make_app(registry)
        app.router.add_get("/stubborn", stubborn)
        client = await aiohttp_client(app)
        await client.get("/login")
        id_ = (await (await client.get("/whoami")).json())["id"]
        async with client.ws_connect("/stubborn"):
            await registry.end_session(id_)
            try:
                await until(lambda: "is still running" in caplog.text)
            finally:
                let.set()

        assert fingerprint(id_) in caplog.text
        assert id_ not in caplog.text

    def test_fingerprint(self) -> None:
        """A fingerprint is the same in every process, and differs between different values."""
        assert fingerprint("ann") == "9e94bdeb0883"
        assert len({fingerprint(x) for x in ("7", 7, ("7",), b"7", None)}) == 5


Call = Callable[[SessionWSRegistry], Any]
CALLS: dict[str, Call] = {
    "close_all": lambda registry: registry.close_all(),
    "close_all_session": lambda registry: registry.close_all_session("x"),
    "close_all_identity": lambda registry: registry.close_all_identity("x"),
    "end_session": lambda registry: registry.end_session("x"),
    "end_identity": lambda registry: registry.end_identity("x"),
    "send_session": lambda registry: registry.send_session("x", "text"),
    "send_identity": lambda registry: registry.send_identity("x", "text"),
    "broadcast": lambda registry: registry.broadcast("text"),
    "send_session_json": lambda registry: registry.send_session_json("x", {}),
    "send_identity_json": lambda registry: registry.send_identity_json("x", {}),
    "broadcast_json": lambda registry: registry.broadcast_json({}),
    "connections": lambda registry: registry.connections(),
    "count": lambda registry: registry.count(),
}


class TestThreads:
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    async def test_another_loop(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, call: Call
    ) -> None:
        """A coroutine run in another thread's loop names the remedy and does nothing."""
        client = await aiohttp_client(make_app(registry))
        loop = asyncio.get_running_loop()

        async def foreign() -> None:
            await call(registry)

        async with client.ws_connect("/ws") as ws:
            await ws.receive()
            with ThreadPoolExecutor(1) as pool:
                with pytest.raises(WrongLoop, match=r"asyncio\.run_coroutine_threadsafe"):
                    await loop.run_in_executor(pool, asyncio.run, foreign())
                assert records(registry) == 0
                future = asyncio.run_coroutine_threadsafe(call(registry), loop)
                await loop.run_in_executor(pool, future.result, PATIENCE)

    async def test_register(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """``register()`` and ``unregister()`` raise in another thread, which has no loop."""
        await aiohttp_client(make_app(registry))
        loop = asyncio.get_running_loop()

        class Thing:
            def close(self) -> None:
                pass

        for function in (registry.register, registry.unregister):
            with ThreadPoolExecutor(1) as pool, pytest.raises(WrongLoop, match="thread"):
                await loop.run_in_executor(pool, function, "x", Thing())

    @pytest.mark.parametrize(
        "order", ["end_identity", "close_all_identity", "end_label", "close_all_label"]
    )
    async def test_orders_before_the_start(self, order: str) -> None:
        """An order before the start raises ``NotSetUp``, and not an error about an option."""
        registry = SessionWSRegistry()
        whom = ["device", "phone"] if "label" in order else ["ann"]
        with pytest.raises(NotSetUp, match="isn't started"):
            await getattr(registry, order)(*whom)

    async def test_after_the_end(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A registry whose application has ended may be used by another one, in another loop."""
        client = await aiohttp_client(make_app(registry))
        await client.close()
        with pytest.raises(NotSetUp, match="isn't started"):
            await registry.count()

        async def serve() -> int:
            runner = web.AppRunner(make_app(registry))
            await runner.setup()
            try:
                return await registry.count()
            finally:
                await runner.cleanup()

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, asyncio.run, serve()) == 0


class TestHeartbeat:
    async def test_default(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A peer that doesn't answer a ping is removed from the registry; its handler ends."""
        assert handshake.HEARTBEAT == 30.0
        monkeypatch.setattr(handshake, "HEARTBEAT", 0.1)
        left = asyncio.Event()

        async def beating(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request) as ws:
                try:
                    async for _ in ws:
                        pass
                finally:
                    left.set()
            return ws

        app = make_app(registry)
        app.router.add_get("/beating", beating)
        client = await aiohttp_client(app)
        peer = await RawPeer.open(client.make_url("/beating"))
        frame = await peer.frame()

        assert frame is not None
        assert frame[0] == PING
        await left.wait()
        await until(lambda: not len(registry))
        peer.close()

    async def test_own(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A ``heartbeat`` that the caller gives, also ``None``, overrides the default."""
        monkeypatch.setattr(handshake, "HEARTBEAT", 7.0)
        own: list[float | None] = [5.0, None]

        async def beating(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request, heartbeat=own.pop(0)) as ws:
                await ws.send_json(beats_of(ws))
            return ws

        app = make_app(registry)
        app.router.add_get("/beating", beating)
        client = await aiohttp_client(app)
        told = []
        for _ in range(2):
            async with client.ws_connect("/beating") as ws:
                told.append(await ws.receive_json(timeout=PATIENCE))

        assert told == [5.0, None]
