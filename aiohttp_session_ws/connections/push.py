"""
Pushing one message to many connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from .._tasks import BackgroundTasks
from ..options import PushQueue
from ..typing import Data
from .connection import OPEN, TrackedConnection
from .frames import encode_message
from .send_queue import SendQueue
from .websocket import ServedWebSocket

__all__: list[str] = []

_SMALL: Final = 16_384  # bytes of a frame that fits into any empty write buffer


class Pushed(NamedTuple):
    """
    The result of a push.

    Attributes:
        sockets: How many sockets took it: it was written, or is in their queue.
        missed: How many missed it because their queue was full.
    """

    sockets: int
    missed: int


class Pusher:
    """
    Sends messages to connections, and creates their queues.

    Args:
        limit: How much a queue may hold.
        tasks: Runs the tasks that send queued messages.
        close_slow: Closes a connection whose queue has been full for too long.

    Attributes:
        limit: How much a queue that is created from now on may hold; may be replaced.
    """

    def __init__(
        self,
        limit: PushQueue,
        tasks: BackgroundTasks,
        close_slow: Callable[[TrackedConnection], None],
    ) -> None:
        self.limit = limit
        self._tasks = tasks
        self._close_slow = close_slow

    def push(
        self, connections: Iterable[TrackedConnection], data: Data, *, by_endpoint: bool = False
    ) -> Pushed:
        """
        Send a message to connections that take it, without waiting for any of them.

        It is encoded once. It is written at once where the transport has room, and else put into
        the connection's queue. Queues are sent when the caller yields to other tasks.

        Args:
            connections: The connections; opening or closing ones are left out. May be iterated
                twice.
            data: A text, or bytes for a binary message.
            by_endpoint: Whether the connections' own endpoint sends it, so that those which take
                no pushes get it too.

        Raises:
            TypeError: If *data* is neither text nor bytes.
        """
        payload, opcode, frame = encode_message(data)
        small = len(frame) < _SMALL
        sockets = missed = 0
        waiting: list[TrackedConnection] = []
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
            else:
                waiting.append(c)
        for c in _without_duplicates(waiting, connections) if waiting else ():
            if _can_send(c):
                taken = self._queue_of(c).put(payload, opcode)
                sockets += taken
                missed += not taken
        return Pushed(sockets, missed)

    def _queue_of(self, connection: TrackedConnection) -> SendQueue:
        queue = connection.send_queue
        if not isinstance(queue, SendQueue):
            queue = SendQueue(connection, self.limit, self._tasks, self._close_slow)
            connection.send_queue = queue
        return queue


def _without_duplicates(
    waiting: Sequence[TrackedConnection], connections: Iterable[TrackedConnection]
) -> Iterable[TrackedConnection]:
    """
    Leave out duplicates of a websocket that is registered by hand under further ids.
    """
    by_hand = [c for c in waiting if c.request is None]
    if not by_hand:
        return waiting
    served = {c.ws for c in connections if c.request is not None}
    others = {c.ws: c for c in by_hand if c.ws not in served}
    return [*(c for c in waiting if c.request is not None), *others.values()]


def _can_send(connection: TrackedConnection) -> bool:
    """
    Return whether a queued message could be sent at all.
    """
    ws, transport = connection.ws, connection.transport
    if transport is not None and transport.is_closing():
        return False
    # An object registered by hand may be anything.
    prepared, closed = getattr(ws, "prepared", True), getattr(ws, "closed", False)
    return hasattr(ws, "send_frame") and prepared and not closed
