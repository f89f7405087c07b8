"""
Servers of one procedure, ``add(a, b)``: a floor, this package, and alternatives.

The floor is the least that calls need: aiohttp, msgspec, and a task for each message. The
package also serves a topic, ``news``, and at ``/plain`` a ``WebSocket`` that only reads.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import web

from .control import BACKLOG, HOST, Answer, Control

EVENT: Final = ("hello world", 12345)
#: The WAMP message of that event, with ids of the greatest length.
TEXT: Final = '[36,4503599627370496,4503599627370496,{},["hello world",12345]]'


def floor(app: web.Application) -> None:
    """
    Serve calls with as little work as possible.
    """
    import msgspec
    from aiohttp import WSMsgType

    class Call(msgspec.Struct):
        id: int
        method: str
        params: list[Any]

    async def add(a: int, b: int) -> int:
        return a + b

    table = {"add": add}
    decode, encode = msgspec.json.Decoder(Call).decode, msgspec.json.Encoder().encode

    async def serve(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        tasks = set()

        async def run(call: Call) -> None:
            result = await table[call.method](*call.params)
            await ws.send_frame(encode({"id": call.id, "result": result}), WSMsgType.TEXT)

        async for message in ws:
            task = asyncio.create_task(run(decode(message.data)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return ws

    app.router.add_get("/ws", serve)


def serverwamp(app: web.Application) -> None:
    """
    Serve with serverwamp.
    """
    from serverwamp import Application, RPCRouteSet

    routes = RPCRouteSet()

    @routes.route("add")  # type: ignore[untyped-decorator]
    async def add(a: int, b: int) -> int:
        return a + b

    application = Application()
    application.add_rpc_routes(routes)
    app.router.add_get("/ws", application.aiohttp_websocket_handler())


def wsrpc(app: web.Application) -> None:
    """
    Serve with wsrpc-aiohttp.
    """
    from wsrpc_aiohttp import WebSocketAsync

    async def add(socket: Any, a: int, b: int) -> int:
        return a + b

    handler: Any = WebSocketAsync
    handler.add_route("add", add)
    app.router.add_route("*", "/ws", handler)


class Calls(Control):
    """
    The server.

    Args:
        kind: The implementation that serves.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._app = web.Application()
        self._registry: Any = None
        self._calls: Any = None
        {"floor": floor, "serverwamp": serverwamp, "wsrpc": wsrpc, "ours": self._ours}[kind](
            self._app
        )

    def _ours(self, app: web.Application) -> None:
        import aiohttp_session

        from aiohttp_session_ws import (
            WebSocket,
            rpc,
            session_ws_middleware,
            setup,
            websocket_handler,
        )

        routes = rpc.Routes()

        @routes.route()
        async def add(a: int, b: int) -> int:
            return a + b

        @routes.topic("news")
        async def news() -> AsyncIterator[None]:
            yield

        @websocket_handler(compress=False)
        async def plain(ws: WebSocket) -> None:
            await ws.connect()
            async for _ in ws:
                pass

        # No ping of wsrpc is sent while memory is measured.
        self._calls = rpc.Application(limits=rpc.CallLimits(ping=600.0, silence=600.0))
        self._calls.default.add_rpc_routes(routes)
        aiohttp_session.setup(app, aiohttp_session.SimpleCookieStorage())
        app.middlewares.append(session_ws_middleware)
        self._registry = setup(app)
        app.router.add_get("/ws", self._calls.handler)
        app.router.add_get("/plain", plain)

    async def op_publish(self, turns: int) -> Answer:
        """
        Publish and broadcast the same bytes alternately; return the CPU seconds of each.
        """
        seconds: dict[str, list[float]] = {"publish": [], "broadcast": []}
        delivery: Any = None
        for _ in range(turns):
            for what, spent in seconds.items():
                await asyncio.sleep(0.02)
                begin = time.process_time()
                if what == "publish":
                    delivery = await self._calls.publish("news", EVENT)
                else:
                    delivery = await self._registry.broadcast(TEXT)
                spent.append(time.process_time() - begin)
        return {**seconds, "sockets": delivery.sockets}

    async def serve(self) -> None:
        """
        Serve until the process is killed.
        """
        runner = web.AppRunner(self._app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0, backlog=BACKLOG).start()
        self.listen(runner.addresses[0][1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["floor", "ours", "serverwamp", "wsrpc"])
    asyncio.run(Calls(parser.parse_args().kind).serve())
