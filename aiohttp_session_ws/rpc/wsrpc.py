"""
Encoding of wsrpc: text to frozen messages, and messages to bytes. No I/O.

The module implements :class:`~aiohttp_session_ws.rpc.call.Dialect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from . import errors
from .errors import Payload, ProtocolViolation, RemoteError, RPCError

__all__ = ["Event", "Message", "Reply", "Request", "decode", "encode", "error", "result"]

#: The error types for our error URIs; any other URI is itself the type.
TYPES: Final[Mapping[str, str]] = {
    errors.NO_SUCH_PROCEDURE: "NotImplementedError",
    errors.INVALID_ARGUMENT: "TypeError",
    errors.RUNTIME_ERROR: "InternalError",
    errors.CANCELED: "CancelledError",
    errors.TIMEOUT: "TimeoutError",
}

_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class _Frame(msgspec.Struct):
    id: _Id | None = None
    method: Any = None  # any object without id is an event
    params: Any = None
    error: Any = None
    result: Any = None


class Request(msgspec.Struct, frozen=True):
    """
    A call from the client.
    """

    id: int
    method: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class Reply(msgspec.Struct, frozen=True):
    """
    The client's answer to our call; *error* is ``None`` if it succeeded.
    """

    id: int
    result: Any = None
    error: Any = None


class Event(msgspec.Struct, frozen=True):
    """
    An event: an object without an id.
    """

    data: Mapping[str, Any]


Message: TypeAlias = Request | Reply | Event

_decode: Final = msgspec.json.Decoder(_Frame).decode
_decode_event: Final = msgspec.json.Decoder(dict[str, Any]).decode
encode: Final = msgspec.json.Encoder().encode


def decode(frame: str | bytes) -> Message:
    """
    Return the message of a frame.

    Raises:
        ProtocolViolation: If it isn't valid in this dialect.
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
    if not isinstance(found.method, str):
        raise ProtocolViolation("a method that is no name")
    params = found.params
    if isinstance(params, dict):
        return Request(found.id, found.method, (), params)
    if isinstance(params, list):
        return Request(found.id, found.method, params, {})
    return Request(found.id, found.method, () if params is None else (params,), {})


def result(number: int, value: Any, *, progress: bool = False) -> bytes:
    """
    Encode the result of a call; wsrpc has no progressive results, so *progress* is ignored.
    """
    return encode({"id": number, "result": _plain(value)})


def _plain(value: Any) -> Any:
    """
    Return a value, or for a :class:`Payload` one that holds its arguments.
    """
    if not isinstance(value, Payload):
        return value
    args = tuple(value.args)
    if value.kwargs:
        return {"args": args, "kwargs": value.kwargs} if args else value.kwargs
    return args if len(args) > 1 else args[0] if args else None


def error(number: int, error: RPCError) -> bytes:
    """
    Encode an error answer to a call.
    """
    default = "internal error" if error.uri == errors.RUNTIME_ERROR else ""
    message = error.args[0] if error.args else default
    if not isinstance(message, str):
        message = encode(message).decode()
    kind = TYPES.get(error.uri, error.uri)
    return encode({"id": number, "error": {"type": kind, "message": message}})


def request(number: int, method: str, params: Any) -> bytes:
    """
    Encode a call of a procedure of the client.
    """
    return encode({"id": number, "method": method, "params": params})


def remote_error(error: Any) -> RemoteError | None:
    """
    Convert a client's error, which may have any form, to an exception; ``None`` means none.
    """
    if error is None:
        return None
    if isinstance(error, dict):
        kind, message = error.get("type"), error.get("message")
        return RemoteError(
            str(kind or errors.RUNTIME_ERROR), () if message is None else (message,)
        )
    return RemoteError(errors.RUNTIME_ERROR, (error,))
