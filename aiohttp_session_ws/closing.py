"""
The close vocabulary and the close engine.

The engine closes one socket and never takes longer than its deadline, whatever the peer
does: aiohttp's own ``close()`` waits ten seconds for a peer that does not answer and
without end for one that stopped reading.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import Final

from aiohttp import WSMsgType, web

from .connection import Connection
from .records import fingerprint

__all__ = [
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "NORMAL",
    "POLICY_VIOLATION",
    "PROTOCOL_ERROR",
    "RECONNECT",
    "SESSION_ENDED",
    "SESSION_EXPIRED",
    "SLOW_CONSUMER",
    "TOO_MANY_CONNECTIONS",
    "Close",
    "CloseReport",
    "Timeouts",
]

log = logging.getLogger("aiohttp_session_ws")

_POLL: Final = 0.005  # seconds between two looks at a transport; it has no event for us
# https://www.iana.org/assignments/websocket: what an endpoint may put into a close frame
_PROTOCOL_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


@dataclass(frozen=True, slots=True)
class Close:
    """
    A close code and its reason (RFC 6455, section 7.4).

    Args:
        code: 1000-1003, 1007-1014, or 3000-4999 for an application's own.
        reason: For the developer at the other end; at most 123 bytes in UTF-8.

    Raises:
        ValueError: If a close frame cannot carry them.
    """

    code: int
    reason: str = ""

    def __post_init__(self) -> None:
        if self.code not in _PROTOCOL_CODES and not 3000 <= self.code <= 4999:
            msg = f"close code {self.code} can't be sent; take one from 3000 to 4999"
            raise ValueError(msg)
        if len(self.reason.encode()) > 123:
            raise ValueError("the reason of a close frame has at most 123 bytes")

    def replace(self, code: int | None, reason: str | None) -> Close:
        """
        Return this close with what the caller chose instead.
        """
        if code is None and reason is None:
            return self
        return Close(
            self.code if code is None else code, self.reason if reason is None else reason
        )


NORMAL: Final = Close(1000)
#: The process stops; come back with a back-off.
GOING_AWAY: Final = Close(1001, "server is shutting down")
#: The client speaks another protocol than the application's.
PROTOCOL_ERROR: Final = Close(1002, "protocol error")
POLICY_VIOLATION: Final = Close(1008, "refused by the application")
#: The handler crashed; come back with a back-off.
INTERNAL_ERROR: Final = Close(1011, "internal error")
#: The session is dead: stop, reload the page or log in.
SESSION_ENDED: Final = Close(4401, "session ended")
#: The session's time is over: as :data:`SESSION_ENDED`.
SESSION_EXPIRED: Final = Close(4401, "session expired")
#: Come back with the cookie you have now, within a second at random, the first time only.
RECONNECT: Final = Close(4403, "reconnect")
#: Do not come back by yourself: a newer socket has taken the place.
TOO_MANY_CONNECTIONS: Final = Close(4429, "too many connections")
#: Too slow for what is pushed; come back with a back-off.
SLOW_CONSUMER: Final = Close(1013, "too slow")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """
    How long to wait for others, in seconds.

    Args:
        close: For a peer to take the close frame and what was sent before it, and to
            answer; then the connection is aborted. At the application's shutdown it is
            half a second at most.
        handler_grace: For a handler to end once its socket is closed; then it is
            cancelled.
        response: For the answer of a request that ends or renews a session to leave the
            server; then the session's sockets are closed all the same.
    """

    close: float = 2.0
    handler_grace: float = 1.0
    response: float = 2.0

    def __post_init__(self) -> None:
        if min(self.close, self.handler_grace, self.response) < 0:
            raise ValueError("a timeout is a number of seconds >= 0")


@dataclass(frozen=True, slots=True)
class CloseReport:
    """
    What an order did: on this process, and with ``wait=`` on those that answered in time.

    Attributes:
        sockets: How many open sockets it was about.
        aborted: How many of them could not be closed within the close timeout and were cut.
        cancelled: How many handlers had to be cancelled.
        handshakes: How many handshakes in flight it will refuse.
        nodes_expected: How many processes were asked to answer, this one included.
        nodes_answered: How many of them did.
        stored: Whether the order is recorded where all processes look.
    """

    sockets: int = 0
    aborted: int = 0
    cancelled: int = 0
    handshakes: int = 0
    nodes_expected: int = 1
    nodes_answered: int = 1
    stored: bool = True

    @property
    def complete(self) -> bool:
        """
        Whether all who were asked have answered.
        """
        return self.nodes_answered >= self.nodes_expected


async def close_connection(connection: Connection, close: Close, timeout: float) -> bool:
    """
    Send the close frame, wait for the transport to end, cut it at the deadline.

    Args:
        connection: What to close; nothing happens if it is closed already.
        close: What to tell the peer.
        timeout: Seconds until the transport is aborted.

    Returns:
        Whether it had to be cut: the deadline passed, or closing it failed.
    """
    try:
        async with asyncio.timeout(timeout):
            await _send_close(connection, close)
            while not connection.disconnected:
                await asyncio.sleep(_POLL)
    except TimeoutError:
        return True
    except Exception:
        log.warning("closing a websocket failed", exc_info=True)
        return True
    else:
        return False
    finally:
        connection.cut()


async def _send_close(connection: Connection, close: Close) -> None:
    """
    Close the websocket, or whatever was registered by hand in its place.
    """
    ws, transport = connection.ws, connection.transport
    if transport is not None and transport.is_closing():
        # To close a TLS transport twice makes asyncio lose the connection under it.
        return
    if isinstance(ws, web.WebSocketResponse):
        _say_last_words(connection, close)
        # Without drain: a peer that stopped reading would hold it for ever.
        await ws.close(code=close.code, message=close.reason.encode(), drain=False)
        return
    try:
        inspect.signature(ws.close).bind(code=close.code, message=b"")
    except (TypeError, ValueError):
        result = ws.close()
    else:
        result = ws.close(code=close.code, message=close.reason.encode())
    if inspect.isawaitable(result):
        # In a task of its own, for one that doesn't let itself be cancelled.
        task = asyncio.ensure_future(result)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(task)
        finally:
            task.cancel()


def _say_last_words(connection: Connection, close: Close) -> None:
    transport = connection.transport
    if connection.last_words is None or transport is None or transport.get_write_buffer_size():
        return
    try:
        words = connection.last_words(close)
        if words is not None:
            text = isinstance(words, str)
            payload = words.encode() if isinstance(words, str) else words
            opcode = WSMsgType.TEXT if text else WSMsgType.BINARY
            connection.ws.send_frame(payload, opcode).send(None)
    except StopIteration:
        pass
    except Exception:
        log.exception("the last words of a websocket failed")


async def end_handler(connection: Connection, grace: float) -> bool:
    """
    Cancel a handler that does not leave ``session_ws`` within *grace* seconds.

    Returns:
        Whether it had to be cancelled.
    """
    if connection.task is None or await connection.wait_left(grace):
        return False
    if not connection.cancelled:
        connection.cancelled = True
        connection.task.cancel("its websocket was closed")
    return True


async def watch_cancelled(connection: Connection, grace: float) -> None:
    """
    Name a handler in the log that goes on for *grace* seconds after it was cancelled.
    """
    if connection.task is not None and not await connection.wait_left(grace):
        log.warning(
            "a websocket handler of session %s goes on though its socket is closed and it was"
            " cancelled: %s",
            fingerprint(connection.session_ws_id),
            connection.task.get_coro(),
        )
