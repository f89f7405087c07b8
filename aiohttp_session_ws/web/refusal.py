"""
The refusal of handshakes: counted, reported, and sent as a close code for the page's script.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from .._refused import Forbidden, TooMany, Unavailable
from ..close_codes import RECONNECT, SESSION_ENDED, TOO_MANY_CONNECTIONS, Close
from ..connections.connection import TrackedConnection
from ..connections.websocket import ServedWebSocket
from ..exceptions import HandshakeRefused, SessionWSClosed
from ..registry.core import Core
from ..signals import FailDetails

__all__: list[str] = []

#: The reasons under which refusals are counted, by close code.
_REASONS: Final = {
    SESSION_ENDED.code: "ended",
    RECONNECT.code: "reconnect",
    TOO_MANY_CONNECTIONS.code: "limit",
}


def reason_for(error: BaseException) -> str:
    """
    Return the reason under which a handshake that failed with *error* is counted.
    """
    match error:
        case Forbidden() | Unavailable() | TooMany():
            return error.why
        case HandshakeRefused(close=close):
            return _REASONS.get(close.code, "reconnect")  # by an order, with a code of its own
        case SessionWSClosed():
            return "reconnect"  # an order was given while the upgrade was written
        case web.HTTPBadRequest():
            return "no websocket"
        case asyncio.CancelledError():
            return "client gone"
    return "error"


async def report_refusal(
    core: Core, request: web.Request, error: BaseException, why: str | None = None
) -> None:
    """
    Count a handshake that failed, and send ``on_fail``.

    Args:
        core: The registry's parts.
        request: The request.
        error: The error that it failed with.
        why: The reason to count it under; ``None`` for that of *error*.
    """
    core.connections.counters.refused(why or reason_for(error))
    await core.signals.on_fail.send(FailDetails(request, error))


async def accept_and_close(core: Core, request: web.Request, close: Close) -> ServedWebSocket:
    """
    Accept a handshake just to close it: a script sees a close code, but no HTTP status.

    The client's close frame is waited for as long as the close timeout, which is half a second
    at most while the application shuts down.
    """
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")[0].strip()
    # A browser fails a handshake that answers none of the subprotocols that it offered.
    ws = ServedWebSocket(protocols=(offered,) if offered else (), compress=False)
    await ws.prepare(request)
    connection = TrackedConnection(None, ws, request)
    await core.connections.close_refused(connection, close)
    return ws
