"""
Shared test support. Most tests need only the names below; the modules have the rest.
"""

from .app import (
    PATIENT,
    QUICK,
    WAYS,
    Way,
    converse,
    log_in,
    log_in_and_renew,
    make_app,
    only_close,
    out_by_helper,
    out_by_invalidate,
    out_by_new_session,
    out_by_pattern,
    out_everywhere,
    renew,
    reset,
    user_of,
    whoami,
)
from .clients import (
    COOKIE,
    PATIENCE,
    AiohttpClient,
    Client,
    Server,
    Started,
    cookie_of,
    expect_close,
    until,
)
from .gates import Turnstile
from .peers import NORMAL_CLOSE, RawPeer, TlsPeer
from .stopwatch import Stopwatch
from .storages import GatedStorage

__all__ = [
    "COOKIE",
    "NORMAL_CLOSE",
    "PATIENCE",
    "PATIENT",
    "QUICK",
    "WAYS",
    "AiohttpClient",
    "Client",
    "GatedStorage",
    "RawPeer",
    "Server",
    "Started",
    "Stopwatch",
    "TlsPeer",
    "Turnstile",
    "Way",
    "converse",
    "cookie_of",
    "expect_close",
    "log_in",
    "log_in_and_renew",
    "make_app",
    "only_close",
    "out_by_helper",
    "out_by_invalidate",
    "out_by_new_session",
    "out_by_pattern",
    "out_everywhere",
    "renew",
    "reset",
    "until",
    "user_of",
    "whoami",
]
