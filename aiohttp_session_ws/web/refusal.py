"""
Refusing a handshake so that the script of a page learns why.
"""

from __future__ import annotations

from aiohttp import web

from ..close_codes import Close
from ..connections.connection import ServedWebSocket, TrackedConnection
from ..registry.core import Core

__all__: list[str] = []


async def accept_and_close(core: Core, request: web.Request, close: Close) -> ServedWebSocket:
    """
    Accept a handshake just to close it: a script sees a close code, but no HTTP status.

    The client's close frame is waited for as long as the close timeout, and not at all while
    the application shuts down.
    """
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")[0].strip()
    # A browser fails a handshake that answers none of the subprotocols that it offered.
    ws = ServedWebSocket(protocols=(offered,) if offered else (), compress=False)
    await ws.prepare(request)
    connection = TrackedConnection(None, ws, request)
    await core.connections.close_refused(connection, close)
    return ws
