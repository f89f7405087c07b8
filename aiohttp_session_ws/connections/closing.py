"""
The close engine: ends connections within a deadline, whatever their peers and handlers do.

Theory of operation. An order closes any number of connections:

1. The close frames are written: up to :data:`AT_ONCE` per event loop iteration in one go; beyond
   that, in slices, each followed by an iteration for other work (larger slices at shutdown).
   Unsent pushes are dropped; the last words and the close frame are written to the transport.
   From then on the websocket sends and delivers nothing. One whose slice is yet to come still
   delivers messages, but gets no pushes. Later steps run in batches of :data:`BATCH` connections.
2. A :class:`Closing` becomes the protocol of each transport, in place of aiohttp's. It drops what
   the client still sends, since its session may have ended; closes the transport when the
   client's close frame arrives; and is notified when the transport has ended, which wakes the
   handler. If the handler was receiving, the transport is closed after a short wait for that
   close frame: the handler isn't sending, and aiohttp's ``close()`` would not wait at all.
3. When the transport has ended, the connection is removed. Transports that have not ended by the
   deadline of the order are aborted.
4. A handler that runs on for longer than a grace of its own after that is cancelled.

There is no task and no timer per websocket: one timer per order, and one queue of handlers. Only
objects registered by hand and websockets of other libraries, whose ``close()`` may hang, have a
task and a deadline of their own, and some TLS transports have to be polled. All of it belongs to
the registry: a caller that is cancelled stops waiting, and nothing else.

More than 300 lines, since each step calls the next one and all share the same counts.
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

AT_ONCE: Final = 1024  # frames written in one go per event loop iteration: some 10 ms
SLICE: Final = 128  # frames per slice of a larger order; the next steps take as long again
SHUTDOWN_SLICE: Final = 4096  # the same at shutdown, when there is no other work to delay
BATCH: Final = 50  # transports closed, or handlers cancelled, per event loop iteration
_SHORT_WAIT: Final = 0.25  # seconds for the client's close frame if the handler was receiving
_POLL: Final = 0.01  # seconds between two checks of a transport that doesn't report its end


class Caller(NamedTuple):
    """
    The origin of an order.

    Attributes:
        connection: The connection whose handler, or a child task of it, gives the order.
        task: The current task.
    """

    connection: TrackedConnection | None
    task: asyncio.Task[Any] | None


class CloseEngine:
    """
    Executes close orders.

    Args:
        timeouts: How long to wait for peers and handlers.
        tasks: Runs its few tasks.
        remove: Takes a connection out of the index; an awaitable that it returns is awaited.
        current: Returns the connection whose handler gives an order. The order doesn't wait for
            that handler, which would wait for itself; nor cancels it, if given in its own task.

    Attributes:
        timeouts: May be replaced at any time.
        shutting_down: Whether the process ends: slices are larger then, and batches unlimited.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        tasks: BackgroundTasks,
        remove: Callable[[TrackedConnection], Awaitable[None] | None],
        current: Callable[[], TrackedConnection | None],
    ) -> None:
        self.timeouts = timeouts
        self.shutting_down = False
        self._tasks = tasks
        self._remove = remove
        self._current = current
        # Timers run in an empty context: a request's would be kept alive until they fire.
        self._context = contextvars.Context()
        # Handlers whose sockets are gone, and when their grace is over, earliest first. Not a
        # dict, which would look for its first item past the slots of all deleted ones.
        self._graces: OrderedDict[Closing, float] = OrderedDict()
        self._grace_timer: asyncio.Handle | None = None
        self._transports_to_close: deque[Closing] = deque()
        self._next_batch: asyncio.Handle | None = None
        self._written: float = 0  # frames written in one go in this iteration

    def close(
        self,
        connections: Iterable[TrackedConnection | None],
        close: Close | None,
        count: float,
    ) -> asyncio.Future[tuple[int, int]]:
        """
        Close connections and end their handlers.

        Args:
            connections: Open ones; opening ones, of which only the handlers are ended; or closed
                ones whose handlers still run. Consumed slice by slice; ``None`` is skipped, but
                counts towards the slice.
            close: The close for all peers; ``None`` for the ``close_order`` of each.
            count: How many there are at most. All frames of few are written before this
                returns; those of many in slices, with iterations for other work in between.
        """
        order = self._new_order(close)
        caller = Caller(self._current(), asyncio.current_task())
        large = SHUTDOWN_SLICE if self.shutting_down else SLICE
        size = None if self._may_write(count) else large
        self._close_slice(order, iter(connections), caller, size)
        return order.done

    def _may_write(self, count: float) -> bool:
        """
        Return whether the frames of an order may be written in one go; all orders of an event
        loop iteration share one budget.
        """
        if count <= SLICE:
            return True  # no more than a slice
        if self._written + count > AT_ONCE:
            return False
        if not self._written:
            _ = asyncio.get_running_loop().call_soon(self._reset_written, context=self._context)
        self._written += count
        return True

    def _reset_written(self) -> None:
        self._written = 0

    def _new_order(self, close: Close | None) -> CloseOrder:
        loop = asyncio.get_running_loop()
        return CloseOrder(close, loop.create_future(), loop.time())

    def close_one(self, connection: TrackedConnection, close: Close) -> asyncio.Future[Any]:
        """
        Close one connection without ending its handler; return a future of its removal.
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
            order.add_transport(closing)
        self._start_timer(order)
        order.settle()
        return order.done

    def _close_slice(
        self,
        order: CloseOrder,
        connections: Iterator[TrackedConnection | None],
        caller: Caller,
        size: int | None,
    ) -> None:
        """
        Write a slice of the close frames of an order, then begin the next steps for these.
        """
        taken, more = _write_frames(order, connections, size)
        if more:
            # Scheduled first: the next slice is written before clients' answers are read.
            loop = asyncio.get_running_loop()
            args = order, connections, caller, size
            _ = loop.call_soon(self._close_slice, *args, context=self._context)
        for connection in taken:
            closing = self._closing_of(connection)
            self._add_to_order(order, closing, caller)
            if not closing.begun and not _is_handshake(connection):
                self._begin(closing, order)
                self._watch(closing)
            elif closing.begun and not closing.gone:
                order.add_transport(closing)
        if not more:
            order.writing = False
            self._start_timer(order)
            self._transports_to_close += order.answered
            self._close_batch()
            order.settle()

    def _close_transport_soon(self, closing: Closing) -> None:
        """
        Close the transport of a client that has answered: at once, or in a later batch.
        """
        self._transports_to_close.append(closing)
        if self._next_batch is None or self.shutting_down:
            self._close_batch()

    def _close_batch(self) -> None:
        """
        Close a batch of transports, and schedule the next: each causes work in later iterations.
        """
        if self._next_batch is not None:
            self._next_batch.cancel()
            self._next_batch = None
        waiting = self._transports_to_close
        count = len(waiting) if self.shutting_down else min(BATCH, len(waiting))
        for _ in range(count):
            waiting.popleft().close_transport()
        if count:
            loop = asyncio.get_running_loop()
            self._next_batch = loop.call_soon(self._close_batch, context=self._context)

    def _closing_of(self, connection: TrackedConnection) -> Closing:
        closing: Closing | None = connection.closing
        if closing is None:
            close_soon = self._close_transport_soon
            closing = connection.closing = Closing(connection, self.set_gone, close_soon)
        if connection.state is CLOSED and not closing.begun:  # perhaps after the order
            closing.begun = closing.gone = closing.removed = True
        return closing

    def _add_to_order(self, order: CloseOrder, closing: Closing, caller: Caller) -> None:
        """
        Make *order* wait for a connection and for its handler.
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
        if not is_me:  # a child task of the handler waits for the socket, not for the handler
            order.pending += 1
            closing.after_handler.append(order)
        if not closing.ends_handler:
            closing.ends_handler = True
            if closing.gone or handshake:
                self._start_grace(closing)

    def _begin(self, closing: Closing, order: CloseOrder) -> None:
        """
        Begin to close a connection whose frame was just written, or can't be written.
        """
        connection, ws = closing.connection, closing.connection.ws
        closing.begun = True
        closing.first_order = order
        order.add_transport(closing)
        if connection.state is CLOSING:
            closing.short_wait = ws.receiving
            return
        connection.set_closing()
        if connection.send_queue is not None:
            connection.send_queue.drop()
        if isinstance(ws, ServedWebSocket):
            closing.forwards_data = ws.closed
        elif _ends_with_transport(ws):  # a stream
            closing.close_transport()

    def _start_timer(self, order: CloseOrder) -> None:
        """
        Start the timer of an order, now that all its frames are written.
        """
        if order.transports:
            loop = asyncio.get_running_loop()
            wait = min(_SHORT_WAIT, self.timeouts.close)
            # Counted from the order, not from its last frame; but late ones get a short wait too.
            deadline = max(order.given + self.timeouts.close, loop.time() + wait)
            order.timer = loop.call_later(
                wait, self._close_after_short_wait, order, deadline, context=self._context
            )

    def _watch(self, closing: Closing) -> None:
        """
        Watch for the end of the transport, or close an object in a task of its own.
        """
        connection = closing.connection
        transport = connection.transport
        if connection.request is None or not _ends_with_transport(connection.ws):
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
                    self._poll(closing)  # aiohttp may be notified of its end instead

    def _poll(self, closing: Closing) -> None:
        """
        Poll for the end of a transport that may not report it.
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
        Close an object registered by hand, or a websocket opened by another library.
        """
        order, connection = closing.first_order, closing.connection
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

    def _close_after_short_wait(self, order: CloseOrder, deadline: float) -> None:
        """
        Close the transports with a short wait only, and set the timer to the deadline.
        """
        loop = asyncio.get_running_loop()
        order.timer = loop.call_at(deadline, self._abort, order, context=self._context)
        self._transports_to_close += [one for one in order.closings if one.short_wait]
        self._close_batch()

    def _abort(self, order: CloseOrder) -> None:
        """
        Abort the transports that an order has not closed in time.
        """
        order.timer = None
        self._abort_batch(iter(tuple(order.closings)))

    def _abort_batch(self, closings: Iterator[Closing]) -> None:
        """
        Abort a batch of transports, and schedule the next.
        """
        batch = list(itertools.islice(closings, None if self.shutting_down else BATCH))
        for closing in batch:
            # An object registered by hand has a deadline of its own.
            if not closing.gone and closing.connection.request is not None:
                closing.aborted = True
                closing.connection.abort()
                self.set_gone(closing)
        if len(batch) == BATCH:
            loop = asyncio.get_running_loop()
            _ = loop.call_soon(self._abort_batch, closings, context=self._context)

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
            self._start_grace(closing)
        if result is None:
            closing.removed = True
            self.settle(closing)
        else:
            # In its own task, since the handler that waits here may be cancelled.
            hook = self._await_hook(closing, result)
            _ = self._tasks.spawn(hook, "unregister", contextvars.Context())

    async def _await_hook(self, closing: Closing, result: Awaitable[None]) -> None:
        """
        Wait for an overridden ``unregister()``, as long as for a peer (``timeouts.close``).
        """
        hook = self._tasks.spawn(_call(result), "unregister", contextvars.Context())
        try:
            # Not asyncio.timeout(), since the hook may suppress its cancellation.
            await asyncio.wait({hook}, timeout=self.timeouts.close)
            if not hook.done():
                log.warning("unregister() takes too long and is cancelled")
                hook.cancel()
        finally:
            closing.removed = True
            self.settle(closing)

    def settle(self, closing: Closing) -> None:
        """
        Update the orders that wait for a connection or its handler.
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
            closing.connection.closing = None  # breaks the reference cycle

    def _start_grace(self, closing: Closing) -> None:
        """
        Cancel the handler when the grace is over, or that of a stream at once.
        """
        loop = asyncio.get_running_loop()
        stream = not isinstance(closing.connection.ws, web.WebSocketResponse)
        if stream:
            self._cancel(closing)  # it reads nothing, so it doesn't notice the end
            return
        self._graces[closing] = loop.time() + self.timeouts.handler_grace
        self._set_grace_timer(loop)

    def _set_grace_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._grace_timer is None and self._graces:
            due = next(iter(self._graces.values()))
            self._grace_timer = loop.call_at(due, self._end_graces, context=self._context)

    def _end_graces(self) -> None:
        """
        Cancel the handlers whose grace is over, in batches.
        """
        self._grace_timer = None
        left = math.inf if self.shutting_down else BATCH
        loop = asyncio.get_running_loop()
        # A timer may fire early by the clock's resolution.
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
                _log_still_running(closing.connection)
            else:
                self._cancel(closing)
        self._set_grace_timer(loop)

    def _cancel(self, closing: Closing) -> None:
        """
        Cancel a handler, and check after another grace whether it has ended.
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
        Stop the timers of graces and batches, and close the transports still in the queue.
        """
        if self._grace_timer is not None:
            self._grace_timer.cancel()
            self._grace_timer = None
        self._graces.clear()
        if self._next_batch is not None:
            self._next_batch.cancel()
            self._next_batch = None
        while self._transports_to_close:
            self._transports_to_close.popleft().close_transport()


def _write_frames(
    order: CloseOrder, connections: Iterator[TrackedConnection | None], most: int | None
) -> tuple[list[TrackedConnection], bool]:
    """
    Write the close frames of a slice.

    Nothing else is done here, not even reading a clock, since it would delay the frames.

    Args:
        order: The order.
        connections: The connections to close; ``None`` is skipped, but counts.
        most: How many to take; ``None`` for all.

    Returns:
        The connections taken, and whether there may be more.
    """
    taken: list[TrackedConnection] = []
    count = 0
    for connection in itertools.islice(connections, most):
        count += 1
        if connection is not None:
            taken.append(connection)
            write_frame(connection, order.close_for(connection))
    return taken, count == most


def write_frame(connection: TrackedConnection, close: Close) -> None:
    """
    Write the last words and the close frame of a connection, if it has an open websocket.
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
        if connection.sparse is not None and connection.close_order is not None:
            write_last_words(connection, transport, connection.close_order)
        ws.write_close(transport, close.code, close_frame(close.code, close.reason))
    except Exception:
        log.warning("closing a websocket failed", exc_info=True)
        connection.abort()
    else:
        connection.set_closing()


def _is_handshake(connection: TrackedConnection) -> bool:
    """
    Return whether there is no websocket yet that could be closed.
    """
    return connection.state is OPENING and not connection.ws.prepared


def _ends_with_transport(ws: object) -> bool:
    """
    Return whether *ws* ends with its transport; anything else has a ``close()`` of its own.
    """
    if isinstance(ws, web.WebSocketResponse):
        return isinstance(ws, ServedWebSocket)
    return isinstance(ws, web.StreamResponse)


def _log_still_running(connection: TrackedConnection) -> None:
    assert connection.task is not None
    log.warning(
        "a websocket handler of session %s is still running after its socket was closed and"
        " it was cancelled: %s",
        fingerprint(connection.session_ws_id),
        connection.task.get_coro(),
    )


async def _call(result: Awaitable[None]) -> None:
    try:
        await result
    except Exception:
        log.exception("unregister() failed")
