"""
A server on python-socketio and aiohttp, websockets only; each session is a room.

Sockets of another node can be disconnected by their own ids only, so the node that gives
orders receives these ids beforehand.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from urllib.parse import parse_qs

import socketio
from aiohttp import web

from .control import BACKLOG, HOST, Answer, Control


class SocketIO(Control):
    """
    The server.
    """

    def __init__(self, redis: int | None) -> None:
        super().__init__()
        manager = None
        if redis is not None:
            manager = socketio.AsyncRedisManager(f"redis://{HOST}:{redis}")
        self._server: Any = socketio.AsyncServer(
            async_mode="aiohttp",
            transports=["websocket"],
            client_manager=manager,
            cors_allowed_origins="*",
            ping_interval=30,
        )
        self._socket_ids: dict[str, str] = {}
        self._server.on("connect", self._connected)
        self._server.on("disconnect", self._disconnected)

    async def _connected(self, socket_id: str, environ: Any, auth: object = None) -> None:
        sid = parse_qs(environ["QUERY_STRING"])["session"][0]
        await self._server.enter_room(socket_id, sid)
        self._socket_ids[sid] = socket_id
        self.open += 1

    async def _disconnected(self, socket_id: str, reason: object = None) -> None:
        self.open -= 1

    async def op_socket_ids(self) -> Answer:
        """
        Return the ids of this node's sockets, by session.
        """
        return {"socket_ids": self._socket_ids}

    async def op_know(self, socket_ids: dict[str, str]) -> Answer:
        """
        Store the ids of another node's sockets, by session.
        """
        self._socket_ids = socket_ids
        return {}

    async def _disconnect_room(self, room: str | None) -> None:
        members = [member for member, _ in self._server.manager.get_participants("/", room)]
        await asyncio.gather(*[self._server.disconnect(member) for member in members])

    async def close_session(self, sid: str) -> None:
        """
        Disconnect the sockets of a room.
        """
        await self._disconnect_room(sid)

    async def shutdown(self) -> None:
        """
        Disconnect all sockets.
        """
        await self._disconnect_room(None)

    async def broadcast(self, text: str) -> None:
        """
        Emit an event to all sockets.
        """
        await self._server.emit("m", text)

    async def order(self, sid: str) -> None:
        """
        Disconnect the socket of a session, on whichever node it is.
        """
        await self._server.disconnect(self._socket_ids.get(sid, sid))

    async def serve(self, *, cluster: bool) -> None:
        """
        Serve until the process is killed.
        """
        app = web.Application()
        self._server.attach(app)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0, backlog=BACKLOG).start()
        if cluster:
            # By default it subscribes to Redis with its first request, which this node may
            # never receive.
            self._server.manager_initialized = True
            self._server.manager.initialize()
        self.listen(runner.addresses[0][1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int)
    port = parser.parse_args().redis
    asyncio.run(SocketIO(port).serve(cluster=port is not None))
