"""
Websocket handlers, as functions or as a view with callbacks, and the code that runs them: from
the request, through the registry's hooks, to the close.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, Unpack, overload

from aiohttp import web
from aiohttp.typedefs import JSONEncoder

from .._origin import is_websocket
from .._refused import Forbidden
from .._tasks import expect_awaitable, is_coroutine_function
from ..exceptions import HandshakeRefused, SessionWSClosed, WebSocketDisconnect
from ..registry.core import Core
from ..registry.settings import expect_options
from ..typing import WebSocketHook, WebSocketOptions
from ..web.lookup import core_from
from ..web.refusal import report_refusal
from ..web.session_ws import end_of
from .websocket import WebSocket, exit_session_ws, has_begun, reader_of

__all__ = ["WebSocketView", "websocket_handler"]

S = TypeVar("S")

Hook: TypeAlias = WebSocketHook[WebSocket]
Returned: TypeAlias = Awaitable[web.StreamResponse | None]
Function: TypeAlias = Callable[[WebSocket], Returned]
Method: TypeAlias = Callable[[S, WebSocket], Returned]
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
HandlerMethod: TypeAlias = Callable[[S, web.Request], Awaitable[web.StreamResponse]]


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Function, /) -> Handler: ...
    @overload
    def __call__(self, function: Method[S], /) -> HandlerMethod[S]: ...


@overload
def websocket_handler(function: Function, /, **options: Unpack[WebSocketOptions]) -> Handler: ...
@overload
def websocket_handler(
    function: Method[S], /, **options: Unpack[WebSocketOptions]
) -> HandlerMethod[S]: ...
@overload
def websocket_handler(**options: Unpack[WebSocketOptions]) -> _Decorator: ...
def websocket_handler(
    function: Callable[..., Returned] | None = None, /, **options: Unpack[WebSocketOptions]
) -> object:
    """
    Make an aiohttp handler of a function that takes a :class:`WebSocket`::

        @websocket_handler  # or with options of web.WebSocketResponse, (max_msg_size=4096)
        async def echo(ws: WebSocket) -> None:
            await ws.connect()
            async for message in ws:
                await ws.send(message)

        app.router.add_get("/echo", echo)

    It may be a method as well, of a :class:`aiohttp.web.View` or of any object. The socket is
    closed when it returns. An uncaught :class:`WebSocketDisconnect` of its socket is no error. An
    HTTP exception before ``connect()`` is the response to the client; after it, it closes the
    socket with 1008 (4xx), 1011 (5xx) or 1000. Any other exception closes with 1011 and is logged.
    A function that returns without having connected refuses the client: with the response that
    it returns, or with 403.

    Args:
        function: The coroutine function.
        **options: Those of :class:`aiohttp.web.WebSocketResponse`.

    Raises:
        TypeError: If *function* is not a coroutine function, or aiohttp has no such option.
    """
    if function is None:
        return functools.partial(websocket_handler, **options)
    if not is_coroutine_function(function):
        raise TypeError(
            f"@websocket_handler requires a coroutine function, not {function!r}: write"
            " 'async def'"
        )
    expect_options(options)

    @functools.wraps(function)
    async def handler(*args: Any) -> web.StreamResponse:
        return await converse(*_bind(function, args), options)

    return handler


def _bind(function: Hook, args: tuple[Any, ...]) -> tuple[web.Request, Hook]:
    """
    Return the request that a handler was called with, and the function bound to its object.

    Args:
        function: The function that was decorated.
        args: The request, after the object that the function is a method of; or a view alone.
    """
    *bound, last = args
    if isinstance(last, web.View):  # its methods aren't given the request
        bound, last = [last], last.request
    return last, functools.partial(function, *bound) if bound else function


class WebSocketView(web.View):
    """
    A view with callbacks, one instance per socket::

        class Echo(WebSocketView):
            async def on_message(self, message: str | bytes) -> None:
                await self.send(message)

        app.router.add_view("/echo", Echo)

    It connects before :meth:`on_open`, unless a hook has done so. Override the methods you need.

    Attributes:
        options: Options of :class:`aiohttp.web.WebSocketResponse`, for all instances.
        ws: The :class:`WebSocket`.
    """

    options: ClassVar[WebSocketOptions] = {}
    ws: WebSocket

    def get(self) -> Awaitable[web.StreamResponse]:
        """
        Serve the socket.
        """
        return converse(self.request, self._run_callbacks, self.options)

    async def on_open(self) -> None:
        """
        Handle the start, before any message; the socket is open.
        """

    async def on_message(self, message: str | bytes) -> None:
        """
        Handle a message; the next one waits until this returns.
        """

    async def on_close(self, code: int) -> None:
        """
        Handle the end: called once for each :meth:`on_open`, even if that failed.

        Args:
            code: The client's close code, that of an order, or 1011 after an exception.
        """

    async def send(self, data: str | bytes) -> None:
        """
        Same as :meth:`WebSocket.send`.
        """
        await self.ws.send(data)

    async def send_json(self, data: Any, dumps: JSONEncoder = json.dumps) -> None:
        """
        Same as :meth:`WebSocket.send_json`.
        """
        await self.ws.send_json(data, dumps)

    async def _run_callbacks(self, ws: WebSocket) -> None:
        self.ws = ws
        if ws.connecting:
            await ws.connect()
        code: int | None = None
        try:
            await expect_awaitable(self.on_open(), self.on_open)
            async for message in ws:
                await expect_awaitable(self.on_message(message), self.on_message)
        except BaseException as exc:
            code = code_after(ws, exc)
            raise
        finally:
            code = code_after(ws, None) if code is None else code
            await expect_awaitable(self.on_close(code), self.on_close)


async def converse(
    request: web.Request, handler: Hook, options: WebSocketOptions, *, text: bool = True
) -> web.StreamResponse:
    """
    Serve a websocket from its request to its end.

    Args:
        request: The handshake.
        handler: Called with the :class:`WebSocket`.
        options: Those of the response.
        text: Whether the registry's hooks run and pushes are sent to it; false for RPC.
    """
    # All in one coroutine: each further one would cost an idle socket some hundred bytes.
    core, ws = core_from(request), WebSocket(request, options, pushed=text)
    answer: object = None
    try:
        try:
            if await _begin(core, ws, hooks=text):
                try:
                    answer = await handler(ws)
                except Exception as exc:
                    if not is_disconnect(ws, exc):
                        raise
                if text and core.signals.on_response:
                    await _finish(core, ws)
            _expect_response(ws, handler, answer)
        except BaseException as exc:
            if not is_disconnect(ws, exc):
                await exit_session_ws(ws, exc)
                raise
        await exit_session_ws(ws, None)
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
    Run the ``on_request`` hooks; return whether the handler is still to be called.
    """
    if not is_websocket(ws.request):
        await ws.connect()  # raises what is wrong
    for hook in core.signals.on_request if hooks else ():
        await expect_awaitable(hook(ws), hook)
        if ws.closed:
            return False
    return True


