"""
The exceptions of this package, in one tree::

    SessionWSError
     +-- NotSetUp (RuntimeError)
     +-- InvalidSessionWSId (TypeError)
     +-- InvalidIdentity (TypeError)
     +-- JournalError (RuntimeError)
     +-- IdFactoryFailed (RuntimeError)
     +-- IdentifyFailed (RuntimeError)
     +-- RedisUnavailable (ConnectionError)
     +-- WrongLoop (RuntimeError)
     +-- SessionEnded (RuntimeError)
     +-- SessionWSClosed
     +-- WebSocketDisconnect
     +-- WebSocketStateError (RuntimeError)
     +-- HandshakeRefused (aiohttp.web.HTTPForbidden)
          +-- WebSocketProtocolError
"""

from __future__ import annotations

from aiohttp import web

from .close_codes import PROTOCOL_ERROR, Close

__all__ = [
    "HandshakeRefused",
    "IdFactoryFailed",
    "IdentifyFailed",
    "InvalidIdentity",
    "InvalidSessionWSId",
    "JournalError",
    "NotSetUp",
    "RedisUnavailable",
    "SessionEnded",
    "SessionWSClosed",
    "SessionWSError",
    "WebSocketDisconnect",
    "WebSocketProtocolError",
    "WebSocketStateError",
    "WrongLoop",
]


class SessionWSError(Exception):
    """
    The root of all errors of this package.
    """


class NotSetUp(SessionWSError, RuntimeError):
    """
    ``setup()`` was not called, or a middleware is missing or misplaced.
    """


class InvalidSessionWSId(SessionWSError, TypeError):
    """
    A session ws id is ``None`` or cannot be hashed.
    """


class InvalidIdentity(SessionWSError, TypeError):
    """
    An identity is ``None`` where one is required, or cannot be hashed.
    """


class JournalError(SessionWSError, RuntimeError):
    """
    The registry's ``journal`` can't be used: another process has it, or it isn't a journal.
    """


class IdFactoryFailed(SessionWSError, RuntimeError):
    """
    The registry's ``id_factory`` raised; its own exception is the ``__cause__``.
    """


class IdentifyFailed(SessionWSError, RuntimeError):
    """
    The registry's ``identify`` raised; its own exception is the ``__cause__``.
    """


class RedisUnavailable(SessionWSError, ConnectionError):
    """
    Redis can't be reached, or doesn't answer as expected.
    """


class WrongLoop(SessionWSError, RuntimeError):
    """
    A registry was called from a thread or event loop other than its application's.
    """


class SessionEnded(SessionWSError, RuntimeError):
    """
    An operation was requested for a session that has ended.

    ``session_ws_middleware`` answers it with 403 and saves nothing.
    """


class SessionWSClosed(SessionWSError):
    """
    The socket was closed by the server, so its handler has nothing left to do.

    Attributes:
        response: The prepared websocket response. ``session_ws_middleware`` returns it.
    """

    def __init__(self, response: web.WebSocketResponse) -> None:
        super().__init__("the websocket has been closed by the server")
        self.response = response


class HandshakeRefused(SessionWSError, web.HTTPForbidden):
    """
    The session behind a handshake may not open a socket.

    Behind ``session_ws_middleware`` the handshake is accepted and closed with
    :attr:`close`, since the script of a page sees a close code but never an HTTP
    status. Without the middleware the client gets 403.

    Attributes:
        close: The close code and reason.
    """

    def __init__(self, close: Close) -> None:
        web.HTTPForbidden.__init__(self, text=f"websocket refused: {close.reason}")
        self.close = close


class WebSocketProtocolError(HandshakeRefused):
    """
    The client doesn't follow the application's protocol.

    Raised by a handler or a hook before ``connect()``, it refuses the handshake like any
    :class:`HandshakeRefused`; later it closes the socket. Both use 1002.

    Args:
        detail: The close reason; its first 123 bytes.
    """

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        reason = detail.encode()[:123].decode(errors="ignore")
        super().__init__(PROTOCOL_ERROR.replace(None, reason or None))


class WebSocketStateError(SessionWSError, RuntimeError):
    """
    A method of a :class:`WebSocket` was called too early, twice, or ``receive()`` by two tasks.
    """


class WebSocketDisconnect(SessionWSError):
    """
    The socket is closed, whoever closed it. A handler needn't catch it.

    Args:
        code: The close code that was sent first, by either side; 1005 if a client's close
            frame had none, 1006 if there was no close frame.
        reason: The reason that came with it.
        connection: The :class:`Connection` that the socket belongs to.
    """

    def __init__(self, code: int, reason: str = "", connection: object = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.connection = connection

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()
