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


class Pusher:
    """
    Sends messages to connections, and makes their queues.

    Args:
        limit: How much may wait for one peer.
        tasks: Where queues are emptied.
        give_up: Closes a connection whose queue has been full for too long.

    Attributes:
        limit: How much may wait for a peer that has no queue yet; may be replaced.
    """

    def __init__(
        self,
        limit: PushQueue,
        tasks: BackgroundTasks,
        give_up: Callable[[TrackedConnection], None],
    ) -> None:
        self.limit = limit
        self._tasks = tasks
        self._give_up = give_up

    def push(
        self, connections: Iterable[TrackedConnection], data: Data, *, by_endpoint: bool = False
    ) -> Pushed:
        """
        Send a message to connections that take it, without waiting for any of them.

        It is encoded once. What can be written at once is written; the rest waits in the queue
        of each connection. Queues are emptied when the caller gives way to other tasks.

        Args:
            connections: Where to; what is opening or closing is left out. It may be gone through
                twice.
            data: A text, or bytes for a binary message.
            by_endpoint: Whether it is the connections' own endpoint that sends, so that those
                which take no pushes get it too.

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
        for c in _once(waiting, connections) if waiting else ():
            if _takes_frames(c):
                taken = self._queue_of(c).put(payload, opcode)
                sockets += taken
                missed += not taken
        return Pushed(sockets, missed)

    def _queue_of(self, connection: TrackedConnection) -> SendQueue:
        queue = connection.send_queue
        if not isinstance(queue, SendQueue):
            queue = SendQueue(connection, self.limit, self._tasks, self._give_up)
            connection.send_queue = queue
        return queue


def _once(
    waiting: Sequence[TrackedConnection], connections: Iterable[TrackedConnection]
) -> Iterable[TrackedConnection]:
    """
    Leave out a websocket that was registered by hand for another id, and is there already.
    """
    by_hand = [c for c in waiting if c.request is None]
    if not by_hand:
        return waiting
    served = {c.ws for c in connections if c.request is not None}
    others = {c.ws: c for c in by_hand if c.ws not in served}
    return [*(c for c in waiting if c.request is not None), *others.values()]


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
