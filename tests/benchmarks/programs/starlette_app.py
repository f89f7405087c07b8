"""
An echo server on Starlette and uvicorn.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from .control import HOST, Control


class Echo(Control):
    """
    The server.
    """

    async def echo(self, ws: Any) -> None:
        """
        Send each message back.
        """
        await ws.accept()
        self.open += 1
        try:
            async for text in ws.iter_text():
                await ws.send_text(text)
        finally:
            self.open -= 1

    async def serve(self) -> None:
        """
        Serve until the process is killed.
        """
        app = Starlette(routes=[WebSocketRoute("/ws", self.echo)])
        config = uvicorn.Config(app, host=HOST, port=0, access_log=False, log_level="warning")
        server: Any = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        self.listen(server.servers[0].sockets[0].getsockname()[1])
        await serving


if __name__ == "__main__":
    uvloop.run(Echo().serve())
