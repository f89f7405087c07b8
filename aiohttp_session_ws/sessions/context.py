"""
One HTTP request on its way through the application: what it came with, and what was ordered.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Any, Final

from aiohttp import web
from aiohttp_session import Session

from .._lineage import Lineage, Subject
from ..connections.connection import TrackedConnection
from .records import Change
from .session import loaded_session, was_changed
from .status import ALIVE, Status

__all__: list[str] = []


class Stage(enum.Enum):
    """
    How far a request is.

    ``ARRIVING`` until it was judged, ``HANDLING`` while its handler runs, ``SETTLED`` once it
    was decided what became of its session, ``DONE`` when nobody may take it for the current
    one any more.
    """

    ARRIVING = "arriving"
    HANDLING = "handling"
    SETTLED = "settled"
    DONE = "done"


class RequestContext:
    """
    What is known of a request.

    Args:
        request: The request.
        arrived: When it arrived, by the one clock: a lineage that it begins began then.

    Attributes:
        request: The request; ``None`` once its websocket is gone.
        task: The task that runs its handler, until its response has been written.
        started: When it began, by the event loop's clock.
        arrived: When it arrived, by the one clock.
        stage: How far it is.
        behind_middleware: Whether the middleware settles it.
        lineage: The lineage it came with or was given on arrival, however that was judged.
        session_ws_id: The id it came with or was given on arrival.
        status: How it was judged on arrival.
        newest: The newest generation of its lineage then.
        session: The session it was given to handle.
        content: What that held on arrival.
        given: Whether it was given an id or a lineage on arrival.
        fresh: Whether it was given an empty session, since its own had ended.
        renewed: Whether the handler has asked for a new id.
        ended: When the handler has ended this lineage, by the one clock.
        begins: Whether its answer begins a lineage after ``end_other_sessions_ws``.
        own_ends: What the handler has ended, and the time of each.
        orders: What it has ended in records, to be told when the response has been sent.
        deferred: Whether it will be settled when its response has been sent.
        checked: Whether other nodes' records of its session were read on arrival.
        close_requested: Whether the handler has asked to close the sockets of the id.
        connection: The websocket that the request became.
        handshake_failed: Whether it asked for a websocket and was refused.
        timed_out: Whether its handshake took too long.
    """

    __slots__ = (
        "arrived",
        "begins",
        "behind_middleware",
        "checked",
        "close_requested",
        "connection",
        "content",
        "deferred",
        "ended",
        "fresh",
        "given",
        "handshake_failed",
        "lineage",
        "newest",
        "orders",
        "own_ends",
        "renewed",
        "request",
        "session",
        "session_ws_id",
        "stage",
        "started",
        "status",
        "task",
        "timed_out",
    )

    def __init__(self, request: web.Request, arrived: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.request: web.Request | None = request
        self.task: asyncio.Task[Any] | None = task
        self.started = task.get_loop().time()
        self.arrived = arrived
        self.stage = Stage.ARRIVING
        self.behind_middleware = False
        self.lineage: Lineage | None = None
        self.session_ws_id: Hashable | None = None
        self.status: Status = ALIVE
        self.newest = 0
        self.session: Session | None = None
        self.content: dict[str, Any] | None = None
        self.given = False
        self.fresh = False
        self.renewed = False
        self.checked = False
        self.ended: float | None = None
        self.begins = False
        self.orders: tuple[Change, ...] = ()
        self.deferred = False
        self.own_ends: dict[Subject, float] | None = None
        self.close_requested = False
        self.connection: TrackedConnection | None = None
        self.handshake_failed = False
        self.timed_out = False

    @property
    def ordered(self) -> bool:
        """
        Whether the handler has given an order about its own session.
        """
        return self.close_requested or self.renewed or self.begins or self.ended is not None

    def is_untouched(self, request: web.Request) -> bool:
        """
        Tell whether there is nothing to settle: no order, and no session that will be saved.
        """
        session = loaded_session(request)
        if session is not self.session or self.ordered:
            return False
        return session is None or not was_changed(session)

    def finish(self) -> None:
        """
        Keep tasks that have a copy of this context from taking it for the current one.
        """
        self.stage = Stage.DONE
        _CURRENT.set(None)

    def release(self) -> None:
        """
        Let go of a websocket that is gone.

        The event loop keeps the context that a heartbeat was started in, and with it this
        object, for longer than the heartbeat.
        """
        if self.connection is not None:
            self.connection = self.request = self.session = self.task = self.content = None


# Not a key of the request: a websocket keeps its request, so that would make a circle, and
# a context costs a request less than its table of keys.
_CURRENT: Final[ContextVar[RequestContext | None]] = ContextVar("current_request", default=None)


def current_request() -> RequestContext | None:
    """
    Return the request that the current task handles.
    """
    return _CURRENT.get()


def set_current(context: RequestContext) -> None:
    """
    Make *context* the one of the request that the current task handles.
    """
    _CURRENT.set(context)


def context_of(request: web.Request) -> RequestContext | None:
    """
    Return the context of *request* if it is the one being handled.

    A handler may call a helper with somebody else's request, and a task may outlive the
    request that it was started by.
    """
    context = _CURRENT.get()
    if context is None or context.request is not request or context.stage is Stage.DONE:
        return None
    return context


def current_connection() -> TrackedConnection | None:
    """
    Return the websocket whose handler the current task, or its parent, runs.
    """
    context = _CURRENT.get()
    return None if context is None or context.stage is Stage.DONE else context.connection
