"""
Whether the sessions of open sockets still live: what is checked, and who is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp_session
from aiohttp import hdrs, web

from .closing import RECONNECT, SESSION_ENDED, SESSION_EXPIRED, Close
from .connection import Connection
from .deadlines import LONGEST, Alarm, Deadline, Deadlines, end_of, is_kept, jitter
from .records import blame
from .revocation import Kind
from .visit import put_session, session_of

if TYPE_CHECKING:
    from .registry import SessionWSRegistry

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

CHECKS: Final = 32  # at once
CHECK_LIMIT: Final = 10.0  # seconds that one may take
SOONEST: Final = 1.0  # seconds between two of one session; doubled each time that one fails


class Found(NamedTuple):
    """
    What a check has found.
    """

    session_ws_id: Hashable | None
    identity: Hashable | None
    ends: float
    kept: bool


class Checker:
    """
    Closes the sockets of sessions that are over, gone, or somebody else's.
    """

    def __init__(self, registry: SessionWSRegistry) -> None:
        self._registry = registry
        self._alarm = Alarm(self._wake)
        self._searched = -math.inf  # when all were looked at for their lifetime
        self.start()

    def start(self) -> None:
        """
        Begin anew.
        """
        self._deadlines = Deadlines()
        self._running: set[Hashable] = set()  # ids that are being checked
        self._failed: float | None = None  # when a check failed, until one works again
        self._stopped = False

    def stop(self) -> None:
        """
        Watch nothing any more.
        """
        self._stopped = True
        self._alarm.stop()

    def watch(self, connection: Connection, session: aiohttp_session.Session | None) -> None:
        """
        Watch a connection that is open; its handshake has loaded *session*.
        """
        ends = end_of(session)
        due = self._due(ends)
        if ends < math.inf and session is not None and self._touched(connection, session):
            due = min(due, self._alarm.clock() + SOONEST)
        due = min(due, self._last(connection))
        if due < math.inf:
            connection.deadline = Deadline(self._deadlines, connection, session)
            self._deadlines.put(connection.deadline, due)
            self._sleep()

    def _touched(self, connection: Connection, session: aiohttp_session.Session) -> bool:
        """
        Tell whether the handshake may have changed its session.

        That counts anew from then on, but only here: nobody saves it with a websocket.
        """
        assert connection.opened_at is not None
        began = self._alarm.wall() - (connection.opened_at - connection.started)
        return session.created >= int(began) and hdrs.SET_COOKIE not in connection.ws.headers

    def _due(self, ends: float) -> float:
        """
        Return when to look at a session whose time is over at *ends*.
        """
        now = self._alarm.clock()
        due = now + ends - self._alarm.wall()
        every = self._registry.expiry.revalidate_every
        return due if every is None else min(due, now + max(SOONEST, jitter(every)))

    def _last(self, connection: Connection) -> float:
        """
        Return when *connection* is closed in any case.
        """
        lifetime = self._registry.expiry.max_lifetime
        if lifetime is None or connection.opened_at is None:
            return math.inf
        return connection.opened_at + lifetime

    def _sleep(self) -> None:
        if self._deadlines and not self._stopped:
            # All busy? The end of a check will tell when there is more to do.
            self._alarm.set(self._deadlines.first if len(self._running) < CHECKS else math.inf)

    def _wake(self, clock_jumped: bool) -> None:
        now = self._alarm.clock()
        if clock_jumped:
            self._deadlines.hurry(now)
        outlived = self._begin(now)
        if len(self._running) >= CHECKS and now - self._searched >= LONGEST:
            self._searched = now
            outlived += [
                connection for connection in self._deadlines if self._last(connection) <= now
            ]
        self._close(outlived, RECONNECT)
        self._sleep()

    def _begin(self, now: float) -> list[Connection]:
        """
        Begin to check what is due, as much as may run; return what has lived too long.
        """
        outlived: list[Connection] = []
        room = CHECKS - len(self._running)
        while room and (deadline := self._deadlines.pop(now)) is not None:
            connection = deadline.connection
            assert connection is not None
            session_ws_id = connection.session_ws_id
            if self._last(connection) <= now:
                outlived.append(connection)
            elif session_ws_id in self._running:
                self._deadlines.put(deadline, now + SOONEST)
            else:
                room -= 1
                self._running.add(session_ws_id)
                _ = self._registry._sockets.spawn(self._check(session_ws_id), "check a session")
        return outlived

    async def _check(self, session_ws_id: Hashable) -> None:
        """
        Check a session, once for all of its sockets.
        """
        connections = self._registry._sockets.open.of(session_ws_id)
        try:
            found = await self._look(connections)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the application ends
            self._retry(connections, exc)  # the storage's own
        except Exception as exc:  # noqa: BLE001  it is logged, once for all
            self._retry(connections, exc)
        else:
            if found is not None:
                self._judge(connections, found)
        finally:
            self._running.discard(session_ws_id)
            self._sleep()

    async def _look(self, connections: Sequence[Connection]) -> Found | None:
        """
        Find out what the last that came would be told if it came now.
        """
        served = [connection for connection in connections if connection.request is not None]
        if not served:  # gone meanwhile
            return None
        last = max(served, key=lambda connection: connection.opened_at or 0.0)
        registry, request = self._registry, _request_of(last)
        async with asyncio.timeout(CHECK_LIMIT):
            session_ws_id, identity = await registry.get_id(request), None
            session = session_of(request)
            ends = end_of(session)  # before identify() may touch it
            if session_ws_id == last.session_ws_id:
                with contextlib.suppress(web.HTTPUnauthorized, web.HTTPForbidden):  # nobody
                    identity = await registry._identify(request)
        return Found(session_ws_id, identity, ends, is_kept(session))

    def _judge(self, connections: Sequence[Connection], found: Found) -> None:
        """
        Close the sockets that the session doesn't stand for any more; watch the others on.
        """
        deadlines = [c.deadline for c in connections if c.deadline is not None]
        self._succeeded(deadlines)
        # What outlives its time isn't bound by it: the registry's get_id() decides.
        ends = found.ends if found.ends > self._alarm.wall() else math.inf
        due = self._due(ends)
        ended = self._record(connections[0].session_ws_id) is Kind.ENDED
        over = []
        for connection in connections:
            same = connection.request is None or connection.identity == found.identity
            if ended or connection.session_ws_id != found.session_ws_id or not same:
                over.append(connection)
            elif (deadline := connection.deadline) is not None:
                deadline.ends, deadline.tries = ends, 0
                deadline.kept = deadline.kept or found.kept
                self._deadlines.put(deadline, min(due, self._last(connection)))
        if over:
            self._close(over, self._close_for(over[0].session_ws_id, deadlines, found))

    def _close_for(self, id_: Hashable, deadlines: Sequence[Deadline], found: Found) -> Close:
        """
        Return what to tell sockets that are closed.
        """
        kind = self._record(id_)
        if kind is Kind.ENDED:
            return SESSION_ENDED
        if kind is Kind.MOVED:
            return RECONNECT  # the order for it waits for an answer
        if found.session_ws_id == id_ and found.identity is not None:
            return RECONNECT  # the session lives, and is somebody else's now
        if not found.kept and not any(deadline.kept for deadline in deadlines):
            return RECONNECT  # the client may have a newer cookie, which nobody else knows
        ends = found.ends if found.kept else max(deadline.ends for deadline in deadlines)
        return SESSION_EXPIRED if ends <= self._alarm.wall() else SESSION_ENDED

    def _record(self, session_ws_id: Hashable) -> Kind | None:
        record = self._registry._revocations.get(session_ws_id)
        return None if record is None else record.kind

    def _succeeded(self, deadlines: Sequence[Deadline]) -> None:
        if self._failed is None:
            return
        # What works for others says nothing of a session that is broken by itself.
        long_ago = self._alarm.clock() - self._failed > 2 * LONGEST
        if long_ago or any(deadline.tries for deadline in deadlines):
            self._failed = None
            log.info("sessions can be checked again")

    def _retry(self, connections: Sequence[Connection], exc: BaseException) -> None:
        """
        Let the sockets of a session be that can't be checked, and try again.
        """
        now = self._alarm.clock()
        if self._failed is None:
            log.warning("sessions can't be checked, their sockets stay open: %s", blame(exc))
        self._failed = now
        deadlines = [c.deadline for c in connections if c.deadline is not None]
        tries = max((deadline.tries for deadline in deadlines), default=0)
        due = now + jitter(min(LONGEST, SOONEST * 2**tries))
        for connection in connections:
            if (deadline := connection.deadline) is not None:
                deadline.tries = min(tries + 1, 10)
                self._deadlines.put(deadline, min(due, self._last(connection)))

    def _close(self, connections: Sequence[Connection], close: Close) -> None:
        if connections and not self._stopped:
            sockets = self._registry._sockets
            _ = sockets.spawn(sockets.close(connections, close), "close what is over")


def _request_of(connection: Connection) -> web.Request:
    """
    Return the request as it would come now, with no session loaded.
    """
    request, ws = connection.request, connection.ws
    assert request is not None
    if hdrs.SET_COOKIE not in ws.headers:
        request = request.clone()
    else:
        cookies = [*request.headers.getall(hdrs.COOKIE, ())[:1]]
        cookies += [f"{cookie.key}={cookie.coded_value}" for cookie in ws.cookies.values()]
        headers = [(k, v) for k, v in request.headers.items() if k.lower() != "cookie"]
        headers.append((hdrs.COOKIE, "; ".join(cookies)))  # the last of a name counts
        # aiohttp reads any bytes as text, but can't write them again.
        legible = [(name, value.encode(errors="replace").decode()) for name, value in headers]
        request = request.clone(headers=legible)
    put_session(request, None)
    return request
