"""
Test application with log-in and log-out views, and its clients: browsers with cookie jars, and a
thief who replays copied cookies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http.cookies import SimpleCookie
from typing import Any, NamedTuple, Self

import aiohttp_session
from aiohttp import (
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    ClientWSTimeout,
    CookieJar,
    DummyCookieJar,
    WSMsgType,
    WSServerHandshakeError,
    web,
)
from aiohttp.test_utils import make_mocked_request
from aiohttp_session import AbstractStorage
from aiohttp_session.redis_storage import RedisStorage
from yarl import URL

from aiohttp_session_ws import (
    SessionWSRegistry,
    delete_session_ws_id,
    end_identity_ws,
    end_session_ws,
    get_session_ws_id,
    new_session_ws_id,
    renew_session_ws,
    schedule_close_all_session_ws,
    session_ws,
    session_ws_middleware,
    setup,
)
from tests.support import PATIENCE, Turnstile, until

View = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEAD = 4401  # the close code of an ended session
AGAIN = 4403  # the close code that asks to reconnect
BOUND = ClientTimeout(total=PATIENCE)


async def user_of(request: web.Request) -> str | None:
    """Return the user that the log-in wrote into the session."""
    user: str | None = (await aiohttp_session.get_session(request)).get("user")
    return user


async def page(request: web.Request) -> web.Response:
    """Return the session's data and its id as JSON."""
    session = await aiohttp_session.get_session(request)
    data = {key: value for key, value in session.items() if not key.startswith("aiohttp_")}
    return web.json_response({**data, "id": await get_session_ws_id(request)})


async def converse(request: web.Request) -> web.WebSocketResponse:
    """Send the user and the id of the socket, then echo."""
    async with session_ws(request) as ws:
        user, session_ws_id = await user_of(request), await get_session_ws_id(request)
        await ws.send_json({"user": user, "id": session_ws_id})
        async for message in ws:
            await ws.send_str(message.data)
    return ws


async def log_in(request: web.Request) -> web.Response:
    """Log in by writing the user into the session, without calling the library."""
    (await aiohttp_session.get_session(request))["user"] = request.query.get("user", "ann")
    return web.Response()


async def log_in_and_renew(request: web.Request) -> web.Response:
    """Log in, and renew the id."""
    response = await log_in(request)
    await renew_session_ws(request, response)
    return response


async def log_in_anew(request: web.Request) -> web.Response:
    """Log in with ``new_session()``."""
    await aiohttp_session.new_session(request)
    return await log_in(request)


async def log_in_refilled(request: web.Request) -> web.Response:
    """Log in by emptying the session and filling it again, an idiom against session fixation."""
    (await aiohttp_session.get_session(request)).invalidate()
    return await log_in(request)


async def write(request: web.Request) -> web.Response:
    """Put the query into the session."""
    (await aiohttp_session.get_session(request)).update(request.query)
    return web.Response()


async def out_by_helper(request: web.Request) -> web.Response:
    """Log out with ``end_session_ws()``."""
    response = web.Response()
    await end_session_ws(request, response)
    return response


async def out_by_pattern(request: web.Request) -> web.Response:
    """Log out by the pattern in the README of 1.1.1."""
    response = web.HTTPFound("/page")
    await schedule_close_all_session_ws(request, response)
    await aiohttp_session.new_session(request)
    await new_session_ws_id(request)
    raise response


async def out_by_invalidate(request: web.Request) -> web.Response:
    """Log out with ``invalidate()``, without calling the library."""
    (await aiohttp_session.get_session(request)).invalidate()
    return web.Response()


async def out_by_new_session(request: web.Request) -> web.Response:
    """Log out with ``new_session()``, without calling the library."""
    await aiohttp_session.new_session(request)
    return web.Response()


async def out_by_del(request: web.Request) -> web.Response:
    """Delete the user from the session and keep everything else."""
    del (await aiohttp_session.get_session(request))["user"]
    return web.Response()


async def everywhere(request: web.Request) -> web.Response:
    """Log out everywhere."""
    response = web.Response()
    await end_identity_ws(request, response)
    return response


async def renew(request: web.Request) -> web.Response:
    """Renew the session with ``renew_session_ws()``."""
    response = web.Response()
    await renew_session_ws(request, response)
    return response


async def new_id(request: web.Request) -> web.Response:
    """Give the session another id with the helper of 1.1.1."""
    await new_session_ws_id(request)
    return web.Response()


async def delete_id(request: web.Request) -> web.Response:
    """Delete the id from the session."""
    await delete_session_ws_id(request)
    return web.Response()


async def only_close(request: web.Request) -> web.Response:
    """Close the sockets without ending the session."""
    response = web.Response()
    await schedule_close_all_session_ws(request, response)
    return response


