"""
The connections of this process: their way into the index, and the only way out of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Final, NamedTuple

from aiohttp import web

from .._lineage import Lineage, Subject
from .._logging import log
from .._tasks import BackgroundTasks
from ..close_codes import NORMAL, SLOW_CONSUMER, Close
from ..options import PushQueue, Timeouts
from ..results import Snapshot
from .closing import CloseEngine
from .connection import (
    CLOSED,
    NO_LINEAGE,
    OPEN,
    OPENING,
    Connection,
    RegisteredObject,
    ServedWebSocket,
    TrackedConnection,
)
from .describe import snapshot
from .frames import encode_message
from .index import Index
from .send_queue import SendQueue

__all__: list[str] = []

TICK: Final = 1.0  # seconds between two looks for connections that died without a word

_SMALL: Final = 16_384  # bytes of a frame for which any transport has room


class Pushed(NamedTuple):
    """
    What became of a push.

    Attributes:
        sockets: How many sockets took it: it was written, or is in their queue.
        missed: How many missed it because their queue is full.
    """

    sockets: int
    missed: int


class ConnectionManager:
    """
    The index of a registry, and what closes and feeds the connections in it.

    Args:
        timeouts: How long to wait for peers and handlers.
        push_queue: How much of what is pushed may wait for a slow peer.
        tasks: Where background work runs; whoever made them stops them.
        current: Returns the connection whose handler is calling.

    Attributes:
        open: Open connections by session ws id, until they are gone.
        opening: Those whose handshake runs, by session ws id: known to orders only.
        lineages: Both, by the token of their lineage.
        identities: Both, by identity.
        labels: Both, by label.
        on_removed: Called once for each connection that was registered and has left the
            index, and awaited if it returns an awaitable.
        on_tick: Called once a second, while there is a connection, with the open ones whose
            ``check_at`` has come.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        push_queue: PushQueue,
        tasks: BackgroundTasks,
        current: Callable[[], TrackedConnection | None],
    ) -> None:
        self.open = Index()
        self.opening = Index()
        self.lineages = Index()
        self.identities = Index()
        self.labels = Index()
        self.on_removed: Callable[[TrackedConnection], Awaitable[None] | None] | None = None
        self.on_tick: list[Callable[[Sequence[TrackedConnection]], None]] = []
        self.push_queue = push_queue
        self._admitted = 0
        self._current = current
        self._engine = CloseEngine(timeouts, tasks, self._remove)
        self._refused: set[TrackedConnection] = set()
        self._orphaned_handlers: set[TrackedConnection] = set()  # gone, but the handler runs
        self.tasks = tasks
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def timeouts(self) -> Timeouts:
        """
        How long to wait for peers and handlers; may be replaced at any time.
        """
        return self._engine.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self._engine.timeouts = timeouts

    def start(self, timeouts: Timeouts) -> None:
        """
        Begin to serve an application.
        """
        self.timeouts = timeouts

    # The way in

    def add_handshake(self, connection: TrackedConnection) -> None:
        """
        File a handshake, so that orders find it.
        """
        connection.closer = self
        self.opening.add(connection.session_ws_id, connection)
        self._add_lineage(connection)
        if self._ticker is None:
            self._tick_later()

    def file_identity(
        self,
        connection: TrackedConnection,
        identity: Hashable | None,
        labels: Iterable[Subject] = (),
    ) -> None:
        """
        File a connection under whom it belongs to, and under its labels.
        """
        if identity is not None:
            connection.identity = identity
            self.identities.add(identity, connection)
        connection.labels = tuple(labels)
        for label in connection.labels:
            self.labels.add(label, connection)

    def tracked(self, connection: Connection) -> TrackedConnection:
        """
        Return what is kept of a connection, which is the only kind there is.
        """
        assert isinstance(connection, TrackedConnection)
        return connection

    def file_proven(self, connection: TrackedConnection, identity: Hashable, since: float) -> None:
        """
        File a connection under an identity that its client has proven, beside its session's.
        """
        self.discard_proven(connection)
        if connection.state is CLOSED:
            return
        connection.proven = identity, since
        if identity != connection.identity:
            self.identities.add(identity, connection)

    def discard_proven(self, connection: TrackedConnection) -> None:
        """
        Take out what :meth:`file_proven` has filed.
        """
        if connection.proven is not None:
            identity, _ = connection.proven
            connection.proven = None
            if identity != connection.identity:
                self.identities.discard(identity, connection.ws)

    def refile(
        self, connection: TrackedConnection, session_ws_id: Hashable, lineage: Lineage
    ) -> None:
        """
        File a connection under another id and another generation of its lineage.
        """
        if connection.state is CLOSED:
            return
        index = self._index_of(connection)
        if session_ws_id != connection.session_ws_id:
            index.discard(connection.session_ws_id, connection.ws)
            connection.session_ws_id = session_ws_id
            index.add(session_ws_id, connection)
        self._discard_lineage(connection)
        connection.lineage = lineage
        self._add_lineage(connection)

    def open_connection(self, connection: TrackedConnection) -> None:
        """
        File a connection as open.
        """
        self.opening.discard(connection.session_ws_id, connection.ws)
        connection.set_open()
        self.open.add(connection.session_ws_id, connection)

    def add_by_hand(
        self,
        session_ws_id: Hashable,
        ws: object,
        identity: Hashable | None = None,
        lineage: Lineage = NO_LINEAGE,
    ) -> TrackedConnection | None:
        """
        File something that was registered by hand; return ``None`` if it is there already.
        """
        connection = RegisteredObject(session_ws_id, ws, self)
        if not self.open.add_new(session_ws_id, connection):
            return None
        if identity is not None:
            self.file_identity(connection, identity)
        if lineage is not NO_LINEAGE:
            connection.lineage = lineage
            self._add_lineage(connection)
        return connection

    def remove_by_hand(self, session_ws_id: Hashable, ws: object) -> None:
        """
        Take out what was registered by hand; nothing happens if it isn't there.
        """
        if self.open.discard_bare(session_ws_id, ws):
            return
        connection = self.open.get(session_ws_id, ws)
        if connection is None or connection.request is not None:
            return
        if connection.send_queue is not None:
            connection.send_queue.drop()
        if connection.state is OPEN:
            self._take_out(connection)

    def discard_stream(self, connection: TrackedConnection) -> None:
        """
        Take out a stream whose handler has left; one that is being closed goes when it is closed.
        """
        if connection.state is OPEN:
            self._take_out(connection)

    def discard_handshake(self, connection: TrackedConnection) -> None:
        """
        Forget a handshake that came to nothing; one that is being closed goes when it is closed.
        """
        if connection.state is OPENING:
            self._take_out(connection)
        self.handler_exited(connection)

    def admit(self) -> int:
        """
        Return the number of a handshake that takes its place now; they count up from 1.
        """
        self._admitted += 1
        return self._admitted

    def evict(self, connection: TrackedConnection, close: Close) -> None:
        """
        Let *connection* make room for another, opened or not.
        """
        connection.reject(close)
        if connection.state is OPEN:
            self.close_soon([connection], close)

    # Looking

    @property
    def total(self) -> int:
        """
        How many there are: open, opening, and refused ones that are still being told.
        """
        return self.open.size + self.opening.size + len(self._refused)

    def of(self, session_ws_id: Hashable) -> list[TrackedConnection]:
        """
        Return the open connections of an id, and those whose handlers only are left.
        """
        orphaned = self._orphaned(lambda c: c.session_ws_id == session_ws_id)
        return self.open.of(session_ws_id) + orphaned

    def of_lineage(self, token: str) -> list[TrackedConnection]:
        """
        Return all connections of a lineage: opening, open, and those whose handlers only are left.
        """
        return self.lineages.of(token) + self._orphaned(lambda c: c.lineage.token == token)

    def of_subject(self, subject: Subject) -> list[TrackedConnection]:
        """
        Return all connections of an id, an identity or a label, as :meth:`of_lineage` does.
        """
        kind, value = subject
        if kind == "id":
            if value not in self.open and value not in self.opening:
                if not self._orphaned_handlers:
                    return []  # most orders of other nodes
            return self.opening.of(value) + self.of(value)
        if kind == "identity":
            return self.identities.of(value) + self._orphaned(lambda c: c.identity == value)
        return self.labels.of(subject) + self._orphaned(lambda c: subject in c.labels)

    def open_of(self, subject: Subject | None) -> Iterable[TrackedConnection]:
        """
        Return the open connections of a subject, or all.
        """
        if subject is None:
            return self.open
        if subject.kind == "id":
            return self.open.of(subject.value)
        index = self.identities if subject.kind == "identity" else self.labels
        key = subject.value if subject.kind == "identity" else subject
        return [c for c in index.of(key) if c.opened_at is not None]

    def handshakes(self) -> list[TrackedConnection]:
        """
        Return the opening connections.
        """
        return list(self.opening)

    def all(self) -> list[TrackedConnection]:
        """
        Return all that is to be closed at the end: open connections, those whose handlers only
        are left, and refused ones that are still being told.
        """
        return [*self.open, *self._orphaned_handlers, *self._refused]

    def snapshot(self, subject: Subject | None = None, node: str = "") -> Snapshot:
        """
        Describe the open connections of a subject, or all.
        """
        return snapshot(self.open_of(subject), time.monotonic(), node)

    def orphans(self) -> list[TrackedConnection]:
        """
        Return the connections that are gone while their handlers run.
        """
        return list(self._orphaned_handlers)

    def _orphaned(self, wanted: Callable[[TrackedConnection], bool]) -> list[TrackedConnection]:
        return [c for c in self._orphaned_handlers if wanted(c)] if self._orphaned_handlers else []

    # The way out

    def close_now(
        self, connections: Iterable[TrackedConnection], close: Close
    ) -> Awaitable[tuple[int, int]]:
        """
        Close connections and end their handlers; all close frames are written at once.

        The handler that calls is not waited for, since it would wait for itself, nor is it
        cancelled. Who awaits what this returns may be cancelled; that stops nothing.

        Args:
            connections: Open ones; opening ones, whose handlers are to end; or ones that have
                left their handlers behind.
            close: What to tell the peers.

        Returns:
            How many were aborted, and how many handlers were cancelled: an awaitable of these.
        """
        return self._engine.close(list(connections), close, self._current())

    def close_soon(self, connections: Iterable[TrackedConnection], close: Close) -> None:
        """
        Close connections as :meth:`close_now` does, without waiting.
        """
        _ = self._engine.close(list(connections), close, self._current())

    def start_close(self, connection: TrackedConnection, close: Close) -> asyncio.Future[object]:
        """
        Close one connection, without ending its handler.

        Returns:
            What is done when the connection is gone.
        """
        return self._engine.close_one(connection, close)

    async def wait_closed(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close a connection if nobody does yet, and wait until it is gone.

        Only the wait can be cancelled, the engine can't.
        """
        if connection.state is not CLOSED or connection.closing is not None:
            await self._engine.close_one(connection, close)

    async def close_connection(self, connection: TrackedConnection, close: Close) -> None:
        """
        Close a connection for the application, as :meth:`Connection.close` tells.
        """
        if connection is self._current():
            await self._engine.close_one(connection, close)
        else:
            await self.close_now([connection], close)

    async def close_refused(self, connection: TrackedConnection, close: Close) -> None:
        """
        Tell a client why its handshake, which was accepted for that, is refused.

        It is in no index, but counts until it is gone.
        """
        self._refused.add(connection)
        try:
            await self._engine.close_one(connection, close)
        finally:
            if connection.state is CLOSED:
                self._refused.discard(connection)

    def handler_exited(self, connection: TrackedConnection) -> None:
        """
        Note that the handler of *connection* has left ``session_ws``.
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
        self._take_out(connection)
        if connection.task is not None and not connection.handler_left:
            self._orphaned_handlers.add(connection)
        if not connection.registered or self.on_removed is None:
            return None
        try:
            return self.on_removed(connection)
        except Exception:
            log.exception("unregister() failed")
            return None

    def _take_out(self, connection: TrackedConnection) -> None:
        self._index_of(connection).discard(connection.session_ws_id, connection.ws)
        connection.set_closed()
        self._discard_lineage(connection)
        self.discard_proven(connection)
        if connection.identity is not None:
            self.identities.discard(connection.identity, connection.ws)
        for label in connection.labels:
            self.labels.discard(label, connection.ws)

    def _index_of(self, connection: TrackedConnection) -> Index:
        return self.opening if connection.opened_at is None else self.open

    def _add_lineage(self, connection: TrackedConnection) -> None:
        if connection.lineage.token:
            self.lineages.add(connection.lineage.token, connection)

    def _discard_lineage(self, connection: TrackedConnection) -> None:
        if connection.lineage.token:
            self.lineages.discard(connection.lineage.token, connection.ws)

    # Pushing

    def push(
        self,
        connections: Iterable[TrackedConnection],
        data: str | bytes | bytearray | memoryview,
        *,
        by_endpoint: bool = False,
    ) -> Pushed:
        """
        Send a message to connections that take it, without waiting for any of them.

        It is encoded once. What can be written at once is written; the rest waits in the queue
        of each connection. Queues are emptied when the caller gives way to other tasks.

        Args:
            connections: Where to; what is opening or closing is left out.
            data: A text, or bytes for a binary message.
            by_endpoint: Whether it is the connections' own endpoint that sends, so that those
                which take no pushes get it too.

        Raises:
            TypeError: If *data* is neither text nor bytes.
        """
        payload, opcode, frame = encode_message(data)
        small = len(frame) < _SMALL
        sockets = missed = 0
        for c in connections:
            if c.state is not OPEN or c.close_order is not None:
                continue
            if not (c.takes_pushes or by_endpoint):
                continue
            transport = c.transport
            if (
                transport is not None
                and (c.send_queue is None or c.send_queue.empty)
                and isinstance(c.ws, ServedWebSocket)
                and not c.ws.compress
                and not transport.get_write_buffer_size()
                and (small or 2 * len(frame) < transport.get_write_buffer_limits()[1])
            ):
                if not (c.ws.closed or transport.is_closing()):
                    transport.write(frame)
                    sockets += 1
            elif _takes_frames(c):
                taken = self._queue_of(c).put(payload, opcode)
                sockets += taken
                missed += not taken
        return Pushed(sockets, missed)

    def _queue_of(self, connection: TrackedConnection) -> SendQueue:
        queue = connection.send_queue
        if not isinstance(queue, SendQueue):
            queue = SendQueue(connection, self.push_queue, self.tasks, self._close_slow)
            connection.send_queue = queue
        return queue

    def _close_slow(self, connection: TrackedConnection) -> None:
        self.close_soon([connection], SLOW_CONSUMER)

    # The tick

    def _tick_later(self) -> None:
        # In no request's context, or it would be kept as long as there are sockets.
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(TICK, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        """
        Close what died while its handler was looking elsewhere, and call who wants to be called.
        """
        self._ticker = None
        now = time.monotonic()
        due: list[TrackedConnection] = []
        for connection in self.open:
            if connection.request is None or connection.state is not OPEN:
                continue
            transport = connection.transport
            if transport is None or transport.is_closing() or _is_closed(connection.ws):
                self._sweep(connection)
            elif connection.check_at <= now:
                due.append(connection)
        for callback in tuple(self.on_tick):
            try:
                callback(due)
            except Exception:
                log.exception("a callback of the tick failed: %r", callback)
        if self.open.size or self.opening.size:
            self._tick_later()

    def _sweep(self, connection: TrackedConnection) -> None:
        """
        Close a connection that has died.
        """
        ws = connection.ws
        # A close that was read is known to the handler, which may have things to finish; one
        # by the heartbeat, which found the peer dead, is not.
        if _is_closed(ws) and ws.exception() is None:
            _ = self._engine.close_one(connection, NORMAL)
        else:
            _ = self._engine.close([connection], NORMAL)

    async def stop(self) -> None:
        """
        Stop the tick and all timers.
        """
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._engine.stop()


def _is_closed(ws: object) -> bool:
    return isinstance(ws, web.WebSocketResponse) and ws.closed


def _takes_frames(connection: TrackedConnection) -> bool:
    """
    Tell whether what is put into a queue may ever be sent.
    """
    ws, transport = connection.ws, connection.transport
    if transport is not None and transport.is_closing():
        return False
    # What was registered by hand may be anything.
    prepared, closed = getattr(ws, "prepared", True), getattr(ws, "closed", False)
    return hasattr(ws, "send_frame") and prepared and not closed
