"""
wsrpc's frames: text in, frozen messages out, and the way back. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from .errors import (
    CANCELED,
    INVALID_ARGUMENT,
    NO_SUCH_PROCEDURE,
    RUNTIME_ERROR,
    TIMEOUT,
    ProtocolViolation,
)

__all__ = ["Event", "Message", "Reply", "Request", "decode"]

#: What its clients call our errors; any other URI is the type as it is.
TYPES: Final[Mapping[str, str]] = {
    NO_SUCH_PROCEDURE: "NotImplementedError",
    INVALID_ARGUMENT: "TypeError",
    RUNTIME_ERROR: "InternalError",
    CANCELED: "CancelledError",
    TIMEOUT: "TimeoutError",
}

_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class _Frame(msgspec.Struct):
    id: _Id | None = None
    method: str | None = None
    params: Any = None
    error: Any = None
    result: Any = None


class Request(msgspec.Struct, frozen=True):
    """
    A call of the client's.
    """

    id: int
    method: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class Reply(msgspec.Struct, frozen=True):
    """
    The client's answer to a call of ours; *error* is ``None`` if it succeeded.
    """

    id: int
    result: Any = None
    error: Any = None


class Event(msgspec.Struct, frozen=True):
    """
    An object that is no call and no answer.
    """

    data: Mapping[str, Any]


Message: TypeAlias = Request | Reply | Event

_decode: Final = msgspec.json.Decoder(_Frame).decode
_decode_event: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


def decode(frame: str | bytes) -> Message:
    """
    Return the message of a frame.

    Raises:
        ProtocolViolation: If it is garbage.
    """
    if not isinstance(frame, str):
        raise ProtocolViolation("a binary frame")
    try:
        found = _decode(frame)
        if found.id is None:
            return Event(_decode_event(frame))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise ProtocolViolation("malformed message") from None
    if found.id == 0:
        raise ProtocolViolation("the id 0")
    if found.method is None:
        return Reply(found.id, found.result, found.error)
    params = found.params
    if isinstance(params, dict):
        return Request(found.id, found.method, (), params)
    if isinstance(params, list):
        return Request(found.id, found.method, params, {})
    return Request(found.id, found.method, () if params is None else (params,), {})


def result(request: int, value: Any) -> bytes:
    """
    Answer a call.
    """
    return _encode({"id": request, "result": value})


def error(request: int, uri: str, args: Sequence[Any] = ()) -> bytes:
    """
    Answer that it failed.
    """
    if uri == RUNTIME_ERROR and not args:
        args = ("internal error",)
    message = args[0] if args else ""
    if not isinstance(message, str):
        message = _encode(message).decode()
    return _encode({"id": request, "error": {"type": TYPES.get(uri, uri), "message": message}})


def request(number: int, method: str, params: Any) -> bytes:
    """
    Call a procedure of the client's.
    """
    return _encode({"id": number, "method": method, "params": params})


def event(data: Any) -> bytes:
    """
    Tell the client something that it needn't answer.
    """
    return _encode(data)


def fault(error: Any) -> tuple[str, tuple[Any, ...]]:
    """
    Return type and arguments of a client's error, which may have any form.
    """
    if isinstance(error, dict):
        kind, message = error.get("type"), error.get("message")
        return str(kind or RUNTIME_ERROR), () if message is None else (message,)
    return RUNTIME_ERROR, (error,)
