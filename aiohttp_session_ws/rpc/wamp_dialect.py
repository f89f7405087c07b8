"""
What values become in WAMP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from . import wamp_messages as wamp
from .errors import Payload, RPCError, RPCResult
from .session import Session
from .wamp import Codec

__all__ = ["WampDialect"]

Parts: TypeAlias = tuple[Sequence[Any], Mapping[str, Any] | None]


_FEATURES: Final = ("progressive_call_results", "call_canceling", "call_timeout")
_ROLES: Final = {"broker": {}, "dealer": {"features": dict.fromkeys(_FEATURES, True)}}


class WampDialect:
    """
    ``None`` is no argument, a list or tuple are arguments, a mapping is arguments by name, and
    everything else is one argument.

    Args:
        codec: How frames are encoded.
        whole: Whether everything is one argument, so that a client can tell a list of one from
            what is in it. A client asks for it in its HELLO, by ``_whole_values``.
    """

    __slots__ = ("_codec", "_payload")

    def __init__(self, codec: Codec, *, whole: bool = False) -> None:
        self._codec = codec
        self._payload: Callable[[Any], Parts] = whole_payload if whole else payload

    def result(self, number: int, value: Any, *, progress: bool = False) -> bytes:
        """
        Encode a result, or a part of it.
        """
        return self._codec.encode(wamp.result(number, *self._payload(value), progress=progress))

    def error(self, number: int, error: RPCError) -> bytes:
        """
        Encode an error.
        """
        return self._codec.encode(wamp.error(48, number, error.uri, error.args, error.kwargs))


def payload(value: Any) -> Parts:
    """
    Return the arguments that a value is.
    """
    kind = type(value)
    if kind is int or kind is str:
        return (value,), None
    if value is None:
        return (), None
    if isinstance(value, Payload):
        return tuple(value.args), value.kwargs
    if isinstance(value, list | tuple):
        return value, None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return (), value
    return (value,), None


def whole_payload(value: Any) -> Parts:
    """
    Return the arguments that a value is for a client that wants it as it is.
    """
    return payload(value) if isinstance(value, Payload) else ((value,), None)


def value_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """
    Return what a client's answer is here.
    """
    if kwargs:
        return RPCResult(args, kwargs) if args else kwargs
    return args[0] if len(args) == 1 else args or None


def welcome_details(session: Session) -> dict[str, Any]:
    """
    Return what a client is told when it has joined, but for what is unknown.
    """
    details: dict[str, Any] = {
        "roles": _ROLES,
        "realm": session.realm,
        "authid": session.auth_id,
        "authmethod": session.auth_method,
        "authrole": session.auth_role,
        "authprovider": session.auth_provider,
    }
    return {name: value for name, value in details.items() if value is not None}
