"""
``session_ws``: the context manager that opens a websocket, and closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Unpack

from aiohttp import web

from .._logging import log
from .._tasks import maybe_await
from ..close_codes import GOING_AWAY, INTERNAL_ERROR, NORMAL, POLICY_VIOLATION, Close
from ..connections.connection import TrackedConnection
from ..connections.counters import By
from ..connections.websocket import ServedWebSocket
from ..exceptions import HandshakeRefused, SessionWSClosed
from ..registry.core import Core
from ..sessions.context import RequestContext
from ..sessions.session import loaded_session, was_changed
from ..signals import CloseDetails, OpenDetails
from ..typing import WebSocketOptions
from .handshake import Handshake

__all__ = ["session_ws"]

_EXHAUSTED: Final = object()  # returned by anext() for an iterator that has ended


def session_ws(
    request: web.Request, **options: Unpack[WebSocketOptions]
) -> AbstractAsyncContextManager[web.WebSocketResponse, None]:
    """
    Upgrade *request* to a websocket that belongs to its session.

    On entry, judge the session, perform the handshake and register the websocket under its
    session's id. The result is a prepared websocket response. On exit, however the block
    ends, close it, wait until its transport has ended, and unregister it::

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
        **options: Those of :class:`aiohttp.web.WebSocketResponse`; ``heartbeat`` is 30 s if
            it isn't given.

    Raises:
        NotSetUp: If :func:`setup` was not called, or *request* is tied to its session already.
        HandshakeRefused: If the session may not open a socket. Behind the middleware the
            client receives a close code. Nothing is registered in that case.
        aiohttp.web.HTTPException: 400 if *request* is not a websocket handshake, 403 if it comes
            from a foreign page or isn't authorized, 429 if there are more in a second than
            ``Limits.handshakes_per_second``, 503 if there is no room, no time or no way to
            check whether the session is alive. Nothing is registered in that case.
        SessionWSClosed: On exit, if an order closed the socket while the handler ran and
            the handler raised because of that; or if the handler raised an HTTP exception,
            which an open socket can't answer. Nothing stays registered in any of these cases.
    """
    return SessionWS(request, options)


class SessionWS:
    """
    The context manager that :func:`session_ws` returns.

    A class with slots and not a generator: it lives as long as its socket, and takes a
    fifth of a generator's memory. The base class for context managers would give it a dictionary.

    Attributes:
        connection: The connection, once it is open.
        core: The registry's parts.
    """

    __slots__ = (
        "_context", "_contexts", "_options", "_pushed", "_request", "_save", "connection", "core",
    )  # fmt: skip

    _context: RequestContext
    connection: TrackedConnection
    core: Core

    def __init__(
        self,
        request: web.Request,
        options: WebSocketOptions,
        *,
        save: bool = True,
        pushed: bool = True,
    ) -> None:
        self._save = save
        self._pushed = pushed
        self._request = request
        self._options: WebSocketOptions | None = options
        self._contexts: list[AsyncIterator[None]] | None = None

    async def __aenter__(self) -> web.WebSocketResponse:
        options, self._options = self._options, None
        assert options is not None, "session_ws() can be entered only once"
        handshake = Handshake(self._request, options, save=self._save)
        self.core = core = handshake.core
        self._context, self.connection = await handshake.open()
        self.connection.takes_pushes = self._pushed  # before any hook is called
        overrides, signals = core.overrides, core.signals
        if overrides.register or overrides.unregister or signals.on_open or signals.connection_ctx:
            try:
                await self._run_open_hooks()
                _expect_open(self.connection)
            except BaseException as exc:
                await self.__aexit__(type(exc), exc, exc.__traceback__)
                raise
        ws: web.WebSocketResponse = self.connection.ws
        return ws

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = exc if self._contexts is None else await self._leave_contexts(exc)
        connections, connection = self.core.connections, self.connection
        by, code = end_of(connection, error)
        connections.counters.closed(by, code)
        self._warn_unsaved()
        try:
            if self.core.signals.on_close:
                await self._send_on_close(by, code)
        finally:
            connections.handler_exited(connection)
            self._context.leave()
            try:
                if not connections.remove_if_ended(connection):
                    await self._close(error)
            finally:
                if not self._context.behind_middleware:
                    self._context.release()
        if error is not None and needs_no_response(connection, error):
            raise SessionWSClosed(connection.ws) from error
        if error is not exc and error is not None:
            raise error

    async def _run_open_hooks(self) -> None:
        """
        Call ``register()`` and the signals of an open socket, as long as it is open.
        """
        core, connection = self.core, self.connection
        connection.registered = core.overrides.unregister
        if core.overrides.register:
            result = core.hooks.register(connection.session_ws_id, connection.ws)
            await maybe_await(result)
            _expect_open(connection)
        signals = core.signals
        if signals.on_open:
            details = OpenDetails(
                self._request, connection.session_ws_id, connection.ws, connection.identity
            )
            await signals.on_open.send(details)
        if signals.connection_ctx:
            self._contexts = []
            for context in signals.connection_ctx:
                _expect_open(connection)
                iterator = _expect_generator(context(connection), context)
                await anext(iterator)
                self._contexts.append(iterator)

    async def _leave_contexts(self, error: BaseException | None) -> BaseException | None:
        """
        Run the code after the ``yield`` of each context, even if that of others fails.

        Returns:
            *error*, or without one what a context raised; a cancellation replaces either.
        """
        for context in reversed(self._contexts or []):
            try:
                if await anext(context, _EXHAUSTED) is not _EXHAUSTED:
                    raise RuntimeError(f"more than one 'yield' in {context!r}")
            except Exception as exc:
                if error is None:
                    error = exc
                else:
                    log.exception("a connection context failed")
            except asyncio.CancelledError as exc:
                self._log_lost_error(error)
                error = exc
        return error

    def _log_lost_error(self, error: BaseException | None) -> None:
        """
        Log an error that would be lost otherwise, since its task has been cancelled.
        """
        if isinstance(error, Exception) and not needs_no_response(self.connection, error):
            log.error("a websocket handler failed", exc_info=error)

    async def _close(self, error: BaseException | None) -> None:
        """
        Close the socket, and wait until its transport has ended.
        """
        close = self.connection.close_order or close_for_error(error)
        try:
            await self.core.connections.wait_closed(self.connection, close)
        except asyncio.CancelledError:
            self._log_lost_error(error)
            raise  # the server cancels the handlers of clients that have disconnected

    async def _send_on_close(self, by: By, code: int) -> None:
        connection = self.connection
        id_, identity = connection.session_ws_id, connection.identity
        details = CloseDetails(self._request, id_, connection.ws, code, by, identity)
        await self.core.signals.on_close.send(details)

    def _warn_unsaved(self) -> None:
        """
        Warn of a session that was changed in a websocket handler: it isn't saved.
        """
        session = loaded_session(self._request)
        if session is not None and was_changed(session) and not self._context.given:
            self.core.warn.once(
                "unsaved",
                "a session was changed in a websocket handler and is not saved: its response has"
                " been sent; change it in an HTTP request",
            )


def _expect_generator(made: object, context: object) -> AsyncIterator[None]:
    """
    Return the iterator of a connection context, which has to be an async generator.
    """
    if isinstance(made, AsyncIterable):
        return aiter(made)
    if isinstance(made, Coroutine):
        made.close()  # or Python warns that it was never awaited
    raise TypeError(
        f"connection_ctx requires an async generator function, not {context!r}: write 'async def'"
        " with one 'yield'"
    )


def _expect_open(connection: TrackedConnection) -> None:
    if connection.close_order is not None:
        raise SessionWSClosed(connection.ws)


def end_of(connection: TrackedConnection, error: BaseException | None = None) -> tuple[By, int]:
    """
    Return who began to close a connection, and the close code or its equivalent.

    Args:
        connection: A websocket or stream that has ended, or whose handler ends.
        error: The exception that the handler raised.
    """
    ws = connection.ws
    if connection.close_order is not None:
        return "order", connection.close_order.code
    if isinstance(ws, ServedWebSocket) and ws.closed_with is not None:
        return "handler", ws.closed_with
    if isinstance(ws, web.WebSocketResponse) and ws.close_code is not None:
        return "client", ws.close_code or 1005  # a close frame needn't have a code
    if connection.disconnected:
        return "client", 1006
    return "handler", close_for_error(error).code


def close_for_error(error: BaseException | None) -> Close:
    """
    Return the close for the peer when a handler ends with *error*, or without.
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


def needs_no_response(connection: TrackedConnection, error: BaseException) -> bool:
    """
    Return whether *error* needs no other response than the closed socket.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(needs_no_response(connection, one) for one in error.exceptions)
    if isinstance(error, web.HTTPException):
        return True  # no HTTP response fits into an open socket
    over = isinstance(error, ConnectionError | SessionWSClosed)
    return connection.close_order is not None and over
