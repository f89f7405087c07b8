"""
What a call comes to: results, progress, and errors, of both sides.

What goes wrong is one tree::

    SessionWSError
     +-- RPCError        a handler raises it: its caller is told exactly this
     +-- RemoteError     a client's answer to a call of ours
     +-- SessionGone     the session ended before the client had answered
     +-- NotRegistered   the client has no such procedure to call (RuntimeError)
     +-- ProtocolViolation   a peer's frame is none of its dialect
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
    Take a bare text for the one argument that it was meant to be.
    """
    if isinstance(args, str | bytes | bytearray | memoryview) or not isinstance(args, Iterable):
        return (args,)
    return tuple(args)


@dataclass(frozen=True, slots=True)
class Payload:
    """
    Positional and named values; a bare text is one argument.
    """

    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _arguments(self.args))


class RPCResult(Payload):
    """
    The result of a call: what a handler returns, or yields last.

    Args:
        args: Positional results. A bare text is one argument.
        kwargs: Named results.
    """

    __slots__ = ()


class RPCProgressReport(Payload):
    """
    A part of a result: what a stream yields; sent only to a caller that asked for progress.

    Args:
        args: Positional results. A bare text is one argument.
        kwargs: Named results.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RPCErrorResult:
    """
    A failure that a handler returns or yields; the caller is told exactly this.

    Args:
        uri: What went wrong.
        args: More about it. A bare text is one argument.
        kwargs: More about it, by name.
    """

    uri: str = RUNTIME_ERROR
    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", _arguments(self.args))


class RPCError(SessionWSError):
    """
    A failure that a handler raises; the caller is told exactly this.

    Args:
        uri: What went wrong, such as ``"shop.error.sold_out"``.
        *args: More about it.
        **kwargs: More about it, by name.
    """

    def __init__(self, uri: str, /, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.uri = uri
        self.kwargs = kwargs

    def __str__(self) -> str:
        return " ".join([self.uri, *map(str, self.args)])


class RemoteError(SessionWSError):
    """
    A client's answer to a call of ours: it failed there.

    Attributes:
        uri: What went wrong, in the client's words.
        args: More about it.
        kwargs: More about it, by name.
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
    The session ended before its client had answered.
    """


class NotRegistered(SessionWSError, RuntimeError):
    """
    The client has not registered the procedure that it is asked for.
    """


class ProtocolViolation(SessionWSError):
    """
    A peer's frame is none of its dialect, or comes at the wrong moment.

    Its text may be told to the peer: it is ours, and quotes nothing.
    """
