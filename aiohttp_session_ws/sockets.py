"""
The sockets of one process: their way into the index, and the only way out of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from typing import Any, Final, TypeVar

from .closing import NORMAL, Close, Timeouts, close_connection, end_handler, watch_cancelled
from .connection import Connection, Index
from .visit import VISIT

__all__: list[str] = []

log = logging.getLogger("aiohttp_session_ws")

T = TypeVar("T")

SWEEP: Final = 1.0  # seconds between two looks for sockets that died without a word


class Sockets:
    """
    The index of a registry, and the tasks that close what is in it.

    Args:
        timeouts: How long to wait for peers and handlers.

    Attributes:
        on_gone: Called once for each connection that has left the index, and awaited if
            it returns an awaitable.
    """

    on_gone: Callable[[Connection], Awaitable[None] | None]

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.opening = Index()  # known to orders only
        self.open = Index()
        self.identities = Index()  # both, by identity
        self._admitted = 0
        self._lingering: set[Connection] = set()  # gone, but their handlers have not left
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        name: str,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """
        Run *coro* in a task of the registry, which no caller's end can cancel.
        """
        task = asyncio.create_task(coro, name=f"aiohttp_session_ws: {name}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._finished, context=context)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a task failed: %s", task.get_name(), exc_info=exc)

    def enter(self, connection: Connection) -> None:
        """
        File a handshake, so that orders find it.
        """
        self.opening.add(connection.session_ws_id, connection)

    def identified(self, connection: Connection, identity: Hashable) -> None:
        """
        File a handshake under the identity that it belongs to.
        """
        connection.identity = identity
        self.identities.add(identity, connection)

    def admit(self) -> int:
        """
        Return the number of a handshake that takes its place now; they count up from 1.
        """
        self._admitted += 1
        return self._admitted

    def evict(self, connection: Connection, close: Close) -> None:
        """
        Let *connection* make room for another, opened or not.
        """
        connection.refuse(close)
        if connection.opened:
            connection.close = close
            _ = self.begin_close(connection, close)
            _ = self.spawn(self.close([connection], close), "evict")

    def opened(self, connection: Connection) -> None:
        """
        File a connection as open.
        """
        self.opening.discard(connection.session_ws_id, connection.ws)
        self.open.add(connection.session_ws_id, connection)
        connection.opened_at = time.monotonic()  # as the event loop's clock, but quicker
        if self._sweeper is None and connection.request is not None:
            self._sweep_later()

    def of(self, session_ws_id: Hashable) -> list[Connection]:
        """
        Return the connections of a session, and those that only left their handlers behind.
        """
        lingering = [c for c in self._lingering if c.session_ws_id == session_ws_id]
        return self.open.of(session_ws_id) + lingering

    def of_identity(self, identity: Hashable) -> list[Connection]:
        """
        Return the connections of an identity, handshakes and left handlers as well.
        """
        lingering = [c for c in self._lingering if c.identity == identity]
        return self.identities.of(identity) + lingering

    def all(self) -> list[Connection]:
        """
        Return all connections, and those that only left their handlers behind.
        """
        return [*self.open, *self._lingering]

    def left(self, connection: Connection) -> None:
        """
        Note that the handler of *connection* has left ``session_ws``.
        """
        connection.leave()
        self._lingering.discard(connection)

    def drop(self, connection: Connection) -> None:
        """
        Forget a handshake that came to nothing.
        """
        self.opening.discard(connection.session_ws_id, connection.ws)
        self._anonymize(connection)
        connection.leave()

    def _anonymize(self, connection: Connection) -> None:
        if connection.identity is not None:
            self.identities.discard(connection.identity, connection.ws)

    def begin_close(self, connection: Connection, close: Close) -> asyncio.Task[bool]:
        """
        Start the engine on *connection*, or return the task that is at it already.
        """
        if connection.closing is None:
            connection.closing = self.spawn(self._end(connection, close), "close")
        return connection.closing

    async def wait_gone(self, connection: Connection, close: Close) -> None:
        """
        Close *connection* if nobody does yet, and wait until it is gone.

        Only the wait can be cancelled, the engine can't.
        """
        if connection.closing is None and connection.ws.closed and connection.disconnected:
            await self.let_go(connection)
        elif not connection.gone:
            await asyncio.wait({self.begin_close(connection, close)})

    async def _end(self, connection: Connection, close: Close) -> bool:
        if connection.outbox is not None:
            connection.outbox.drop()
        try:
            return await close_connection(connection, close, self.timeouts.close)
        finally:
            await self.let_go(connection)

    async def let_go(self, connection: Connection) -> None:
        """
        Take a connection whose transport has ended out of the index, once.
        """
        if connection.gone:
            return
        connection.gone = True
        if connection.deadline is not None:
            connection.deadline.cancel()
        if connection.outbox is not None:
            connection.outbox.drop()
        self.open.discard(connection.session_ws_id, connection.ws)
        self._anonymize(connection)
        if connection.task is not None and not connection.left:
            self._lingering.add(connection)
        if not connection.registered:
            return
        try:
            result = self.on_gone(connection)
        except Exception:
            log.exception("unregister() failed")
        else:
            if result is not None and inspect.isawaitable(result):
                # Its own task: the handler that waits here may be cancelled.
                task = self.spawn(_logged(result), "unregister")
                await asyncio.wait({task}, timeout=self.timeouts.close)
                task.cancel()

    async def close(self, connections: Iterable[Connection], close: Close) -> tuple[int, int]:
        """
        Close all *connections* in parallel and end their handlers.

        The handler that calls is not waited for, since it would wait for itself, nor is
        it cancelled.

        Args:
            connections: Open ones, or opening ones whose handshake is to end.
            close: What to tell the peers.

        Returns:
            How many were aborted, and how many handlers were cancelled.
        """
        visit = VISIT.get()
        me = None if visit is None or visit.over else visit.connection
        limit = self.timeouts.close + self.timeouts.handler_grace
        deadline = asyncio.get_running_loop().time() + limit
        tasks: list[asyncio.Task[tuple[bool, bool]]] = []
        engines: list[asyncio.Task[bool]] = []
        for connection in connections:
            if connection.closing is None:
                connection.close = close
            if connection is not me:
                coro = self._close_one(connection, close, deadline)
                tasks.append(self.spawn(coro, "order"))
            elif connection.task is asyncio.current_task():
                _ = self.spawn(self._close_one(connection, close, None), "order")
            else:  # a child of the handler, which may wait for it, but not the engine
                _ = self.spawn(self._close_one(connection, close, deadline), "order")
                if not connection.gone:
                    engines.append(self.begin_close(connection, close))
        if tasks or engines:
            # Each is bounded by itself: by the deadline, and by timeouts.close once more if
            # unregister() is overridden and hangs.
            await asyncio.wait([*tasks, *engines])
        results = [t.result() for t in tasks if not t.cancelled() and t.exception() is None]
        return sum(aborted for aborted, _ in results), sum(cancelled for _, cancelled in results)

    async def _close_one(
        self, connection: Connection, close: Close, deadline: float | None
    ) -> tuple[bool, bool]:
        """
        Close one connection and end its handler.

        Args:
            connection: Which.
            close: What to tell the peer.
            deadline: When to cancel the handler; ``None`` to leave it alone.

        Returns:
            Whether it was aborted, and whether its handler was cancelled.
        """
        aborted = False
        if connection.opened and not connection.gone:
            closing = self.begin_close(connection, close)
            await asyncio.wait({closing})
            aborted = not closing.cancelled() and closing.result()
        if deadline is None:
            return aborted, False
        left = deadline - asyncio.get_running_loop().time()
        grace = max(0.0, min(self.timeouts.handler_grace, left))
        if not await end_handler(connection, grace):
            return aborted, False
        coro = watch_cancelled(connection, self.timeouts.handler_grace)
        _ = self.spawn(coro, "watch a cancelled handler")
        return aborted, True

    def _sweep(self) -> None:
        """
        Close what died while its handler was looking elsewhere.
        """
        self._sweeper = None
        for connection in self.open:
            if connection.request is None or connection.closing is not None:
                continue
            closed = connection.ws.closed
            if closed or connection.transport is None or connection.transport.is_closing():
                # A close that was read is known to the handler, which may have things to
                # finish; one by the heartbeat, which found the peer dead, is not.
                knows = closed and connection.ws.exception() is None
                deadline = None if knows else math.inf
                _ = self.spawn(self._close_one(connection, NORMAL, deadline), "sweep")
        if self.open:
            self._sweep_later()

    def _sweep_later(self) -> None:
        # In no request's context, or it would be kept as long as there are sockets.
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP, self._sweep, context=contextvars.Context())

    async def stop(self) -> None:
        """
        End all tasks.
        """
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=self.timeouts.handler_grace)
            for task in stubborn:
                log.warning("a task goes on though it was cancelled: %s", task.get_name())


async def _logged(result: Awaitable[None]) -> None:
    try:
        await result
    except Exception:
        log.exception("unregister() failed")
