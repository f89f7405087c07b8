"""
Results, progress reports and errors of calls, in both directions.

All exceptions are in one tree::

    SessionWSError
     +-- RPCError        raised by a handler, and sent to the caller as it is
     +-- RemoteError     a client's error answer to our call
     +-- SessionGone     the session or its socket ended before the answer
     +-- NotRegistered   the client has not registered the procedure (RuntimeError)
     +-- ProtocolViolation   a peer's frame is not valid in its dialect
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..exceptions import SessionWSError

__all__ = [
    "NotRegistered",
    "ProtocolViolation",
    "RPCError",
    "RPCErrorResult",
    "RPCProgressReport",
    "RPCResult",
    "RemoteError",
    "SessionGone",
]

AUTHENTICATION_FAILED: Final = "wamp.error.authentication_failed"
CANCELED: Final = "wamp.error.canceled"
GOODBYE_AND_OUT: Final = "wamp.close.goodbye_and_out"
INVALID_ARGUMENT: Final = "wamp.error.invalid_argument"
INVALID_URI: Final = "wamp.error.invalid_uri"
KILLED: Final = "wamp.close.killed"
NO_SUCH_PROCEDURE: Final = "wamp.error.no_such_procedure"
NO_SUCH_REALM: Final = "wamp.error.no_such_realm"
NO_SUCH_REGISTRATION: Final = "wamp.error.no_such_registration"
NO_SUCH_SUBSCRIPTION: Final = "wamp.error.no_such_subscription"
NOT_AUTHORIZED: Final = "wamp.error.not_authorized"
OPTION_NOT_ALLOWED: Final = "wamp.error.option_not_allowed"
PROCEDURE_ALREADY_EXISTS: Final = "wamp.error.procedure_already_exists"
PROTOCOL_VIOLATION: Final = "wamp.error.protocol_violation"
RUNTIME_ERROR: Final = "wamp.error.runtime_error"
SYSTEM_SHUTDOWN: Final = "wamp.close.system_shutdown"
TIMEOUT: Final = "wamp.error.timeout"
UNAVAILABLE: Final = "wamp.error.unavailable"


def _arguments(args: object) -> tuple[Any, ...]:
    """
    Return arguments as a tuple; a bare string, or a value that isn't iterable, is one argument.
    """
    if isinstance(args, str | bytes | bytearray | memoryview) or not isinstance(args, Iterable):
        return (args,)
    return tuple(args)


@dataclass(frozen=True, slots=True)
class Payload:
    """
    Positional and named values; a bare string is one argument.
    """

    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _arguments(self.args))


class RPCResult(Payload):
    """
    The result of a call: what a handler returns, or yields last.

    Args:
        args: Positional results. A bare string is one argument.
        kwargs: Named results.
    """

    __slots__ = ()


class RPCProgressReport(Payload):
    """
    A progressive result, which a stream yields; sent only to a caller that asked for progress.

    Args:
        args: Positional results. A bare string is one argument.
        kwargs: Named results.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RPCErrorResult:
    """
    An error that a handler returns or yields; sent to the caller as it is.

    Args:
        uri: URI of the error.
        args: Positional details. A bare string is one argument.
        kwargs: Named details.
    """

    uri: str = RUNTIME_ERROR
    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _arguments(self.args))


class RPCError(SessionWSError):
    """
    An error that a handler raises; sent to the caller as it is.

    Args:
        uri: URI of the error, such as ``"shop.error.sold_out"``.
        *args: Positional details.
        **kwargs: Named details.
    """

    def __init__(self, uri: str, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.uri = uri
        self.kwargs = kwargs

    def __str__(self) -> str:
        return " ".join([self.uri, *map(str, self.args)])


class RemoteError(SessionWSError):
    """
    A client's error answer to our call.

    Attributes:
        uri: URI of the error, as the client sent it.
        args: Positional details.
        kwargs: Named details.
    """

    def __init__(
        self, uri: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(*args)
        self.uri = uri
        self.kwargs = dict(kwargs or {})

    def __str__(self) -> str:
        return " ".join([self.uri, *map(str, self.args)])


class SessionGone(SessionWSError):
    """
    The session or its socket ended before a message was sent or answered.
    """


class NotRegistered(SessionWSError, RuntimeError):
    """
    The client has not registered the procedure that is to be called.
    """


class ProtocolViolation(SessionWSError):
    """
    A peer's frame is not valid in its dialect, or not in the current state.

    The text may be sent to the peer: it is fixed, and never quotes the frame.
    """
