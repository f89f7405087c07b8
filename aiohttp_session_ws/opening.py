"""
``session_ws``: the one path by which a socket opens and ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Literal, Unpack

from aiohttp import web

from .closing import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY_VIOLATION,
    Close,
)
from .connection import Connection, ServedWebSocket
from .exceptions import HandshakeRefused, SessionWSClosed
from .handshake import WebSocketOptions, handshake
from .helpers import registry_from
from .registry import SessionWSRegistry
from .signals import CloseDetails, OpenDetails
from .visit import VISIT, Visit, end_visit, forget, visit_of

__all__ = ["session_ws"]

log = logging.getLogger("aiohttp_session_ws")

_OVER: Final = object()  # what an iterator that has ended is taken to return


def session_ws(
    request: web.Request, **options: Unpack[WebSocketOptions]
) -> AbstractAsyncContextManager[web.WebSocketResponse, None]:
    """
    Upgrade *request* to a websocket that belongs to its session.

    On entry, look the session up, perform the handshake and file the websocket under its
    session's id. What you get is a prepared websocket response. On exit, however the
    block ends, close it, wait until its transport has ended, and take it out::

        async def handler(request):
            async with session_ws(request) as ws:
                async for message in ws:
                    await ws.send_str(message.data)
            return ws

    When the session ends, or another order closes the socket, ``receive()`` reports the
    close; a handler that doesn't leave the block within ``timeouts.handler_grace`` seconds
    is cancelled. Changes to the session aren't saved: the handshake has been answered.

    Args:
        request: The request to upgrade.
        **options: Passed on to :class:`aiohttp.web.WebSocketResponse`.

    Raises:
        NotSetUp: If :func:`setup` was not called.
        aiohttp.web.HTTPBadRequest: If *request* isn't a websocket handshake.
        aiohttp.web.HTTPForbidden: If it comes from a foreign page, ``authorize`` refused
            it, or its session may not open a socket (:class:`HandshakeRefused`).
        aiohttp.web.HTTPServiceUnavailable: If the application is shutting down.
        SessionWSClosed: If an order closed it before the handler ran, or while it ran and
            the handler raised because of that; or if the handler raised an HTTP exception,
            which an open socket can't answer. Nothing stays registered in any of these cases.
    """
    return _SessionWS(request, options)


class _SessionWS(AbstractAsyncContextManager[web.WebSocketResponse, None]):
    """
    What ``session_ws()`` returns.

    A class with slots and not a generator: it lives as long as its socket, and takes a
    third of a generator's memory.
    """

    __slots__ = ("_connection", "_contexts", "_options", "_registry", "_request", "_visit")

    _registry: SessionWSRegistry
    _visit: Visit
    _connection: Connection

    def __init__(self, request: web.Request, options: WebSocketOptions) -> None:
        self._request = request
        self._options: WebSocketOptions | None = options
        self._contexts: list[AsyncIterator[None]] | None = None

    async def __aenter__(self) -> web.WebSocketResponse:
        request, options = self._request, self._options
        assert options is not None, "a session_ws() is entered once"
        self._options = None
        self._registry = registry_from(request)
        self._visit = visit_of(request)
        VISIT.set(self._visit)
        self._connection = await handshake(self._registry, self._visit, request, options)
        try:
            await self._welcome()
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        ws: web.WebSocketResponse = self._connection.ws
        return ws

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = await self._leave_contexts(exc)
        await self._leave(error)
        if error is not exc and error is not None:
            raise error

    async def _leave_contexts(self, error: BaseException | None) -> BaseException | None:
        """
        Run what follows the ``yield`` of each context, whatever became of the others.

        Returns:
            *error*, or without one what a context raised.
        """
        for context in reversed(self._contexts or ()):
            try:
                if await anext(context, _OVER) is not _OVER:
                    raise RuntimeError(f"more than one 'yield' in {context!r}")
            except Exception as exc:
                if error is None:
                    error = exc
                else:
                    log.exception("a connection context failed")
            except asyncio.CancelledError as exc:
                self._log_overtaken(error)
                error = exc
        return error

    def _log_overtaken(self, error: BaseException | None) -> None:
        """
        Log an error that nobody else will hear of, since its task has been cancelled.
        """
        if isinstance(error, Exception) and not _explained(self._connection, error):
            log.error("a websocket handler failed", exc_info=error)

    async def _welcome(self) -> None:
        """
        Tell everybody of a socket that is open, as long as it is.
        """
        registry, connection = self._registry, self._connection
        connection.registered = True
        result = registry.register(connection.session_ws_id, connection.ws)
        if result is not None and inspect.isawaitable(result):
            await result
        _expect_open(connection)
        if registry.on_open:
            details = OpenDetails(
                self._request, connection.session_ws_id, connection.ws, connection.identity
            )
            await registry.on_open.send(details)
        if registry.connection_ctx:
            self._contexts = []
            for context in registry.connection_ctx:
                _expect_open(connection)
                iterator = aiter(context(connection))
                await anext(iterator)
                self._contexts.append(iterator)
        _expect_open(connection)

    async def _leave(self, error: BaseException | None) -> None:
        """
        End the connection, and stay until it is gone.

        Raises:
            SessionWSClosed: If *error* needs no other answer than the closed socket.
        """
        registry, connection = self._registry, self._connection
        close = connection.close or _close_for(error)
        try:
            if registry.on_close:
                by, code = end_of(connection, error)
                details = CloseDetails(
                    self._request,
                    connection.session_ws_id,
                    connection.ws,
                    code,
                    by,
                    connection.identity,
                )
                await registry.on_close.send(details)
        finally:
            registry._sockets.left(connection)
            end_visit(self._visit)
            try:
                await registry._sockets.wait_gone(connection, close)
            except asyncio.CancelledError:
                self._log_overtaken(error)
                raise  # the server cancels the handlers of clients that have gone
            finally:
                if not self._visit.guarded:
                    forget(self._visit)
        if error is not None and _explained(connection, error):
            raise SessionWSClosed(connection.ws) from error


def _expect_open(connection: Connection) -> None:
    if connection.close is not None:
        raise SessionWSClosed(connection.ws)


def end_of(
    connection: Connection, error: BaseException | None = None
) -> tuple[Literal["order", "handler", "client"], int]:
    """
    Tell who begins or began to end a connection, and with which code.

    Args:
        connection: One that has ended, or whose handler ends.
        error: What the handler raised.
    """
    ws: ServedWebSocket = connection.ws
    if connection.close is not None:
        return "order", connection.close.code
    if ws.closed_with is not None:
        return "handler", ws.closed_with
    if ws.close_code is not None:
        return "client", ws.close_code or 1005  # a close frame needn't have a code
    if connection.disconnected:
        return "client", 1006
    return "handler", _close_for(error).code


def _close_for(error: BaseException | None) -> Close:
    """
    Return what the peer is told when a handler ends.
    """
    if error is None:
        return NORMAL
    if isinstance(error, asyncio.CancelledError):
        return GOING_AWAY
    if isinstance(error, HandshakeRefused):
        return error.close
    if not isinstance(error, web.HTTPException) or error.status >= 500:
        return INTERNAL_ERROR
    return NORMAL if error.status < 400 else POLICY_VIOLATION


def _explained(connection: Connection, error: BaseException) -> bool:
    """
    Tell whether *error* needs no other answer than the closed socket.
    """
    if isinstance(error, web.HTTPException):
        return True  # an open socket takes no HTTP answer
    return connection.close is not None and isinstance(error, ConnectionError)
