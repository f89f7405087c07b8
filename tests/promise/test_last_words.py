"""
A connection's last message before the close frame, and connections that take no pushes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from aiohttp_session_ws import Close, Connection, Expiry, Limits, WebSocket, websocket_handler
from tests.promise.conftest import Serve
from tests.promise.site import AGAIN, DEAD, Site, user_of
from tests.support import PATIENCE, QUICK, RawPeer, Stopwatch, until
from tests.support.inspect import connections, inspect
from tests.support.slow_peers import BLOCK, narrow, unsent

Words = Callable[[Close], str | bytes | None]


def speaking(words: Words, **options: Any) -> dict[str, Any]:
    """Return views of an endpoint that sends last words."""

    async def serve(ws: WebSocket) -> None:
        await ws.connect()
        ws.connection.last_words = words
        ws.connection.takes_pushes = options.get("takes_pushes", True)
        await ws.send_json({"user": ws.identity, "id": ws.session_ws_id})
        async for message in ws:
            if message == "go":
                return
            if message == "flood":
                await ws.send(BLOCK)

    return {"/words": websocket_handler(serve)}


def goodbye(close: Close) -> str:
    """Return a message with the close code."""
    return f"goodbye {close.code}"


async def said(ws: Any) -> list[Any]:
    """Read up to the close frame; return the messages, then the code."""
    found = []
    while True:
        message = await ws.receive(timeout=PATIENCE)
        found.append(message.data)
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return found


class TestLastWords:
    @pytest.mark.parametrize(
        ("how", "code"),
        [
            ("/out/helper", DEAD),
            ("/close", AGAIN),
            ("limit", 4429),
            ("lifetime", AGAIN),
            ("shutdown", 1001),
            ("drain", 1012),
            ("Connection.close", 4000),
        ],
    )
    async def test_before_the_close(self, serve: Serve, how: str, code: int) -> None:
        """Last words come right before the close frame, whatever closes the socket."""
        options: dict[str, Any] = {}
        if how == "limit":
            options = {"limits": Limits(per_session=1)}
        elif how == "lifetime":
            options = {"expiry": Expiry(max_lifetime=1.0)}
        site = await serve(None, speaking(goodbye), **options)
        browser = await site.logged_in()
        socket = await browser.open("/words")
        match how:
            case "limit":
                second = await browser.open("/words")
                await second.ws.close()
            case "shutdown":
                await inspect(site.registry).shut_down()
            case "drain":
                await site.registry.drain(0.0)
            case "Connection.close":
                await connections(site.registry)[0].close(4000)
            case "lifetime":
                pass
            case _:
                await browser.get(how)

        assert await said(socket.ws) == [f"goodbye {code}", code]

    @pytest.mark.parametrize("words", ["text", b"binary", "x" * 100_000])
    async def test_what_they_may_be(self, serve: Serve, words: str | bytes) -> None:
        """Last words are text or bytes of any length."""
        site = await serve(None, speaking(lambda _: words))
        socket = await (await site.logged_in()).open("/words")
        await site.registry.close_all()

        assert await said(socket.ws) == [words, AGAIN]

    async def test_none(self, serve: Serve) -> None:
        """Last words of ``None`` send nothing."""
        site = await serve(None, speaking(lambda _: None))
        socket = await (await site.logged_in()).open("/words")
        await site.registry.close_all()

        assert await said(socket.ws) == [AGAIN]

    @pytest.mark.parametrize("how", ["client", "handler"])
    async def test_no_order(self, serve: Serve, how: str) -> None:
        """A socket closed by its client or its handler sends no last words."""
        asked: list[Close] = []
        site = await serve(None, speaking(lambda close: asked.append(close)))
        socket = await (await site.logged_in()).open("/words")
        if how == "client":
            await socket.ws.close()
        else:
            await socket.ws.send_str("go")
            assert await said(socket.ws) == [1000]
        await until(lambda: not connections(site.registry))

        assert not asked

    async def test_an_error(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        """An exception from last words is logged, and the sockets close as usual."""

        def fail(close: Close) -> str:
            raise RuntimeError("no words")

        site = await serve(None, speaking(fail))
        browser = await site.logged_in()
        sockets = [await browser.open("/words") for _ in range(2)]
        await site.registry.close_all()

        assert [await said(socket.ws) for socket in sockets] == [[AGAIN]] * 2
        assert [record.levelname for record in caplog.records] == ["ERROR"] * 2

    @pytest.mark.parametrize("words", [17, ["no"]])
    async def test_no_words(
        self, serve: Serve, words: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Last words of a wrong type are logged, and the socket closes as usual."""
        site = await serve(None, speaking(lambda _: words))
        socket = await (await site.logged_in()).open("/words")
        await site.registry.close_all()

        assert await said(socket.ws) == [AGAIN]
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    async def test_a_peer_that_does_not_read(self, serve: Serve) -> None:
        """Last words delay no close if the send buffer of the peer is full."""
        asked: list[Close] = []

        def words(close: Close) -> str:
            asked.append(close)
            return "goodbye"

        site = await serve(None, speaking(words))
        browser = await site.logged_in()
        peer = await RawPeer.open(site.url / "words", browser.cookie, receive_buffer=4096)
        (connection,) = connections(site.registry)
        narrow(connection)
        await peer.say(1, b"flood")
        await until(lambda: unsent(connection) > 100_000)
        watch = Stopwatch()
        report = await site.registry.close_all()

        assert (report.aborted, [close.code for close in asked]) == (1, [AGAIN])
        assert watch.stop() < QUICK.close + QUICK.handler_grace + 1.0
        peer.close()


