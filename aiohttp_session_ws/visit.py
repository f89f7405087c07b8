"""
One HTTP request on its way through the application: the id it came with, and what
became of it.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Container, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp_session
from aiohttp import web

from .closing import Close
from .connection import Connection
from .revocation import Kind

__all__: list[str] = []

_POLL: Final = 0.01  # seconds between two looks at a transport's buffer


@dataclass(slots=True, eq=False)
class Visit:
    """
    What is noted of a request, by the middleware or by the first helper that is called.

    Attributes:
        request: The request; ``None`` when its socket is gone.
        task: The task that handles the request, until its answer has been written; ``None``
            when its socket is gone.
        started: When it began, by the event loop's clock.
        session_ws_id: The id it came with.
        session: The session that carried this id.
        keys: What that session held.
        ends: How many sessions had been ended by then.
        own_end: The number of the end of an identity that its handler has ordered.
        minted: The id that was made for this request, if one was.
        held: What the session held before a handshake gave it an id.
        noted: Whether id, session, keys and ends are known.
        watched: Whether the middleware will settle it when the handler is done.
        asked: Whether the handler gave an order.
        waiting: The task that waits for the answer, to carry an order out.
        close: With what the sockets will be closed, as far as is known.
        ids: Whose sockets will be closed.
        identity: Whose sessions are ended besides.
        ordered: When the order was decided; later handshakes aren't meant.
        connection: The websocket that the request became.
        over: Whether its handler is done.
        guarded: Whether the middleware waits for it.
    """

    request: web.Request | None
    task: asyncio.Task[Any] | None
    started: float
    session_ws_id: Hashable | None = None
    session: aiohttp_session.Session | None = None
    keys: Sequence[str] = ()
    ends: int = 0
    own_end: int = 0
    minted: Hashable | None = None
    held: dict[str, Any] | None = None
    noted: bool = False
    watched: bool = False
    asked: bool = False
    waiting: asyncio.Task[None] | None = None
    close: Close | None = None
    ids: Sequence[Hashable] = ()
    identity: Hashable | None = None
    ordered: float = math.inf
    connection: Connection | None = None
    over: bool = False
    guarded: bool = False

    def came_with(
        self,
        session_ws_id: Hashable | None,
        session: aiohttp_session.Session | None,
        ends: int,
    ) -> None:
        """
        Note the id and the session that a request came with.
        """
        self.noted = True
        self.session_ws_id = session_ws_id
        self.session = session
        self.keys = () if session is None else tuple(session)
        self.ends = ends

    def held_others(self, own: Container[str]) -> bool:
        """
        Tell whether the session held more than what is *own* of ours.
        """
        return any(key not in own for key in self.keys)


# Not a key of the request: a websocket keeps its request, so that would make a circle, and
# a context costs a request less than its table of keys.
VISIT: Final[ContextVar[Visit | None]] = ContextVar("VISIT", default=None)


def new_visit(request: web.Request) -> Visit:
    """
    Return a visit of *request* by the current task.
    """
    task = asyncio.current_task()
    assert task is not None
    return Visit(request, task, asyncio.get_running_loop().time())


def visit_of(request: web.Request) -> Visit:
    """
    Return the visit of *request* that is being handled, or a new one.

    A handler may call a helper with the request of somebody else, and a task may outlive
    the request that it was started by.
    """
    visit = VISIT.get()
    if visit is not None and visit.request is request and not visit.over:
        return visit
    visit = new_visit(request)
    if VISIT.get() is None:
        VISIT.set(visit)
    return visit


def end_visit(visit: Visit) -> None:
    """
    Let nobody take *visit* for the one that is being handled any more.
    """
    visit.over = True  # for tasks that have a copy of this context
    VISIT.set(None)


def forget(visit: Visit) -> None:
    """
    Let go of a socket that is gone.

    The event loop keeps the context that a heartbeat was started in, and with it *visit*,
    for longer than the heartbeat.
    """
    if visit.connection is not None:
        visit.connection = visit.request = visit.session = visit.task = None


def session_of(request: web.Request) -> aiohttp_session.Session | None:
    """
    Return the session that *request* has loaded so far.
    """
    session: aiohttp_session.Session | None = request.get(aiohttp_session.SESSION_KEY)
    return session


def put_session(request: web.Request, session: aiohttp_session.Session | None) -> None:
    """
    Make *session* the one that *request* has loaded; without one it is loaded anew.
    """
    if session is None:
        request.pop(aiohttp_session.SESSION_KEY, None)
        return
    with warnings.catch_warnings():
        # aiohttp_session keeps it under a str key, which aiohttp doesn't like.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        request[aiohttp_session.SESSION_KEY] = session


def will_be_saved(response: object) -> bool:
    """
    Tell whether aiohttp_session saves a changed session with this answer.
    """
    return isinstance(response, web.Response) and not response.prepared


def fate(
    visit: Visit,
    session: aiohttp_session.Session | None,
    session_ws_id: Hashable | None,
    *,
    saved: bool,
    own: Container[str],
) -> Kind | None:
    """
    Decide what became of the id that a request came with.

    Args:
        visit: The request.
        session: The session it has now.
        session_ws_id: The id it has now.
        saved: Whether that session will be saved.
        own: Our own keys in the session.

    Returns:
        How the id is dead, or ``None`` if it lives on.
    """
    if session_ws_id == visit.session_ws_id:
        return None
    if session is not visit.session or _emptied(visit, session, own):
        return Kind.ENDED
    if not saved:
        return None
    return Kind.ENDED if session_ws_id is None else Kind.MOVED  # a move needs a successor


def _emptied(visit: Visit, session: aiohttp_session.Session | None, own: Container[str]) -> bool:
    # invalidate(), and a new id or a farewell put into it, is a log-out too: nothing is left
    # of what the session held.
    if session is None or not visit.held_others(own):
        return session is not None and session.empty
    return not any(key in session for key in visit.keys if key not in own)


async def answered(visit: Visit, transport: asyncio.Transport | None, timeout: float) -> None:
    """
    Wait until the answer of a request has left the server.

    That is: the task of the request has ended and the transport's buffer is empty.

    Args:
        visit: The request.
        transport: Its transport.
        timeout: Seconds after which the answer is not waited for any more.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    # Done, failed or cancelled is all the same, and nothing is raised here.
    if visit.task is not None:
        await asyncio.wait({visit.task}, timeout=timeout)
    while (
        transport is not None
        and not transport.is_closing()
        and transport.get_write_buffer_size()
        and loop.time() < deadline
    ):
        await asyncio.sleep(_POLL)
