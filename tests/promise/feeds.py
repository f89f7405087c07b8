"""
Streaming views and their clients.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from aiohttp import ClientPayloadError, ClientResponse, hdrs, web
from yarl import URL

from aiohttp_session_ws import SessionWSRegistry, session_stream
from tests.promise.site import Browser, Site
from tests.support import PATIENCE, RawPeer, until
from tests.support.inspect import idle, inspect

EVENTS = {"Accept": "text/event-stream"}


class Feed:
    """
    A view that sends a greeting and then streams until it is stopped.

    Attributes:
        running: The number of handlers inside their block.
        cancelled: The number of handlers that were cancelled.
    """

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send a greeting, then nothing."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        async with session_stream(request, response):
            await response.prepare(request)
            await response.write(b"data: hello\n\n")
            await self._run(asyncio.Event().wait())
        return response

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Send without end."""
        response = web.StreamResponse()
        async with session_stream(request, response):
            await response.prepare(request)
            await self._run(flood(response))
        return response

    async def _run(self, waiting: object) -> None:
        self.running += 1
        try:
            await waiting  # type: ignore[misc]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def gone(self, registry: SessionWSRegistry) -> None:
        """Wait until no handler runs, and the registry keeps nothing."""
        held = inspect(registry).connections

        def left() -> bool:
            return bool(self.running or held.open.size or held.orphans() or held.lineages.size)

        await until(lambda: idle(registry) and not left())


async def flood(response: web.StreamResponse) -> None:
    while True:
        await response.write(b"x" * 100_000)


async def listen(browser: Browser, path: str = "/events") -> ClientResponse:
    """Open a stream, and read its first event."""
    response = await browser.session.get(browser.site.url.join(URL(path)))
    assert response.status == 200, await response.text()
    assert await response.content.readline() == b"data: hello\n"
    return response


async def status_of(site: Site, cookie: str, path: str = "/events", **headers: str) -> int:
    """Request a stream with a copied cookie; return the status, and close."""
    async with site.thief.get(
        site.url.join(URL(path)), headers={"Cookie": cookie, **headers}
    ) as response:
        response.close()
        return response.status


async def ended(response: ClientResponse) -> bool:
    """Wait for the end of a stream; return whether the server has cut it off."""
    async with asyncio.timeout(PATIENCE):
        try:
            await response.content.read()
        except ClientPayloadError:
            return True
        finally:
            response.close()
    return False


class Reader(RawPeer):
    """A client of a stream that reads only on demand."""

    @classmethod
    async def get(cls, site: Site, path: str, cookie: str) -> Self:
        """Send a request; read nothing beyond what the system buffers."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        assert site.url.host is not None
        assert site.url.port is not None
        await asyncio.get_running_loop().sock_connect(sock, (site.url.host, site.url.port))
        peer = cls(sock)
        head = f"GET {path} HTTP/1.1\r\n{hdrs.HOST}: {site.url.authority}\r\nCookie: {cookie}\r\n"
        await peer.send(head.encode() + b"\r\n")
        return peer
