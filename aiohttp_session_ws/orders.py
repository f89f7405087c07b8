"""
The orders: whose sockets are to close, at once and in every handshake that began before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable

import aiohttp_session
from aiohttp import web

from .closing import GOING_AWAY, RECONNECT, SESSION_ENDED, Close, CloseReport, Timeouts
from .connection import Connection
from .identify import Death, Identify, SessionWSIdentities
from .identity import usable_identity
from .ids import (
    DEFAULT_ID_FACTORY,
    DEFAULT_SESSION_KEY,
    IdFactory,
    usable,
)
from .records import blame
from .revocation import CloseOrders, Expiry, Kind
from .sockets import Sockets
from .visit import VISIT, session_of

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")


class SessionWSOrders(SessionWSIdentities):
    """
    The part of the registry that closes sockets by order.
    """

    def __init__(
        self,
        *,
        id_factory: IdFactory = DEFAULT_ID_FACTORY,
        session_key: str = DEFAULT_SESSION_KEY,
        identify: Identify | None = None,
        expiry: Expiry | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(
            id_factory=id_factory, session_key=session_key, identify=identify, expiry=expiry
        )
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self._draining = False
        self._unidentified = False  # the last page that was asked for
        self._orders = CloseOrders()
        self._identity_orders = CloseOrders()
        self._sockets = Sockets(self.timeouts)

    async def close_all(
        self, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close all sockets of this process; their sessions may come back.

        Waits until they are gone, ``timeouts.close + timeouts.handler_grace`` seconds at
        most. Handshakes in flight are refused.

        Args:
            code: The close code, 4403 by default.
            reason: The close reason.
        """
        self._expect_loop()
        close = RECONNECT.replace(code, reason)
        handshakes = list(self._sockets.opening)
        for connection in handshakes:
            connection.refuse(close)
        self._orders.note_all(_now())
        return await self._carry_out(self._sockets.all(), close, len(handshakes))

    async def close_all_session(
        self, session_ws_id: Hashable, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close the sockets of a session; it may come back.

        Waits as :meth:`close_all` does. A handler may call it for its own session.

        Args:
            session_ws_id: Whose sockets.
            code: The close code, 4403 by default.
            reason: The close reason.
        """
        self._expect_loop()
        close = RECONNECT.replace(code, reason)
        ids = [usable(session_ws_id)]
        return await self._carry_out(*self._order(ids, close))

    async def close_all_identity(
        self, identity: Hashable, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close the sockets of all sessions of an identity; they may come back.

        Waits as :meth:`close_all` does.

        Args:
            identity: Whose sockets.
            code: The close code, 4403 by default.
            reason: The close reason.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        self._expect_loop()
        self._expect_identify()
        close = RECONNECT.replace(code, reason)
        self._identity_orders.note(usable_identity(identity), _now())
        connections = self._sockets.of_identity(identity)
        handshakes = [c for c in connections if not c.opened]
        for connection in handshakes:
            connection.refuse(close)
        sockets = [c for c in connections if c.opened]
        return await self._carry_out(sockets, close, len(handshakes))

    async def end_session(
        self, session_ws_id: Hashable, *, code: int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Revoke an id, and all ids that its session ever had, and close their sockets.

        Nobody opens a socket with these ids any more, and an HTTP request that comes with
        one gets a new session; what a storage keeps of the old one is left alone. Waits as
        :meth:`close_all` does.

        Args:
            session_ws_id: Which session.
            code: The close code, 4401 by default.
            reason: The close reason.
        """
        self._expect_loop()
        close = SESSION_ENDED.replace(code, reason)
        ids = self._revocations.end(usable(session_ws_id), self._ttl())
        return await self._carry_out(*self._order(ids, close))

    async def end_identity(
        self,
        identity: Hashable,
        *,
        except_session: Hashable | None = None,
        code: int | None = None,
        reason: str | None = None,
    ) -> CloseReport:
        """
        Log out everywhere: end all sessions of an identity and close their sockets.

        A session that has no open socket ends as well, on its next handshake or request:
        its id was minted before. So a log-in must mint a new one, with
        :func:`renew_session_ws`. Waits as :meth:`close_all` does.

        Args:
            identity: Whose sessions.
            except_session: The session ws id of the one that lives on.
            code: The close code, 4401 by default.
            reason: The close reason.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        self._expect_loop()
        close = SESSION_ENDED.replace(code, reason)
        ids = self._end_identity(identity, except_session)
        return await self._carry_out(*self._order(ids, close))

    def _end_identity(
        self, identity: Hashable, except_session: Hashable | None = None
    ) -> list[Hashable]:
        """
        Record that an identity has ended; return the ids of its sockets' sessions.
        """
        self._expect_identify()
        identity = usable_identity(identity)
        revocations, ttl = self._revocations, self._ttl()
        visit = VISIT.get()
        left_out: set[Hashable] = set()
        if except_session is not None:
            left_out = revocations.family(usable(except_session))
            if visit is not None and visit.minted == except_session:  # and not saved yet
                left_out |= revocations.family(visit.session_ws_id)
        revocations.ends += 1
        if visit is not None:
            visit.own_end = revocations.ends
        self._identities.end(identity, left_out, ttl, revocations.ends)
        self._identity_orders.note(identity, _now())
        connections = self._sockets.of_identity(identity)
        ids = {c.session_ws_id for c in connections}.difference(left_out)
        return list({member for id_ in ids for member in revocations.end(id_, ttl)})

    def _order(
        self, ids: Iterable[Hashable], close: Close, *, hold: bool = False
    ) -> tuple[list[Connection], Close, int]:
        """
        Let an order take effect for handshakes; return what :meth:`_carry_out` takes.

        Args:
            ids: Whom the order is about.
            close: What the handshakes are told.
            hold: Whether to hold handshakes off until the next order to the same ids.
        """
        now = _now()
        sockets: list[Connection] = []
        handshakes = 0
        for session_ws_id in ids:
            self._orders.note(session_ws_id, now)
            if hold:
                self._orders.hold(session_ws_id)
            for connection in self._sockets.opening.of(session_ws_id):
                connection.refuse(close)
                handshakes += 1
            sockets += self._sockets.of(session_ws_id)
        return sockets, close, handshakes

    async def _carry_out(
        self, connections: Iterable[Connection], close: Close, handshakes: int = 0
    ) -> CloseReport:
        connections = list(connections)
        sockets = sum(not connection.gone for connection in connections)
        aborted, cancelled = await self._sockets.close(connections, close)
        return CloseReport(sockets, aborted, cancelled, handshakes)

    # What the middleware and session_ws ask

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
        sockets, close, _ = self._order(ids, SESSION_ENDED)
        if sockets:
            _ = self._sockets.spawn(self._sockets.close(sockets, close), "close what has ended")

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
