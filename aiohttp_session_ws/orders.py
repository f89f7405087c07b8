"""
The orders: whose sockets are to close, at once and in every handshake that began before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable

from .closing import RECONNECT, SESSION_ENDED, Close, CloseReport, Timeouts
from .connection import Connection
from .elsewhere import SessionWSElsewhere, Told
from .identify import Identify
from .ids import (
    DEFAULT_ID_FACTORY,
    DEFAULT_SESSION_KEY,
    IdFactory,
)
from .revocation import CloseOrders, Expiry
from .sockets import Sockets
from .visit import VISIT

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")


class SessionWSOrders(SessionWSElsewhere):
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
        self,
        session_ws_id: Hashable,
        *,
        code: int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
    ) -> CloseReport:
        """
        Close the sockets of a session; it may come back.

        Waits as :meth:`close_all` does. A handler may call it for its own session.

        Args:
            session_ws_id: Whose sockets.
            code: The close code, 4403 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other processes; of use to a registry
                that knows any.
        """
        self._expect_loop()
        close = RECONNECT.replace(code, reason)
        return await self._execute([self._usable(session_ws_id)], close, wait)

    async def close_all_identity(
        self,
        identity: Hashable,
        *,
        code: int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
    ) -> CloseReport:
        """
        Close the sockets of all sessions of an identity; they may come back.

        Waits as :meth:`close_all` does.

        Args:
            identity: Whose sockets.
            code: The close code, 4403 by default.
            reason: The close reason.
            wait: As for :meth:`close_all_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        self._expect_loop()
        self._expect_identify()
        close = RECONNECT.replace(code, reason)
        sockets, handshakes = self._order_identity(self._usable_identity(identity), close)
        told = self._tell_identity(identity, close, wait)
        return await self._carry_out(sockets, close, handshakes, told)

    async def end_session(
        self,
        session_ws_id: Hashable,
        *,
        code: int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
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
            wait: As for :meth:`close_all_session`.
        """
        self._expect_loop()
        close = SESSION_ENDED.replace(code, reason)
        ids = self._revocations.end(self._usable(session_ws_id), self._ttl())
        return await self._execute(ids, close, wait)

    async def end_identity(
        self,
        identity: Hashable,
        *,
        except_session: Hashable | None = None,
        code: int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
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
            wait: As for :meth:`close_all_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        self._expect_loop()
        close = SESSION_ENDED.replace(code, reason)
        ids = self._end_identity(identity, except_session)
        return await self._execute(ids, close, wait, identity)

    def _end_identity(
        self, identity: Hashable, except_session: Hashable | None = None
    ) -> list[Hashable]:
        """
        Record that an identity has ended; return the ids of its sockets' sessions.
        """
        self._expect_identify()
        identity = self._usable_identity(identity)
        revocations, ttl = self._revocations, self._ttl()
        visit = VISIT.get()
        left_out: set[Hashable] = set()
        if except_session is not None:
            left_out = revocations.family(self._usable(except_session))
            if visit is not None and visit.minted == except_session:  # and not saved yet
                left_out |= revocations.family(visit.session_ws_id)
        revocations.ends += 1
        if visit is not None:
            visit.own_end = revocations.ends
        before = self._identities.now()
        self._identities.end(identity, left_out, ttl, revocations.ends, before)
        self._identity_orders.note(identity, _now())
        connections = self._sockets.of_identity(identity)
        ids = {c.session_ws_id for c in connections}.difference(left_out)
        return list({member for id_ in ids for member in revocations.end(id_, ttl)})

    def _order_identity(self, identity: Hashable, close: Close) -> tuple[list[Connection], int]:
        """
        As :meth:`_order`, for all sessions of an identity.
        """
        self._identity_orders.note(identity, _now())
        connections = self._sockets.of_identity(identity)
        handshakes = [c for c in connections if not c.opened]
        for connection in handshakes:
            connection.refuse(close)
        return [c for c in connections if c.opened], len(handshakes)

    def _order(
        self, ids: Iterable[Hashable], close: Close, *, hold: bool = False
    ) -> tuple[list[Connection], int]:
        """
        Let an order take effect for handshakes.

        Args:
            ids: Whom the order is about.
            close: What the handshakes are told.
            hold: Whether to hold handshakes off until the next order to the same ids.

        Returns:
            The sockets to close, and how many handshakes will be refused.
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
        return sockets, handshakes

    async def _execute(
        self,
        ids: Iterable[Hashable],
        close: Close,
        wait: float,
        identity: Hashable | None = None,
    ) -> CloseReport:
        """
        Let an order take effect here and everywhere.
        """
        ids = list(ids)
        sockets, handshakes = self._order(ids, close)
        told = self._tell(ids, close, wait, identity=identity)
        return await self._carry_out(sockets, close, handshakes, told)

    async def _carry_out(
        self,
        connections: Iterable[Connection],
        close: Close,
        handshakes: int = 0,
        told: Told | None = None,
    ) -> CloseReport:
        connections = list(connections)
        sockets = sum(not connection.gone for connection in connections)
        aborted, cancelled = await self._sockets.close(connections, close)
        report = CloseReport(sockets, aborted, cancelled, handshakes)
        return report if told is None else await told(report)

    def _close_soon(self, ids: Iterable[Hashable], close: Close) -> None:
        """
        Let an order take effect, and close the sockets in the background.
        """
        ids = list(ids)
        sockets, _ = self._order(ids, close)
        _ = self._tell(ids, close)
        if sockets:
            _ = self._sockets.spawn(self._sockets.close(sockets, close), "close what has ended")


def _now() -> float:
    return asyncio.get_running_loop().time()
