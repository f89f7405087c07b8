"""
A handler and the hooks around it: from a request to the end of its conversation.
"""

from __future__ import annotations

from typing import TypeAlias

from aiohttp import web

from .._origin import is_websocket
from ..exceptions import HandshakeRefused, SessionWSClosed, WebSocketDisconnect
from ..registry.core import Core
from ..signals import FailDetails
from ..typing import WebSocketHook, WebSocketOptions
from ..web.lookup import core_from
from ..web.session_ws import end_of
from .websocket import WebSocket, has_begun, leave, reader_of

__all__: list[str] = []

Hook: TypeAlias = WebSocketHook[WebSocket]


async def converse(
    request: web.Request, handler: Hook, options: WebSocketOptions, *, hooks: bool = True
) -> web.StreamResponse:
    """
    Serve a websocket from its request to its end.

    Args:
        request: The handshake.
        handler: What talks.
        options: Those of the response.
        hooks: Whether the registry's hooks run, which are for endpoints that talk text.
    """
    # All in one coroutine: each would be some hundred bytes more for an idle socket.
    core, ws = core_from(request), WebSocket(request, options)
    answer: object = None
    try:
        try:
            if await _begin(core, ws, hooks=hooks):
                try:
                    answer = await handler(ws)
                except Exception as exc:
                    if not is_disconnect(ws, exc):
                        raise
                if hooks and core.signals.on_response:
                    await _finish(core, ws)
            _expect_answer(ws, handler, answer)
        except BaseException as exc:
            if not is_disconnect(ws, exc):
                await leave(ws, exc)
                raise
        await leave(ws, None)
    except SessionWSClosed as closed:
        return closed.response
    except BaseException as exc:
        if not has_begun(ws):
            await _report_refusal(core, request, exc)
        raise
    reader = reader_of(ws)
    response = answer if reader is None else reader.connection.ws
    assert isinstance(response, web.StreamResponse)
    return response


async def _begin(core: Core, ws: WebSocket, *, hooks: bool) -> bool:
    """
    Run the hooks that come first; tell whether anything is left to do for the handler.
    """
    if not is_websocket(ws.request):
        await ws.connect()  # says what is wrong
    for hook in core.signals.on_request if hooks else ():
        await hook(ws)
        if ws.closed:
            return False
    return True


async def _finish(core: Core, ws: WebSocket) -> None:
    """
    Run the hooks that come last.
    """
    for hook in reversed(core.signals.on_response):
        try:
            await hook(ws)
        except Exception as exc:
            if not is_disconnect(ws, exc):
                raise


def _expect_answer(ws: WebSocket, handler: Hook, answer: object) -> None:
    if answer is not None and not isinstance(answer, web.StreamResponse):
        raise TypeError(
            f"the websocket handler {handler!r} returned {type(answer).__name__}: it returns None"
            " or a response"
        )
    if answer is None and reader_of(ws) is None:
        raise web.HTTPForbidden(text="websocket refused: its handler didn't connect")


def is_disconnect(ws: WebSocket, error: BaseException | None) -> bool:
    """
    Tell whether an error says no more than that this socket, and no other, is closed.
    """
    if isinstance(error, ExceptionGroup):
        return all(is_disconnect(ws, one) for one in error.exceptions)
    reader = reader_of(ws)
    if reader is None or not isinstance(error, WebSocketDisconnect):
        return False
    return error.connection is reader.connection


def code_after(ws: WebSocket, error: BaseException | None) -> int:
    """
    Return the code that a socket is closed with if *error* ends its handler.
    """
    reader = reader_of(ws)
    assert reader is not None
    return end_of(reader.connection, None if is_disconnect(ws, error) else error)[1]


async def _report_refusal(core: Core, request: web.Request, error: BaseException) -> None:
    """
    Tell of a handshake that a hook or a handler has refused before it began.
    """
    try:
        if isinstance(error, HandshakeRefused):
            await core.origin_policy.check(request)  # a foreign page is told nothing
    except web.HTTPException as exc:
        error = exc
        raise
    finally:
        await core.signals.on_fail.send(FailDetails(request, error))
