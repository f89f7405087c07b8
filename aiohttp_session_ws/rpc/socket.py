"""
What calls need of a socket: ``WebSocket`` has it.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from ..close_codes import Close
from ..connections.connection import Connection

__all__ = ["Socket"]


class Socket(Protocol):
    """
    An open websocket. It raises ``WebSocketDisconnect`` once it is closed.
    """

    request: web.Request

    @property
    def connection(self) -> Connection:
        """
        The connection, as the registry knows it.
        """

    @property
    def closed(self) -> bool:
        """
        Whether it is closed, by either side.
        """

    async def receive(self) -> str | bytes:
        """
        Wait for a message.
        """

    async def send(self, data: str | bytes) -> None:
        """
        Send a message, and wait if the client reads too slowly.
        """

    async def send_text(self, data: bytes) -> None:
        """
        Send a text that is encoded already.
        """

    async def close(self, close: Close | int, reason: str | None = None) -> None:
        """
        Close it, and wait until it is gone.
        """
