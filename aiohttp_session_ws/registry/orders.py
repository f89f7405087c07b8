"""
The registry's methods that close sockets and end sessions, by id, identity or label.

Orders of a request about its own session, such as its log-out, are in ``request_orders.py``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Hashable, Iterable

from .._lineage import Subject
from ..close_codes import RECONNECT, SESSION_ENDED, Close, as_close
from ..connections.connection import Connection
from ..results import CloseReport, Handle
from ..sessions.context import current_request
from ..sessions.records import Change, LineageEnded, SubjectEnded
from .core import Core
from .handles import resolve
from .judging import Effect
from .order import Order

__all__: list[str] = []


class Orders:
    """
    Orders to close sockets or end sessions. Each order applies to handshakes at once, on every
    node that can be reached.

    Whatever peers do, closing takes ``timeouts.close + timeouts.handler_grace`` seconds at most.
    A handler may give an order about its own session: that handler is neither waited for nor
    cancelled. An argument of a wrong type raises ``TypeError``, a close code or reason that no
    close frame can carry ``ValueError``; the order is not given then.
    """

    _core: Core

    async def close_all(
        self, *, close: Close | int | None = None, reason: str | None = None
    ) -> CloseReport:
        """
        Close all sockets of this process; their sessions may reconnect.

        Waits until they are closed. Handshakes in flight are rejected.

        Args:
            close: The close code, 4403 by default.
            reason: The close reason.
        """
        core = self._core
        core.expect_loop()
        close_order = as_close(close, reason, RECONNECT)
        opening = core.connections.handshakes()
        for connection in opening:
            connection.reject(close_order)
        core.close_orders.add_all(time.monotonic())
        effect = Effect(((close_order, tuple(core.connections.all())),), len(opening))
        return await core.effects.carry_out(effect)

    async def close_all_session(
        self,
        session_ws_id: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        except_: Connection | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of a session; it may reconnect.

        Waits until the sockets of this process are closed.

        Args:
            session_ws_id: The id of the session.
            close: The close code, 4403 by default.
            reason: The close reason.
            except_: A connection to leave open, such as that of the calling handler.
            wait: Seconds to wait for the reports of other nodes, if there are any.
            by: Who gives the order, for the log.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
        """
        core = self._core
        core.expect_loop()
        subject = Subject("id", core.usable_id(session_ws_id))
        return await self._close(subject, close, reason, wait, by, except_)

    async def close_all_identity(
        self,
        identity: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of all sessions of an identity; they may reconnect.

        Arguments and waiting are those of :meth:`close_all_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of(identity)
        return await self._close(subject, close, reason, wait, by)

    async def close_all_label(
        self,
        name: str,
        value: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Close the sockets of all sessions with a label; they may reconnect.

        Args:
            name: The name of the label, as ``labels`` returns it.
            value: Its value.
            close: The close code, 4403 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, if there are any.
            by: Who gives the order, for the log.

        Raises:
            NotSetUp: If the registry has no ``labels``.
            InvalidIdentity: If *name* or *value* can't be used for a label.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of_label(name, value)
        return await self._close(subject, close, reason, wait, by)

    def _close(
        self,
        subject: Subject,
        close: Close | int | None,
        reason: str | None,
        wait: float,
        by: str | None,
        except_: Connection | None = None,
    ) -> Awaitable[CloseReport]:
        core = self._core
        core.expect_arguments(by, wait, except_)
        close_order = as_close(close, reason, RECONNECT)
        first = core.connections.write_first(subject, close_order, but=except_)
        return core.issue(Order((), (subject,), close_order, by), wait, except_, first)

    async def end_session(
        self,
        session_ws_id: Hashable | Handle,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        End the session of an id: no socket of it survives, and no copy of its cookie opens one.

        All sessions that share the id end. A lineage that begins later under it is not affected,
        so an id that the application derives, such as a user's id, isn't locked. The session's
        data in its storage is left alone; an HTTP request with that session is given an empty
        one. Waits until the sockets of this process are closed.

        Args:
            session_ws_id: The id; or its handle, which is known while the session has an open
                socket: without one nothing ends, and ``stored`` is false.
            close: The close code, 4401 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, if there are any.
            by: Who gives the order, for the log.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be an id.
        """
        core = self._core
        core.expect_loop()
        if isinstance(session_ws_id, Handle):
            core.expect_arguments(by, wait)
            session_ws_id = await resolve(core, session_ws_id)
            if session_ws_id is None:
                return CloseReport(stored=False)
        subject = Subject("id", core.usable_id(session_ws_id))
        return await self._end(subject, close, reason, wait, by)

    def _ends_of_known(self, subject: Subject, before: float) -> Iterable[Change]:
        """
        Return the ends of the lineages that are known to have an id; none for other subjects.
        """
        if subject.kind != "id":
            return ()
        core, context, session_ws_id = self._core, current_request(), subject.value
        known = [connection.lineage for connection in core.connections.of(session_ws_id)]
        if context is not None and context.lineage and context.session_ws_id == session_ws_id:
            known.append(context.lineage)  # its cookie may not carry the id yet
        if not known and not core.records.with_note((session_ws_id,)):
            return ()  # the common case
        tokens = {lineage.token for lineage in known if lineage.token and lineage.began <= before}
        note = core.records.note_of(session_ws_id)
        if note is not None and note.began <= before:
            tokens.add(note.token)
        return (LineageEnded(token, before, carries=False, ttl=core.ttl) for token in tokens)

    async def end_identity(
        self,
        identity: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        Log out everywhere: end all sessions of an identity that have begun by now.

        Sessions without an open socket and all copies of their cookies end as well. A later
        log-in is not affected. Arguments and waiting are those of :meth:`end_session`.

        Raises:
            NotSetUp: If the registry has no ``identify``.
            InvalidIdentity: If *identity* is ``None`` or can't be hashed.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of(identity)
        return await self._end(subject, close, reason, wait, by)

    async def end_label(
        self,
        name: str,
        value: Hashable,
        *,
        close: Close | int | None = None,
        reason: str | None = None,
        wait: float = 0.0,
        by: str | None = None,
    ) -> CloseReport:
        """
        End all sessions with a label that have begun by now, as :meth:`end_identity` does.

        Args:
            name: The name of the label, as ``labels`` returns it.
            value: Its value, such as an identity provider's session id or a device.
            close: The close code, 4401 by default.
            reason: The close reason.
            wait: Seconds to wait for the reports of other nodes, if there are any.
            by: Who gives the order, for the log.

        Raises:
            NotSetUp: If the registry has no ``labels``.
            InvalidIdentity: If *name* or *value* can't be used for a label.
        """
        core = self._core
        core.expect_loop()
        subject = core.identifier.subject_of_label(name, value)
        return await self._end(subject, close, reason, wait, by)

    def _end(
        self,
        subject: Subject,
        close: Close | int | None,
        reason: str | None,
        wait: float,
        by: str | None,
    ) -> Awaitable[CloseReport]:
        core = self._core
        core.expect_arguments(by, wait)
        close_order = as_close(close, reason, SESSION_ENDED)
        before = core.clock.end_time()
        first = core.connections.write_first(subject, close_order, began=before)
        end = SubjectEnded(subject, before, core.ttl)
        core.record_own_end(end)
        changes = (end, *self._ends_of_known(subject, before))
        return core.issue(Order(changes, (), close_order, by), wait, first=first)
