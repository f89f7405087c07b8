"""
The registry's methods for identities that clients prove over their sockets.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..connections.connection import Connection
from ..exceptions import SessionEnded
from .core import Core
from .identify import Owner, subjects_of

__all__: list[str] = []


class Proofs:
    """
    Identities proven for one connection, in addition to the identity of its session.
    """

    _core: Core

    def now(self) -> float:
        """
        Return the current time by the shared clock, for the *since* of :meth:`prove`.
        """
        return self._core.clock.begin_time()

    async def prove(self, connection: Connection, identity: Hashable, *, since: float) -> None:
        """
        File an open connection under an identity that its client has proven over the socket.

        Orders, pushes and queries for that identity then include the connection, as do those for
        the identity of its session. A connection has at most one proven identity: another one
        replaces it. The periodic check ignores it.

        Args:
            connection: An open connection.
            identity: The identity that its client has proven.
            since: When the proof began, as returned by :meth:`now`; if the identity was ended
                since then, the connection is closed.

        Raises:
            NotSetUp: If the registry has no ``identify``, without which no identity can be ended.
            SessionEnded: If that identity was ended since: the connection is closed with 4401. Or
                if its session was ended or renewed: it is closed as an order would do it.
            InvalidIdentity: If *identity* can't be used as one.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of(identity)
        tracked = core.connections.tracked(connection)
        core.connections.file_proven(tracked, identity, since)  # first, so that orders find it
        if core.status_of(tracked).alive and core.cluster.remote:
            own = subjects_of(tracked.session_ws_id, Owner(tracked.identity, tracked.labels))
            await core.cluster.check_request(tracked.lineage.token, [*own, subject])
        close = core.close_for(core.status_of(tracked))
        if close is not None:  # not always 4401: the session may only have been renewed
            core.connections.close_soon([tracked], close)
            raise SessionEnded("the identity or the session was ended or renewed during the proof")

    def disprove(self, connection: Connection) -> None:
        """
        Undo :meth:`prove`; do nothing if the connection has no proven identity.
        """
        core = self._core
        core.expect_loop()
        core.connections.discard_proven(core.connections.tracked(connection))
