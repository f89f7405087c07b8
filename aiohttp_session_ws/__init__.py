"""
Websockets that know whose session they belong to, and are gone when it ends.
"""

from .closing import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY_VIOLATION,
    RECONNECT,
    SESSION_ENDED,
    Close,
    CloseReport,
    Timeouts,
)
from .connection import Connection, SupportsClose
from .exceptions import (
    HandshakeRefused,
    IdFactoryFailed,
    InvalidSessionWSId,
    NotSetUp,
    SessionEnded,
    SessionWSClosed,
    SessionWSError,
)
from .gate import Origins
from .handshake import WebSocketOptions
from .helpers import (
    REGISTRY_KEY,
    delete_session_ws_id,
    end_session_ws,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    registry_from,
    renew_session_ws,
    schedule_close_all_session_ws,
    setup,
)
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory
from .middleware import session_ws_middleware
from .opening import session_ws
from .registry import Authorize, ConnectionContext, SessionWSRegistry
from .revocation import Expiry
from .signals import (
    AuthDetails,
    CloseDetails,
    FailDetails,
    HandshakeDetails,
    OpenDetails,
    Signal,
)

__version__ = "2.0.0"

__all__ = [
    "DEFAULT_ID_FACTORY",
    "DEFAULT_SESSION_KEY",
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "NORMAL",
    "POLICY_VIOLATION",
    "RECONNECT",
    "REGISTRY_KEY",
    "SESSION_ENDED",
    "AuthDetails",
    "Authorize",
    "Close",
    "CloseDetails",
    "CloseReport",
    "Connection",
    "ConnectionContext",
    "Expiry",
    "FailDetails",
    "HandshakeDetails",
    "HandshakeRefused",
    "IdFactory",
    "IdFactoryFailed",
    "InvalidSessionWSId",
    "NotSetUp",
    "OpenDetails",
    "Origins",
    "SessionEnded",
    "SessionWSClosed",
    "SessionWSError",
    "SessionWSRegistry",
    "Signal",
    "SupportsClose",
    "Timeouts",
    "WebSocketOptions",
    "delete_session_ws_id",
    "end_session_ws",
    "ensure_session_ws_id",
    "get_session_ws_id",
    "new_session_ws_id",
    "registry_from",
    "renew_session_ws",
    "schedule_close_all_session_ws",
    "session_ws",
    "session_ws_middleware",
    "setup",
]
