"""
The periodic check, which closes open sockets whose session is no longer valid.

It loads and judges the session as arrival does, on a copy of the request that was upgraded, but
saves nothing, gives no id and marks no generation seen. It finds what no order reports: a session
that has expired, was deleted from its storage, or changed its identity without our middleware.

Over 300 lines long: scheduling a check, loading the session and drawing the conclusion share the
state of a connection.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Hashable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from aiohttp import web
from aiohttp_session import Session

from .._lineage import Lineage
from .._logging import describe_error, log
from .._tasks import BackgroundTasks, is_cancelled, maybe_await
from ..close_codes import RECONNECT, SESSION_ENDED, SESSION_EXPIRED, Close
from ..connections.connection import TrackedConnection
from ..connections.manager import SOON, ConnectionManager
from ..exceptions import HandshakeRefused
from ..options import Expiry
from ..sessions.records import Records
from ..sessions.session import (
    SessionKeys,
    expires_at,
    is_server_side,
    loaded_session,
    put_session,
)
from ..typing import Authorize
from .identify import ANONYMOUS, Identifier, Owner
from .judging import Sessions
from .request_again import authorization_key, may_have_unsaved_changes, request_again

__all__: list[str] = []

CHECKS: Final = 32  # concurrent checks
CHECK_LIMIT: Final = 10.0  # seconds to load and identify a session, and for a call of authorize
MIN_INTERVAL: Final = 1.0  # seconds between two checks of a session; doubled by each failure
MAX_BACKOFF: Final = 60.0  # seconds between two tries while the storage fails
DRIFT: Final = 1.0  # seconds of drift between the wall clock and the event loop's to react to
SPREAD: Final = 1000  # checks per second when all become due at once


class Node(Sessions, Protocol):
    """
    The parts of a registry that the check needs, besides judging sessions.
    """

    authorize: Authorize | None
    connections: ConnectionManager
    expiry: Expiry
    identifier: Identifier
    keys: SessionKeys
    records: Records
    tasks: BackgroundTasks

    def current_id(self, request: web.Request) -> Awaitable[Hashable | None]:
        """
        Return the id of the session of *request*.
        """


class SessionState(NamedTuple):
    """
    The session as loaded by a check.

    Attributes:
        session_ws_id: The id that the session has now.
        lineage: The lineage it carries, if any.
        owner: Its identity and labels.
        ends: When it expires, by the wall clock.
        server_side: Whether the storage keeps it on the server.
        request: The request that it was loaded for.
        loaded_at: When it was loaded, by the wall clock.
    """

    session_ws_id: Hashable | None
    lineage: Lineage | None
    owner: Owner
    ends: float
    server_side: bool
    request: web.Request
    loaded_at: float


class Revalidator:
    """
    Closes the sockets of sessions that have expired, are gone, or have another identity.

    Args:
        core: The registry's parts.
    """

    def __init__(self, core: Node) -> None:
        self._core = core
        self._running: dict[Hashable, asyncio.Task[None]] = {}  # running checks by session id
        self._failed_at: float | None = None  # when a check last failed, until one succeeds
        self._offset = 0.0  # of the wall clock from the event loop's
        self._stopped = True
        core.connections.on_tick.append(self.tick)

    def start(self) -> None:
        """
        Start checking.
        """
        self._stopped = False
        self._offset = time.time() - time.monotonic()
        self._running.clear()

    def stop(self) -> None:
        """
        Stop starting checks.
        """
        self._stopped = True

    def watch(self, connection: TrackedConnection) -> None:
        """
        Schedule the first check of a connection that has just opened.
        """
        assert connection.request is not None, "its handshake has one"
        due, session = self._next(math.inf), loaded_session(connection.request)
        if session is not None:
            connection.server_side = is_server_side(session)
            if session.max_age is not None:
                due = min(due, self._expiry(connection, session))
        # It is due at once if a check was requested while the connection was opening.
        self._check_at(connection, min(connection.check_at, due))

    def _expiry(self, connection: TrackedConnection, session: Session) -> float:
        """
        Return when to check a connection for the expiry of its session, by the event loop's clock.
        """
        connection.session_ends = ends = expires_at(session)
        if may_have_unsaved_changes(connection, session):
            # A change made by the handshake extends the expiry of this copy only: a session is
            # not saved with a websocket.
            ends = min(ends, time.time() + MIN_INTERVAL)
        return time.monotonic() + ends - time.time()

    def set_identity_expiry(self, connection: TrackedConnection, until: float) -> None:
        """
        Set the time until which a connection's session belongs to its identity (wall clock).
        """
        connection.until = until
        self._check_at(connection, connection.check_at)

    def _next(self, ends: float) -> float:
        """
        Return when to check a session that expires at *ends*, by the event loop's clock.
        """
        now, every = time.monotonic(), self._core.expiry.revalidate_every
        due = math.inf if every is None else now + max(MIN_INTERVAL, _jitter(every))
        return due if ends == math.inf else min(due, now + ends - time.time())

    def _deadline(self, connection: TrackedConnection) -> float:
        """
        Return when *connection* is closed without a check: at its maximum lifetime, or when its
        session no longer belongs to its identity.
        """
        lifetime = self._core.expiry.max_lifetime
        if lifetime is None and connection.sparse is None:
            return math.inf  # the common case
        until = connection.until - time.time() + time.monotonic()
        if lifetime is None or connection.opened_at is None:
            return until
        return min(until, connection.opened_at + lifetime)

    def _check_at(self, connection: TrackedConnection, due: float) -> None:
        """
        Schedule the check of a connection, or its closing without one if that comes first.
        """
        connection.check_at = at = min(due, self._deadline(connection))
        if at <= time.monotonic() + SOON:
            self._core.connections.check_each_tick(connection)

    def tick(self, due: Sequence[TrackedConnection]) -> None:
        """
        Start the checks of due connections, up to the limit; close those past their lifetime.
        """
        if self._stopped:
            return
        now = time.monotonic()
        self._handle_clock_jump(now)
        outlived: dict[Close, list[TrackedConnection]] = {}
        for connection in due:
            if self._deadline(connection) <= now:
                close = SESSION_EXPIRED if connection.until <= time.time() else RECONNECT
                outlived.setdefault(close, []).append(connection)
            elif len(self._running) < CHECKS and connection.session_ws_id not in self._running:
                _ = self._start_check(connection.session_ws_id)
        for close, connections in outlived.items():
            self._core.connections.close_soon(connections, close)

    def _handle_clock_jump(self, now: float) -> None:
        """
        Make all checks due, spread over time, if the machine was suspended or its clock was set.
        """
        offset = time.time() - now
        if abs(offset - self._offset) <= DRIFT:
            return
        self._offset = offset
        within = min(MAX_BACKOFF, self._core.connections.open.size / SPREAD)
        for connection in self._core.connections.open:
            self._check_at(connection, min(connection.check_at, now + random.uniform(0, within)))

    def _start_check(self, session_ws_id: Hashable) -> asyncio.Task[None]:
        task = self._core.tasks.spawn(self._check(session_ws_id), "check a session")
        if not task.done():  # an eager task may be done already
            self._running[session_ws_id] = task
        return task

    async def check_now(self, connections: Iterable[TrackedConnection]) -> None:
        """
        Check the sessions of some connections, each once, with bounded concurrency.
        """
        sessions: dict[Hashable, list[TrackedConnection]] = {}
        for connection in connections:
            if connection.request is not None:
                sessions.setdefault(connection.session_ws_id, []).append(connection)
        turns = asyncio.Semaphore(CHECKS)

        async def check(found: Sequence[TrackedConnection]) -> None:
            async with turns:
                # A running check may have loaded the session before the change. And a renewal
                # that keeps the sockets may file them under another id meanwhile.
                while running := {
                    self._running[connection.session_ws_id]
                    for connection in found
                    if connection.session_ws_id in self._running
                }:
                    await asyncio.wait(running)
                ids = {connection.session_ws_id for connection in found}
                await asyncio.wait([self._start_check(session_ws_id) for session_ws_id in ids])

        await asyncio.gather(*map(check, sessions.values()))

    async def _check(self, session_ws_id: Hashable) -> None:
        """
        Check the sessions of an id, each once for all of its sockets.
        """
        by_lineage: dict[str, list[TrackedConnection]] = {}
        by_hand = []
        for connection in self._core.connections.open.of(session_ws_id):
            if connection.request is None:
                by_hand.append(connection)
            else:
                by_lineage.setdefault(connection.lineage.token, []).append(connection)
        try:
            for connections in by_lineage.values():
                close = await self._check_all(connections)
                if close is not None and len(by_lineage) == 1:
                    # Objects registered by hand under this id belong to its only session.
                    self._core.connections.close_soon(by_hand, close)
        finally:
            self._running.pop(session_ws_id, None)

    async def _check_all(self, connections: Sequence[TrackedConnection]) -> Close | None:
        """
        Check one session; return the ``Close`` of its sockets if all are closed with the same.
        """
        last = max(connections, key=lambda connection: connection.opened_at or 0.0)
        try:
            async with asyncio.timeout(CHECK_LIMIT):
                found = await self._fetch(last)
            allowed = await self._authorize(connections, last, found)
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise  # the application stops
            self._retry(connections, exc)  # raised by the storage
        except Exception as exc:  # noqa: BLE001  it is logged, once for all
            self._retry(connections, exc)
        else:
            return self._conclude(connections, found, allowed)
        return None

    def _conclude(
        self,
        connections: Sequence[TrackedConnection],
        found: SessionState,
        allowed: Mapping[TrackedConnection, object],
    ) -> Close | None:
        """
        Apply the result of a check; retry the connections for which ``authorize`` has failed.
        """
        failed = {c: answer for c, answer in allowed.items() if isinstance(answer, Exception)}
        if not failed:
            return self._apply(connections, found, allowed)
        others = [connection for connection in connections if connection not in failed]
        if others:
            _ = self._apply(others, found, allowed)
        self._retry([*failed], next(iter(failed.values())))
        return None

    async def _fetch(self, connection: TrackedConnection) -> SessionState:
        """
        Load the session of a connection as if its request arrived now.
        """
        core, request, loaded_at = self._core, request_again(connection), time.time()
        session_ws_id = await core.current_id(request)
        session = loaded_session(request)
        ends = expires_at(session)  # before identify() may touch it
        lineage = None if session is None else core.keys.read_lineage(session)
        server_side = session is not None and is_server_side(session)
        found = SessionState(
            session_ws_id, lineage, ANONYMOUS, ends, server_side, request, loaded_at
        )
        if (
            self._has_its_id(found, connection)
            or not connection.keeps_id
            or (server_side and _is_older(found, connection))
        ):
            found = found._replace(owner=await core.identifier.of(request))
        return found

    async def _authorize(
        self,
        connections: Sequence[TrackedConnection],
        last: TrackedConnection,
        found: SessionState,
    ) -> dict[TrackedConnection, object]:
        """
        Call ``authorize`` for the connections that their session doesn't close.

        It is called with the session as loaded now and with the request of each connection, since
        the answer may depend on the address; only once for requests that are equal to it.
        """
        core = self._core
        if core.authorize is None:
            return {}
        session, answers = loaded_session(found.request), dict[Hashable, object]()
        allowed: dict[TrackedConnection, object] = {}
        for connection in sorted(connections, key=lambda connection: connection is not last):
            if self._close_by_session(connection, found) is not None:
                continue
            key = authorization_key(connection)
            if key not in answers:
                request = found.request
                if connection is not last:
                    request = request_again(connection)
                    put_session(request, session)
                answers[key] = await _answer_of(core.authorize, request)
            allowed[connection] = answers[key]
        return allowed

    def _apply(
        self,
        connections: Sequence[TrackedConnection],
        found: SessionState,
        allowed: Mapping[TrackedConnection, object],
    ) -> Close | None:
        """
        Close the sockets that are no longer valid; schedule the next check of the others.
        """
        self._record_success(connections)
        # If it had expired when it was loaded, expiry doesn't apply: get_id() decides.
        ends = found.ends if found.ends > found.loaded_at else math.inf
        due = self._next(ends)
        closing: dict[Close, list[TrackedConnection]] = {}
        for connection in connections:
            close = self._close_by_session(connection, found)
            if close is None:
                close = _close_by_answer(allowed.get(connection, True), connection, found)
            if close is not None:
                closing.setdefault(close, []).append(connection)
                continue
            connection.session_ends, connection.tries = ends, 0
            if not _is_older(found, connection):
                connection.until = found.owner.until
            connection.server_side = connection.server_side or found.server_side
            self._check_at(connection, due)
        for close, over in closing.items():
            self._core.connections.close_soon(over, close)
            if len(over) == len(connections):
                return close
        return None

    def _close_by_session(
        self, connection: TrackedConnection, found: SessionState
    ) -> Close | None:
        """
        Return the ``Close`` for a socket that its session makes invalid, else ``None``.
        """
        close = self._core.close_for(self._core.status_of(connection))
        if close is not None:
            return close
        was, now = connection.lineage, found.lineage
        another = now is not None and now.token != was.token
        if _is_older(found, connection):
            if not found.server_side:
                return None  # its cookie predates a renewal; the newer one isn't known here
            # The storage has not saved the renewal yet.
        elif another or (connection.keeps_id and not self._has_its_id(found, connection)):
            return self._close_for_gone(connection, found)
        owner = found.owner
        if owner.identity != connection.identity or set(owner.labels) != {*connection.labels}:
            # The session lives with another identity or other labels, or is anonymous now.
            if owner.identity is not None or not found.server_side:
                return RECONNECT
            return self._close_for_gone(connection, found)
        return None

    def _has_its_id(self, found: SessionState, connection: TrackedConnection) -> bool:
        """
        Return whether the session has the id of a connection, or that of an overlapping renewal
        with the same generation.
        """
        if found.session_ws_id == connection.session_ws_id:
            return True
        note = self._core.records.note_of(found.session_ws_id)
        if found.lineage is None or note is None:
            return False
        token, generation, _ = connection.lineage
        return note.token == token and found.lineage[:2] == (token, generation)

    def _close_for_gone(self, connection: TrackedConnection, found: SessionState) -> Close:
        if not found.server_side and not connection.server_side:
            return RECONNECT  # the client may have a newer cookie, which isn't known here
        ends = found.ends if found.server_side else connection.session_ends
        return SESSION_EXPIRED if ends <= time.time() else SESSION_ENDED

    def _record_success(self, connections: Iterable[TrackedConnection]) -> None:
        if self._failed_at is None:
            return
        # The success of other sessions counts only after a while: one may be broken by itself.
        long_ago = time.monotonic() - self._failed_at > 2 * MAX_BACKOFF
        if long_ago or any(connection.tries for connection in connections):
            self._failed_at = None
            log.info("session revalidation works again")

    def _retry(self, connections: Sequence[TrackedConnection], exc: BaseException) -> None:
        """
        Keep the sockets of a session that can't be checked, and retry with back-off.
        """
        now = time.monotonic()
        if self._failed_at is None:
            log.warning("session revalidation failed, sockets stay open: %s", describe_error(exc))
        self._failed_at = now
        tries = max(connection.tries for connection in connections)
        due = now + _jitter(min(MAX_BACKOFF, MIN_INTERVAL * 2**tries))
        for connection in connections:
            connection.tries = min(tries + 1, 10)
            self._check_at(connection, due)


async def _answer_of(authorize: Authorize, request: web.Request) -> object:
    """
    Return the result of ``authorize``; exceptions that refuse a handshake count as a refusal.

    Other exceptions, a timeout included, are returned: they may concern this request only.
    """
    try:
        async with asyncio.timeout(CHECK_LIMIT):  # per call: a client determines their number
            return await maybe_await(authorize(request))
    except HandshakeRefused as exc:
        return exc.close
    except web.HTTPException as exc:
        return exc if exc.status >= 500 else False
    except Exception as exc:  # noqa: BLE001  the application's
        return exc


def _close_by_answer(
    answer: object, connection: TrackedConnection, found: SessionState
) -> Close | None:
    """
    Return the ``Close`` for a socket that ``authorize`` has not accepted, else ``None``.
    """
    if answer and not isinstance(answer, Close):
        return None
    if isinstance(answer, Close) and not _is_older(found, connection):
        return answer
    return RECONNECT  # where authorize has seen an older cookie, the client has a newer one


def _is_older(found: SessionState, connection: TrackedConnection) -> bool:
    """
    Return whether the loaded session is an older generation than the connection's, whose renewal
    kept the sockets.
    """
    (token, generation, _), there = connection.lineage, found.lineage
    if there is None or there.token != token:
        return False
    return there.generation < generation


def _jitter(seconds: float) -> float:
    """
    Return *seconds*, varied at random by up to 20 %.
    """
    return seconds * (0.8 + 0.4 * random.random())
