"""
What is known of a session that comes: whether it may open a socket, and whether it lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable

import aiohttp_session
from aiohttp import web

from .closing import GOING_AWAY, RECONNECT, SESSION_ENDED, Close
from .connection import Connection
from .identify import Death
from .orders import SessionWSOrders
from .records import blame
from .revocation import Kind
from .visit import session_of

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")


class SessionWSVerdicts(SessionWSOrders):
    """
    The part of the registry that the middleware and ``session_ws`` ask.
    """

    def _verdict(self, connection: Connection) -> Close | None:
        """
        Return why a handshake may not open, ``None`` if it may.
        """
        if self._draining:
            return GOING_AWAY
        session_ws_id = connection.session_ws_id
        record = self._revocations.get(session_ws_id)
        if record is not None:
            return SESSION_ENDED if record.kind is Kind.ENDED else RECONNECT
        missed = self._orders.concern(session_ws_id, connection.started, _now())
        return RECONNECT if missed else None

    def _verdict_of_identity(
        self, connection: Connection, identity: Hashable, session: aiohttp_session.Session | None
    ) -> Close | None:
        """
        Return why a handshake of *identity* may not open, ``None`` if it may.
        """
        if self._ended_identity(connection.session_ws_id, identity, session) is not None:
            self._end_now(connection.session_ws_id)
            return SESSION_ENDED
        missed = self._identity_orders.concern(identity, connection.started, _now())
        return RECONNECT if missed else None

    def _end_now(self, session_ws_id: Hashable) -> None:
        """
        End a session that was found to be ended, as one of its identity.
        """
        ids = self._revocations.end(session_ws_id, self._ttl())
        self._close_soon(ids, SESSION_ENDED)

    async def _death_of_identity(
        self, request: web.Request, session_ws_id: Hashable
    ) -> Death | None:
        """
        Return how the session of an HTTP request died, if with all others of its identity.
        """
        try:
            identity = await self._identify(request)
        except Exception as exc:  # noqa: BLE001  the application's
            # Nobody knows whose page this is; its sockets will be refused for the same reason.
            if not self._unidentified:
                log.warning("requests can't be identified: %s", blame(exc))
            self._unidentified = True
            return None
        self._unidentified = False
        ended = self._ended_identity(session_ws_id, identity, session_of(request))
        if ended is None:
            return None
        self._end_now(session_ws_id)
        return Death(Kind.ENDED, self._identities.age(ended))


def _now() -> float:
    return asyncio.get_running_loop().time()
