"""
The facet of a registry for identities that clients prove over their sockets.
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
    Identities that belong to a connection, beside that of its session.
    """

    _core: Core

    def now(self) -> float:
        """
        Return the time by the one clock, for :meth:`prove`.
        """
        return self._core.clock.begin_time()

    async def prove(self, connection: Connection, identity: Hashable, *, since: float) -> None:
        """
        File an open connection under an identity that its client has proven over the socket.

        It is found by every order, push and question for that identity, beside that of its
        session. One per connection; another replaces it. The periodic check leaves it alone.

        Args:
            connection: An open connection.
            identity: Whom its client has proven to be.
            since: When the proof began, as :meth:`now` said: an end of the identity since then
                concerns it.

        Raises:
            NotSetUp: If the registry has no ``identify``: nobody could end an identity.
            SessionEnded: If that identity was ended since: the connection is closed with 4401. Or
                if its session was ended or renewed: it is closed as an order would do it.
            InvalidIdentity: If *identity* can't be one.
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
        if close is not None:  # as an order tells, for the session may only have been renewed
            core.connections.close_soon([tracked], close)
            raise SessionEnded("the identity or the session was ended while its client proved it")

    def disprove(self, connection: Connection) -> None:
        """
        Take back what :meth:`prove` has filed; nothing happens if there is nothing.
        """
        core = self._core
        core.expect_loop()
        core.connections.discard_proven(core.connections.tracked(connection))