VIEWS: dict[str, View] = {
    "/page": page,
    "/ws": converse,
    "/login": log_in,
    "/login/renew": log_in_and_renew,
    "/login/new": log_in_anew,
    "/login/refill": log_in_refilled,
    "/write": write,
    "/out/helper": out_by_helper,
    "/out/pattern": out_by_pattern,
    "/out/invalidate": out_by_invalidate,
    "/out/new_session": out_by_new_session,
    "/out/del": out_by_del,
    "/everywhere": everywhere,
    "/renew": renew,
    "/new_id": new_id,
    "/delete_id": delete_id,
    "/close": only_close,
}

OUT = ("/out/helper", "/out/pattern", "/out/invalidate", "/out/new_session")


async def reached(gate: Turnstile) -> None:
    """Wait until a request is waiting at *gate*."""
    async with asyncio.timeout(PATIENCE):
        await gate.arrived.wait()


class Answer(NamedTuple):
    """The response to a page request."""

    status: int
    body: str
    saved: bool  # whether the response sets a cookie

    @property
    def data(self) -> Any:
        """Return the body, decoded from JSON."""
        return json.loads(self.body)


class Site:
    """
    A running application with all of the views above.

    While :attr:`gate` is shut, a request waits there if its query says so: ``?at=start`` before
    its handler runs, ``?at=end`` after the handler has returned and before anything is settled.
    """

    def __init__(self, registry: SessionWSRegistry, storage: AbstractStorage) -> None:
        self.registry = registry
        self.storage = storage
        self.gate = Turnstile()
        self.latest: web.Request | None = None
        self.stack = contextlib.AsyncExitStack()
        self.url = URL()
        self.thief: ClientSession

    async def start(
        self,
        views: Mapping[str, View],
        *,
        middleware: bool = True,
        handler_cancellation: bool = False,
        outer: Callable[..., Any] | None = None,
    ) -> Self:
        """Start the server; *outer* is a middleware outside of all others."""
        middlewares = [aiohttp_session.session_middleware(self.storage)]
        if outer is not None:
            middlewares.insert(0, outer)
        if middleware:
            middlewares.append(session_ws_middleware)
        app = web.Application(middlewares=[*middlewares, self._wait])
        setup(app, self.registry)
        for path, view in {**VIEWS, **views}.items():
            app.router.add_route("*", path, view)
        await self.serve(app, handler_cancellation=handler_cancellation)
        return self

    async def serve(self, app: web.Application, **options: Any) -> None:
        """Serve *app* as ``run_app()`` does."""
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2, **options)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = URL.build(scheme="http", host="127.0.0.1", port=runner.addresses[0][1])
        self.thief = await self.stack.enter_async_context(
            ClientSession(cookie_jar=DummyCookieJar(), timeout=BOUND)
        )

    async def browser(self, cookie: str = "") -> Browser:
        """Create a browser whose jar holds *cookie*."""
        jar = CookieJar(unsafe=True)
        if cookie:
            jar.update_cookies(SimpleCookie(cookie), self.url)
        session = ClientSession(cookie_jar=jar, timeout=BOUND)
        return Browser(self, await self.stack.enter_async_context(session))

    async def logged_in(self, how: str = "/login/renew", user: str = "ann") -> Browser:
        """Create a browser that has visited a page and logged in."""
        browser = await self.browser()
        await browser.get("/write?lang=de")
        await browser.get(f"{how}?user={user}")
        return browser

    async def replay(self, cookie: str, path: str = "/page", **headers: str) -> Answer:
        """Send a request with a copied cookie; discard the cookies of the response."""
        headers = {"Cookie": cookie, **headers}
        async with self.thief.get(
            self.url.join(URL(path)), headers=headers, allow_redirects=False
        ) as response:
            return Answer(response.status, await response.text(), bool(response.cookies))

    async def seen(self, cookie: str) -> str | None:
        """Return the user that a page reports for *cookie*."""
        user: str | None = (await self.replay(cookie)).data.get("user")
        return user

    async def knock(self, cookie: str, path: str = "/ws", **headers: str) -> str | int | None:
        """
        Try to open a socket with *cookie*, then close it.

        Returns:
            The user of the open socket (``None``: anonymous), the close code, or the HTTP status.
        """
        try:
            ws = await self.thief.ws_connect(
                self.url.join(URL(path)), headers={"Cookie": cookie, **headers}
            )
        except WSServerHandshakeError as exc:
            return exc.status
        async with ws:
            message = await ws.receive(timeout=PATIENCE)
            # An accepted socket may be closed before or after it has sent its user.
            if message.type is WSMsgType.TEXT:
                user: str | None = message.json()["user"]
                return user
            assert message.type is WSMsgType.CLOSE, message
            return int(message.data)

    async def presented(self, cookie: str) -> tuple[str | None, str | int | None]:
        """Return the results of a page request and of a handshake with *cookie*."""
        return await self.seen(cookie), await self.knock(cookie)

    def shut(self, code: int = DEAD) -> tuple[int | None, ...]:
        """
        Return the results that a handshake may have after a log-out.

        A server-side storage that was emptied loads a new session for the old cookie.
        """
        return (code, None) if isinstance(self.storage, RedisStorage) else (code,)

    def out(self, code: int = DEAD) -> tuple[tuple[None, int | None], ...]:
        """Return the results that page and handshake may have after a log-out."""
        return tuple((None, told) for told in self.shut(code))

    async def send(
        self, path: str, cookie: str, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request on a new connection; return its reader and writer."""
        assert self.url.host is not None
        reader, writer = await asyncio.open_connection(self.url.host, self.url.port)
        lines = {"Host": self.url.authority, "Cookie": cookie, **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        await writer.drain()
        return reader, writer

    async def vanish(self, path: str, cookie: str, gate: Turnstile | None = None) -> None:
        """Send a request that stops at *gate*; abort it, then open the gate."""
        gate = gate or self.gate
        gate.shut = True
        _, writer = await self.send(path, cookie)
        await reached(gate)
        request = self.latest
        assert request is not None
        writer.transport.abort()
        await until(lambda: request.transport is None)
        gate.let()

    @contextlib.asynccontextmanager
    async def held(
        self, browser: Browser, path: str, at: str = "end", *, lost: bool = False
    ) -> AsyncIterator[asyncio.Task[Answer]]:
        """Hold a request of *browser* at the gate; on exit, resume it and await its response."""
        self.gate.shut = True
        path += ("&" if "?" in path else "?") + f"at={at}"
        task = asyncio.ensure_future(browser.get(path, lost=lost))
        await reached(self.gate)
        self.gate.shut = False
        try:
            yield task
        finally:
            self.gate.let()
            await task

    @web.middleware
    async def _wait(self, request: web.Request, handler: View) -> web.StreamResponse:
        self.latest = request
        if request.query.get("at") == "start":
            await self.gate()
        try:
            return await handler(request)
        finally:
            if request.query.get("at") == "end":
                await self.gate()


WAITS = ClientWSTimeout(ws_close=0.1)  # a handler that never reads never answers the close


class Browser:
    """A client that keeps its cookies."""

    def __init__(self, site: Site, session: ClientSession) -> None:
        self.site = site
        self.session = session

    @property
    def cookie(self) -> str:
        """The ``Cookie`` header that the browser sends; a thief may copy it."""
        cookies = self.session.cookie_jar.filter_cookies(self.site.url)
        return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in cookies.items())

    async def get(self, path: str = "/page", *, lost: bool = False, **headers: Any) -> Answer:
        """Get a page; with *lost*, the cookies of the response never arrive."""
        if lost:
            return await self.site.replay(self.cookie, path, **headers)
        async with self.session.get(
            self.site.url.join(URL(path)), headers=headers, allow_redirects=False
        ) as response:
            return Answer(response.status, await response.text(), bool(response.cookies))

    async def user(self) -> str | None:
        """Return the user that a page reports for this browser."""
        user: str | None = (await self.get("/page")).data.get("user")
        return user

    async def open(self, path: str = "/ws") -> Socket:
        """Open a socket that must be accepted."""
        ws = await self.session.ws_connect(self.site.url.join(URL(path)), timeout=WAITS)
        self.site.stack.push_async_callback(ws.close)  # no effect if closed by then
        message = await ws.receive(timeout=PATIENCE)
        assert message.type is WSMsgType.TEXT, message
        hello = message.json()
        return Socket(ws, hello["user"], hello["id"])


class Socket(NamedTuple):
    """An open socket, with the user and the id that it sent."""

    ws: ClientWebSocketResponse
    user: str | None
    id: str

    async def code(self) -> int:
        """Wait for the close frame; return its code."""
        while True:
            message = await self.ws.receive(timeout=PATIENCE)
            if message.type is WSMsgType.CLOSE:
                return int(message.data)
            assert message.type is WSMsgType.TEXT, message

    async def lives(self) -> bool:
        """Return whether the socket is still served after pending orders had time to close it."""
        for _ in range(5):
            with contextlib.suppress(ConnectionError):
                await self.ws.send_str("still there?")
            message = await self.ws.receive(timeout=PATIENCE)
            if message.type is not WSMsgType.TEXT:
                return False
        return True


async def cookie_from_before(storage: AbstractStorage, **data: Any) -> str:
    """Return the cookie of a session saved before the library was installed."""
    response = web.Response()
    session = aiohttp_session.Session(None, data=None, new=True)
    session.update(data)
    await storage.save_session(make_mocked_request("GET", "/"), response, session)
    return "; ".join(f"{name}={m.coded_value}" for name, m in response.cookies.items())
