"""
The close engine: ends connections within a deadline, whatever their peers and handlers do.

Theory of operation. An order closes any number of connections:

1. The close frames are written: of up to :data:`AT_ONCE` in one go, of more, by one order or by
   all of a turn, in slices with a turn for others after each (longer ones at a shutdown). What was
   pushed and not sent is dropped, the last words and the frame go to the transport. From then on
   that websocket takes and delivers nothing; one whose slice is yet to come delivers what comes,
   and what is pushed passes it by. All that follows comes in rows of :data:`ROW` connections.
2. A :class:`Closing` now stands between each transport and aiohttp. It drops what the client still
   sends, since its session may have ended; sees the close frame that a polite client answers with,
   and closes the transport; and hears at once when that has ended, which tells the handler. If the
   handler was receiving, the transport is closed after a moment without an answer: it has nothing
   more to say, and aiohttp would not have waited at all.
3. When the transport has ended, the connection is removed. What has not ended by the deadline of
   the order is aborted.
4. A handler that goes on for longer than the grace after that is cancelled, each by its own.

There is no task and no timer per websocket: a deadline per order, and one queue of handlers. Only
what was registered by hand, which may hang in its ``close()``, has a task and a deadline of its
own. All of it belongs to the registry: a caller that is cancelled stops waiting, and nothing else.

More than 300 lines, since every step hands over to the next one and shares what is counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from aiohttp import web

from .._logging import fingerprint, log
from .._tasks import BackgroundTasks
from ..close_codes import Close
from ..options import Timeouts
from .close_order import CloseOrder, Closing, close_frame
from .connection import CLOSED, CLOSING, OPEN, OPENING, TrackedConnection
from .farewell import call_close, write_last_words
from .websocket import ServedWebSocket

__all__: list[str] = []

AT_ONCE: Final = 1024  # frames that orders write in one go in a turn, which takes some 10 ms
SLICE: Final = 128  # frames of a larger order; what follows takes as long again
LAST_SLICE: Final = 4096  # the same at shutdown, when nobody else is waiting to be served
ROW: Final = 50  # transports that are closed, or handlers that are cancelled, in a row
_MOMENT: Final = 0.25  # seconds for a client to answer a handler that was receiving
_POLL: Final = 0.01  # seconds between two looks at a transport whose end can't be heard


class Caller(NamedTuple):
    """
    Who gives an order.

    Attributes:
        connection: The connection whose handler it is, or whose handler's child.
        task: The task.
    """

    connection: TrackedConnection | None
    task: asyncio.Task[Any] | None


class CloseEngine:
    """
    Carries orders out.

    Args:
        timeouts: How long to wait for peers and handlers.
        tasks: Where its few tasks run.
        remove: Takes a connection out of the index; what it returns is awaited, if it can be.
        current: Returns the connection whose handler gives an order. Neither the order waits for
            that handler, which would wait for itself, nor is it cancelled.

    Attributes:
        timeouts: May be replaced at any time.
        ending: Whether the process ends, so that frames needn't give way to anything.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        tasks: BackgroundTasks,
        remove: Callable[[TrackedConnection], Awaitable[None] | None],
        current: Callable[[], TrackedConnection | None],
    ) -> None:
        self.timeouts = timeouts
        self.ending = False
        self._tasks = tasks
        self._remove = remove
        self._current = current
        # Timers run in no request's context, or it would be kept for as long as they wait.
        self._context = contextvars.Context()
        # Handlers whose sockets are gone, and when their grace is over: the first is due first. A
        # dict would look for its first item through the places of all that were deleted before.
        self._graces: OrderedDict[Closing, float] = OrderedDict()
        self._grace_timer: asyncio.Handle | None = None
        self._hanging_up: deque[Closing] = deque()  # whose transports are to be closed
        self._next_row: asyncio.Handle | None = None
        self._written: float = 0  # frames of orders that are no slices, in this turn

    def close(
        self,
        connections: Iterable[TrackedConnection | None],
        close: Close | None,
        count: float,
    ) -> asyncio.Future[tuple[int, int]]:
        """
        Close connections and end their handlers.

        Args:
            connections: Open ones; opening ones, whose handlers are ended only; or ones that
                have left their handlers behind. They are taken as their turn comes, and
                ``None`` takes its time only.
            close: What to tell the peers; ``None`` for the ``close_order`` of each.
            count: How many there are at most. All frames of few are written before this
                returns; those of many in slices, with turns for others in between.
        """
        order = self._new_order(close)
        caller = Caller(self._current(), asyncio.current_task())
        large = LAST_SLICE if self.ending else SLICE
        size = None if self._may_write(count) else large
        self._close_more(order, iter(connections), caller, size)
        return order.done

    def _may_write(self, count: float) -> bool:
        """
        Tell whether the frames of an order may be written in one go: a turn has so many for all
        its orders.
        """
        if count <= SLICE:
            return True  # a slice would have them, too
        if self._written + count > AT_ONCE:
            return False
        if not self._written:
            _ = asyncio.get_running_loop().call_soon(self._end_turn, context=self._context)
        self._written += count
        return True

    def _end_turn(self) -> None:
        self._written = 0

    def _new_order(self, close: Close | None) -> CloseOrder:
        loop = asyncio.get_running_loop()
        return CloseOrder(close, loop.create_future(), loop.time())

    def close_one(self, connection: TrackedConnection, close: Close) -> asyncio.Future[Any]:
        """
        Close one connection without ending its handler; the result is there when it is removed.
        """
        order = self._new_order(close)
        write_frame(connection, close)
        closing = self._closing_of(connection)
        if not closing.removed:
            order.pending += 1
            closing.after_removal.append(order)
        order.writing = False
        if not closing.begun:
            self._begin(closing, order)
            self._watch(closing)
        elif not closing.gone:
            order.bound(closing)
        self._start_timer(order)
        order.settle()
        return order.done

    def _close_more(
        self,
        order: CloseOrder,
        connections: Iterator[TrackedConnection | None],
        caller: Caller,
        size: int | None,
    ) -> None:
        """
        Write a slice of the close frames of an order, and do what follows these.
        """
        told, more = _write_frames(order, connections, size)
        if more:
            # Before the loop looks for answers again: so the next slice comes before these.
            loop = asyncio.get_running_loop()
            args = order, connections, caller, size
            _ = loop.call_soon(self._close_more, *args, context=self._context)
        for connection in told:
            closing = self._closing_of(connection)
            self._join(order, closing, caller)
            if not closing.begun and not _is_handshake(connection):
                self._begin(closing, order)
                self._watch(closing)
            elif closing.begun and not closing.gone:
                order.bound(closing)
        if not more:
            order.writing = False
            self._start_timer(order)
            self._hanging_up += order.answered
            self._hang_up_row()
            order.settle()

    def _hang_up(self, closing: Closing) -> None:
        """
        Close the transport of a client that has answered: at once, or after others.
        """
        self._hanging_up.append(closing)
        if self._next_row is None or self.ending:
            self._hang_up_row()

    def _hang_up_row(self) -> None:
        """
        Close some transports, and others in the next turn: each makes work in the turns after it.
        """
        if self._next_row is not None:
            self._next_row.cancel()
            self._next_row = None
        waiting = self._hanging_up
        row = len(waiting) if self.ending else min(ROW, len(waiting))
        for _ in range(row):
            waiting.popleft().close_transport()
        if row:
            loop = asyncio.get_running_loop()
            self._next_row = loop.call_soon(self._hang_up_row, context=self._context)

    def _closing_of(self, connection: TrackedConnection) -> Closing:
        closing: Closing | None = connection.closing
        if closing is None:
            closing = connection.closing = Closing(connection, self.set_gone, self._hang_up)
        if connection.state is CLOSED and not closing.begun:  # perhaps since it was ordered
            closing.begun = closing.gone = closing.removed = True
        return closing

    def _join(self, order: CloseOrder, closing: Closing, caller: Caller) -> None:
        """
        Let *order* wait for a connection and for its handler.
        """
        connection = closing.connection
        is_me = connection is caller.connection
        if is_me and connection.task is caller.task:
            return
        handshake = _is_handshake(connection)
        if not (closing.removed or handshake):
            order.pending += 1
            closing.after_removal.append(order)
        if closing.handler_ended:
            return
        if not is_me:  # a child of the handler waits for the socket, but not for the handler
            order.pending += 1
            closing.after_handler.append(order)
        if not closing.ends_handler:
            closing.ends_handler = True
            if closing.gone or handshake:
                self._give_grace(closing)

    def _begin(self, closing: Closing, order: CloseOrder) -> None:
        """
        Begin to close what was just told, or can't be told any more.
        """
        connection, ws = closing.connection, closing.connection.ws
        closing.begun = True
        closing.told = order
        order.bound(closing)
        if connection.state is CLOSING:
            closing.brief = ws.receiving
            return
        connection.set_closing()
        if connection.send_queue is not None:
            connection.send_queue.drop()
        if isinstance(ws, ServedWebSocket):
            closing.aside = ws.closed
        elif _is_ours(ws):  # a stream
            closing.close_transport()

    def _start_timer(self, order: CloseOrder) -> None:
        """
        Let the deadline of an order begin, now that all frames are written.
        """
        if order.transports:
            loop = asyncio.get_running_loop()
            moment = min(_MOMENT, self.timeouts.close)
            # Of the order, not of its last frame; but who is told late has a moment, too.
            deadline = max(order.given + self.timeouts.close, loop.time() + moment)
            order.timer = loop.call_later(
                moment, self._close_brief, order, deadline, context=self._context
            )

    def _watch(self, closing: Closing) -> None:
        """
        Hear of the transport's end.
        """
        connection = closing.connection
        transport = connection.transport
        if connection.request is None or not _is_ours(connection.ws):
            coro = self._close_object(closing)
            _ = self._tasks.spawn(coro, "close an object", contextvars.Context())
        elif transport is None or connection.disconnected:
            self.set_gone(closing)
        else:
            try:
                closing.watch(transport)
            except AttributeError:  # a TLS transport that was closed twice has no protocol
                self._poll(closing)
            else:
                if transport.is_closing() and connection.tls_socket is not None:
                    self._poll(closing)  # aiohttp may be about to hear of its end instead

    def _poll(self, closing: Closing) -> None:
        """
        Look for the end of a transport that doesn't tell.
        """
        if closing.gone:
            return
        if closing.connection.disconnected:
            self.set_gone(closing)
        else:
            loop = asyncio.get_running_loop()
            _ = loop.call_later(_POLL, self._poll, closing, context=self._context)

    async def _close_object(self, closing: Closing) -> None:
        """
        Close what was registered by hand, or opened by another library.
        """
        order, connection = closing.told, closing.connection
        assert order is not None
        try:
            async with asyncio.timeout(self.timeouts.close):
                await call_close(connection.ws, order.close_for(connection))
                while not connection.disconnected:
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            closing.aborted = True
        except Exception:
            log.warning("closing a websocket failed", exc_info=True)
            closing.aborted = True
        finally:
            connection.abort()
            self.set_gone(closing)

    def _close_brief(self, order: CloseOrder, deadline: float) -> None:
        """
        Close the transports for whose clients a moment is enough.
        """
        loop = asyncio.get_running_loop()
        order.timer = loop.call_at(deadline, self._abort, order, context=self._context)
        brief = [closing for closing in order.closings if closing.brief]
        self._hanging_up += brief
        self._hang_up_row()

    def _abort(self, order: CloseOrder) -> None:
        """
        End what an order has not closed in time.
        """
        order.timer = None
        self._abort_row(iter(tuple(order.closings)))

    def _abort_row(self, closings: Iterator[Closing]) -> None:
        """
        Abort some transports, and others in the next turn.
        """
        row = list(itertools.islice(closings, None if self.ending else ROW))
        for closing in row:
            # What was registered by hand has a deadline of its own.
            if not closing.gone and closing.connection.request is not None:
                closing.aborted = True
                closing.connection.abort()
                self.set_gone(closing)
        if len(row) == ROW:
            loop = asyncio.get_running_loop()
            _ = loop.call_soon(self._abort_row, closings, context=self._context)

    def set_gone(self, closing: Closing) -> None:
        """
        Remove a connection whose transport has ended, once.
        """
        if closing.gone:
            return
        closing.gone = True
        if isinstance(closing.connection.ws, ServedWebSocket):
            closing.connection.ws.release()
        result = self._remove(closing.connection)
        for order in closing.orders:
            order.transport_ended()
        closing.orders.clear()
        if not closing.handler_ended and closing.ends_handler:
            self._give_grace(closing)
        if result is None:
            closing.removed = True
            self.settle(closing)
        else:
            # Its own task: the handler that waits here may be cancelled.
            hook = self._await_hook(closing, result)
            _ = self._tasks.spawn(hook, "unregister", contextvars.Context())

    async def _await_hook(self, closing: Closing, result: Awaitable[None]) -> None:
        """
        Wait for an overridden ``unregister()``, for as long as for a peer.
        """
        hook = self._tasks.spawn(_call(result), "unregister", contextvars.Context())
        try:
            # Not a timeout around it: it may not let itself be cancelled.
            await asyncio.wait({hook}, timeout=self.timeouts.close)
            if not hook.done():
                log.warning("unregister() takes too long and is cancelled")
                hook.cancel()
        finally:
            closing.removed = True
            self.settle(closing)

    def settle(self, closing: Closing) -> None:
        """
        Tell the orders that wait for a connection how far it is.
        """
        if closing.removed:
            for order in closing.after_removal:
                order.aborted += closing.aborted
                order.settle()
            closing.after_removal.clear()
        if closing.connection.handler_left:
            self._graces.pop(closing, None)
        if closing.handler_ended:
            for order in closing.after_handler:
                order.cancelled += closing.connection.cancelled
                order.settle()
            closing.after_handler.clear()
        if closing.handler_ended and (closing.removed or not closing.begun):
            closing.connection.closing = None  # or both would wait for the garbage collector

    def _give_grace(self, closing: Closing) -> None:
        """
        Cancel the handler when the grace is over.
        """
        loop = asyncio.get_running_loop()
        stream = not isinstance(closing.connection.ws, web.WebSocketResponse)
        if stream:
            self._cancel(closing)  # it has nothing to read, so nothing tells it of the end
            return
        self._graces[closing] = loop.time() + self.timeouts.handler_grace
        self._set_grace_timer(loop)

    def _set_grace_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._grace_timer is None and self._graces:
            due = next(iter(self._graces.values()))
            self._grace_timer = loop.call_at(due, self._end_graces, context=self._context)

    def _end_graces(self) -> None:
        """
        Cancel the handlers that had time enough, some at a time.
        """
        self._grace_timer = None
        left = math.inf if self.ending else ROW
        loop = asyncio.get_running_loop()
        # A timer may be early by the clock's resolution.
        now = loop.time() + 0.001
        while self._graces and next(iter(self._graces.values())) <= now:
            if left <= 0:
                end = self._end_graces
                self._grace_timer = loop.call_soon(end, context=self._context)
                break
            left -= 1
            closing, _ = self._graces.popitem(last=False)
            if closing.connection.handler_left:
                continue
            if closing.connection.cancelled:
                _log_stubborn(closing.connection)
            else:
                self._cancel(closing)
        self._set_grace_timer(loop)

    def _cancel(self, closing: Closing) -> None:
        """
        Cancel a handler, and look later whether it has ended.
        """
        connection = closing.connection
        assert connection.task is not None
        connection.cancelled = True
        connection.task.cancel("its websocket was closed")
        loop = asyncio.get_running_loop()
        self._graces[closing] = loop.time() + self.timeouts.handler_grace
        self._set_grace_timer(loop)
        self.settle(closing)

    def stop(self) -> None:
        """
        Let no timer go off any more.
        """
        if self._grace_timer is not None:
            self._grace_timer.cancel()
            self._grace_timer = None
        self._graces.clear()
        if self._next_row is not None:
            self._next_row.cancel()
            self._next_row = None
        while self._hanging_up:
            self._hanging_up.popleft().close_transport()


