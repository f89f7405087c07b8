"""
Websockets for aiohttp that belong to a session and are closed when it ends.

This module exports what most programs need; the rest of the public API is in ``close_codes``,
``signals``, ``results``, ``exceptions``, ``typing``, ``redis`` and ``rpc``. All other modules and
folders are internal. To read the source, start with the docstring of ``registry/core.py``: it
explains the theory of operation, and where each thing is decided.
"""

from .close_codes import RECONNECT, SESSION_ENDED, Close
from .connections.connection import Connection
from .exceptions import (
    HandshakeRefused,
    NotSetUp,
    SessionEnded,
    SessionWSError,
    WebSocketDisconnect,
)
from .handlers.views import WebSocketView, websocket_handler
from .handlers.websocket import WebSocket
from .options import Expiry, Limits, PushQueue, Timeouts
from .registry.ids import DEFAULT_ID_FACTORY
from .registry.registry import SessionWSRegistry
from .sessions.session import DEFAULT_SESSION_KEY
from .web.middleware import session_ws_middleware
from .web.session_ws import session_ws
from .web.setup import (
    REGISTRY_KEY,
    delete_session_ws_id,
    end_identity_ws,
    end_other_sessions_ws,
    end_session_ws,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    registry_from,
    renew_session_ws,
    schedule_close_all_session_ws,
    setup,
)
from .web.streams import session_stream

__version__ = "2.0.0"

__all__ = [
    "DEFAULT_ID_FACTORY",
    "DEFAULT_SESSION_KEY",
    "RECONNECT",
    "REGISTRY_KEY",
    "SESSION_ENDED",
    "Close",
    "Connection",
    "Expiry",
    "HandshakeRefused",
    "Limits",
    "NotSetUp",
    "PushQueue",
    "SessionEnded",
    "SessionWSError",
    "SessionWSRegistry",
    "Timeouts",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketView",
    "delete_session_ws_id",
    "end_identity_ws",
    "end_other_sessions_ws",
    "end_session_ws",
    "ensure_session_ws_id",
    "get_session_ws_id",
    "new_session_ws_id",
    "registry_from",
    "renew_session_ws",
    "schedule_close_all_session_ws",
    "session_stream",
    "session_ws",
    "session_ws_middleware",
    "setup",
    "websocket_handler",
]
