"""
One HTTP request on its way through the application: what it came with, and what was ordered.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
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


# An enum's members are looked up slowly, and these are asked for with each request.
ARRIVING: Final = Stage.ARRIVING
HANDLING: Final = Stage.HANDLING
DONE: Final = Stage.DONE


@dataclass(slots=True, eq=False)
class RequestOrders:
    """
    What a handler has ordered about the session of its request.

    Attributes:
        close_requested: Whether it has asked to close the sockets of the id.
        renewed: Whether it has asked for a new id.
        other_id: Whether it has asked for another id, or none, where the application keeps ids.
        keeps_sockets: Whether open sockets go on under that.
        ended: When it has ended the lineage, by the one clock.
        begins: Whether its response begins a lineage after ``end_other_sessions_ws``.
        own_ends: What it has ended, and the time of each.
        changes: The records of it, to be told when the response has been sent.
        deferred: Whether the request is settled without the middleware.
        refresh: Which open sockets go on under another id.
        ordered: When the last of it was ordered, by the event loop's clock.
        awaits_response: Whether something waits for the response, to close the sockets.
        ending: What ends the session and begins another, though the handler may have given it up.
    """

    close_requested: bool = False
    renewed: bool = False
    other_id: bool = False
    keeps_sockets: bool = False
    ended: float | None = None
    begins: bool = False
    own_ends: dict[Subject, float] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    deferred: bool = False
    refresh: Any = None  # an order.Refresh, which is a floor above
    ordered: float = 0.0
    awaits_response: bool = False
    ending: asyncio.Task[None] | None = None


NO_ORDERS: Final = RequestOrders()  # of most requests


class RequestContext:
    """
    What is known of a request.

    Args:
        request: The request.
        task: The task that handles it.
        arrived: When it arrived, by the one clock: a lineage that it begins began then.

    Attributes:
        request: The request; ``None`` once its websocket is gone.
        task: The task that runs its handler, until its response has been written.
        started: When it began, by the event loop's clock.
        arrived: When it arrived, by the one clock.
        stage: How far it is.
        behind_middleware: Whether the middleware settles it.
        after_middleware: Whether the middleware has settled it, and it is judged once more.
        lineage: The lineage it came with or was given on arrival, however that was judged.
        session_ws_id: The id it came with or was given on arrival.
        status: How it was judged on arrival.
        epoch: That of the records then, if it was alive by them.
        newest: The newest generation of its lineage then.
        session: The session it was given to handle.
        content: What that held on arrival, if ``identify`` may have to be asked about it.
        loaded: What that held before it was given an id; a handshake that saves it looks again.
        held_data: Whether that was anything of the application's.
        carried: Whether it carried a lineage when it was given to the handler.
        given: Whether it was given an id or a lineage on arrival.
        id_given: Whether it was given an id on arrival, which no client knows yet.
        fresh: Whether it was given an empty session, since its own had ended.
        checked: Whether other nodes' records of its session were read on arrival.
        connection: The websocket that the request became.
        handshake_failed: Whether it asked for a websocket and was refused.
        orders: What its handler has ordered.
    """

    __slots__ = (
        "after_middleware",
        "arrived",
        "behind_middleware",
        "carried",
        "checked",
        "connection",
        "content",
        "epoch",
        "fresh",
        "given",
        "handshake_failed",
        "held_data",
        "id_given",
        "lineage",
        "loaded",
        "newest",
        "orders",
        "request",
        "session",
        "session_ws_id",
        "stage",
        "started",
        "status",
        "task",
    )

    def __init__(
        self, request: web.Request, task: asyncio.Task[Any] | None, arrived: float
    ) -> None:
        self.request: web.Request | None = request
        self.task = task
        self.started = time.monotonic()  # as the event loop's clock, but quicker
        self.arrived = arrived
        self.stage = ARRIVING
        self.behind_middleware = self.after_middleware = False
        self.lineage: Lineage | None = None
        self.session_ws_id: Hashable | None = None
        self.status: Status = ALIVE
        self.epoch = -1
        self.newest = 0
        self.session: Session | None = None
        self.content: dict[str, Any] | None = None
        self.loaded: dict[str, Any] | None = None
        self.held_data = self.carried = False
        self.given = self.id_given = self.fresh = self.checked = False
        self.connection: TrackedConnection | None = None
        self.handshake_failed = False
        self.orders = NO_ORDERS

    def ordering(self) -> RequestOrders:
        """
        Return what the handler has ordered, to add to it.
        """
        if self.orders is NO_ORDERS:
            self.orders = RequestOrders()
        return self.orders

    def is_untouched(self, request: web.Request) -> bool:
        """
        Tell whether there is nothing to settle: no order, and no session that will be saved.
        """
        session = loaded_session(request)
        if session is not self.session or self.orders is not NO_ORDERS:
            return False
        return session is None or not was_changed(session)

    def finish(self) -> None:
        """
        Keep tasks that have a copy of this context from taking it for the current one.
        """
        self.stage = DONE
        _CURRENT.set(None)

    def leave(self) -> None:
        """
        Finish with its websocket, before its handler has returned; then the middleware, if there
        is one, does the rest.
        """
        self.stage = DONE
        if not self.behind_middleware:
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
    if context is None or context.request is not request or context.stage is DONE:
        return None
    return context


def was_behind_middleware(request: web.Request) -> bool:
    """
    Tell whether the middleware has handled *request*, though it isn't the current one any more.

    So it is for a handler whose websocket has ended, and for a task that outlives its request.
    """
    context = _CURRENT.get()
    if context is None or not context.behind_middleware:
        return False
    return context.request is request or context.request is None  # a websocket's, and let go of


def current_connection() -> TrackedConnection | None:
    """
    Return the websocket whose handler the current task, or its parent, runs.
    """
    context = _CURRENT.get()
    return None if context is None or context.stage is DONE else context.connection