def _write_frames(
    order: CloseOrder, connections: Iterator[TrackedConnection | None], most: int | None
) -> tuple[list[TrackedConnection], bool]:
    """
    Write the close frames of a slice.

    Nothing else is done here, not even a look at a clock, since everything before a frame delays
    it.

    Args:
        order: Whose frames.
        connections: Which are to be closed; ``None`` takes time only.
        most: How many are taken; ``None`` for all.

    Returns:
        Whose, and whether there may be more.
    """
    told: list[TrackedConnection] = []
    count = 0
    for connection in itertools.islice(connections, most):
        count += 1
        if connection is not None:
            told.append(connection)
            write_frame(connection, order.close_for(connection))
    return told, count == most


def write_frame(connection: TrackedConnection, close: Close) -> None:
    """
    Write the last words and the close frame of a connection, if it is a websocket to be closed.
    """
    state, transport, ws = connection.state, connection.transport, connection.ws
    if (
        not (state is OPEN or (state is OPENING and ws.prepared))
        or transport is None
        or not isinstance(ws, ServedWebSocket)
        or transport.is_closing()
        or ws.closed
    ):
        return
    try:
        if connection.send_queue is not None:
            connection.send_queue.drop()
        if connection.seldom is not None and connection.close_order is not None:
            write_last_words(connection, transport, connection.close_order)
        ws.write_close(transport, close.code, close_frame(close.code, close.reason))
    except Exception:
        log.warning("closing a websocket failed", exc_info=True)
        connection.abort()
    else:
        connection.set_closing()


def _is_handshake(connection: TrackedConnection) -> bool:
    """
    Tell whether there is no websocket yet that could be closed.
    """
    return connection.state is OPENING and not connection.ws.prepared


def _is_ours(ws: object) -> bool:
    """
    Tell whether *ws* ends with its transport; anything else has a ``close()`` of its own.
    """
    if isinstance(ws, web.WebSocketResponse):
        return isinstance(ws, ServedWebSocket)
    return isinstance(ws, web.StreamResponse)


def _log_stubborn(connection: TrackedConnection) -> None:
    assert connection.task is not None
    log.warning(
        "a websocket handler of session %s goes on though its socket is closed and it was"
        " cancelled: %s",
        fingerprint(connection.session_ws_id),
        connection.task.get_coro(),
    )


async def _call(result: Awaitable[None]) -> None:
    try:
        await result
    except Exception:
        log.exception("unregister() failed")
