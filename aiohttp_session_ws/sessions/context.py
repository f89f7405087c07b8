"""
The context of an HTTP request: the session it arrived with, and the orders of its handler.
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
    The stage of a request.

    ``ARRIVING`` until the status of its session is known, ``HANDLING`` while its handler runs,
    ``SETTLED`` from when the handler's changes of the session are processed, ``DONE`` when it is
    no longer the current request of any task.
    """

    ARRIVING = "arriving"
    HANDLING = "handling"
    SETTLED = "settled"
    DONE = "done"


# Looking up an enum's members is slow, and these are used with each request.
ARRIVING: Final = Stage.ARRIVING
HANDLING: Final = Stage.HANDLING
DONE: Final = Stage.DONE


@dataclass(slots=True, eq=False)
class RequestOrders:
    """
    The orders that a handler has given about the session of its request.

    Attributes:
        close_requested: Whether it has asked to close the sockets of the id.
        renewed: Whether it has asked for a new id.
        other_id: Whether it has asked for another id, or none, where the application keeps ids.
        keeps_sockets: Whether sockets stay open under the new id.
        ended: When it has ended the lineage, by the shared clock.
        begins: Whether its response begins a lineage after ``end_other_sessions_ws``.
        own_ends: The subjects that it has ended, and when, by the shared clock.
        changes: The records of its orders, published when the response has been sent.
        deferred: Whether the request is settled without the middleware.
        refresh: Which sockets stay open under another id.
        ordered: When the last order was given, by the event loop's clock.
        awaits_response: Whether a task waits for the response to be sent, to close the sockets.
        ending: The task that replaces the session; it survives a cancellation of the handler.
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
    refresh: Any = None  # an order.Refresh, defined a layer above
    ordered: float = 0.0
    awaits_response: bool = False
    ending: asyncio.Task[None] | None = None


NO_ORDERS: Final = RequestOrders()  # shared by most requests


class RequestContext:
    """
    The state of a request.

    Args:
        request: The request.
        task: The task that handles it.
        arrived: When it arrived, by the shared clock: the beginning of a lineage that it begins.

    Attributes:
        request: The request; ``None`` once its websocket is gone.
        task: The task that runs its handler, until its response has been written.
        started: When it arrived, by the event loop's clock.
        arrived: When it arrived, by the shared clock.
        stage: Its stage.
        behind_middleware: Whether the middleware settles it.
        after_middleware: Whether this is another context, since the middleware has settled it.
        lineage: The lineage it came with or was given on arrival, whatever its status.
        session_ws_id: The id it came with or was given on arrival.
        status: The status of its session on arrival.
        epoch: The epoch of the records by which the session is alive for any identity; else -1.
        newest: The newest generation of its lineage on arrival.
        session: The session that its handler gets.
        content: What the session held on arrival, if ``identify`` may have to be called with it.
        loaded: What it held before it was given an id: a handshake compares that before it saves.
        held_data: Whether it held data of the application on arrival.
        carried: Whether it carried a lineage when the handler got it.
        given: Whether the session was given an id or a lineage on arrival.
        id_given: Whether it was given an id on arrival, which no client knows yet.
        fresh: Whether the session is a new, empty one: the client's had ended or was replaced.
        checked: Whether the cluster's records of the session were read on arrival.
        connection: The websocket or stream that the request became.
        handshake_failed: Whether the request asked for a websocket and was refused.
        orders: The orders of its handler.
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
        self.started = time.monotonic()  # the event loop's clock, but faster to call
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
        Return the orders of the handler, for the caller to add to them.
        """
        if self.orders is NO_ORDERS:
            self.orders = RequestOrders()
        return self.orders

    def is_untouched(self, request: web.Request) -> bool:
        """
        Return whether there is nothing to settle: no order, and no session that will be saved.
        """
        session = loaded_session(request)
        if session is not self.session or self.orders is not NO_ORDERS:
            return False
        return session is None or not was_changed(session)

    def finish(self) -> None:
        """
        Mark the request as done, also for tasks that have inherited it as the current one.
        """
        self.stage = DONE
        _CURRENT.set(None)

    def leave(self) -> None:
        """
        Mark the request as done when its websocket ends, before its handler has returned; a
        middleware calls :meth:`finish` after that.
        """
        self.stage = DONE
        if not self.behind_middleware:
            _CURRENT.set(None)

    def release(self) -> None:
        """
        Drop the references to a websocket that is gone.

        The event loop keeps the context that a heartbeat was started in, and with it this
        object, for longer than the heartbeat.
        """
        if self.connection is not None:
            self.connection = self.request = self.session = self.task = self.content = None


# Not a key of the request: a websocket refers to its request, so that would be a reference
# cycle, and a context variable costs less than the request's dictionary of keys.
_CURRENT: Final[ContextVar[RequestContext | None]] = ContextVar("current_request", default=None)


def current_request() -> RequestContext | None:
    """
    Return the context of the request that the current task handles.
    """
    return _CURRENT.get()


def set_current(context: RequestContext) -> None:
    """
    Set the context of the request that the current task handles.
    """
    _CURRENT.set(context)


def context_of(request: web.Request) -> RequestContext | None:
    """
    Return the context of *request* if it is the one being handled.

    A handler may call a helper with another request, and a task may outlive the request that
    it was started by.
    """
    context = _CURRENT.get()
    if context is None or context.request is not request or context.stage is DONE:
        return None
    return context


def was_behind_middleware(request: web.Request) -> bool:
    """
    Return whether the middleware has handled *request*, even if it isn't the current one any more.

    That is so in a handler whose websocket has ended, and in a task that outlives its request.
    """
    context = _CURRENT.get()
    if context is None or not context.behind_middleware:
        return False
    return context.request is request or context.request is None  # released with its websocket


def current_connection() -> TrackedConnection | None:
    """
    Return the connection whose handler the current task, or the task that started it, runs.
    """
    context = _CURRENT.get()
    return None if context is None or context.stage is DONE else context.connection
