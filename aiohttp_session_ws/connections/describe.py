"""
Descriptions of connections that may be kept and logged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs

from ..results import ConnectionInfo, Snapshot
from .connection import TrackedConnection
from .websocket import ServedWebSocket

__all__: list[str] = []

MAX_AGENT: Final = 200  # characters kept of a user agent, which clients choose


def snapshot(connections: Iterable[TrackedConnection], now: float, node: str = "") -> Snapshot:
    """
    Describe *connections*, oldest first.

    Args:
        connections: The connections.
        now: The event loop's time.
        node: The name of the node that they are on.
    """
    epoch = time.time() - now
    opened = sorted((c.opened_at or 0.0, n, c) for n, c in enumerate(connections))
    return Snapshot(_describe(c, at, now, epoch, node) for at, _, c in opened)


def _describe(
    connection: TrackedConnection, at: float, now: float, epoch: float, node: str
) -> ConnectionInfo:
    request, ws = connection.request, connection.ws
    last_receive = ws.last_receive_at if isinstance(ws, ServedWebSocket) else None
    return ConnectionInfo(
        id=connection.id,
        session_ws_id=connection.session_ws_id,
        identity=connection.identity,
        remote=None if request is None else request.remote,
        opened_at=at + epoch,
        path="" if request is None else request.path,
        idle=now - max(at, last_receive or at),
        node=node,
        user_agent="" if request is None else request.headers.get(hdrs.USER_AGENT, "")[:MAX_AGENT],
    )
