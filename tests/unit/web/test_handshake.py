"""
The handshake: admission, the responses to refused clients, and clean-up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp_session
import pytest
from aiohttp import WSMsgType, web
from aiohttp_session import SimpleCookieStorage

from aiohttp_session_ws import (
    REGISTRY_KEY,
    HandshakeRefused,
    SessionWSRegistry,
    session_ws,
    session_ws_middleware,
    setup,
)
from aiohttp_session_ws.close_codes import GOING_AWAY
from aiohttp_session_ws.exceptions import SessionWSClosed
from aiohttp_session_ws.sessions import close_orders
from aiohttp_session_ws.signals import FailDetails
from tests.support import (
    COOKIE,
    QUICK,
    AiohttpClient,
    Client,
    RawPeer,
    Turnstile,
    converse,
    cookie_of,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import inspect, opening


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(timeouts=QUICK)


def is_empty(registry: SessionWSRegistry) -> bool:
    return not len(registry) and not opening(registry)


def without_our_middleware(registry: SessionWSRegistry) -> web.Application:
    app = make_app(registry)
    app.middlewares.remove(session_ws_middleware)
    return app


class TestGate:
    @pytest.mark.parametrize("path", ["/ws", "/bare"])
    async def test_a_plain_get(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, path: str
    ) -> None:
        """A plain GET of a websocket endpoint gets 400 and a hint, and nothing is registered."""
        app = make_app(registry)
        app.router.add_get("/bare", converse)
        client = await aiohttp_client(app)
        response = await client.get(path)
        text = await response.text()
        report = await registry.close_all()

        assert response.status == 400
        assert "Upgrade: websocket" in text
        assert report.sockets == 0
        assert is_empty(registry)

    async def test_a_broken_handshake(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A malformed handshake gets 400 and no cookie, and nothing is registered."""
        client = await aiohttp_client(make_app(registry))
        response = await client.get("/ws", headers={"Upgrade": "websocket"})

        assert response.status == 400
        assert is_empty(registry)
        assert "Set-Cookie" not in response.headers


