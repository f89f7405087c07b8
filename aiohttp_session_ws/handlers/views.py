"""
Handlers of websockets: functions, and a view with callbacks.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeAlias, Unpack, overload

from aiohttp import web
from aiohttp.typedefs import JSONEncoder

from ..typing import WebSocketOptions
from .serve import code_after, converse
from .websocket import WebSocket

__all__ = ["WebSocketView", "websocket_handler"]

Function: TypeAlias = Callable[..., Awaitable[object]]
Handler: TypeAlias = Callable[..., Awaitable[web.StreamResponse]]


@overload
def websocket_handler(function: Function, /, **options: Unpack[WebSocketOptions]) -> Handler: ...
@overload
def websocket_handler(**options: Unpack[WebSocketOptions]) -> Callable[[Function], Handler]: ...
def websocket_handler(
    function: Function | None = None, /, **options: Unpack[WebSocketOptions]
) -> object:
    """
    Make an aiohttp handler of a function that is given a :class:`WebSocket`::

        @websocket_handler  # or with options of web.WebSocketResponse, (max_msg_size=4096)
        async def echo(ws: WebSocket) -> None:
            await ws.connect()
            async for message in ws:
                await ws.send(message)

        app.router.add_get("/echo", echo)

    It may be a method as well, of a :class:`aiohttp.web.View` or of any object. The socket is
    closed when it returns. A disconnect that it lets through is no error; anything else that
    it raises closes with 1011 and is logged. An HTTP exception before ``connect()`` is the
    answer to the client. A function that returns without having connected refuses the client:
    with the response that it returns, or with 403.
    """
    if function is None:
        return functools.partial(websocket_handler, **options)
    if not _is_coroutine_function(function):
        raise TypeError(
            f"@websocket_handler needs a coroutine function, and {function!r} is none: write"
            " 'async def'"
        )

    @functools.wraps(function)
    async def handler(*args: Any) -> web.StreamResponse:
        *bound, last = args
        if isinstance(last, web.View):  # its methods aren't given the request
            bound, last = [last], last.request
        return await converse(last, functools.partial(function, *bound), options)

    return handler


def _is_coroutine_function(function: object) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  an object with an async one
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        return True
    code = getattr(function, "__code__", None)  # one made by types.coroutine()
    return code is not None and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


class WebSocketView(web.View):
    """
    A view with callbacks, an instance for each socket::

        class Echo(WebSocketView):
            async def on_message(self, message: str | bytes) -> None:
                await self.send(message)

        app.router.add_view("/echo", Echo)

    It is connected before :meth:`on_open`, unless a hook has done so. Override what you need.

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
        return converse(self.request, self._talk, self.options)

    async def on_open(self) -> None:
        """
        Do what comes first; the socket is open.
        """

    async def on_message(self, message: str | bytes) -> None:
        """
        Do something about a message; the next one waits until this is done.
        """

    async def on_close(self, code: int) -> None:
        """
        Do what comes last: called once for each :meth:`on_open`, even if that failed.

        Args:
            code: The client's close code, that of an order, or 1011 after a crash.
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

    async def _talk(self, ws: WebSocket) -> None:
        self.ws = ws
        if ws.connecting:
            await ws.connect()
        code: int | None = None
        try:
            await self.on_open()
            async for message in ws:
                await self.on_message(message)
        except BaseException as exc:
            code = code_after(ws, exc)
            raise
        finally:
            await self.on_close(code_after(ws, None) if code is None else code)