async def _finish(core: Core, ws: WebSocket) -> None:
    """
    Run the ``on_response`` hooks.
    """
    for hook in reversed(core.signals.on_response):
        try:
            await expect_awaitable(hook(ws), hook)
        except Exception as exc:
            if not is_disconnect(ws, exc):
                raise


def _expect_response(ws: WebSocket, handler: Hook, answer: object) -> None:
    if answer is not None and not isinstance(answer, web.StreamResponse):
        raise TypeError(
            f"the websocket handler {handler!r} returned {type(answer).__name__}: it must return"
            " None or a response"
        )
    if answer is None and reader_of(ws) is None:
        raise web.HTTPForbidden(text="websocket refused: its handler didn't connect")


def is_disconnect(ws: WebSocket, error: BaseException | None) -> bool:
    """
    Return whether an error means only that this socket, and no other, is closed.
    """
    if isinstance(error, ExceptionGroup):
        return all(is_disconnect(ws, one) for one in error.exceptions)
    reader = reader_of(ws)
    if reader is None or not isinstance(error, WebSocketDisconnect):
        return False
    return error.connection is reader.connection


def code_after(ws: WebSocket, error: BaseException | None) -> int:
    """
    Return the code that a socket is closed with if *error*, or nothing, ends its handler.
    """
    reader = reader_of(ws)
    assert reader is not None
    return end_of(reader.connection, None if is_disconnect(ws, error) else error)[1]


async def _report_refusal(core: Core, request: web.Request, error: BaseException) -> None:
    """
    Report a handshake that a hook or a handler has refused before it began.
    """
    try:
        if isinstance(error, HandshakeRefused):
            await core.origin_policy.check(request)  # a foreign page gets 403 instead
    except web.HTTPException as exc:
        error = exc
        raise
    finally:
        has_reason = isinstance(error, Forbidden | asyncio.CancelledError)
        await report_refusal(core, request, error, None if has_reason else "handler")