class TestMinting:
    async def test_a_new_visitor(self, aiohttp_client: AiohttpClient) -> None:
        """A handshake without a session gets a new one with its 101."""
        client = await aiohttp_client(make_app())
        async with client.ws_connect("/ws") as ws:
            id_ = (await ws.receive()).json()[0]
            cookie = cookie_of(client)
        async with client.get("/whoami", headers={"Cookie": cookie}) as response:
            seen = await response.json()

        assert seen["id"] == id_

    async def test_a_session_that_is_older_than_the_installation(
        self, aiohttp_client: AiohttpClient
    ) -> None:
        """A session that holds data keeps it when the handshake adds an id."""
        client = await aiohttp_client(make_app())
        cookies = {COOKIE: '{"created": 9999999999, "session": {"user": "ann"}}'}
        client.session.cookie_jar.update_cookies(cookies)
        async with client.ws_connect("/ws") as ws:
            id_, user = (await ws.receive()).json()

        assert (bool(id_), user) == (True, "ann")

    async def test_one_that_changes_meanwhile(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A session that changes during its handshake isn't overwritten with the older copy."""
        stored = [{"created": 9999999999, "session": {"user": "ann"}}]

        class ServerSide(SimpleCookieStorage):
            saved = False

            async def load_session(self, request: web.Request) -> aiohttp_session.Session:
                data: aiohttp_session.SessionData = stored[-1]  # type: ignore[assignment]  # test data
                return aiohttp_session.Session("key", data=data, new=False)

            async def save_session(self, *args: object) -> None:
                self.saved = True

        async def log_out_elsewhere(request: web.Request) -> bool:
            stored.append({"created": 9999999999, "session": {}})
            return True

        storage = ServerSide()
        inspect(registry).authorize = log_out_elsewhere
        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws") as ws:
            code = await expect_close(ws)

        assert (code, storage.saved) == (4403, False)
        assert is_empty(registry)

    @pytest.mark.parametrize("at", ["authorize", "the second load"])
    async def test_one_that_ends_meanwhile(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, at: str
    ) -> None:
        """A session that ends and changes during its handshake gets 4401, and isn't saved."""

        async def end() -> None:
            (connection,) = opening(registry)
            await registry.end_session(connection.session_ws_id)

        class ServerSide(SimpleCookieStorage):
            loads = 0
            saved = False

            async def load_session(self, request: web.Request) -> aiohttp_session.Session:
                self.loads += 1
                if self.loads == 2 and at == "the second load":
                    await end()
                user = "nobody" if self.loads == 2 and at == "authorize" else "ann"
                data: Any = {"created": 9999999999, "session": {"user": user}}
                return aiohttp_session.Session("key", data=data, new=False)

            async def save_session(self, *args: object) -> None:
                self.saved = True

        async def authorize(request: web.Request) -> bool:
            if at == "authorize":
                await end()
            return True

        storage = ServerSide()
        inspect(registry).authorize = authorize
        client = await aiohttp_client(make_app(registry, storage))
        async with client.ws_connect("/ws") as ws:
            code = await expect_close(ws)

        assert (code, storage.saved) == (4401, False)
        assert is_empty(registry)

    @pytest.mark.parametrize("with_middleware", [True, False])
    async def test_a_failed_handshake_saves_nothing(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, *, with_middleware: bool
    ) -> None:
        """A refused handshake sets no cookie: the id it was given is discarded."""
        inspect(registry).authorize = lambda request: False
        app = make_app(registry) if with_middleware else without_our_middleware(registry)
        client = await aiohttp_client(app)
        peer = await RawPeer.connect(client.make_url("/ws"))
        head = await peer.read_head()

        assert head.startswith(b"HTTP/1.1 403")
        assert b"Set-Cookie" not in head
        peer.close()


class TestRefusals:
    @pytest.mark.parametrize(("order", "code"), [("end_session", 4401), ("/renew", 4403)])
    async def test_a_page_sees_a_close_code(
        self,
        aiohttp_client: AiohttpClient,
        registry: SessionWSRegistry,
        order: str,
        code: int,
    ) -> None:
        """With the middleware a refused handshake is accepted and closed with a code."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        cookie = cookie_of(client)
        if order == "end_session":
            await registry.end_session(id_)
        else:
            await client.get(order)
        client.session.cookie_jar.clear()
        async with client.ws_connect(
            "/ws", headers={"Cookie": cookie}, protocols=["chat", "other"]
        ) as ws:
            protocol = ws.protocol

            assert await expect_close(ws) == code
        assert protocol == "chat"
        assert is_empty(registry)

    async def test_the_refused_who_never_answers(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A refused client that never answers the close frame is disconnected."""
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        await registry.end_session(id_)
        peer = await RawPeer.open(client.make_url("/ws"), cookie_of(client))

        assert await peer.closed() == 4401
        peer.close()

    async def test_without_the_middleware(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """Without the middleware the handler gets an HTTPForbidden with the close code."""
        seen: list[HandshakeRefused] = []

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                return await converse(request)
            except HandshakeRefused as exc:
                seen.append(exc)
                raise

        app = without_our_middleware(registry)
        app.router.add_get("/own", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/ws") as ws:
            id_ = (await ws.receive()).json()[0]
        await registry.end_session(id_)
        response = await RawPeer.connect(client.make_url("/own"), cookie_of(client))

        assert (await response.read_head()).startswith(b"HTTP/1.1 403")
        assert seen[0].close.code == 4401
        response.close()


class TestInTheMiddle:
    """Events between the first byte of a handshake and its end."""

    async def hold_authorize(self, registry: SessionWSRegistry) -> Turnstile:
        held = Turnstile()
        held.shut = True

        async def authorize(request: web.Request) -> bool:
            await held()
            return True

        inspect(registry).authorize = authorize
        return held

    async def test_the_client_vanishes(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry
    ) -> None:
        """A client that disconnects during its handshake leaves nothing registered."""
        held = await self.hold_authorize(registry)
        failed: list[FailDetails] = []

        @registry.on_fail
        async def note(details: FailDetails) -> None:
            failed.append(details)

        client = await aiohttp_client(make_app(registry))
        peer = await RawPeer.connect(client.make_url("/ws"))
        await held.arrived.wait()
        assert opening(registry)
        peer.vanish()
        (handshake,) = opening(registry)
        await until(lambda: handshake.transport is not None and handshake.transport.is_closing())
        held.let()
        await until(lambda: failed)

        assert is_empty(registry)

    @pytest.mark.parametrize("order", ["close", "end", "shutdown"])
    async def test_an_order_before_the_upgrade(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, order: str
    ) -> None:
        """An order before the upgrade refuses a handshake, which isn't in the public registry."""
        held = await self.hold_authorize(registry)
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        peer = await RawPeer.connect(client.make_url("/ws"), cookie_of(client))
        await held.arrived.wait()
        assert not len(registry)
        if order == "close":
            report = await registry.close_all_session(id_)
            assert report.handshakes == 1
        elif order == "end":
            report = await registry.end_session(id_)
            assert (report.sockets, report.handshakes) == (0, 1)
        else:
            inspect(registry).drainer.refuses = True
            (connection,) = opening(registry)
            connection.reject(GOING_AWAY)
        held.let()
        head = await peer.read_head()

        if order == "shutdown":
            assert head.startswith(b"HTTP/1.1 503")
        else:
            assert await peer.closed() == (4403 if order == "close" else 4401)
        peer.close()

    @pytest.mark.parametrize("with_middleware", [True, False])
    async def test_an_order_during_prepare(
        self, aiohttp_client: AiohttpClient, registry: SessionWSRegistry, *, with_middleware: bool
    ) -> None:
        """An order during prepare() closes the socket before the body of its handler runs."""
        preparing = Turnstile()
        preparing.shut = True
        entered: list[web.WebSocketResponse] = []
        raised: list[BaseException] = []

        async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
            if isinstance(response, web.WebSocketResponse):
                await preparing()

        async def handler(request: web.Request) -> web.WebSocketResponse:
            try:
                async with session_ws(request) as ws:
                    entered.append(ws)
            except SessionWSClosed as exc:
                raised.append(exc)
                return exc.response
            return ws

        app = make_app(registry) if with_middleware else without_our_middleware(registry)
        app.router.add_get("/own", handler)
        app.on_response_prepare.append(on_prepare)
        client = await aiohttp_client(app)
        id_ = await (await client.get("/login")).text()
        peer = await RawPeer.connect(client.make_url("/own"), cookie_of(client))
        await preparing.arrived.wait()
        if id_ == "None":
            await registry.close_all()
        else:
            await registry.end_session(id_)
        preparing.let()

        assert (await peer.read_head()).startswith(b"HTTP/1.1 101")
        assert await peer.closed() == (4403 if id_ == "None" else 4401)
        assert entered == []
        assert len(raised) == 1
        assert is_empty(registry)
        peer.close()

    async def test_an_order_during_the_register_hook(self, aiohttp_client: AiohttpClient) -> None:
        """A register() that takes its time doesn't hide the socket from orders."""
        held = Turnstile()
        held.shut = True

        class Registry(SessionWSRegistry):
            gone = False

            async def register(self, session_ws_id: object, ws: object) -> None:  # type: ignore[override]  # as 1.1.1 had it
                await held()

            async def unregister(self, session_ws_id: object, ws: object) -> None:
                self.gone = True

        registry = Registry(timeouts=QUICK)
        client = await aiohttp_client(make_app(registry))
        id_ = await (await client.get("/login")).text()
        async with client.ws_connect("/ws") as ws:
            await held.arrived.wait()
            ending = asyncio.ensure_future(registry.end_session(id_))
            message = await ws.receive()
            held.let()
            await ending

        assert (message.type, message.data) == (WSMsgType.CLOSE, 4401)
        assert registry.gone
        assert is_empty(registry)

    async def test_a_very_old_handshake(
        self, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handshake that took longer than orders are kept is closed with 4403, to reconnect."""
        client = await aiohttp_client(make_app())
        await client.get("/login")
        monkeypatch.setattr(close_orders, "HANDSHAKE_LIMIT", 0.0)
        async with client.ws_connect("/ws") as ws:
            code = await expect_close(ws)

        assert code == 4403


class TestOptions:
    async def test_are_passed_on(self, aiohttp_client: AiohttpClient) -> None:
        """Options for aiohttp's websocket response are passed on to it."""

        async def handler(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request, protocols=("graphql-ws",), compress=False) as ws:
                await ws.send_str(f"{ws.ws_protocol} {ws.compress}")
            return ws

        app = make_app()
        app.router.add_get("/options", handler)
        client = await aiohttp_client(app)
        async with client.ws_connect("/options", protocols=["graphql-ws"]) as ws:
            message = await ws.receive()

        assert message.data == "graphql-ws 0"

    async def test_a_frame_behind_the_handshake(self, aiohttp_client: AiohttpClient) -> None:
        """A message that a client sends before it receives the 101 is delivered."""
        client = await aiohttp_client(make_app())
        peer = await RawPeer.connect(client.make_url("/ws"))
        await peer.say(1, b"early")
        await peer.read_head()
        await peer.frame()

        assert await peer.frame() == (1, b"early")
        peer.close()


class TestMisuse:
    async def test_without_setup(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The error without setup() names the missing call."""
        app = web.Application()
        app.router.add_get("/ws", converse)
        client = await aiohttp_client(app)
        response = await client.get("/ws")

        assert response.status == 500
        assert "call aiohttp_session_ws.setup(app" in caplog.text

    async def test_an_id_that_cannot_be_hashed(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An id that can't be hashed gets 500, and nothing is registered."""
        registry = SessionWSRegistry(id_factory=lambda request: ["list"])  # type: ignore[arg-type, return-value]  # that's the point
        client = await aiohttp_client(make_app(registry))
        peer = await RawPeer.connect(client.make_url("/ws"))
        head = await peer.read_head()
        peer.close()
        await client.server.close()

        assert head.startswith(b"HTTP/1.1 500")
        assert "hashable" in caplog.text
        assert is_empty(registry)

    async def test_the_default_registry(self, aiohttp_client: AiohttpClient) -> None:
        """setup() uses the registry that it is given, even an empty one, else creates one."""
        app = web.Application()
        own = SessionWSRegistry()

        assert setup(app, own) is own
        assert app[REGISTRY_KEY] is app["aiohttp_session_ws_registry"] is own
        assert setup(web.Application()) is not own

    async def test_nothing_is_logged_for_a_normal_day(
        self, aiohttp_client: AiohttpClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Opening, talking, logging out and leaving log no warning."""
        client = await aiohttp_client(make_app())
        await _a_day(client)

        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def _a_day(client: Client) -> None:
    await client.get("/login")
    async with client.ws_connect("/ws") as ws:
        await ws.receive()
        await ws.send_str("x")
        await ws.receive()
    async with client.ws_connect("/ws") as ws:
        await client.get("/out/end_session_ws")
        await expect_close(ws)
