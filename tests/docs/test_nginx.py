"""
The guide's nginx configuration in front of an application.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import ClientSession, CookieJar, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestServer
from yarl import URL

from aiohttp_session_ws import SessionWSRegistry, session_stream, session_ws
from tests.support import PATIENCE, RawPeer, expect_close, make_app, until, user_of
from tests.support.inspect import connections
from tests.support.processes import Process, free_port

from .documents import blocks

*_, CONFIGURATION = blocks("docs/works-with.rst", python=False)
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
READ_TIMEOUT = 3  # seconds: shorter than the guide's, so that the test needn't wait for a minute

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx isn't installed")


class Site(NamedTuple):
    """An nginx, its URL, and a browser that uses it."""

    url: URL
    browser: ClientSession
    nginx: Process

    async def reload(self) -> None:
        """Reload as ``nginx -s reload`` does."""
        mark = self.nginx.mark
        os.kill(self.nginx.pid, signal.SIGHUP)
        await self.nginx.said("start worker process ", after=mark)

    def cookie(self) -> str:
        """Return the browser's cookie as a header."""
        (cookie,) = self.browser.cookie_jar
        return f"{cookie.key}={cookie.coded_value}"


async def pinged(request: web.Request) -> web.WebSocketResponse:
    """Open a socket that pings its client often."""
    async with session_ws(request, heartbeat=READ_TIMEOUT / 3) as ws:
        async for _ in ws:
            pass
    return ws


async def events(request: web.Request) -> web.StreamResponse:
    """Send one event, then nothing."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    async with session_stream(request, response):
        await response.prepare(request)
        await response.write(b"data: hello\n\n")
        await until(lambda: request.transport is None)
    return response


async def forwarded(request: web.Request) -> web.Response:
    """Return the headers in which nginx describes the client."""
    names = ("Host", "X-Forwarded-For", "X-Forwarded-Proto")
    return web.json_response({name: request.headers.get(name) for name in names})


@pytest.fixture
def registry() -> SessionWSRegistry:
    return SessionWSRegistry(identify=user_of)


@pytest.fixture
async def site(
    aiohttp_server: Callable[..., Awaitable[TestServer]],
    registry: SessionWSRegistry,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Site]:
    """Run an application behind nginx; a parameter is added to the configuration."""
    app = make_app(registry)
    app.router.add_get("/pinged", pinged)
    app.router.add_get("/events", events)
    app.router.add_get("/forwarded", forwarded)
    server: TestServer = await aiohttp_server(app)
    port = free_port()
    text = CONFIGURATION.replace("listen 80;", f"listen 127.0.0.1:{port};")
    text = text.replace("http://127.0.0.1:8080", f"http://127.0.0.1:{server.port}")
    text = text.replace("proxy_read_timeout 60s", f"proxy_read_timeout {READ_TIMEOUT}s")
    temporary = "\n".join(
        f"{name}_temp_path {tmp_path};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr notice; worker_processes 1;\n"
        f"{getattr(request, 'param', '')}\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{text}\n}}"
    )
    assert NGINX is not None
    nginx = Process("nginx", [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    nginx.launch()
    try:
        await nginx.said("start worker process ")
        url = URL(f"http://127.0.0.1:{port}")
        async with ClientSession(url, cookie_jar=CookieJar(unsafe=True)) as browser:
            yield Site(url, browser, nginx)
    finally:
        await nginx.stop()  # its worker goes with it


async def test_a_log_out(site: Site, registry: SessionWSRegistry) -> None:
    """A log-out through nginx closes the socket that was opened through it."""
    origin = {"Origin": str(site.url)}
    await site.browser.get("/login")
    ws = await site.browser.ws_connect("/ws", headers=origin)
    await ws.receive(timeout=PATIENCE)
    cookie = site.cookie()
    await site.browser.get("/out/end_session_ws")

    assert await expect_close(ws) == 4401
    await until(lambda: not connections(registry))
    site.browser.cookie_jar.clear()
    stale = {**origin, "Cookie": cookie}
    assert await expect_close(await site.browser.ws_connect("/ws", headers=stale)) == 4401


async def test_foreign_page(site: Site) -> None:
    """A handshake from a page of another site gets a 403."""
    with pytest.raises(WSServerHandshakeError) as caught:
        await site.browser.ws_connect("/ws", headers={"Origin": "https://evil.example"})
    assert caught.value.status == 403


async def test_what_is_forwarded(site: Site) -> None:
    """The application receives the host with its port, the client's address and the scheme."""
    async with site.browser.get("/forwarded") as response:
        headers = await response.json()
    assert headers == {
        "Host": response.url.authority,
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Proto": "http",
    }


async def test_read_timeout(site: Site) -> None:
    """Pings keep a socket without messages open for longer than nginx's timeout."""
    ws = await site.browser.ws_connect("/pinged", autoping=False)
    for _ in range(4):  # for longer than the timeout
        assert (await ws.receive(timeout=PATIENCE)).type is WSMsgType.PING
        await ws.pong()
    await ws.close()


async def test_stream(site: Site, registry: SessionWSRegistry) -> None:
    """An event is forwarded at once; a silent stream is cut by nginx, and then unregistered."""
    async with site.browser.get("/events") as stream:
        assert await stream.content.readline() == b"data: hello\n"
        await until(lambda: not connections(registry))


async def test_vanished(site: Site, registry: SessionWSRegistry) -> None:
    """The socket of a client that vanished is unregistered."""
    await site.browser.get("/login")
    peer = await RawPeer.open(site.url / "ws", site.cookie())
    await peer.frame()
    peer.vanish()

    await until(lambda: not connections(registry))


async def test_reload(site: Site, registry: SessionWSRegistry) -> None:
    """A socket survives a reload of nginx with its old worker, and a log-out closes it there."""
    await site.browser.get("/login")
    # A client that reads answers pings.
    old = asyncio.ensure_future(expect_close(await site.browser.ws_connect("/pinged")))
    await site.reload()
    new = asyncio.ensure_future(expect_close(await site.browser.ws_connect("/pinged")))
    assert len(connections(registry)) == 2
    await site.browser.get("/out/end_session_ws")

    assert (await old, await new) == (4401, 4401)
    await until(lambda: not connections(registry))


@pytest.mark.parametrize("site", ["worker_shutdown_timeout 1s;"], indirect=True)
async def test_reload_within_a_time(site: Site, registry: SessionWSRegistry) -> None:
    """The sockets of an old worker with a shutdown timeout are closed and unregistered."""
    await site.browser.get("/login")
    ws = await site.browser.ws_connect("/pinged")
    reading = asyncio.ensure_future(ws.receive())  # it answers pings until it is cut
    assert len(connections(registry)) == 1
    await site.reload()

    await until(lambda: not connections(registry))
    await asyncio.gather(reading, return_exceptions=True)
    await ws.close()
