"""
What can go wrong, as one tree::

    SessionWSError
     +-- NotSetUp (RuntimeError)
     +-- InvalidSessionWSId (TypeError)
     +-- InvalidIdentity (TypeError)
     +-- IdFactoryFailed (RuntimeError)
     +-- IdentifyFailed (RuntimeError)
     +-- RedisAway (ConnectionError)
     +-- WrongLoop (RuntimeError)
     +-- SessionEnded (RuntimeError)
     +-- SessionWSClosed
     +-- HandshakeRefused (aiohttp.web.HTTPForbidden)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from .closing import Close

__all__ = [
    "HandshakeRefused",
    "IdFactoryFailed",
    "IdentifyFailed",
    "InvalidIdentity",
    "InvalidSessionWSId",
    "NotSetUp",
    "RedisAway",
    "SessionEnded",
    "SessionWSClosed",
    "SessionWSError",
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
    An identity is ``None`` where somebody is needed, or cannot be hashed.
    """


class IdFactoryFailed(SessionWSError, RuntimeError):
    """
    The registry's ``id_factory`` raised; its own exception is the ``__cause__``.
    """


class IdentifyFailed(SessionWSError, RuntimeError):
    """
    The registry's ``identify`` raised; its own exception is the ``__cause__``.
    """


class RedisAway(SessionWSError, ConnectionError):
    """
    Redis can't be reached, or doesn't answer as it should.
    """


class WrongLoop(SessionWSError, RuntimeError):
    """
    A registry was called from another thread or event loop than its application's.
    """


class SessionEnded(SessionWSError, RuntimeError):
    """
    A new id was asked for a session that has been ended meanwhile.

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
