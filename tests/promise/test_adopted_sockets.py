"""
A websocket that another library has opened ends with its session.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp_session import AbstractStorage

from aiohttp_session_ws import Close, Limits, NotSetUp, SessionWSRegistry, registry_from
from aiohttp_session_ws.exceptions import SessionWSClosed
from tests.promise.conftest import Serve
from tests.promise.site import DEAD, OUT, Site, user_of
from tests.support import (
    PATIENCE,
    QUICK,
    AiohttpClient,
    RawPeer,
    Stopwatch,
    TlsPeer,
    Turnstile,
    expect_close,
    make_app,
    until,
)
from tests.support.inspect import connections, idle, inspect, opening
from tests.support.slow_peers import narrow, unsent

BOUND = QUICK.close + QUICK.handler_grace + 1.0  # seconds


class Foreign:
    """
    Views of another library, which open their websockets themselves.

    Attributes:
        running: The number of handlers inside their ``adopt()`` block.
        errors: The exceptions that ended the others.
        stop: Set to end a stubborn handler.
        cancelled: How many times a stubborn handler was cancelled.
    """

    def __init__(self) -> None:
        self.running = self.cancelled = 0
        self.stop = asyncio.Event()
        self.errors: list[BaseException] = []

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        """Open a websocket, send its user, and echo."""
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await self._adopt(request, ws, self._echo(ws))
        return ws

    async def deaf(self, request: web.Request) -> web.WebSocketResponse:
        """Open a websocket and never read."""
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await self._adopt(request, ws, asyncio.Event().wait())
        return ws

    async def flood(self, request: web.Request) -> web.WebSocketResponse:
        """Open a websocket and send without end."""
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await self._adopt(request, ws, self._flood(ws))
        return ws

    async def stubborn(self, request: web.Request) -> web.WebSocketResponse:
        """Open a websocket and ignore cancellation until stopped."""
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await self._adopt(request, ws, self._stay())
        return ws

    async def _adopt(self, request: web.Request, ws: web.WebSocketResponse, rest: Any) -> None:
        try:
            async with registry_from(request).adopt(request, ws):
                self.running += 1
                try:
                    await ws.send_json({"user": await user_of(request), "id": ""})
                    await rest
                finally:
                    self.running -= 1
        except BaseException as exc:
            rest.close()
            self.errors.append(exc)
            raise

    async def _echo(self, ws: web.WebSocketResponse) -> None:
        async for message in ws:
            await ws.send_str(message.data)

    async def _flood(self, ws: web.WebSocketResponse) -> None:
        while True:
            await ws.send_bytes(bytes(65536))

    async def _stay(self) -> None:
        while not self.stop.is_set():
            try:
                await self.stop.wait()
            except asyncio.CancelledError:
                self.cancelled += 1

    def views(self) -> dict[str, Any]:
        """Return the views by path."""
        names = {"/gql": self.echo, "/deaf": self.deaf, "/flood": self.flood}
        return {**names, "/stubborn": self.stubborn}


@pytest.fixture
def foreign() -> Foreign:
    """Views of another library."""
    return Foreign()


async def gone(site: Site, foreign: Foreign) -> None:
    """Wait until no handler runs and the registry keeps nothing."""
    core = inspect(site.registry)
    await until(lambda: not (foreign.running or connections(site.registry)))
    await until(lambda: idle(site.registry))
    assert not core.connections.orphans()
    assert not core.connections.lineages.size
    assert not opening(site.registry)


class TestOrders:
    @pytest.mark.parametrize("path", [*OUT, "/everywhere"])
    async def test_a_log_out(
        self, serve: Serve, storage: AbstractStorage, foreign: Foreign, path: str
    ) -> None:
        """Any log-out closes an adopted socket with the same code as one of ``session_ws()``."""
        site = await serve(storage, foreign.views(), identify=user_of)
        browser = await site.logged_in()
        stale = browser.cookie
        ours, theirs = await browser.open(), await browser.open("/gql")
        await browser.get(path)

        assert await ours.code() == await theirs.code()
        await gone(site, foreign)
        assert await site.knock(stale, "/gql") in site.shut(await _told(site, stale))

    async def test_it_works_meanwhile(self, serve: Serve, foreign: Foreign) -> None:
        """An adopted socket is served by its library, listed, and skipped by pushes."""
        site = await serve(None, foreign.views(), identify=user_of)
        socket = await (await site.logged_in()).open("/gql")
        registry = site.registry

        assert await socket.lives()
        assert (await registry.send_identity("ann", "news")).sockets == 0
        assert len(await registry.connections(identity="ann")) == 1
        (connection,) = connections(registry)
        assert registry[connection.session_ws_id] == {connection.ws}
        await socket.ws.close()
        await gone(site, foreign)
        assert not foreign.errors

    @pytest.mark.parametrize("path", ["/gql", "/deaf"])
    async def test_a_client_that_does_not_answer(
        self, serve: Serve, foreign: Foreign, path: str
    ) -> None:
        """A client that never answers the close is disconnected by the deadline."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        peer = await RawPeer.open(site.url.with_path(path), browser.cookie)
        await until(lambda: foreign.running)
        watch = Stopwatch()
        report = await site.registry.close_all()

        # aiohttp doesn't wait for the answer if the handler was receiving.
        assert (report.sockets, report.aborted) == (1, path == "/deaf")
        assert report.cancelled == (path == "/deaf")
        assert watch.stop() < BOUND
        await gone(site, foreign)
        peer.close()

    @pytest.mark.parametrize("path", ["/gql", "/deaf"])
    async def test_a_client_that_vanishes(self, serve: Serve, foreign: Foreign, path: str) -> None:
        """The handler of a client that vanishes ends."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        peer = await RawPeer.open(site.url.with_path(path), browser.cookie)
        await until(lambda: foreign.running)
        peer.vanish()

        await gone(site, foreign)

    async def test_a_close_without_a_code(self, serve: Serve, foreign: Foreign) -> None:
        """A close frame without a code is counted as 1005, as RFC 6455 defines it."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        peer = await RawPeer.open(site.url.with_path("/gql"), browser.cookie)
        await until(lambda: foreign.running)
        await peer.send(b"\x88\x80mask")  # an empty close frame

        await gone(site, foreign)
        assert site.registry.stats().closes == {("client", 1005): 1}
        peer.close()

    async def test_the_shutdown(self, serve: Serve, foreign: Foreign) -> None:
        """The shutdown closes an adopted socket with 1001."""
        site = await serve(None, foreign.views())
        socket = await (await site.logged_in()).open("/gql")
        stopping = asyncio.ensure_future(inspect(site.registry).shut_down())

        assert await socket.code() == 1001
        await stopping


