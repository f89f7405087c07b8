"""
RPC and topics over session sockets: typed procedures in both directions, streams, events.

The protocols are WAMP and wsrpc. Needs the extra ``rpc``, which installs msgspec.
"""

from pathlib import Path
from typing import Final

try:
    from .application import Application
    from .authentication import CRASecret, session_identity
    from .call import CallDetails, EventDetails
    from .errors import (
        NotRegistered,
        RemoteError,
        RPCError,
        RPCErrorResult,
        RPCProgressReport,
        RPCResult,
        SessionGone,
    )
    from .limits import CallLimits
    from .realm import Realm
    from .routes import Routes, expose
    from .session import RPCRequest, Session, current_session
except ModuleNotFoundError as exc:
    if exc.name != "msgspec":
        raise
    raise ModuleNotFoundError(
        "aiohttp_session_ws.rpc needs msgspec: pip install 'aiohttp-session-ws[rpc]'",
        name=exc.name,
    ) from exc

__all__ = [
    "STATIC_DIR",
    "Application",
    "CRASecret",
    "CallDetails",
    "CallLimits",
    "EventDetails",
    "NotRegistered",
    "RPCError",
    "RPCErrorResult",
    "RPCProgressReport",
    "RPCRequest",
    "RPCResult",
    "Realm",
    "RemoteError",
    "Routes",
    "Session",
    "SessionGone",
    "current_session",
    "expose",
    "session_identity",
]

#: Directory of the browser client, ``session-ws.js``.
STATIC_DIR: Final = Path(__file__).parent.parent / "static"
