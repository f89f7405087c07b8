"""
Streams, and websockets opened by another library: tied to a session, they end with it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from aiohttp import hdrs, web
from aiohttp.payload import AsyncIterablePayload

from ..close_codes import GOING_AWAY, POLICY_VIOLATION, SESSION_ENDED, TOO_MANY_CONNECTIONS, Close
from ..connections.connection import Connection, TrackedConnection
from ..exceptions import HandshakeRefused, NotSetUp, SessionWSClosed
from ..sessions.context import RequestContext
from .handshake import Handshake
from .session_ws import close_for_error, end_of, needs_no_response

__all__ = ["adopt_websocket", "session_stream"]


def session_stream(
    request: web.Request, response: web.StreamResponse
) -> AbstractAsyncContextManager[Connection, None]:
    """
    Tie a streamed response to the session of *request*: server-sent events, a long poll.

    On entry, judge the session and register the response under its id, as ``session_ws`` does
    with a websocket. The result is its connection, whose ``ws`` is the response; it takes no
    pushes. On exit, unregister it::

        async def events(request):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            async with session_stream(request, response):
                await response.prepare(request)
                while True:
                    await response.write(await next_event())
            return response

    When the session ends, or the client disconnects, its transport is closed and the task that
    entered is cancelled. A response is not cut off once the block has been left; nor is a body
    that is an iterator, which aiohttp sends only then.

    Args:
        request: The request.
        response: The response, before its ``prepare()``: a session without id is given one,
            which is saved with this response.

    Raises:
        NotSetUp: If *response* has been prepared, *request* is tied already, or :func:`setup` was
            not called.
        TypeError: If *response* is a websocket.
        aiohttp.web.HTTPException: 403 for a foreign page or without authorization, 409 with
            Retry-After if the session was replaced, 429 if there are too many, 503 if there is
            no room, no time or no way to check the session, 401 if it has ended; or 204 for a
            request that accepts ``text/event-stream``, which stops an EventSource in browsers.
            Nothing is registered in that case.
    """
    if isinstance(response, web.WebSocketResponse):
        raise TypeError("session_stream() can't take a websocket: use session_ws(request)")
    return _Tied(request, response, StreamHandshake)


def adopt_websocket(
    request: web.Request, ws: web.WebSocketResponse
) -> AbstractAsyncContextManager[Connection, None]:
    """
    Tie a websocket that another library has opened to the session of *request*.

    To be entered in its handler's task. On exit, close it and wait until its transport has ended.

    Args:
        request: The request.
        ws: The websocket, after its ``prepare()``.

    Raises:
        NotSetUp: If *ws* has not been prepared, or :func:`setup` was not called.
        SessionWSClosed: If the session may not open a socket; *ws* has been closed with the
            code for the reason. Nothing is registered in that case.
    """
    return _Tied(request, ws, AdoptingHandshake)


class StreamHandshake(Handshake):
    """
    The handshake of a stream.

    Args:
        request: The request.
        response: The response.
    """

    __slots__ = ("_response",)

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        # A prepared response can't set a cookie any more.
        super().__init__(request, {}, save=not response.prepared)
        self._response = response

    def _check_request(self, context: RequestContext | None) -> None:
        if self._response.prepared:
            raise NotSetUp(
                "enter session_stream() before response.prepare(): a prepared response can't be"
                " refused any more"
            )
        self._check_admission(context)

    def _make_response(self) -> web.StreamResponse:
        return self._response

    async def _upgrade(self, connection: TrackedConnection) -> None:
        """
        Write nothing: a stream is begun by its handler, and an adopted websocket is open
        already, with a protocol of its own.
        """
        connection.takes_pushes = False

    def refusal(self, error: HandshakeRefused) -> web.HTTPException:
        """
        Return the HTTP response that refuses a stream, which has no close code.
        """
        text = f"refused: {error.close.reason}"
        if self.denied:
            return web.HTTPForbidden(text=text)
        if error.close.code == SESSION_ENDED.code:
            if "text/event-stream" in self._request.headers.get(hdrs.ACCEPT, ""):
                return web.HTTPNoContent()
            return web.HTTPUnauthorized(text=text)
        if error.close.code == TOO_MANY_CONNECTIONS.code:
            return web.HTTPTooManyRequests(headers={hdrs.RETRY_AFTER: "5"}, text=text)
        return web.HTTPConflict(headers={hdrs.RETRY_AFTER: "1"}, text=text)


class AdoptingHandshake(StreamHandshake):
    """
    The handshake of a websocket that another library has opened.
    """

    __slots__ = ()

    def _check_request(self, context: RequestContext | None) -> None:
        if not self._response.prepared:
            raise NotSetUp(
                "enter registry.adopt() after ws.prepare(): before, the websocket has no transport"
            )
        self._check_admission(context)

    def _close_unopened(self, connection: TrackedConnection) -> None:
        """
        Do nothing: ``_Tied`` closes it with the code of the refusal.
        """


class _Tied(AbstractAsyncContextManager[Connection, None]):
    """
    The context manager that :func:`session_stream` and :func:`adopt_websocket` return.
    """

    _context: RequestContext
    _connection: TrackedConnection

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        handshake: Callable[[web.Request, web.StreamResponse], StreamHandshake],
    ) -> None:
        self._request = request
        self._response = response
        self._make_handshake = handshake

    async def __aenter__(self) -> Connection:
        handshake = self._make_handshake(self._request, self._response)
        self._core = core = handshake.core
        try:
            self._context, self._connection = await handshake.open()
        except (HandshakeRefused, web.HTTPException) as exc:
            if isinstance(self._response, web.WebSocketResponse):
                await self._close_refused(self._response, exc)
                raise SessionWSClosed(self._response) from exc
            if isinstance(exc, HandshakeRefused):
                raise handshake.refusal(exc) from exc
            raise
        core.connections.counters.streams += self._connection.is_stream
        return self._connection

    async def _close_refused(self, ws: web.WebSocketResponse, exc: web.HTTPException) -> None:
        """
        Close a websocket that may not be adopted.
        """
        if isinstance(exc, HandshakeRefused):
            close = exc.close
        else:
            close = GOING_AWAY if exc.status >= 500 else Close(POLICY_VIOLATION.code, "refused")
        refused = TrackedConnection(None, ws, self._request)
        await self._core.connections.close_refused(refused, close)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connections, connection, context = self._core.connections, self._connection, self._context
        connections.counters.streams -= connection.is_stream
        connections.counters.closed(*end_of(connection, exc))
        connections.handler_exited(connection)
        if not isinstance(self._response, web.WebSocketResponse):
            self._warn_streamed_body()
            context.connection = None  # later orders of the handler wait for its response
            connections.discard_stream(connection)
            return
        context.leave()
        close = connection.close_order or close_for_error(exc)
        try:
            await connections.wait_closed(connection, close)
        finally:
            if not context.behind_middleware:
                context.release()
        if exc is not None and needs_no_response(connection, exc):
            raise SessionWSClosed(self._response) from exc

    def _warn_streamed_body(self) -> None:
        """
        Warn of a stream that is sent after the block, when it isn't tied to its session any more.
        """
        response = self._response
        if isinstance(response, web.Response) and isinstance(response.body, AsyncIterablePayload):
            self._core.warn.once(
                "body",
                "the body of a response is streamed after its session_stream() block: a log-out"
                " doesn't end it; write() it inside of the block, to a web.StreamResponse",
            )
