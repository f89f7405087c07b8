"""
Websockets that know whose session they belong to, and are gone when it ends.
"""

from .closing import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NORMAL,
    POLICY_VIOLATION,
    PROTOCOL_ERROR,
    RECONNECT,
    SESSION_ENDED,
    SESSION_EXPIRED,
    SLOW_CONSUMER,
    TOO_MANY_CONNECTIONS,
    Close,
    CloseReport,
    Timeouts,
)
from .connection import Connection, SupportsClose
from .exceptions import (
    HandshakeRefused,
    IdentifyFailed,
    IdFactoryFailed,
    InvalidIdentity,
    InvalidSessionWSId,
    NotSetUp,
    RedisAway,
    SessionEnded,
    SessionWSClosed,
    SessionWSError,
    WebSocketDisconnect,
    WebSocketProtocolError,
    WebSocketStateError,
    WrongLoop,
)
from .gate import Origins
from .handshake import WebSocketOptions
from .helpers import (
    REGISTRY_KEY,
    delete_session_ws_id,
    end_identity_ws,
    end_session_ws,
    ensure_session_ws_id,
    get_session_ws_id,
    new_session_ws_id,
    registry_from,
    renew_session_ws,
    schedule_close_all_session_ws,
    setup,
)
from .hooks import WebSocketHook
from .identify import Identify
from .ids import DEFAULT_ID_FACTORY, DEFAULT_SESSION_KEY, IdFactory
from .limits import Limits
from .middleware import session_ws_middleware
from .opening import session_ws
from .outbox import PushQueue
from .push import Delivery
from .records import fingerprint
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
from .snapshot import ConnectionInfo, Count, Snapshot
from .views import WebSocketView, websocket_handler
from .websocket import WebSocket

__version__ = "2.0.0"

__all__ = [
    "DEFAULT_ID_FACTORY",
    "DEFAULT_SESSION_KEY",
    "GOING_AWAY",
    "INTERNAL_ERROR",
    "NORMAL",
    "POLICY_VIOLATION",
    "PROTOCOL_ERROR",
    "RECONNECT",
    "REGISTRY_KEY",
    "SESSION_ENDED",
    "SESSION_EXPIRED",
    "SLOW_CONSUMER",
    "TOO_MANY_CONNECTIONS",
    "AuthDetails",
    "Authorize",
    "Close",
    "CloseDetails",
    "CloseReport",
    "Connection",
    "ConnectionContext",
    "ConnectionInfo",
    "Count",
    "Delivery",
    "Expiry",
    "FailDetails",
    "HandshakeDetails",
    "HandshakeRefused",
    "IdFactory",
    "IdFactoryFailed",
    "Identify",
    "IdentifyFailed",
    "InvalidIdentity",
    "InvalidSessionWSId",
    "Limits",
    "NotSetUp",
    "OpenDetails",
    "Origins",
    "PushQueue",
    "RedisAway",
    "SessionEnded",
    "SessionWSClosed",
    "SessionWSError",
    "SessionWSRegistry",
    "Signal",
    "Snapshot",
    "SupportsClose",
    "Timeouts",
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketHook",
    "WebSocketOptions",
    "WebSocketProtocolError",
    "WebSocketStateError",
    "WebSocketView",
    "WrongLoop",
    "delete_session_ws_id",
    "end_identity_ws",
    "end_session_ws",
    "ensure_session_ws_id",
    "fingerprint",
    "get_session_ws_id",
    "new_session_ws_id",
    "registry_from",
    "renew_session_ws",
    "schedule_close_all_session_ws",
    "session_ws",
    "session_ws_middleware",
    "setup",
    "websocket_handler",
]
