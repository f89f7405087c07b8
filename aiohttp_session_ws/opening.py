"""
``session_ws``: the one path by which a socket opens and ends.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, Unpack

from aiohttp import web

from .closing import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY_VIOLATION,
    Close,
)
from .connection import CURRENT, Connection, ServedWebSocket
from .exceptions import SessionWSClosed
from .handshake import WebSocketOptions, handshake
from .helpers import registry_from
from .registry import SessionWSRegistry
from .signals import CloseDetails, OpenDetails
from .visit import visit_of

__all__ = ["session_ws"]


@asynccontextmanager
async def session_ws(
    request: web.Request, **options: Unpack[WebSocketOptions]
) -> AsyncIterator[web.WebSocketResponse]:
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
        SessionWSClosed: If it was closed before or while the handler ran, and the handler
            raised because of that. Nothing is registered in any of these cases.
    """
    registry = registry_from(request)
    visit = visit_of(request)
    connection = await handshake(registry, visit, request, options)
    error: BaseException | None = None
    try:
        async with AsyncExitStack() as contexts:
            await _welcome(registry, connection, contexts)
            yield connection.ws
    except BaseException as exc:
        error = exc
        raise
    finally:
        await _leave(registry, connection, error)
        if error is not None and _explained(connection, error):
            raise SessionWSClosed(connection.ws) from error


async def _welcome(
    registry: SessionWSRegistry, connection: Connection, contexts: AsyncExitStack
) -> None:
    """
    Tell everybody of a socket that is open, as long as it is.
    """
    request, ws, session_ws_id = connection.request, connection.ws, connection.session_ws_id
    assert request is not None
    CURRENT.set(connection)
    connection.registered = True
    result = registry.register(session_ws_id, ws)
    if inspect.isawaitable(result):
        await result
    _expect_open(connection)
    await registry.on_open.send(OpenDetails(request, session_ws_id, ws))
    for context in registry.connection_ctx:
        _expect_open(connection)
        await contexts.enter_async_context(asynccontextmanager(context)(connection))
    _expect_open(connection)


def _expect_open(connection: Connection) -> None:
    if connection.close is not None:
        raise SessionWSClosed(connection.ws)


async def _leave(
    registry: SessionWSRegistry, connection: Connection, error: BaseException | None
) -> None:
    """
    End a connection, and stay until it is gone.
    """
    ws, sockets = connection.ws, registry._sockets
    close = _close_for(error)
    try:
        await registry.on_close.send(_close_details(connection, close))
    finally:
        connection.leave()
        if connection.closing is None and ws.closed and connection.disconnected:
            await sockets.let_go(connection)
        elif not connection.gone:
            # Only the wait can be cancelled, the engine can't.
            await asyncio.wait({sockets.begin_close(connection, close)})


def _close_details(connection: Connection, close: Close) -> CloseDetails:
    ws: ServedWebSocket = connection.ws
    by: Literal["order", "handler", "client"]
    if connection.close is not None:
        by, code = "order", connection.close.code
    elif not ws.closed:
        by, code = "handler", close.code
    elif ws.closed_with is not None:
        by, code = "handler", ws.closed_with
    else:
        by, code = "client", ws.close_code or 1006
    assert connection.request is not None
    return CloseDetails(connection.request, connection.session_ws_id, ws, code, by)


def _close_for(error: BaseException | None) -> Close:
    """
    Return what the peer is told when a handler ends.
    """
    if error is None:
        return NORMAL
    if isinstance(error, asyncio.CancelledError):
        return GOING_AWAY
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
