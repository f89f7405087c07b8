"""
A server on aiohttp: alone, or with any version of the package.

The mode ``bare`` keeps a dictionary of sets and closes with ``gather()``, as one does without
the package. The other modes differ in the kind of handler: ``session_ws``, a
``websocket_handler`` with its ``WebSocket``, or a ``WebSocketView``.
"""

from __future__ import annotations

import argparse
import asyncio
import selectors
import time
from collections.abc import Iterable
from typing import Any, Final

import aiohttp_session
from aiohttp import web

from .control import BACKLOG, HOST, Answer, Control, now

HEARTBEAT: Final = 30.0  # seconds, the package's default; the same for all
ID: Final = "aiohttp_session_ws_id"


class Turns(selectors.EpollSelector):
    """
    A selector that measures the CPU time of each turn of its event loop.

    Attributes:
        longest: CPU time of the longest turn, in nanoseconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0
        self._begin = time.thread_time_ns()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """
        End a turn, wait, and begin the next.
        """
        self.longest = max(self.longest, time.thread_time_ns() - self._begin)
        ready = super().select(timeout)
        self._begin = time.thread_time_ns()
        return ready


class App(Control):
    """
    The server.

    Args:
        mode: The kind of handler.
        echo: Whether messages are sent back.
        redis: The port of a Redis server; ``None`` for a single node.
        order: The registry's method that closes a session on all nodes.
        identify: Whether all sessions belong to one identity.

    Attributes:
        turns: Measures the turns of the event loop, if requested.
    """

    turns: Turns | None = None

    def __init__(
        self, mode: str, *, echo: bool, redis: int | None, order: str, identify: bool = False
    ) -> None:
        super().__init__()
        self.echo = echo
        self._order = order
        self._sessions: dict[str, set[web.WebSocketResponse]] = {}
        self._registry: Any = None
        self._app = web.Application()
        aiohttp_session.setup(self._app, aiohttp_session.SimpleCookieStorage())
        if mode != "bare":
            self._set_up(redis, identify=identify)
        self._app.router.add_get("/visit", self.visit)
        self._app.router.add_get("/ws", getattr(self, f"{mode}_handler")())

    def _set_up(self, redis: int | None, *, identify: bool) -> None:
        import aiohttp_session_ws

        options: dict[str, Any] = {"id_factory": lambda request: request.query["sid"]}
        if identify:
            options["identify"] = lambda request: "visitor"
        if redis is None:
            self._registry = aiohttp_session_ws.SessionWSRegistry(**options)
        else:
            from aiohttp_session_ws.redis import RedisSessionWSRegistry

            self._registry = RedisSessionWSRegistry(f"redis://{HOST}:{redis}", **options)
        self._app.middlewares.append(aiohttp_session_ws.session_ws_middleware)
        aiohttp_session_ws.setup(self._app, self._registry)

    async def visit(self, request: web.Request) -> web.Response:
        """
        Log a visitor in, as a page does before it opens its websocket.
        """
        session = await aiohttp_session.get_session(request)
        session["user"] = request.query["sid"]
        if self._registry is None:
            session[ID] = request.query["sid"]
        else:
            await self._registry.ensure_id(request)
        return web.Response(text="hello")

    async def _stay(self, ws: web.WebSocketResponse) -> None:
        self.open += 1
        try:
            if self.echo:
                async for message in ws:
                    await ws.send_str(message.data)
            else:
                async for _ in ws:
                    pass
        finally:
            self.open -= 1

    def bare_handler(self) -> Any:
        """
        Return a handler as one writes it with aiohttp alone.
        """

        async def serve(request: web.Request) -> web.WebSocketResponse:
            session = await aiohttp_session.get_session(request)
            ws = web.WebSocketResponse(heartbeat=HEARTBEAT)
            await ws.prepare(request)
            sockets = self._sessions.setdefault(session[ID], set())
            sockets.add(ws)
            try:
                await self._stay(ws)
            finally:
                sockets.discard(ws)
                if not sockets:
                    self._sessions.pop(session[ID], None)
            return ws

        return serve

    def session_handler(self) -> Any:
        """
        Return a handler with ``session_ws``.
        """
        from aiohttp_session_ws import session_ws

        async def serve(request: web.Request) -> web.WebSocketResponse:
            async with session_ws(request, heartbeat=HEARTBEAT) as ws:
                await self._stay(ws)
            return ws

        return serve

    def websocket_handler(self) -> Any:
        """
        Return a handler with a ``WebSocket``.
        """
        from aiohttp_session_ws import WebSocket, websocket_handler

        async def serve(ws: WebSocket) -> None:
            await ws.connect()
            self.open += 1
            try:
                async for message in ws:
                    if self.echo:
                        await ws.send(message)
            finally:
                self.open -= 1

        return websocket_handler(serve)

    def view_handler(self) -> Any:
        """
        Return a view.
        """
        from aiohttp_session_ws import WebSocketView

        server = self

        class View(WebSocketView):
            async def on_open(self) -> None:
                server.open += 1

            async def on_message(self, message: str | bytes) -> None:
                if server.echo:
                    await self.send(message)

            async def on_close(self, code: int) -> None:
                server.open -= 1

        return View

    def _all(self) -> list[web.WebSocketResponse]:
        groups: Iterable[Iterable[web.WebSocketResponse]] = self._sessions.values()
        if self._registry is not None:
            groups = [self._registry[sid] for sid in list(self._registry)]
        return [ws for group in groups for ws in group]

    async def close_session(self, sid: str) -> None:
        """
        Close a session's sockets.
        """
        if self._registry is not None:
            await self._registry.close_all_session(sid)
        else:
            await asyncio.gather(*[ws.close() for ws in self._sessions.get(sid, ())])

    async def shutdown(self) -> None:
        """
        Clean up the app, as ``run_app()`` does at its end.
        """
        if self._registry is None:
            await asyncio.gather(*[ws.close() for ws in self._all()])
        await self._runner.cleanup()

    async def broadcast(self, text: str) -> None:
        """
        Send to all sockets: by the registry, if it can broadcast, else one by one.
        """
        if hasattr(self._registry, "broadcast"):
            await self._registry.broadcast(text)
        else:
            for ws in self._all():
                await ws.send_str(text)

    async def order(self, sid: str) -> None:
        """
        Close a session's sockets on all nodes.
        """
        await getattr(self._registry, self._order)(sid)

    async def op_end_visitors(self) -> Answer:
        """
        End all sessions, which belong to one identity.
        """
        begin = now()
        await self._registry.end_identity("visitor")
        return {"begin": begin, "end": now()}

    async def op_longest_turn(self) -> Answer:
        """
        Return the CPU time of the longest turn since the last request, in nanoseconds.
        """
        assert self.turns is not None, "started without --turns"
        longest, self.turns.longest = self.turns.longest, 0
        return {"longest": longest}

    async def op_sessions(self) -> Answer:
        """
        Return how many sessions have sockets.
        """
        return {"sessions": len(self._registry or self._sessions)}

    async def serve(self) -> None:
        """
        Serve until the process is killed.
        """
        self._runner = web.AppRunner(self._app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0, backlog=BACKLOG).start()
        self.listen(self._runner.addresses[0][1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["bare", "session", "websocket", "view"])
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--redis", type=int)
    parser.add_argument("--order", default="close_all_session")
    parser.add_argument("--turns", action="store_true")
    parser.add_argument("--identify", action="store_true")
    given = parser.parse_args()
    app = App(
        given.mode,
        echo=given.echo,
        redis=given.redis,
        order=given.order,
        identify=given.identify,
    )
    if given.turns:
        app.turns = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(app.turns)) as runner:
        runner.run(app.serve())