class TestRudeClients:
    async def test_one_that_stops_reading(self, serve: Serve, foreign: Foreign) -> None:
        """A client that stops reading is cut off at the deadline, and its handler ends."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        peer = await RawPeer.open(
            site.url.with_path("/flood"), browser.cookie, receive_buffer=4096
        )
        await until(lambda: connections(site.registry))
        (connection,) = connections(site.registry)
        narrow(connection)
        await until(lambda: unsent(connection) > 50_000)
        watch = Stopwatch()
        report = await site.registry.end_session(connection.session_ws_id)

        assert (report.sockets, report.aborted) == (1, 1)
        assert watch.stop() < BOUND
        await gone(site, foreign)
        peer.close()

    async def test_one_that_keeps_its_half_open(self, serve: Serve, foreign: Foreign) -> None:
        """A client that reads the close frame but never closes is cut off."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        peer = await RawPeer.open(site.url.with_path("/deaf"), browser.cookie)
        await peer.frame()
        watch = Stopwatch()
        (connection,) = connections(site.registry)
        ending = asyncio.ensure_future(site.registry.end_session(connection.session_ws_id))

        assert await peer.closed() == DEAD
        await ending
        assert watch.stop() < BOUND
        await gone(site, foreign)
        peer.close()

    @pytest.mark.parametrize("path", ["/gql", "/deaf", "/flood"])
    async def test_over_tls(
        self, aiohttp_client: AiohttpClient, tls: ssl.SSLContext, foreign: Foreign, path: str
    ) -> None:
        """A client that never answers TLS's close_notify is cut off."""
        registry = SessionWSRegistry(timeouts=QUICK)
        app = make_app(registry)
        for name, view in foreign.views().items():
            app.router.add_get(name, view)
        client = await aiohttp_client(app, tls=tls)
        peer = await TlsPeer.open(client.make_url(path))
        await until(lambda: foreign.running)
        watch = Stopwatch()
        report = await registry.close_all()

        assert report.sockets == 1
        assert watch.stop() < BOUND
        await until(lambda: not (foreign.running or connections(registry)))
        peer.close()

    async def test_a_handler_that_does_not_leave(self, serve: Serve, foreign: Foreign) -> None:
        """An order doesn't wait for a handler that ignores cancellation; its socket closes."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()
        socket = await browser.open("/stubborn")
        watch = Stopwatch()
        report = await site.registry.close_all()

        assert (report.sockets, report.cancelled) == (1, 1)
        assert watch.stop() < BOUND
        assert await socket.code() == 4403
        await until(lambda: foreign.cancelled)
        foreign.stop.set()
        await gone(site, foreign)


async def _told(site: Site, cookie: str) -> int:
    """Return the code with which a handshake of ``session_ws()`` is closed."""
    told = await site.knock(cookie)
    return told if isinstance(told, int) else DEAD


class TestRefusals:
    async def _refused(self, site: Site, cookie: str, **headers: str) -> int:
        async with site.thief.ws_connect(
            site.url.with_path("/gql"), headers={"Cookie": cookie, **headers}
        ) as ws:
            return await expect_close(ws)

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"authorize": lambda _: False}, 1008),
            ({"authorize": lambda _: Close(4000, "not you")}, 4000),
        ],
    )
    async def test_by_the_registry(
        self, serve: Serve, foreign: Foreign, options: dict[str, Any], code: int
    ) -> None:
        """A refusal closes the socket with a code and raises SessionWSClosed in the handler."""
        site = await serve(None, foreign.views(), **options)
        browser = await site.logged_in()

        assert await self._refused(site, browser.cookie) == code
        await gone(site, foreign)
        assert [type(exc) for exc in foreign.errors] == [SessionWSClosed]

    @pytest.mark.parametrize(
        ("limits", "code"),
        [(Limits(per_session=1, on_limit="refuse"), 4429), (Limits(total=1), 1001)],
    )
    async def test_by_a_limit(
        self, serve: Serve, foreign: Foreign, limits: Limits, code: int
    ) -> None:
        """An adopted socket above a limit is closed with a code; the first stays open."""
        site = await serve(None, foreign.views(), limits=limits)
        browser = await site.logged_in()
        first = await browser.open()

        assert await self._refused(site, browser.cookie) == code
        assert await first.lives()
        await first.ws.close()
        await gone(site, foreign)

    async def test_a_foreign_page(self, serve: Serve, foreign: Foreign) -> None:
        """A foreign Origin is refused, though the other library has not checked it."""
        site = await serve(None, foreign.views())
        browser = await site.logged_in()

        assert await self._refused(site, browser.cookie, Origin="http://evil.example") == 1008
        await gone(site, foreign)

    async def test_an_end_while_it_opens(self, serve: Serve, foreign: Foreign) -> None:
        """An identity that ends during ``authorize`` closes the socket with 4401."""
        asked = Turnstile()

        async def authorize(request: web.Request) -> bool:
            await asked()
            return True

        site = await serve(None, foreign.views(), authorize=authorize, identify=user_of)
        browser = await site.logged_in()
        asked.shut = True
        knocking = asyncio.ensure_future(self._refused(site, browser.cookie))
        async with asyncio.timeout(PATIENCE):
            await asked.arrived.wait()
        await site.registry.end_identity("ann")
        asked.let()

        assert await knocking == DEAD
        await gone(site, foreign)

    async def test_before_it_is_prepared(self, serve: Serve) -> None:
        """Adopting a websocket that isn't prepared raises an error that says so."""
        errors: list[Exception] = []

        async def early(request: web.Request) -> web.Response:
            try:
                async with registry_from(request).adopt(request, web.WebSocketResponse()):
                    pass
            except NotSetUp as exc:
                errors.append(exc)
            return web.Response()

        site = await serve(None, {"/early": early})
        await (await site.logged_in()).get("/early")

        assert "after ws.prepare()" in str(errors[0])


