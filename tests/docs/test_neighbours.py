"""
The recipes for tracing, error reports, identities and session storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import aiohttp_security
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp_session import SimpleCookieStorage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiohttp_session_ws import (
    REGISTRY_KEY,
    end_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from tests.support import PATIENCE, AiohttpClient, Client, cookie_of, expect_close, until
from tests.support.redis_servers import RedisServer

from .documents import blocks, run

_, _, TRACES, SENTRY, _, _, _, _, SECURITY, STORAGE = blocks("docs/works-with.rst", python=True)


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Echo each message, and raise on "fail"."""
    async with session_ws(request) as ws:
        async for message in ws:
            if message.data == "fail":
                raise RuntimeError("a handler's own error")
            await ws.send_str(message.data)
    return ws


async def enter(request: web.Request) -> web.Response:
    """Begin a session."""
    (await aiohttp_session.get_session(request))["user"] = "ann"
    return web.Response()


async def leave(request: web.Request) -> web.Response:
    """Log out."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def who(request: web.Request) -> web.Response:
    """Return the user who is logged in."""
    return web.json_response((await aiohttp_session.get_session(request)).get("user"))


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_get("/who", who)
    app.router.add_get("/ws", echo)
    app.router.add_get("/enter", enter)
    app.router.add_get("/leave", leave)


async def stale_after_log_out(client: Client) -> None:
    """Use a socket, log out, and try to open another one with the old cookie."""
    await client.get("/enter")
    cookie = cookie_of(client)
    ws = await client.ws_connect("/ws")
    await ws.send_str("hello")
    assert await ws.receive_str() == "hello"
    await client.get("/leave")
    assert await expect_close(ws) == 4401
    client.session.cookie_jar.clear()
    assert await expect_close(await client.ws_connect("/ws", headers={"Cookie": cookie})) == 4401


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # theirs
class TestTraces:
    @pytest.fixture
    def spans(self) -> Iterator[tuple[web.Application, InMemorySpanExporter]]:
        """Return an application whose spans are recorded."""
        server = pytest.importorskip(
            "opentelemetry.instrumentation.aiohttp_server",
            reason="opentelemetry-instrumentation-aiohttp-server isn't installed",
        )
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        app = run(TRACES)["traced"](provider)
        try:
            add_routes(app)
            yield app, exporter
        finally:
            server.AioHttpServerInstrumentor().uninstrument()
            provider.shutdown()

    async def test_a_log_out(
        self, aiohttp_client: AiohttpClient, spans: tuple[web.Application, InMemorySpanExporter]
    ) -> None:
        """Each websocket is a span with status 101 and no error, also after a log-out."""
        app, exporter = spans
        await stale_after_log_out(await aiohttp_client(app))
        await until(lambda: len(exporter.get_finished_spans()) == 4)

        found = exporter.get_finished_spans()
        statuses = [
            (span.attributes or {}).get("http.status_code") for span in found if "/ws" in span.name
        ]
        assert statuses == [101, 101]
        assert all(span.status.is_ok or span.status.is_unset for span in found)
        assert not [event for span in found for event in span.events]

    async def test_an_error(
        self, aiohttp_client: AiohttpClient, spans: tuple[web.Application, InMemorySpanExporter]
    ) -> None:
        """An exception of a handler is recorded on its span."""
        app, exporter = spans
        client = await aiohttp_client(app)
        ws = await client.ws_connect("/ws")
        await ws.send_str("fail")
        assert await expect_close(ws) == 1011
        await until(lambda: exporter.get_finished_spans())

        (span,) = exporter.get_finished_spans()
        assert [event.name for event in span.events] == ["exception"]


class TestSentry:
    @pytest.fixture
    def events(self) -> Iterator[list[dict[str, Any]]]:
        """Return the events that are sent to Sentry."""
        sentry_sdk = pytest.importorskip("sentry_sdk", reason="sentry-sdk isn't installed")
        found: list[dict[str, Any]] = []

        class Recorder(sentry_sdk.Transport):  # type: ignore[misc, name-defined]  # it may be missing
            def capture_envelope(self, envelope: Any) -> None:
                event = envelope.get_event()
                if event is not None:
                    found.append(event)

        run(SENTRY)["report_to"]("http://key@127.0.0.1/1", Recorder())
        yield found
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)

    async def test_what_is_one(
        self, aiohttp_client: AiohttpClient, events: list[dict[str, Any]]
    ) -> None:
        """An exception of a handler is an event; a log-out or a refused handshake is none."""
        sessions = aiohttp_session.session_middleware(SimpleCookieStorage())
        app = web.Application(middlewares=[sessions, session_ws_middleware])
        setup(app)
        add_routes(app)
        client = await aiohttp_client(app)
        await stale_after_log_out(client)
        with pytest.raises(Exception, match="403"):
            await client.ws_connect("/ws", headers={"Origin": "https://evil.example"})
        assert [event.get("message") or event["exception"] for event in events] == []

        ws = await client.ws_connect("/ws")
        await ws.send_str("fail")
        assert await expect_close(ws) == 1011
        await until(lambda: events)
        (event,) = events
        assert event["exception"]["values"][-1]["value"] == "a handler's own error"
        assert event["request"]["url"].endswith("/ws")


class People(aiohttp_security.AbstractAuthorizationPolicy):
    """Accept every identity."""

    async def authorized_userid(self, identity: str) -> str:
        return identity

    async def permits(
        self, identity: str | None, permission: str | Enum, context: object = None
    ) -> bool:
        return True


class TestSecurity:
    async def start(self, aiohttp_client: AiohttpClient, policy: object) -> Client:
        """Start an application with a policy, and log in."""
        app = run(SECURITY)["secured"](policy, People(), SimpleCookieStorage())
        add_routes(app)
        client = await aiohttp_client(app)
        await client.post("/login", params={"user": "ann"})
        return client

    async def test_session(self, aiohttp_client: AiohttpClient) -> None:
        """An identity kept in the session is seen to change: forget() is a log-out."""
        client = await self.start(aiohttp_client, aiohttp_security.SessionIdentityPolicy())
        cookie = cookie_of(client)
        ws = await client.ws_connect("/ws")
        await client.post("/logout")

        assert await expect_close(ws) == 4401
        client.session.cookie_jar.clear()
        stale = await client.ws_connect("/ws", headers={"Cookie": cookie})
        assert await expect_close(stale) == 4401

    async def test_cookies(self, aiohttp_client: AiohttpClient) -> None:
        """An identity kept in its own cookie isn't: forget() closes nothing, our log-out does."""
        client = await self.start(aiohttp_client, aiohttp_security.CookiesIdentityPolicy())
        ws = await client.ws_connect("/ws")
        await client.post("/logout")
        await ws.send_str("still there?")
        assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        await client.get("/leave")

        assert await expect_close(ws) == 4401


