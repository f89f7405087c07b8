"""
What a registry of many processes does besides, and this one leaves out.

``aiohttp_session_ws.redis`` fills it in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import TypeAlias

from aiohttp import web

from .closing import Close, CloseReport
from .connection import Connection
from .identify import SessionWSIdentities

__all__: list[str] = []

Told: TypeAlias = Callable[[CloseReport], Awaitable[CloseReport]]


class SessionWSElsewhere(SessionWSIdentities):
    """
    The part of the registry that knows of other processes: here there are none.
    """

    _elsewhere = False  # whether there may be sockets of the same sessions elsewhere

    def _store(
        self, ids: Iterable[Hashable], close: Close, *, identity: Hashable | None = None
    ) -> None:
        """
        Record an order where other processes look; they are told when an answer has left.

        Args:
            ids: Whom it is about.
            close: With what their sockets will be closed.
            identity: Whose sessions it ends.
        """

    def _tell(
        self,
        ids: Iterable[Hashable],
        close: Close,
        wait: float = 0.0,
        *,
        identity: Hashable | None = None,
    ) -> Told | None:
        """
        Record an order and tell other processes of it.

        Args:
            ids: Whom it is about.
            close: With what their sockets are closed.
            wait: Seconds to wait for what they report.
            identity: Whose sessions it ends.

        Returns:
            What makes the report of this process one of all.
        """
        return None

    def _tell_identity(self, identity: Hashable, close: Close, wait: float) -> Told | None:
        """
        Tell other processes to close the sockets of an identity, which may come back.
        """
        return None

    async def _look_up(self, connection: Connection) -> None:
        """
        Learn what other processes have recorded about a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If that can't be found out.
        """

    async def _meet(self, request: web.Request, session_ws_id: Hashable) -> None:
        """
        Learn what other processes have recorded about the session of an HTTP request.
        """

    async def _join(self) -> None:
        """
        Come to know other processes, before the first request.
        """

    async def _part(self) -> None:
        """
        Leave them, after the last one.
        """