class TestSessions:
    async def test_no_id_is_saved(
        self, serve: Serve, storage: AbstractStorage, foreign: Foreign
    ) -> None:
        """An id created for an adopted socket is not saved: the handshake is answered already."""
        saved: list[object] = []
        save = storage.save_session

        async def note(request: web.Request, response: Any, session: Any) -> None:
            saved.append(response)
            await save(request, response, session)

        storage.save_session = note  # type: ignore[method-assign]
        site = await serve(storage, foreign.views())
        browser = await site.browser()
        socket = await browser.open("/gql")
        (connection,) = connections(site.registry)
        report = await site.registry.end_session(connection.session_ws_id)

        assert not saved
        assert not browser.cookie
        assert report.sockets == 1
        assert await socket.code() == DEAD

    async def test_no_warning(
        self, serve: Serve, foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An adopted socket causes no warning about unregistered websockets."""
        caplog.set_level(logging.WARNING)
        site = await serve(None, foreign.views())
        socket = await (await site.logged_in()).open("/gql")
        await socket.ws.close()
        await gone(site, foreign)
        await (await site.browser()).get()

        assert not caplog.records

    async def test_a_log_out_by_its_own_handler(self, serve: Serve) -> None:
        """A handler that ends its own session is neither waited for nor cancelled."""
        done: list[int] = []

        async def leave(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            async with registry_from(request).adopt(request, ws) as connection:
                assert (await ws.receive()).type is WSMsgType.TEXT
                report = await site.registry.end_session(connection.session_ws_id)
                done.append(report.cancelled)
            return ws

        site = await serve(None, {"/leave": leave})
        browser = await site.logged_in()
        ws = await browser.session.ws_connect(site.url.with_path("/leave"))
        await ws.send_str("out")

        assert await expect_close(ws) == DEAD
        await until(lambda: done == [0])
        assert await browser.user() is None
