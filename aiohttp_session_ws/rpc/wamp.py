"""
Encoding of WAMP: text or bytes to frozen messages, and messages to bytes. No I/O.

There is one :class:`Codec` per subprotocol, and one :class:`WampDialect` per session.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from . import wamp_messages as messages
from .errors import Payload, ProtocolViolation, RPCError, RPCResult
from .wamp_messages import Frame, Message

__all__ = ["CODECS", "Codec", "WampDialect"]

Parts: TypeAlias = tuple[Sequence[Any], Mapping[str, Any] | None]

_SEPARATOR: Final = "\x1e"  # ends each message of a batch in JSON
_LENGTH: Final = 4  # bytes before each message of a batch in MessagePack
_BYTES: Final = (bytes, bytearray, memoryview)
_ATOMS: Final = frozenset({int, float, bool, type(None), str})


class Codec:
    """
    The encoding of messages in one subprotocol.

    Args:
        name: The name of the subprotocol.

    Attributes:
        binary: Whether its frames are binary ones.
        batched: Whether a frame may hold several messages.
    """

    def __init__(self, name: str) -> None:
        self.binary = ".msgpack" in name
        self.batched = name.endswith(".batched")
        form = msgspec.msgpack if self.binary else msgspec.json
        self._encode: Callable[[Any], bytes] = form.Encoder().encode
        self._decode: Callable[[Any], Message] = form.Decoder(Message).decode

    def decode(self, frame: str | bytes) -> Iterator[tuple[Message, int]]:
        """
        Yield the messages of a frame, with their sizes, decoded one at a time.

        Raises:
            ProtocolViolation: During iteration, if the frame isn't valid in this dialect.
        """
        for piece in _pieces(frame) if self.batched else (frame,):
            yield self.decode_one(piece), len(piece)

    def decode_one(self, data: str | bytes) -> Message:
        """
        Decode one message: a frame without batching, or a piece of a batch.

        Raises:
            ProtocolViolation: If it isn't valid in this dialect.
        """
        if isinstance(data, str) is self.binary:
            raise ProtocolViolation("a text frame and a binary one are not the same dialect")
        try:
            message = self._decode(data)
            if not self.binary and "\\u0000" in data:
                _restore(getattr(message, "args", None))
                _restore(getattr(message, "kwargs", None))
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise ProtocolViolation("malformed message") from None
        return message

    def encode(self, frame: Frame) -> bytes:
        """
        Return the bytes of a message; those of a text frame are UTF-8.

        Raises:
            Exception: Whatever msgspec raises for a value that it can't encode.
        """
        if not self.binary:
            for i in range(3, len(frame)):
                if type(frame[i]) not in _ATOMS:
                    frame[i] = _mark_bytes(frame[i])
        data = self._encode(frame)
        if not self.batched:
            return data
        if self.binary:
            return len(data).to_bytes(_LENGTH) + data
        return data + _SEPARATOR.encode()


def _pieces(frame: str | bytes) -> Iterator[str | bytes]:
    """
    Split a batch into its messages.
    """
    if not frame:
        raise ProtocolViolation("a batch of no messages")
    if isinstance(frame, str):
        if not frame.endswith(_SEPARATOR):
            raise ProtocolViolation("a batch whose last message is cut off")
        yield from frame[:-1].split(_SEPARATOR)
        return
    start = 0
    while start < len(frame):
        begin = start + _LENGTH
        start = begin + int.from_bytes(frame[start:begin])
        if start > len(frame):
            raise ProtocolViolation("a batch whose last message is cut off")
        yield frame[begin:start]


def _mark_bytes(value: Any) -> Any:
    """
    Convert bytes, at any depth, to WAMP's form in JSON: Base64 after a NUL.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind in (list, tuple):
        return [one if type(one) in _ATOMS else _mark_bytes(one) for one in value]
    if kind is dict:
        return {k: v if type(v) in _ATOMS else _mark_bytes(v) for k, v in value.items()}
    if isinstance(value, _BYTES):
        return "\0" + base64.b64encode(value).decode()
    return _mark_bytes(msgspec.to_builtins(value, builtin_types=_BYTES))


def _restore(values: Any) -> None:
    """
    Convert WAMP's form of bytes in JSON, at any depth, back to bytes, in place.
    """
    if isinstance(values, list | dict):
        for key, value in enumerate(values) if isinstance(values, list) else values.items():
            if isinstance(value, str) and value.startswith("\0"):
                values[key] = base64.b64decode(value[1:], validate=True)
            else:
                _restore(value)


#: By subprotocol, ordered as in the documentation; the client's first known offer is chosen.
CODECS: Final[Mapping[str, Codec]] = {
    name: Codec(name)
    for encoding in ("json", "msgpack")
    for name in (f"wamp.2.{encoding}", f"wamp.2.{encoding}.batched")
}


class WampDialect:
    """
    Encodes answers: ``None`` as no argument, a list or tuple as positional arguments, a mapping
    as named arguments, and everything else as one argument.

    Args:
        codec: Encodes the frames.
        whole: Whether each value is one argument, so that a client can distinguish a list of one
            item from the item. A client requests this in HELLO, by ``_whole_values``.
    """

    def __init__(self, codec: Codec, *, whole: bool = False) -> None:
        self._codec = codec
        self._payload: Callable[[Any], Parts] = whole_payload if whole else payload

    def result(self, number: int, value: Any, *, progress: bool = False) -> bytes:
        """
        Encode a result, or a progressive one.
        """
        return self._codec.encode(
            messages.result(number, *self._payload(value), progress=progress)
        )

    def error(self, number: int, error: RPCError) -> bytes:
        """
        Encode an error answer to a call.
        """
        return self._codec.encode(messages.error(48, number, error))


def payload(value: Any) -> Parts:
    """
    Convert a value to positional and named arguments.
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
    Convert a value to one argument, for a client that requests whole values.
    """
    return payload(value) if isinstance(value, Payload) else ((value,), None)


def value_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """
    Convert the arguments of a client's answer to one value.
    """
    if kwargs:
        return RPCResult(args, kwargs) if args else kwargs
    return args[0] if len(args) == 1 else args or None
