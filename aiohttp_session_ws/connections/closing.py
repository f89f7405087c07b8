"""
The close engine: ends connections within a deadline, whatever their peers and handlers do.

Theory of operation. An order closes any number of connections:

1. The close frames of all are written, in synchronous slices of a few milliseconds, before
   anything else is done: what was pushed and not sent is dropped, the last words and the frame go
   to the transport. From then on the websocket takes and delivers nothing.
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
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import WSMsgType, web

from .._logging import fingerprint, log
from .._tasks import BackgroundTasks
from ..close_codes import Close
from ..options import Timeouts
from .connection import (
    CLOSED,
    OPEN,
    OPENING,
    ServedWebSocket,
    TrackedConnection,
    step_once,
)
from .frames import encode_frame

__all__: list[str] = []

SLICE: Final = 0.0045  # seconds of CPU for writing frames, then others have their turn
_MOMENT: Final = 0.25  # seconds for a client to answer a handler that was receiving
LOOK: Final = 16  # frames between two looks at the clock
_ANSWERS: Final = 100  # transports of those who have answered that are closed in a row
_POLL: Final = 0.01  # seconds between two looks at a transport whose end can't be heard
_LONGEST_CLOSE: Final = 131  # bytes of a close frame of a client
_PACK_CODE: Final = struct.Struct("!H").pack
_COMPRESSED_AT_ONCE: Final = 1024  # bytes of last words that aiohttp compresses without a task


class Closing(asyncio.Protocol):
    """
    A connection that is being closed, and what its transport talks to meanwhile.

    Attributes:
        connection: Which one.
        begun: Whether its close frame was written; not for a handshake.
        aside: Whether aiohttp is left to hear the client, since it has closed by itself.
        gone: Whether its transport has ended.
        removed: Whether it is out of the index, and the hook has been called.
        aborted: Whether it had to be cut: the deadline passed, or closing it failed.
        brief: Whether its transport is closed after a moment, without an answer.
        ends_handler: Whether its handler is to be cancelled when the grace is over.
        told: The order that has begun to close it.
        orders: The orders whose deadlines it must meet.
        after_removal: The orders that wait for its removal.
        after_handler: The orders that wait for the end of its handler.
    """

    __slots__ = (
        "_engine",
        "_inner",
        "_tail",
        "aborted",
        "after_handler",
        "after_removal",
        "aside",
        "begun",
        "brief",
        "connection",
        "ends_handler",
        "gone",
        "orders",
        "removed",
        "told",
    )

    def __init__(self, engine: CloseEngine, connection: TrackedConnection) -> None:
        self._engine = engine
        self._inner: Any = None  # aiohttp's protocol
        self._tail = b""
        self.connection = connection
        self.begun = False
        self.aside = False
        self.brief = False
        self.gone = False
        self.removed = False
        self.aborted = False
        self.ends_handler = False
        self.told: CloseOrder | None = None
        self.orders: list[CloseOrder] = []
        self.after_removal: list[CloseOrder] = []
        self.after_handler: list[CloseOrder] = []

    @property
    def handler_ended(self) -> bool:
        """
        Whether the handler needn't be waited for any more.
        """
        connection = self.connection
        return connection.task is None or connection.handler_left or connection.cancelled

    def watch(self, transport: asyncio.Transport) -> None:
        """
        Step between *transport* and aiohttp.
        """
        assert self.connection.request is not None
        self._inner = self.connection.request.protocol
        # Not transport.get_protocol(), which fails on a TLS transport that has ended.
        transport.set_protocol(self)
        if not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()  # aiohttp's queue may be full, and nobody will read it

    def data_received(self, data: bytes) -> None:
        """
        Drop what the client sends, and see whether it answers with a close frame.
        """
        if self.aside:
            self._inner.data_received(data)
            return
        # It is the last thing that a client may send (RFC 6455, 5.5.1), so the end of what came
        # tells, wherever its frames begin. Should something else look like it, this is a bit
        # early; should it come in two pieces, the first one is kept.
        tail = self._tail + data
        self._tail = tail[-_LONGEST_CLOSE:]
        if ends_with_close(tail) and self.told is not None:
            if self.told.writing:
                self.told.answered.append(self)
            else:
                self.close_transport()

    def close_transport(self) -> None:
        """
        Close the transport when all that was written is sent.
        """
        transport = self.connection.transport
        # To close a TLS transport twice makes asyncio lose the connection under it.
        if transport is not None and not transport.is_closing():
            transport.close()

    def pause_writing(self) -> None:
        """
        Tell aiohttp, for those who wait to send.
        """
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """
        Tell aiohttp, for those who wait to send.
        """
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """
        Tell aiohttp, and remove the connection.
        """
        try:
            self._inner.connection_lost(exc)
        finally:
            self._engine.set_gone(self)


def ends_with_close(data: bytes) -> bool:
    """
    Tell whether *data* ends with a close frame of a client, which is masked.
    """
    end = len(data)
    for size in (0, *range(2, 126)):
        at = end - 6 - size
        if at < 0:
            return False
        if data[at] == 0x88 and data[at + 1] == 0x80 | size:
            # The first two bytes of the payload are the code, masked by the first two of four.
            code = (
                (data[at + 6] ^ data[at + 2]) << 8 | data[at + 7] ^ data[at + 3] if size else 1000
            )
            if 1000 <= code <= 4999:
                return True
    return False


class CloseOrder:
    """
    What one order waits for, and until when.

    Args:
        close: What the peers are told.
        deadline: Called when its time is over.

    Attributes:
        close: What the peers are told.
        frame: The close frame, made once.
        reason: The reason as bytes, made once.
        writing: Whether not all frames are written yet.
        answered: Those whose clients have answered before that.
        done: Has its result when nothing is left to wait for: how many sockets were aborted, and
            how many handlers cancelled. Who awaits it may be cancelled, which stops nothing.
        pending: How many things it waits for, and one more while it is writing.
        transports: How many transports have to end before its deadline.
        closings: What these belong to.
        aborted: How many sockets were aborted.
        cancelled: How many handlers were cancelled.
        timer: Aborts what is left.
    """

    __slots__ = (
        "aborted",
        "answered",
        "cancelled",
        "close",
        "closings",
        "done",
        "frame",
        "pending",
        "reason",
        "timer",
        "transports",
        "writing",
    )

    def __init__(self, close: Close, done: asyncio.Future[tuple[int, int]]) -> None:
        self.close = close
        self.reason = close.reason.encode()
        self.frame = encode_frame(_PACK_CODE(close.code) + self.reason, WSMsgType.CLOSE)
        self.writing = True
        self.answered: list[Closing] = []
        self.done = done
        self.pending = 1
        self.transports = 0
        self.closings: list[Closing] = []
        self.aborted = 0
        self.cancelled = 0
        self.timer: asyncio.TimerHandle | None = None

    def bound(self, closing: Closing) -> None:
        """
        Let a transport end before the deadline.
        """
        self.transports += 1
        self.closings.append(closing)
        closing.orders.append(self)

    def settle(self) -> None:
        """
        Count down one thing that it waited for.
        """
        self.pending -= 1
        if not self.pending and not self.done.done():
            self.done.set_result((self.aborted, self.cancelled))

    def transport_ended(self) -> None:
        """
        Count down one transport; the last one stops the timer.
        """
        self.transports -= 1
        if not self.transports:
            self.closings.clear()
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None


class CloseEngine:
    """
    Carries orders out.

    Args:
        timeouts: How long to wait for peers and handlers.
        tasks: Where its few tasks run.
        remove: Takes a connection out of the index; what it returns is awaited, if it can be.

    Attributes:
        timeouts: May be replaced at any time.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        tasks: BackgroundTasks,
        remove: Callable[[TrackedConnection], Awaitable[None] | None],
    ) -> None:
        self.timeouts = timeouts
        self._tasks = tasks
        self._remove = remove
        # Timers run in no request's context, or it would be kept for as long as they wait.
        self._context = contextvars.Context()
        # Handlers whose sockets are gone, and when their grace is over: the first is due first. A
        # dict would look for its first item through the places of all that were deleted before.
        self._graces: OrderedDict[Closing, float] = OrderedDict()
        self._grace_timer: asyncio.TimerHandle | None = None

    def close(
        self,
        connections: Sequence[TrackedConnection],
        close: Close,
        me: TrackedConnection | None = None,
    ) -> asyncio.Future[tuple[int, int]]:
        """
        Close connections and end their handlers.

        Args:
            connections: Open ones; opening ones, whose handlers are ended only; or ones that
                have left their handlers behind.
            close: What to tell the peers.
            me: The connection whose handler calls. Neither the order waits for that handler,
                which would wait for itself, nor is it cancelled.
        """
        order = CloseOrder(close, asyncio.get_running_loop().create_future())
        for connection in connections:
            if connection.state is OPEN or connection.state is OPENING:
                connection.close_order = close
        self._close_some(order, connections, 0, me, asyncio.current_task())
        return order.done

    def close_one(self, connection: TrackedConnection, close: Close) -> asyncio.Future[Any]:
        """
        Close one connection without ending its handler; the result is there when it is removed.
        """
        order = CloseOrder(close, asyncio.get_running_loop().create_future())
        closing = self._closing_of(connection)
        if not closing.removed:
            order.pending += 1
            closing.after_removal.append(order)
        order.writing = False
        if not closing.begun:
            self._begin(closing, order)
            self._watch(closing)
        elif not closing.gone:
            self._bound(order, closing)
        order.settle()
        return order.done

    def _close_some(
        self,
        order: CloseOrder,
        connections: Sequence[TrackedConnection],
        start: int,
        me: TrackedConnection | None,
        caller: asyncio.Task[Any] | None,
    ) -> None:
        """
        Write close frames from *start* on, for as long as a slice may take.
        """
        begun: list[Closing] = []
        stop_at = time.thread_time() + SLICE
        end = len(connections)
        for number in range(start, end):
            if number % LOOK == 0 and number > start and time.thread_time() > stop_at:
                end = number
                break
            connection = connections[number]
            closing = self._closing_of(connection)
            self._join(order, closing, me, caller)
            if closing.begun:
                if not closing.gone:
                    self._bound(order, closing)
            elif not _is_handshake(connection):
                self._begin(closing, order)
                begun.append(closing)
        if end < len(connections):
            # Before the loop looks for answers again: so the next slice comes before these.
            loop = asyncio.get_running_loop()
            args = order, connections, end, me, caller
            _ = loop.call_soon(self._close_some, *args, context=self._context)
        for closing in begun:  # before anybody else has a turn, or answers would be missed
            self._watch(closing)
        if end == len(connections):
            order.writing = False
            self._close_answered(order)
            order.settle()

    def _close_answered(self, order: CloseOrder) -> None:
        """
        Close the transports of those who have answered while frames were written, some at a time.
        """
        for closing in order.answered[:_ANSWERS]:
            closing.close_transport()
        del order.answered[:_ANSWERS]
        if order.answered:
            loop = asyncio.get_running_loop()
            _ = loop.call_soon(self._close_answered, order, context=self._context)

    def _closing_of(self, connection: TrackedConnection) -> Closing:
        closing: Closing | None = connection.closing
        if closing is None:
            closing = connection.closing = Closing(self, connection)
            closing.begun = closing.gone = closing.removed = connection.state is CLOSED
        return closing

    def _join(
        self,
        order: CloseOrder,
        closing: Closing,
        me: TrackedConnection | None,
        caller: asyncio.Task[Any] | None,
    ) -> None:
        """
        Let *order* wait for a connection and for its handler.
        """
        connection = closing.connection
        is_me = connection is me
        if is_me and connection.task is caller:
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
        Write the close frame.
        """
        connection = closing.connection
        closing.begun = True
        closing.told = order
        self._bound(order, closing)
        connection.set_closing()
        if connection.send_queue is not None:
            connection.send_queue.drop()
        transport, ws = connection.transport, connection.ws
        if transport is None or transport.is_closing():
            return
        try:
            if isinstance(ws, ServedWebSocket):
                closing.aside = ws.closed
                if not closing.aside:
                    self._write_end(closing, ws, transport, order)
            elif _is_ours(ws):  # a stream
                transport.close()
        except Exception:
            log.warning("closing a websocket failed", exc_info=True)
            closing.aborted = True
            connection.abort()

    @staticmethod
    def _write_end(
        closing: Closing, ws: ServedWebSocket, transport: asyncio.Transport, order: CloseOrder
    ) -> None:
        """
        Write the last words and the close frame.
        """
        connection = closing.connection
        closing.brief = ws.receiving
        if connection.last_words is not None and connection.close_order is not None:
            _write_last_words(connection, transport, connection.close_order)
        ws.write_close(transport, order.close.code, order.frame)

    def _bound(self, order: CloseOrder, closing: Closing) -> None:
        """
        Let a transport end before the deadline of an order, which begins with its first.
        """
        order.bound(closing)
        if order.timer is None:
            loop = asyncio.get_running_loop()
            moment = min(_MOMENT, self.timeouts.close)
            deadline = loop.time() + self.timeouts.close
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
                await _call_close(connection.ws, order.close.code, order.reason)
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
        for closing in tuple(order.closings):
            if closing.brief:
                closing.close_transport()

    def _abort(self, order: CloseOrder) -> None:
        """
        End what an order has not closed in time.
        """
        order.timer = None
        for closing in tuple(order.closings):
            # What was registered by hand has a deadline of its own.
            if not closing.gone and closing.connection.request is not None:
                closing.aborted = True
                closing.connection.abort()
                self.set_gone(closing)

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
        try:
            async with asyncio.timeout(self.timeouts.close):
                await result
        except TimeoutError:
            log.warning("unregister() takes too long and was cancelled")
        except Exception:
            log.exception("unregister() failed")
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
        if closing.removed and closing.handler_ended:
            closing.connection.closing = None  # or both would wait for the garbage collector

    def _give_grace(self, closing: Closing) -> None:
        """
        Cancel the handler when the grace is over.
        """
        loop = asyncio.get_running_loop()
        stream = not isinstance(closing.connection.ws, web.WebSocketResponse)
        if stream or not self.timeouts.handler_grace:
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
        Cancel the handlers that had time enough.
        """
        self._grace_timer = None
        loop = asyncio.get_running_loop()
        # A timer may be early by the clock's resolution.
        now = loop.time() + 0.001
        while self._graces and next(iter(self._graces.values())) <= now:
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


