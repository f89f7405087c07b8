"""
The application of a world: real middlewares and storage, with gates wherever a request can wait.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Hashable

import aiohttp_session
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp_session import AbstractStorage, Session

from aiohttp_session_ws import (
    DEFAULT_SESSION_KEY,
    SessionEnded,
    SessionWSRegistry,
    WebSocket,
    session_stream,
    session_ws,
    session_ws_middleware,
    setup,
    websocket_handler,
)
from aiohttp_session_ws.exceptions import SessionWSClosed

from .actions import ACTIONS
from .exchange import Exchange
from .ledger import Content
from .oracle import Oracle

NUMBER = "X-Exchange"  # the header that identifies a request


class Observed(AbstractStorage):
    """A storage that can be paused at every step and reports each to the ledger.

    Args:
        inner: The storage.
        app: The application whose requests it serves.
    """

    def __init__(self, inner: AbstractStorage, app: App) -> None:
        super().__init__(cookie_name=inner.cookie_name, max_age=inner.max_age)
        self._inner = inner
        self._app = app

    async def new_session(self) -> Session:
        """Create a session."""
        return await self._inner.new_session()

    async def load_session(self, request: web.Request) -> Session:
        """Load the session, with a pause before and after."""
        ex = self._app.exchange_of(request)
        await ex.pass_gate("load")
        session = await self._inner.load_session(request)
        if ex.loaded is None:
            self._app.oracle.ledger.load(ex, copy.deepcopy(dict(session)))
        await ex.pass_gate("loaded")
        return session

    async def save_session(
        self, request: web.Request, response: web.StreamResponse, session: Session
    ) -> None:
        """Save the session, with a pause before and after."""
        ex = self._app.exchange_of(request)
        content = copy.deepcopy(dict(session))
        self._app.oracle.ledger.save(ex, content)
        await ex.pass_gate("save")
        await self._inner.save_session(request, response, session)
        cookie = response.cookies.get(self.cookie_name)
        if cookie is not None and cookie.value:
            self._app.keep_copy(cookie.coded_value)
        self._app.oracle.ledger.log(f"{ex}: saves {summary(content)}")
        await ex.pass_gate("saved")


class App:
    """One server of a world.

    Args:
        registry: Its registry.
        storage: Its storage.
        oracle: The judge of its responses and sockets.
        handler_cancellation: Whether aiohttp cancels the handler when the client disconnects.
    """

    def __init__(
        self,
        registry: SessionWSRegistry,
        storage: AbstractStorage,
        oracle: Oracle,
        *,
        handler_cancellation: bool = False,
    ) -> None:
        self.registry = registry
        self.oracle = oracle
        self.copies: list[str] = []
        self._by_number: dict[str, Exchange] = {}
        sessions = aiohttp_session.session_middleware(Observed(storage, self))
        app = web.Application(middlewares=[self._outside, sessions, session_ws_middleware])
        setup(app, registry)
        app.on_response_prepare.append(self._on_prepare)
        app.router.add_get("/page", self._page)
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/adopted", self._adopt)
        app.router.add_get("/prove", websocket_handler(self._take_proofs))
        self.runner = web.AppRunner(
            app, access_log=None, handler_cancellation=handler_cancellation, shutdown_timeout=1.0
        )

    def know(self, ex: Exchange) -> None:
        """Register a request before it is sent."""
        self._by_number[str(ex.number)] = ex

    def forget(self) -> None:
        """Forget all requests: aiohttp keeps the handlers of its last 1024 routes."""
        self._by_number.clear()

    def exchange_of(self, request: web.Request) -> Exchange:
        """Return the exchange that *request* belongs to."""
        return self._by_number[request.headers[NUMBER]]

    def keep_copy(self, cookie: str) -> None:
        """Store a copy of a cookie for the thief."""
        if cookie not in self.copies:
            self.copies.append(cookie)

    # Callables of the registry

    async def identify(self, request: web.Request) -> Hashable | None:
        """Return the user of the session."""
        await self.exchange_of(request).pass_gate("identify")
        user: str | None = (await aiohttp_session.get_session(request)).get("user")
        return user

    async def labels(self, request: web.Request) -> dict[str, Hashable]:
        """Return the device with which the session's user logged in."""
        session = await aiohttp_session.get_session(request)
        device = session.get("device") if session.get("user") else None
        return {"device": device} if device else {}

    async def authorize(self, request: web.Request) -> bool:
        """Authorize every request but those meant to be refused."""
        ex = self.exchange_of(request)
        await ex.pass_gate("authorize")
        return ex.plan.action != "knock"

    # Middleware and handlers

    @web.middleware
    async def _outside(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        ex = self.exchange_of(request)
        try:
            response = await handler(request)
            await ex.pass_gate("answer")
            return response
        finally:
            ex.left_server = True

    async def _on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        await self.exchange_of(request).pass_gate("prepare")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        ex = self.exchange_of(request)
        async with session_ws(request) as ws:
            session = await aiohttp_session.get_session(request)
            self.oracle.open(ex, session)
            await ws.send_json({"tok": session.get("tok")})
            async for _ in ws:
                pass
        return ws

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        ex = self.exchange_of(request)
        response = web.StreamResponse()
        async with session_stream(request, response):
            session = await aiohttp_session.get_session(request)
            self.oracle.open(ex, session)
            await response.prepare(request)
            await response.write(json.dumps({"tok": session.get("tok")}).encode())
            await asyncio.get_running_loop().create_future()
        return response

    async def _adopt(self, request: web.Request) -> web.WebSocketResponse:
        ex = self.exchange_of(request)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        try:
            async with self.registry.adopt(request, ws):
                session = await aiohttp_session.get_session(request)
                self.oracle.open(ex, session)
                await ws.send_json({"tok": session.get("tok")})
                async for _ in ws:
                    pass
        except SessionWSClosed:
            pass
        return ws

    async def _take_proofs(self, ws: WebSocket) -> None:
        ex = self.exchange_of(ws.request)
        await ws.connect()
        session = await aiohttp_session.get_session(ws.request)
        socket = self.oracle.open(ex, session)
        await ws.send_json({"tok": session.get("tok")})
        async for user in ws:
            since = self.registry.now()
            if not user:
                self.registry.disprove(ws.connection)
                self.oracle.disprove(socket)
                continue
            proof = self.oracle.begin_proof(socket, str(user))
            await ex.pass_gate("proving")
            try:
                await self.registry.prove(ws.connection, user, since=since)
            except SessionEnded:
                self.oracle.refuse_proof(socket, proof)
                raise
            self.oracle.prove(socket, proof)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        ex = self.exchange_of(request)
        self.oracle.page(ex, copy.deepcopy(dict(await aiohttp_session.get_session(request))))
        await ex.pass_gate("handler")
        response = web.StreamResponse() if ex.plan.ending == "stream" else web.Response()
        try:
            await ACTIONS[ex.plan.action](self.oracle.ledger, ex, request, response)
        finally:
            ex.left = copy.deepcopy(dict(await aiohttp_session.get_session(request)))
        await ex.pass_gate("handled")
        return await self._finish(ex, request, response)

    async def _finish(
        self, ex: Exchange, request: web.Request, response: web.StreamResponse
    ) -> web.StreamResponse:
        match ex.plan.ending:
            case "redirect":
                raise web.HTTPFound("/page")
            case "forbid":
                raise web.HTTPForbidden
            case "fail":
                raise RuntimeError("a handler that fails")
            case "stream":
                await response.prepare(request)
                await response.write(b"a page")
                await response.write_eof()
        return response


def derived_id(user: str | None) -> str:
    """Return the id that all sessions of a user share."""
    return f"of {user}"


def id_in_session(content: Content) -> Hashable:
    """Return the id from the key where the registry stores it."""
    return content.get(DEFAULT_SESSION_KEY)


def summary(content: Content) -> str:
    """Describe the content of a session."""
    session_ws_id = str(id_in_session(content))[:6]
    return f"id {session_ws_id} {content.get('tok', 'nobody')} {content.get('tags', '')}"
