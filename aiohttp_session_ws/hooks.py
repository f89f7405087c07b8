"""
A handler and the hooks around it: from a request to the end of its conversation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from .exceptions import HandshakeRefused, SessionWSClosed, WebSocketDisconnect
from .gate import is_websocket
from .handshake import WebSocketOptions
from .helpers import registry_from
from .opening import end_of
from .registry import SessionWSRegistry
from .signals import FailDetails
from .websocket import WebSocket

__all__ = ["WebSocketHook"]

WebSocketHook: TypeAlias = Callable[[WebSocket], Awaitable[object]]


async def converse(
    request: web.Request,
    handler: WebSocketHook,
    options: WebSocketOptions,
    *,
    hooks: bool = True,
) -> web.StreamResponse:
    """
    Serve a websocket from its request to its end, with the registry's hooks or without.
    """
    registry, ws = registry_from(request), WebSocket(request, options)
    answer: object = None
    try:
        try:
            answer = await _converse(registry, ws, handler, hooks)
        except BaseException as exc:
            if not is_disconnect(ws, exc):
                await _leave(ws, exc)
                raise
        await _leave(ws, None)
    except SessionWSClosed as closed:
        return closed.response
    except BaseException as exc:
        if ws._session_ws is None:
            await _tell_refusal(registry, request, exc)
        raise
    response = answer if ws._reader is None else ws._reader.connection.ws
    assert isinstance(response, web.StreamResponse)
    return response


async def _converse(
    registry: SessionWSRegistry, ws: WebSocket, handler: WebSocketHook, hooks: bool
) -> object:
    """
    Let the hooks and the handler have the socket; return what the handler does.
    """
    answer: object = None
    if not is_websocket(ws.request):
        await ws.connect()  # says what is wrong
    for hook in registry.on_request if hooks else ():
        await hook(ws)
        if ws.closed:  # nothing is left to do for the handler
            break
    else:
        for step in (handler, *reversed(registry.on_response if hooks else ())):
            try:
                result = await step(ws)
            except Exception as exc:
                if not is_disconnect(ws, exc):
                    raise
            else:
                answer = result if step is handler else answer
    if ws._reader is None and not isinstance(answer, web.StreamResponse):
        raise web.HTTPForbidden(text="websocket refused: its handler didn't connect")
    return answer


async def _leave(ws: WebSocket, error: BaseException | None) -> None:
    """
    Leave ``session_ws``, if it was entered.
    """
    if ws._reader is not None and ws._session_ws is not None:
        try:
            await ws._reader.stop()
        finally:
            await ws._session_ws.__aexit__(None, error, None)


def is_disconnect(ws: WebSocket, error: BaseException | None) -> bool:
    """
    Tell whether an error says no more than that this socket, and no other, is closed.
    """
    if isinstance(error, ExceptionGroup):
        return all(is_disconnect(ws, one) for one in error.exceptions)
    if ws._reader is None or not isinstance(error, WebSocketDisconnect):
        return False
    return error.connection is ws._reader.connection


def code_after(ws: WebSocket, error: BaseException | None) -> int:
    """
    Return the code that a socket is closed with if *error* ends its handler.
    """
    return end_of(ws._opened().connection, None if is_disconnect(ws, error) else error)[1]


async def _tell_refusal(
    registry: SessionWSRegistry, request: web.Request, error: BaseException
) -> None:
    """
    Tell of a handshake that a hook or a handler has refused before it began.
    """
    try:
        if isinstance(error, HandshakeRefused):
            await registry._gate.check(request)  # a foreign page is told nothing
    except web.HTTPException as exc:
        error = exc
        raise
    finally:
        await registry.on_fail.send(FailDetails(request, error))