def _write_last_words(
    connection: TrackedConnection, transport: asyncio.Transport, close: Close
) -> None:
    """
    Write what an endpoint has left to say, if nothing is in the way.
    """
    assert connection.last_words is not None
    try:
        words = connection.last_words(close)
        if not words or transport.get_write_buffer_size() or connection.ws.closed:
            return
        opcode = WSMsgType.TEXT if isinstance(words, str) else WSMsgType.BINARY
        payload = words.encode() if isinstance(words, str) else bytes(words)
        if connection.ws.compress and len(payload) > _COMPRESSED_AT_ONCE:
            return
        step_once(connection.ws.send_frame(payload, opcode))  # or a sender is in the way
    except Exception:
        log.exception("the last words of a websocket failed")


async def _call_close(ws: Any, code: int, reason: bytes) -> None:
    """
    Call the ``close()`` of something that was registered by hand.
    """
    if isinstance(ws, web.WebSocketResponse):
        # Without drain: a peer that stopped reading would hold it for ever.
        await ws.close(code=code, message=reason, drain=False)
        return
    try:
        inspect.signature(ws.close).bind(code=code, message=b"")
    except (TypeError, ValueError):
        result = ws.close()
    else:
        result = ws.close(code=code, message=reason)
    if inspect.isawaitable(result):
        # In a task of its own, for one that doesn't let itself be cancelled.
        task = asyncio.ensure_future(result)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        finally:
            task.cancel()


def _log_stubborn(connection: TrackedConnection) -> None:
    assert connection.task is not None
    log.warning(
        "a websocket handler of session %s goes on though its socket is closed and it was"
        " cancelled: %s",
        fingerprint(connection.session_ws_id),
        connection.task.get_coro(),
    )