class TestStorage:
    async def test_side_by_side(
        self, aiohttp_client: AiohttpClient, redis_server: RedisServer
    ) -> None:
        """A log-out reaches another process that uses the same Redis for both."""
        clients = []
        for _ in range(2):
            app = await run(STORAGE)["both"](redis_server.url)
            add_routes(app)
            clients.append(await aiohttp_client(app))
        a, b = clients
        await a.get("/enter")
        cookie = cookie_of(a)
        ws = await b.ws_connect("/ws", headers={"Cookie": cookie})
        await a.get("/leave")

        assert await expect_close(ws) == 4401
        async with b.get("/who", headers={"Cookie": cookie}) as response:
            assert await response.json() is None

    async def test_deleted(self, aiohttp_client: AiohttpClient, redis_server: RedisServer) -> None:
        """Deleting a session's key closes nothing; ending the session by its id does."""
        app = await run(STORAGE)["both"](redis_server.url)
        add_routes(app)
        client = await aiohttp_client(app)
        await client.get("/enter")
        ws = await client.ws_connect("/ws")
        (key,) = await redis_server.cli("KEYS", "AIOHTTP_SESSION*")
        await redis_server.cli("DEL", key)
        await ws.send_str("still there?")
        assert await ws.receive_str(timeout=PATIENCE) == "still there?"
        (session_ws_id,) = app[REGISTRY_KEY]
        await app[REGISTRY_KEY].end_session(session_ws_id)

        assert await expect_close(ws) == 4401
