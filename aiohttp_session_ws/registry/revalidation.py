"""
The periodic check: does the session of an open socket still live?

It asks as arrival does, on a copy of the request that was upgraded, and it saves nothing, gives
no id and marks nothing seen. It finds what nobody has ordered: a session that has expired, was
deleted from its storage, or came to belong to somebody else without our middleware.

Over 300 lines long: when to check, whom to ask and what to conclude share what is known of a
connection.
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
from .identify import NOBODY, Identifier, Owner
from .judging import Sessions
from .request_again import request_again, was_touched, what_it_asks

__all__: list[str] = []

CHECKS: Final = 32  # at once
CHECK_LIMIT: Final = 10.0  # seconds that the storage may take, or an answer of authorize
SOONEST: Final = 1.0  # seconds between two of one session; doubled each time that one fails
LONGEST: Final = 60.0  # seconds between two tries while the storage fails
DRIFT: Final = 1.0  # seconds that the wall clock may go apart from ours between two ticks
SPREAD: Final = 1000  # checks in a second, when all are due at once


class Node(Sessions, Protocol):
    """
    What the check needs of a registry, besides its judgements.
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
    What a check has found.

    Attributes:
        session_ws_id: The id that the session has now.
        lineage: The lineage it carries, if any.
        owner: Whom it belongs to.
        ends: When its time is over, by the wall clock.
        server_side: Whether the storage keeps it on the server.
        request: The request that it was loaded for.
        asked: When that was, by the wall clock.
    """

    session_ws_id: Hashable | None
    lineage: Lineage | None
    owner: Owner
    ends: float
    server_side: bool
    request: web.Request
    asked: float


class Revalidator:
    """
    Closes the sockets of sessions that are over, gone, or somebody else's.

    Args:
        core: The registry's parts.
    """

    def __init__(self, core: Node) -> None:
        self._core = core
        self._running: dict[Hashable, asyncio.Task[None]] = {}  # by the id that is being checked
        self._failed_at: float | None = None  # when a check failed, until one works again
        self._offset = 0.0  # of the wall clock from ours
        self._stopped = True
        core.connections.on_tick.append(self.tick)

    def start(self) -> None:
        """
        Begin to check.
        """
        self._stopped = False
        self._offset = time.time() - time.monotonic()
        self._running.clear()

    def stop(self) -> None:
        """
        Check nothing any more.
        """
        self._stopped = True

    def watch(self, connection: TrackedConnection) -> None:
        """
        Check a connection that is open from now on.
        """
        assert connection.request is not None, "its handshake has one"
        due, session = self._next(math.inf), loaded_session(connection.request)
        if session is not None:
            connection.server_side = is_server_side(session)
            if session.max_age is not None:
                due = min(due, self._expiry(connection, session))
        # It is due at once if a check was asked for while it was opening.
        self._check_at(connection, min(connection.check_at, due))

    def _expiry(self, connection: TrackedConnection, session: Session) -> float:
        """
        Return when to check a connection because its session's time is over.
        """
        connection.session_ends = ends = expires_at(session)
        if was_touched(connection, session):
            # What the handshake has changed counts anew from now on, but only here: nobody
            # saves it with a websocket.
            ends = min(ends, time.time() + SOONEST)
        return time.monotonic() + ends - time.time()

    def hold_until(self, connection: TrackedConnection, until: float) -> None:
        """
        Note until when the session of a connection belongs to its identity from now on.
        """
        connection.until = until
        self._check_at(connection, connection.check_at)

    def _next(self, ends: float) -> float:
        """
        Return when to check a session whose time is over at *ends*.
        """
        now, every = time.monotonic(), self._core.expiry.revalidate_every
        due = math.inf if every is None else now + max(SOONEST, _jitter(every))
        return due if ends == math.inf else min(due, now + ends - time.time())

    def _last(self, connection: TrackedConnection) -> float:
        """
        Return when *connection* is closed in any case.
        """
        lifetime = self._core.expiry.max_lifetime
        if lifetime is None and connection.seldom is None:
            return math.inf  # as of most
        until = connection.until - time.time() + time.monotonic()
        if lifetime is None or connection.opened_at is None:
            return until
        return min(until, connection.opened_at + lifetime)

    def _check_at(self, connection: TrackedConnection, due: float) -> None:
        """
        Check a connection when it is due, or is closed in any case.
        """
        connection.check_at = at = min(due, self._last(connection))
        if at <= time.monotonic() + SOON:
            self._core.connections.attend(connection)

    def tick(self, due: Sequence[TrackedConnection]) -> None:
        """
        Check the connections that are due, as many as may run at once.
        """
        if self._stopped:
            return
        now = time.monotonic()
        self._mind_the_clock(now)
        outlived: dict[Close, list[TrackedConnection]] = {}
        for connection in due:
            if self._last(connection) <= now:
                close = SESSION_EXPIRED if connection.until <= time.time() else RECONNECT
                outlived.setdefault(close, []).append(connection)
            elif len(self._running) < CHECKS and connection.session_ws_id not in self._running:
                _ = self._start_check(connection.session_ws_id)
        for close, connections in outlived.items():
            self._core.connections.close_soon(connections, close)

    def _mind_the_clock(self, now: float) -> None:
        """
        Make all checks due, a few at a time, if the machine slept or its clock was set.
        """
        offset = time.time() - now
        if abs(offset - self._offset) <= DRIFT:
            return
        self._offset = offset
        within = min(LONGEST, self._core.connections.open.size / SPREAD)
        for connection in self._core.connections.open:
            self._check_at(connection, min(connection.check_at, now + random.uniform(0, within)))

    def _start_check(self, session_ws_id: Hashable) -> asyncio.Task[None]:
        task = self._core.tasks.spawn(self._check(session_ws_id), "check a session")
        if not task.done():  # an eager task, which never waited
            self._running[session_ws_id] = task
        return task

    async def check_now(self, connections: Iterable[TrackedConnection]) -> None:
        """
        Check the sessions of some connections, each once; a few at a time.
        """
        sessions: dict[Hashable, list[TrackedConnection]] = {}
        for connection in connections:
            if connection.request is not None:
                sessions.setdefault(connection.session_ws_id, []).append(connection)
        turns = asyncio.Semaphore(CHECKS)

        async def check(found: Sequence[TrackedConnection]) -> None:
            async with turns:
                # One under way may have asked before what has changed since. And a refresh in
                # place may file them under another id meanwhile.
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
                    # What was registered by hand under this id has no other session.
                    self._core.connections.close_soon(by_hand, close)
        finally:
            self._running.pop(session_ws_id, None)

    async def _check_all(self, connections: Sequence[TrackedConnection]) -> Close | None:
        """
        Check one session; return with what all of its sockets are closed, if they are.
        """
        last = max(connections, key=lambda connection: connection.opened_at or 0.0)
        try:
            async with asyncio.timeout(CHECK_LIMIT):
                found = await self._fetch(last)
            allowed = await self._authorize(connections, last, found)
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise  # the application ends
            self._retry(connections, exc)  # the storage's own
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
        Apply what was found, but for the connections for which ``authorize`` has failed.
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
        Find out what the request of a connection would be told if it came now.
        """
        core, request, asked = self._core, request_again(connection), time.time()
        session_ws_id = await core.current_id(request)
        session = loaded_session(request)
        ends = expires_at(session)  # before identify() may touch it
        lineage = None if session is None else core.keys.read_lineage(session)
        server_side = session is not None and is_server_side(session)
        found = SessionState(session_ws_id, lineage, NOBODY, ends, server_side, request, asked)
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
        Ask ``authorize`` about the connections of a session that may live on.

        It is asked with the session that was found, and with the request of each connection, since
        the answer may depend on its address; once for those whose requests say the same.
        """
        core = self._core
        if core.authorize is None:
            return {}
        session, answers = loaded_session(found.request), dict[Hashable, object]()
        allowed: dict[TrackedConnection, object] = {}
        for connection in sorted(connections, key=lambda connection: connection is not last):
            if self._close_by_session(connection, found) is not None:
                continue
            what = what_it_asks(connection)
            if what not in answers:
                request = found.request
                if connection is not last:
                    request = request_again(connection)
                    put_session(request, session)
                answers[what] = await _answer_of(core.authorize, request)
            allowed[connection] = answers[what]
        return allowed

    def _apply(
        self,
        connections: Sequence[TrackedConnection],
        found: SessionState,
        allowed: Mapping[TrackedConnection, object],
    ) -> Close | None:
        """
        Close the sockets that the session doesn't stand for any more; check the others on.
        """
        self._succeeded(connections)
        # What was over when it was loaded isn't bound by its time: get_id() decides.
        ends = found.ends if found.ends > found.asked else math.inf
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
        Return what a socket is told if its session doesn't stand for it any more.
        """
        close = self._core.close_for(self._core.status_of(connection))
        if close is not None:
            return close
        was, now = connection.lineage, found.lineage
        another = now is not None and now.token != was.token
        if _is_older(found, connection):
            if not found.server_side:
                return None  # its cookie is of before a refresh; what came after nobody knows here
            # What the refresh has made of it is not saved yet.
        elif another or (connection.keeps_id and not self._has_its_id(found, connection)):
            return self._close_for_gone(connection, found)
        owner = found.owner
        if owner.identity != connection.identity or set(owner.labels) != {*connection.labels}:
            # The session lives, and is somebody else's now; or nobody's any more.
            if owner.identity is not None or not found.server_side:
                return RECONNECT
            return self._close_for_gone(connection, found)
        return None

    def _has_its_id(self, found: SessionState, connection: TrackedConnection) -> bool:
        """
        Tell whether what was found has the id of a connection, or one of another renewal that has
        overlapped the one which gave that.
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
            return RECONNECT  # the client may have a newer cookie, which nobody else knows
        ends = found.ends if found.server_side else connection.session_ends
        return SESSION_EXPIRED if ends <= time.time() else SESSION_ENDED

    def _succeeded(self, connections: Iterable[TrackedConnection]) -> None:
        if self._failed_at is None:
            return
        # What works for others says nothing of a session that is broken by itself.
        long_ago = time.monotonic() - self._failed_at > 2 * LONGEST
        if long_ago or any(connection.tries for connection in connections):
            self._failed_at = None
            log.info("sessions can be checked again")

    def _retry(self, connections: Sequence[TrackedConnection], exc: BaseException) -> None:
        """
        Keep the sockets of a session that can't be checked, and try again with back-off.
        """
        now = time.monotonic()
        if self._failed_at is None:
            log.warning(
                "sessions can't be checked, their sockets stay open: %s", describe_error(exc)
            )
        self._failed_at = now
        tries = max(connection.tries for connection in connections)
        due = now + _jitter(min(LONGEST, SOONEST * 2**tries))
        for connection in connections:
            connection.tries = min(tries + 1, 10)
            self._check_at(connection, due)


async def _answer_of(authorize: Authorize, request: web.Request) -> object:
    """
    Return what ``authorize`` says; what refuses a handshake when it is raised is a no here, too.

    Another error is returned, or that it took too long: it may be about this request only.
    """
    try:
        async with asyncio.timeout(CHECK_LIMIT):  # of each: a client decides how many there are
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
    Return what a socket is told if ``authorize`` has not said yes.
    """
    if answer and not isinstance(answer, Close):
        return None
    if isinstance(answer, Close) and not _is_older(found, connection):
        return answer
    return RECONNECT  # with its newer cookie, if it was asked about an older one


def _is_older(found: SessionState, connection: TrackedConnection) -> bool:
    """
    Tell whether what was found is an older copy of a session whose sockets were kept.
    """
    (token, generation, _), there = connection.lineage, found.lineage
    if there is None or there.token != token:
        return False
    return there.generation < generation


def _jitter(seconds: float) -> float:
    """
    Return *seconds*, give or take a fifth.
    """
    return seconds * (0.8 + 0.4 * random.random())
