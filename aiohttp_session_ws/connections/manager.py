"""
The manager of this process's connections: adds them to the index, closes and removes them.

More than 300 lines, most of them short methods: it is the facade of this folder.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

from aiohttp import web

from .._lineage import Kind, Lineage, Subject
from .._logging import log
from .._tasks import BackgroundTasks
from ..close_codes import NORMAL, SLOW_CONSUMER, Close
from ..options import PushQueue, Timeouts
from ..results import Snapshot
from ..typing import Data
from .closing import CloseEngine, write_frame
from .connection import (
    CLOSED,
    NO_LINEAGE,
    OPEN,
    OPENING,
    Connection,
    TrackedConnection,
    registered_object,
)
from .counters import Counters
from .describe import snapshot
from .farewell import write_last_words
from .index import ConnectionIndex, Index
from .push import Pushed, Pusher
from .watched import WatchedIndex
from .websocket import ServedWebSocket, is_closed

__all__: list[str] = []

TICK: Final = 1.0  # seconds between two checks for connections that died unnoticed
TICKS_PER_ROUND: Final = 4  # ticks within which all are checked once, if there are many
SOON: Final = 2 * TICKS_PER_ROUND * TICK  # seconds before a check from which each tick covers it
FIRST_FRAMES: Final = 16  # close frames that are written before anything else is done
CHECKED_AT_ONCE: Final = 1000  # connections checked in one go, about 1 ms, before other work


class UnjudgedConnections(Protocol):
    """
    The connections of an order that are judged while they are closed.
    """

    def __len__(self) -> int:
        """
        Return how many there are, whether they will be closed or not.
        """

    def __iter__(self) -> Iterator[tuple[TrackedConnection, Close] | None]:
        """
        Judge each, once; yield it with its close, or ``None`` if there is nothing to close.
        """

    def closes(self, connection: TrackedConnection) -> bool:
        """
        Return whether a connection is going to be closed.
        """

    def when_judged(self, act: Callable[[], None]) -> None:
        """
        Call *act* when all are judged.
        """


class ConnectionManager(ConnectionIndex):
    """
    The index of a registry; closes the connections in it, and pushes messages to them.

    Args:
        timeouts: How long to wait for peers and handlers.
        push_queue: How many pushed messages may wait for a slow peer.
        tasks: Runs background work; stopped by whoever created it.
        current: Returns the connection whose handler is calling.

    Attributes:
        counters: Counts closed sockets and refused handshakes.
        pusher: Pushes messages to the connections.
        on_removed: Called once for each connection that was registered and has left the
            index, and awaited if it returns an awaitable.
        on_tick: Called once a second, while there is a connection, with the open ones whose
            ``check_at`` has come; if there are many, once per batch.
        tasks: Runs background work.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        push_queue: PushQueue,
        tasks: BackgroundTasks,
        current: Callable[[], TrackedConnection | None],
    ) -> None:
        super().__init__()
        self.open = Index(self._track)
        self.counters = Counters()
        self.on_removed: Callable[[TrackedConnection], Awaitable[None] | None] | None = None
        self.on_tick: list[Callable[[Sequence[TrackedConnection]], None]] = []
        self.pusher = Pusher(push_queue, tasks, self._close_slow)
        self._admitted = 0
        self._engine = CloseEngine(timeouts, tasks, self._remove, current)
        self._current = current
        self._unjudged: dict[UnjudgedConnections, None] = {}
        self._refused: set[TrackedConnection] = set()
        self._orphaned_handlers: set[TrackedConnection] = set()  # the handler still runs
        self.tasks = tasks
        self._ticker: asyncio.Handle | None = None
        self._tick_position = 0  # the open connection at which the next tick continues

    @property
    def timeouts(self) -> Timeouts:
        """
        How long to wait for peers and handlers; may be replaced at any time.
        """
        return self._engine.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self._engine.timeouts = timeouts

    def watch(self, changed: Callable[[Subject], None]) -> None:
        """
        Call *changed* for each id and identity whose connections change; use before there are any.
        """
        self.open = WatchedIndex(lambda key: changed(Subject("id", key)), self._track)
        self.opening = WatchedIndex(lambda key: changed(Subject("id", key)))
        self.identities = WatchedIndex(lambda key: changed(Subject("identity", key)))

    def start(self, timeouts: Timeouts) -> None:
        """
        Begin to serve an application.
        """
        self.timeouts = timeouts
        self._engine.shutting_down = False
        self._unjudged.clear()

    # Adding

    def add_handshake(self, connection: TrackedConnection) -> None:
        """
        File a handshake, so that orders find it.
        """
        connection.closer = self
        self.opening.add(connection.session_ws_id, connection)
        self.add_lineage(connection)
        if self._ticker is None:
            self._schedule_tick()

    def discard_handshake(self, connection: TrackedConnection) -> None:
        """
        Remove a handshake that failed; one that is being closed is removed once it is closed.
        """
        if connection.state is OPENING:
            self.take_out(connection)
        self.handler_exited(connection)

    def admit(self) -> int:
        """
        Return the number of a handshake that is admitted now; they count up from 1.
        """
        self._admitted += 1
        return self._admitted

    def evict(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close *connection*, or reject its handshake, to make room for another.
        """
        connection.reject(close)
        if connection.state is OPEN:
            self.close_soon([connection], close)

    def remove_by_hand(self, session_ws_id: Hashable, ws: object) -> bool:
        """
        Remove an object registered by hand; return whether it was there.
        """
        if self.open.discard_object(session_ws_id, ws):
            return True
        connection = self.open.get(session_ws_id, ws)
        if connection is None or connection.request is not None:
            return False
        if connection.send_queue is not None:
            connection.send_queue.drop()
        if connection.state is OPEN:
            self.take_out(connection)
        return True

    def discard_stream(self, connection: TrackedConnection) -> None:
        """
        Remove a stream whose handler has left; one that is being closed is removed once closed.
        """
        if connection.state is OPEN:
            self.take_out(connection)

    def add_by_hand(
        self,
        session_ws_id: Hashable,
        ws: object,
        identity: Hashable | None = None,
        lineage: Lineage = NO_LINEAGE,
    ) -> TrackedConnection:
        """
        File an object registered by hand, which is not there yet.
        """
        connection = self._track(session_ws_id, ws, time.monotonic())
        self.open.add(session_ws_id, connection)
        if identity is not None:
            self.file_identity(connection, identity)
        connection.lineage = lineage
        self.add_lineage(connection)
        return connection

    def _track(self, session_ws_id: Hashable, ws: object, at: float) -> TrackedConnection:
        return registered_object(session_ws_id, ws, self, at)

    def tracked(self, connection: Connection) -> TrackedConnection:
        """
        Return *connection* as a :class:`TrackedConnection`, which all are.

        Raises:
            TypeError: If it is not a connection.
        """
        if not isinstance(connection, TrackedConnection):
            raise TypeError(f"expected a Connection (such as ws.connection), not {connection!r}")
        return connection

    # Queries

    @property
    def total(self) -> int:
        """
        How many there are: open, opening, and refused ones that are still being closed.
        """
        return self.open.size + self.opening.size + len(self._refused)

    def of(self, session_ws_id: Hashable) -> list[TrackedConnection]:
        """
        Return the open connections of an id, and closed ones whose handlers still run.
        """
        found = self.open.of(session_ws_id)
        if self._orphaned_handlers:
            found += self._orphaned(lambda c: c.session_ws_id == session_ws_id)
        return found

    def of_lineage(self, token: str) -> list[TrackedConnection]:
        """
        Return all connections of a lineage: opening, open, and closed with a running handler.
        """
        found = self.lineages.of(token)
        if self._orphaned_handlers:
            found += self._orphaned(lambda c: c.lineage.token == token)
        return found

    def of_subject(self, subject: Subject) -> list[TrackedConnection]:
        """
        Return all connections of an id, an identity or a label, as :meth:`of_lineage` does.
        """
        kind, value = subject
        if kind == "id":
            known = value in self.open or value in self.opening
            if not (known or self._orphaned_handlers):
                return []  # the case for most orders of other nodes
            return self.opening.of(value) + self.of(value)
        if kind == "identity":
            return self.identities.of(value) + self._orphaned(lambda c: _is_of(c, value))
        return self.labels.of(subject) + self._orphaned(lambda c: subject in c.labels)

    def held_among(self, kind: Kind, values: Sequence[Hashable]) -> list[Hashable]:
        """
        Return those of some ids, identities or labels for which :meth:`of_subject` isn't empty.
        """
        if self._orphaned_handlers:
            return [value for value in values if self.of_subject(Subject(kind, value))]
        if kind == "id":
            return self.open.present_among(values) + self.opening.present_among(values)
        if kind == "identity":
            return self.identities.present_among(values)
        labels = [Subject("label", value) for value in values]
        return [subject.value for subject in labels if subject in self.labels]

    def all(self) -> list[TrackedConnection]:
        """
        Return all connections to close at shutdown: open ones, closed ones whose handlers still
        run, and refused ones that are still being closed.
        """
        return [*self.open, *self._orphaned_handlers, *self._refused]

    def snapshot(self, subject: Subject | None = None, node: str = "") -> Snapshot:
        """
        Describe the open connections of a subject, or all for ``None``.
        """
        return snapshot(self.open_of(subject), time.monotonic(), node)

    def orphans(self) -> list[TrackedConnection]:
        """
        Return the closed connections whose handlers still run.
        """
        return list(self._orphaned_handlers)

    def _orphaned(self, wanted: Callable[[TrackedConnection], bool]) -> list[TrackedConnection]:
        return [c for c in self._orphaned_handlers if wanted(c)]

    # Closing

    def write_first(
        self,
        subject: Subject,
        close: Close,
        *,
        began: float = math.inf,
        started: float = math.inf,
        but: Connection | None = None,
    ) -> Sequence[TrackedConnection]:
        """
        Write the first close frames of an order, to sockets of an id that it closes in any case.

        The caller has to carry out the order before anything is awaited: this is only the part
        of it that peers wait for, and of many sockets it takes the first few.

        Args:
            subject: The subject of the order; only sockets of ids are found so quickly.
            close: The close of the order.
            began: By when the lineage of a socket must have begun, by the shared clock.
            started: By when its handshake must have begun, by the event loop's clock.
            but: A connection to leave alone.

        Returns:
            The connections whose frames were written.
        """
        written: list[TrackedConnection] = []
        if subject.kind != "id":
            return written
        for connection in self.open.first_of(subject.value, FIRST_FRAMES):
            if (
                connection.state is OPEN
                and connection.lineage.began <= began
                and connection.started <= started
                and connection is not but
            ):
                connection.close_order = close
                write_frame(connection, close)
                written.append(connection)
        return written

    def close_now(
        self, connections: Iterable[TrackedConnection], close: Close
    ) -> Awaitable[tuple[int, int]]:
        """
        Close connections and end their handlers.

        The first close frames are written before this returns; of many, the rest in slices. The
        calling handler is not waited for, since it would wait for itself, nor is it cancelled.
        Cancelling the wait for the result stops nothing.

        Args:
            connections: Open ones; opening ones, whose handlers are to end; or closed ones whose
                handlers still run.
            close: The close for the peers.

        Returns:
            An awaitable: how many were aborted, and how many handlers were cancelled.
        """
        chosen = list(connections)
        for connection in chosen:
            if connection.state is OPEN or connection.state is OPENING:
                connection.close_order = close
        return self._engine.close(chosen, close, len(chosen))

    def close_each(
        self, found: Iterable[tuple[TrackedConnection, Close] | None], count: int
    ) -> Awaitable[tuple[int, int]]:
        """
        Close connections as :meth:`close_now` does, each with its own close, while iterating.

        Args:
            found: Connections, each with its close; ``None`` is skipped, but counts.
            count: How many there may be.
        """
        return self._engine.close(map(_set_close_order, found), None, count)

    def close_unjudged(self, unjudged: UnjudgedConnections) -> Awaitable[tuple[int, int]]:
        """
        Close connections as :meth:`close_each` does; pushes skip those that are yet to be closed.
        """
        self._unjudged[unjudged] = None
        unjudged.when_judged(lambda: self._unjudged.pop(unjudged, None))
        return self.close_each(unjudged, len(unjudged))

    def close_for_shutdown(self, close: Close, seconds: float) -> Awaitable[tuple[int, int]]:
        """
        Close all connections, since the process ends; handshakes in flight are rejected.

        Args:
            close: The close for the peers.
            seconds: How long to wait for them, if that is less than ``timeouts.close``.
        """
        opening = self.handshakes()
        for connection in opening:
            connection.reject(close)
        self.timeouts = replace(self.timeouts, close=min(seconds, self.timeouts.close))
        self._engine.shutting_down = True
        return self.close_now([*self.all(), *opening], close)

    def close_soon(self, connections: Iterable[TrackedConnection], close: Close) -> None:
        """
        Close connections as :meth:`close_now` does, without waiting.
        """
        _ = self.close_now(connections, close)

    def start_close(self, connection: TrackedConnection, close: Close) -> asyncio.Future[object]:
        """
        Close one connection, without ending its handler.

        Returns:
            A future that is done when the connection is removed.
        """
        return self._engine.close_one(connection, close)

    def remove_if_ended(self, connection: TrackedConnection) -> bool:
        """
        Remove a websocket that has ended by itself, as most have when their handlers leave; return
        whether nothing is left to wait for.
        """
        if connection.closing is not None or connection.registered:
            return False
        if connection.state is OPEN and connection.disconnected:
            if connection.send_queue is not None:
                connection.send_queue.drop()
            self.take_out(connection)
        return connection.state is CLOSED

    async def wait_closed(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close a connection unless it is being closed already, and wait until it is removed.

        Only the wait can be cancelled, not the engine.
        """
        if connection.state is not CLOSED or connection.closing is not None:
            await self._engine.close_one(connection, close)

    async def close_connection(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close a connection for the application, as :meth:`Connection.close` describes.
        """
        if connection is self._current():
            if connection.state is OPEN and connection.transport is not None:
                write_last_words(connection, connection.transport, close)
            await self._engine.close_one(connection, close)
        else:
            await self.close_now([connection], close)

    async def close_refused(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close a refused handshake that was accepted to send its client a close code.

        It is in no index, but counts in ``total`` until it is closed.
        """
        self._refused.add(connection)
        try:
            await self._engine.close_one(connection, close)
        finally:
            if connection.state is CLOSED:
                self._refused.discard(connection)

    def handler_exited(self, connection: TrackedConnection) -> None:
        """
        Record that the handler of *connection* has left ``session_ws``.
        """
        connection.handler_left = True
        self._orphaned_handlers.discard(connection)
        if connection.closing is not None:
            self._engine.settle(connection.closing)

    def _remove(self, connection: TrackedConnection) -> Awaitable[None] | None:
        """
        Take a connection whose transport has ended out of the index, once.
        """
        if connection.send_queue is not None:
            connection.send_queue.drop()
        self._refused.discard(connection)
        self.take_out(connection)
        if connection.task is not None and not connection.handler_left:
            self._orphaned_handlers.add(connection)
        elif connection.request is None and connection.close_order is not None:
            self.counters.closed("order", connection.close_order.code)  # by hand: no handler
        if not connection.registered or self.on_removed is None:
            return None
        try:
            return self.on_removed(connection)
        except Exception:
            log.exception("unregister() failed")
            return None

    # Pushing

    def push(
        self, connections: Iterable[TrackedConnection], data: Data, *, by_endpoint: bool = False
    ) -> Pushed:
        """
        Send a message to those of *connections* that take it, without waiting for any of them;
        if it is sent *by_endpoint*, also to those that take no pushes.

        Raises:
            TypeError: If *data* is neither text nor bytes.
        """
        if self._unjudged:
            orders = self._unjudged
            connections = [c for c in connections if not any(one.closes(c) for one in orders)]
        return self.pusher.push(connections, data, by_endpoint=by_endpoint)

    def _close_slow(self, connection: TrackedConnection) -> None:
        self.close_soon([connection], SLOW_CONSUMER)

    # The tick

    def check_each_tick(self, connection: TrackedConnection) -> None:
        """
        Check an open connection in every tick: its session is due within :data:`SOON` seconds.
        """
        if connection.state is OPEN and connection.transport is not None:
            self.checked_each_tick[connection] = None

    def _schedule_tick(self) -> None:
        # In an empty context: a request's would be kept alive as long as there are sockets.
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        """
        Close connections that died while their handlers didn't receive, and call ``on_tick``.

        Most of the cost is fetching each connection from memory, so if there are many, each tick
        checks a part of them, and :attr:`checked_each_tick`, which can't wait.
        """
        served, always = self.open.served(), self.checked_each_tick
        begin = self._tick_position if self._tick_position < len(served) else 0
        share = math.ceil(len(served) / TICKS_PER_ROUND)
        self._tick_position = begin + max(CHECKED_AT_ONCE, share)
        part = [c for c in served[begin : self._tick_position] if c not in always]
        self._tick_batch([*always, *part], 0)

    def _tick_batch(self, served: Sequence[TrackedConnection], start: int) -> None:
        self._ticker = None
        now = time.monotonic()
        due: list[TrackedConnection] = []
        end = start + CHECKED_AT_ONCE
        for connection in served[start:end]:
            if connection.state is not OPEN:
                continue
            transport, ws = connection.transport, connection.ws
            if transport is None:
                if connection.request is not None:
                    self._close_dead(connection)
            # The engine hasn't closed it, since it is OPEN, so aiohttp's own flag is enough.
            elif transport.is_closing() or (isinstance(ws, ServedWebSocket) and is_closed(ws)):
                self._close_dead(connection)
            elif connection.check_at <= now + SOON:
                self.checked_each_tick[connection] = None
                if connection.check_at <= now:
                    due.append(connection)
            elif connection in self.checked_each_tick and not connection.is_stream:
                self.checked_each_tick.pop(connection, None)
        for callback in tuple(self.on_tick):
            try:
                callback(due)
            except Exception:
                log.exception("a periodic check of the connections failed: %r", callback)
        if end < len(served):
            loop = asyncio.get_running_loop()
            context = contextvars.Context()
            self._ticker = loop.call_soon(self._tick_batch, served, end, context=context)
        elif self.open.size or self.opening.size:
            self._schedule_tick()

    def _close_dead(self, connection: TrackedConnection) -> None:
        """
        Close a connection that has died.
        """
        ws = connection.ws
        # The handler knows of a close frame that was read, and may have things to finish; it
        # doesn't know that the heartbeat found the peer dead.
        if isinstance(ws, web.WebSocketResponse) and ws.closed and ws.exception() is None:
            _ = self._engine.close_one(connection, NORMAL)
        else:
            _ = self._engine.close([connection], NORMAL, 1)

    async def stop(self) -> None:
        """
        Stop the tick and the engine's timers.
        """
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._engine.stop()


def _set_close_order(found: tuple[TrackedConnection, Close] | None) -> TrackedConnection | None:
    """
    Record the close of a connection, and return the connection.
    """
    if found is None:
        return None
    connection, close = found
    if connection.state is OPEN or connection.state is OPENING:
        connection.close_order = close
    return connection


def _is_of(connection: TrackedConnection, identity: Hashable) -> bool:
    """
    Return whether a connection belongs to an identity, or its client has proven it.
    """
    proven = connection.proven
    return connection.identity == identity or (proven is not None and proven[0] == identity)
