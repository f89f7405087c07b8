"""
A server in a process of its own: bare aiohttp, or with the package.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final, Literal, TypeAlias

import aiohttp_session
from aiohttp import WSMsgType, web
from aiohttp_session.cookie_storage import EncryptedCookieStorage

from aiohttp_session_ws import (
    PushQueue,
    SessionWSRegistry,
    WebSocket,
    session_ws,
    session_ws_middleware,
    setup,
    websocket_handler,
)

from .report import cpu_microseconds

Kind: TypeAlias = Literal["bare", "ours"]
Command: TypeAlias = Literal["cpu", "memory", "ready", "send", "push", "close", "stop"]

SECRET: Final = bytes(32)  # of the cookies of a server that only this machine can reach
HOST: Final = "127.0.0.1"
TEXT: Final = "x" * 1024  # what is pushed
PUSHES: Final = 10  # per round


class Work:
    """
    What one server does; its handlers, and the answers to its parent.

    Args:
        kind: With or without the package.
        traced: Whether memory is measured, and nothing else.
    """

    def __init__(self, kind: Kind, traced: bool) -> None:
        self._traced = traced
        self._ready = 0
        self._flooded: list[asyncio.Transport] = []
        self._sockets: set[web.WebSocketResponse] = set()
        self._registry: SessionWSRegistry | None = None
        self.app = web.Application()
        aiohttp_session.setup(self.app, EncryptedCookieStorage(SECRET))
        if kind == "bare":
            self.app.router.add_get("/{manner}", self.bare)
        else:
            self.app.middlewares.append(session_ws_middleware)
            self.app.router.add_get("/talk", self.talk)
            self.app.router.add_get("/busy", self.busy)
            self.app.router.add_get("/{manner}", self.ours)
            patient = PushQueue(patience=3600)  # a peer that stopped is to stay
            self._registry = setup(self.app, SessionWSRegistry(push_queue=patient))

    async def bare(self, request: web.Request) -> web.StreamResponse:
        """
        Serve a websocket as aiohttp alone does.
        """
        await aiohttp_session.get_session(request)
        ws = web.WebSocketResponse(heartbeat=30.0)
        await ws.prepare(request)
        if not self._traced:
            self._sockets.add(ws)
        await self._stay(request, ws)
        self._sockets.discard(ws)
        return ws

    async def ours(self, request: web.Request) -> web.StreamResponse:
        """
        Serve a websocket that belongs to its session.
        """
        async with session_ws(request) as ws:
            await self._stay(request, ws)
        return ws

    @websocket_handler
    async def talk(self, ws: WebSocket) -> None:
        """
        Echo, by the conversation object.
        """
        await ws.connect()
        self._ready += 1
        while True:
            await ws.send(await ws.receive())

    @websocket_handler
    async def busy(self, ws: WebSocket) -> None:
        """
        Wait for something else, while the conversation object reads.
        """
        await ws.connect()
        self._ready += 1
        await asyncio.Event().wait()

    async def _stay(self, request: web.Request, ws: web.WebSocketResponse) -> None:
        """
        Do with a socket what the path says.
        """
        self._ready += 1
        match request.match_info["manner"]:
            case "receive":
                await ws.receive()
            case "talk":
                async for message in ws:
                    if message.type is WSMsgType.TEXT:
                        await ws.send_str(message.data)
                    else:
                        await ws.send_bytes(message.data)
            case "wait" | "busy":  # never hears of the close
                await asyncio.Event().wait()
            case "flood":
                assert request.transport is not None
                self._flooded.append(request.transport)
                while True:
                    await ws.send_bytes(bytes(2**16))

    async def _send(self, *, push: bool) -> float:
        """
        Send to all, and return the microseconds that one message to one socket takes.
        """
        registry = self._registry
        assert registry is not None
        sockets = [ws for group in registry.values() for ws in group]

        async def work() -> None:
            for _ in range(PUSHES):
                if push:
                    await registry.broadcast(TEXT)
                    continue
                for ws in sockets:
                    await ws.send_str(TEXT)

        return await cpu_microseconds(work, PUSHES * len(sockets))

    async def _close(self) -> None:
        if self._registry is None:
            await asyncio.gather(*[ws.close() for ws in self._sockets])
        else:
            await self._registry.close_all()

    async def answer(self, command: Command) -> float:
        """
        Measure what the parent asks for.
        """
        match command:
            case "cpu":
                return time.process_time()
            case "memory":
                gc.collect()
                return tracemalloc.get_traced_memory()[0]
            case "ready":
                stuck = sum(t.get_write_buffer_size() > 0 for t in self._flooded)
                return self._ready - len(self._flooded) + stuck
            case "send" | "push":
                return await self._send(push=command == "push")
            case "close":
                begin = time.perf_counter()
                await self._close()
                return time.perf_counter() - begin
            case "stop":
                return 0.0


async def _serve(kind: Kind, traced: bool, pipe: Pipe[Any, Any]) -> None:
    work = Work(kind, traced)
    runner = web.AppRunner(work.app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    pipe.send(runner.addresses[0][1])
    command: Command | None = None
    while command != "stop":
        command = await asyncio.to_thread(pipe.recv)
        assert command is not None
        pipe.send(await work.answer(command))


def _run(kind: Kind, traced: bool, pipe: Pipe[Any, Any]) -> None:
    if traced:
        tracemalloc.start()
    asyncio.run(_serve(kind, traced, pipe))


class Server:
    """
    The parent's end.
    """

    def __init__(self, pipe: Pipe[Any, Any], port: int) -> None:
        self._pipe = pipe
        self.port = port

    async def ask(self, command: Command) -> float:
        """
        Have something measured.
        """
        self._pipe.send(command)
        return float(await asyncio.to_thread(self._pipe.recv))

    async def wait_ready(self, count: int) -> None:
        """
        Wait until *count* handlers are at work, and those who flood are stuck.
        """
        while await self.ask("ready") < count:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(kind: Kind, *, traced: bool = False) -> AsyncIterator[Server]:
    """
    Start a server; end it without a word to its clients.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_run, args=(kind, traced, other), daemon=True)
    process.start()
    other.close()
    try:
        server = Server(pipe, await asyncio.to_thread(pipe.recv))
        yield server
        await server.ask("stop")
    finally:
        process.kill()
        process.join()