class TestTakesPushes:
    async def test_false(self, serve: Serve) -> None:
        """A connection that takes no pushes is skipped and not counted by them."""
        site = await serve(None, speaking(lambda _: None, takes_pushes=False), identify=user_of)
        browser = await site.logged_in()
        deaf, other = await browser.open("/words"), await browser.open()
        registry = site.registry
        for delivery in (
            await registry.send_session(other.id, "1"),
            await registry.send_identity("ann", "2"),
            await registry.broadcast("3"),
        ):
            assert (delivery.sockets, delivery.complete) == (1, True)
        assert [await other.ws.receive_str(timeout=PATIENCE) for _ in range(3)] == ["1", "2", "3"]
        await registry.close_all()

        assert await said(deaf.ws) == [AGAIN]

    async def test_who_looks(self, serve: Serve) -> None:
        """A connection that takes no pushes is listed, counted and closed as usual."""
        site = await serve(None, speaking(goodbye, takes_pushes=False), identify=user_of)
        socket = await (await site.logged_in()).open("/words")

        assert len(await site.registry.connections(identity="ann")) == 1
        assert (await site.registry.end_identity("ann")).sockets == 1
        assert await said(socket.ws) == [f"goodbye {DEAD}", DEAD]


class TestWebSocket:
    async def test_subprotocol_and_connection(self, serve: Serve) -> None:
        """A handler has the subprotocol and its connection, and sends bytes as text."""
        seen: list[tuple[str | None, Connection]] = []

        @websocket_handler
        async def chat(ws: WebSocket) -> None:
            await ws.connect("v2.chat")
            seen.append((ws.subprotocol, ws.connection))
            await ws.send_text("grüß dich".encode())
            await ws.send_text(b"")

        site = await serve(None, {"/chat": chat})
        browser = await site.logged_in()
        ws = await browser.session.ws_connect(site.url / "chat", protocols=["v2.chat"])

        assert await ws.receive_str(timeout=PATIENCE) == "grüß dich"
        assert await ws.receive_str(timeout=PATIENCE) == ""
        ((spoken, connection),) = seen
        assert (spoken, ws.protocol) == ("v2.chat", "v2.chat")
        assert isinstance(connection.ws, web.WebSocketResponse)

    async def test_no_subprotocol(self, serve: Serve) -> None:
        """The subprotocol is ``None`` if none was negotiated."""
        seen: list[str | None] = []

        @websocket_handler
        async def plain(ws: WebSocket) -> None:
            await ws.connect()
            seen.append(ws.subprotocol)

        site: Site = await serve(None, {"/plain": plain})
        browser = await site.logged_in()
        await said(await browser.session.ws_connect(site.url / "plain"))

        assert seen == [None]
