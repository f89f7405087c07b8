"""
Pushing: to all sockets of a session, of an identity, or of this process.

A push never waits for a peer. What can be written at once is written; the rest waits in a
bounded queue of each connection, and a peer that doesn't keep up misses messages before it
is closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import WSMsgType
from aiohttp.typedefs import JSONEncoder

from .connection import Connection
from .outbox import Outbox, PushQueue
from .verdicts import SessionWSVerdicts

__all__ = ["Delivery"]

log = logging.getLogger("aiohttp_session_ws")

Data: TypeAlias = str | bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    What became of a push.

    Attributes:
        sockets: How many sockets took it: it was written, or is in their queue.
        nodes: How many processes it reached.
        complete: Whether no socket missed it because its queue was full, and all processes
            have answered.
    """

    sockets: int = 0
    nodes: int = 1
    complete: bool = True


class SessionWSPushes(SessionWSVerdicts):
    """
    The part of the registry that pushes.

    A message reaches a socket at most once, and in the order of the calls. A call never
    waits for a peer; it gives way to other tasks once if a peer can't take the message now.
    """

    push_queue: PushQueue

    async def send_session(self, session_ws_id: Hashable, data: Data) -> Delivery:
        """
        Push *data* to the open sockets of a session.

        Args:
            session_ws_id: Whose sockets.
            data: A text, or bytes for a binary message; they are copied.

        Raises:
            InvalidSessionWSId: If *session_ws_id* can't be a key.
            TypeError: If *data* is neither text nor bytes.
        """
        self._expect_loop()
        return await self._push(self._sockets.open.of(self._usable(session_ws_id)), data)

    async def send_identity(self, identity: Hashable, data: Data) -> Delivery:
        """
        Push *data* to the open sockets of all sessions of an identity.

        Args:
            identity: Whose sockets; ``None`` is nobody.
            data: As for :meth:`send_session`.

        Raises:
            InvalidIdentity: If *identity* can't be hashed.
            TypeError: If *data* is neither text nor bytes.
        """
        self._expect_loop()
        connections: list[Connection] = []
        if identity is not None:
            connections = self._sockets.identities.of(self._usable_identity(identity))
        return await self._push([c for c in connections if c.opened], data)

    async def broadcast(self, data: Data) -> Delivery:
        """
        Push *data* to all open sockets.

        Args:
            data: As for :meth:`send_session`.

        Raises:
            TypeError: If *data* is neither text nor bytes.
        """
        self._expect_loop()
        return await self._push(self._sockets.open, data)

    async def send_session_json(
        self, session_ws_id: Hashable, data: Any, *, dumps: JSONEncoder = json.dumps
    ) -> Delivery:
        """
        Push *data* as JSON to the open sockets of a session.
        """
        return await self.send_session(session_ws_id, dumps(data))

    async def send_identity_json(
        self, identity: Hashable, data: Any, *, dumps: JSONEncoder = json.dumps
    ) -> Delivery:
        """
        Push *data* as JSON to the open sockets of all sessions of an identity.
        """
        return await self.send_identity(identity, dumps(data))

    async def broadcast_json(self, data: Any, *, dumps: JSONEncoder = json.dumps) -> Delivery:
        """
        Push *data* as JSON to all open sockets.
        """
        return await self.broadcast(dumps(data))

    async def push(self, connections: Iterable[Connection], data: Data) -> Delivery:
        """
        Push *data* to connections of this process that the caller has got from elsewhere.
        """
        return await self._push(connections, data, own=True)

    async def _push(
        self, connections: Iterable[Connection], data: Data, *, own: bool = False
    ) -> Delivery:
        payload, opcode = _frame(data)
        written = queued = missed = 0
        for connection in connections:
            if connection.close is not None or connection.closing is not None:
                continue
            if not (own or connection.takes_pushes):
                continue
            if _writes_through(connection, len(payload)):
                written += await _write_now(connection, payload, opcode)
            elif not _takes_frames(connection):
                continue
            elif self._outbox(connection).put(payload, opcode):
                queued += 1
            else:
                missed += 1
        if queued or missed:
            # A caller that pushes in a loop would keep the writers from writing.
            await asyncio.sleep(0)
        return Delivery(written + queued, complete=not missed)

    def _outbox(self, connection: Connection) -> Outbox:
        if connection.outbox is None:
            connection.outbox = Outbox(connection, self._sockets, self.push_queue)
        return connection.outbox


def _frame(data: object) -> tuple[bytes, WSMsgType]:
    if isinstance(data, str):
        return data.encode(), WSMsgType.TEXT
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), WSMsgType.BINARY
    msg = (
        f"{type(data).__name__} can't be pushed, only str or bytes: for anything else there are"
        " send_session_json(), send_identity_json() and broadcast_json()"
    )
    raise TypeError(msg)


def _writes_through(connection: Connection, size: int) -> bool:
    """
    Tell whether ``send_frame()`` is sure to return without a wait.

    aiohttp waits for its compressor, and for a transport that has more to send than its
    high-water mark. The other half is for headers and what TLS adds.
    """
    transport, outbox = connection.transport, connection.outbox
    return (
        transport is not None
        and (outbox is None or not outbox.queue)
        and not connection.ws.compress
        and not transport.get_write_buffer_size()
        and 2 * size < transport.get_write_buffer_limits()[1]
    )


async def _write_now(connection: Connection, payload: bytes, opcode: WSMsgType) -> bool:
    try:
        await connection.ws.send_frame(payload, opcode)
    except ConnectionError:
        return False  # the socket is going
    except Exception:
        log.warning("pushing to a websocket failed", exc_info=True)
        return False
    return True


def _takes_frames(connection: Connection) -> bool:
    """
    Tell whether what is put into a queue may ever be sent.
    """
    ws, transport = connection.ws, connection.transport
    if transport is not None and transport.is_closing():
        return False
    # What was registered by hand may be anything.
    prepared, closed = getattr(ws, "prepared", True), getattr(ws, "closed", False)
    return hasattr(ws, "send_frame") and prepared and not closed
