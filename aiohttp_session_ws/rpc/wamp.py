"""
WAMP's frames: text or bytes in, frozen messages out, and the way back. No I/O.

One :class:`Codec` for each subprotocol. What a client may send is a class here, and msgspec
checks it; what a server sends is a list that a function of its name makes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from .errors import ProtocolViolation

__all__ = ["CODECS", "Codec"]

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Kwargs: TypeAlias = dict[str, Any]
Args: TypeAlias = list[Any]
Frame: TypeAlias = list[Any]

_SEPARATOR: Final = "\x1e"  # ends each message of a batch in JSON
_LENGTH: Final = 4  # bytes before each message of a batch in MessagePack
_BYTES: Final = (bytes, bytearray, memoryview)
_ATOMS: Final = frozenset({int, float, bool, type(None), str})


class HelloDetails(msgspec.Struct, frozen=True):
    """
    What a client says of itself.
    """

    authid: str | None = None
    authmethods: list[str] | None = None
    authextra: Kwargs | None = None
    #: Whether each value is to come as it is, as one argument; our own client asks for it.
    whole_values: bool | None = msgspec.field(default=None, name="_whole_values")


class CallOptions(msgspec.Struct, frozen=True):
    """
    How a client wants to be answered.
    """

    receive_progress: bool | None = None
    timeout: Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0)] | None = (
        None
    )


class CancelOptions(msgspec.Struct, frozen=True):
    """
    How a client gives up a call; what is no mode of ours is the default.
    """

    mode: Any = None


class PublishOptions(msgspec.Struct, frozen=True):
    """
    Whether a client wants to know what became of its event.
    """

    acknowledge: bool | None = None


class YieldOptions(msgspec.Struct, frozen=True):
    """
    Whether a client's answer is a part of one.
    """

    progress: bool | None = None


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """
    A client wants to join a realm.
    """

    realm: str
    details: HelloDetails


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """
    A client doesn't want to join any more.
    """

    details: Kwargs
    reason: str


class Authenticate(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """
    The answer to a challenge.
    """

    signature: str
    extra: Kwargs


class Goodbye(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """
    A client leaves, or answers that it was told to.
    """

    details: Kwargs
    reason: str


class Error(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """
    A client could not do what we asked.
    """

    kind: int
    request: Id
    details: Kwargs
    uri: str
    args: Args = []
    kwargs: Kwargs = {}


class Publish(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """
    A client's event, which nobody will get.
    """

    request: Id
    options: PublishOptions
    topic: str


class Subscribe(msgspec.Struct, frozen=True, array_like=True, tag=32):
    """
    A client wants a topic's events.
    """

    request: Id
    options: Kwargs
    topic: str


class Unsubscribe(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """
    A client wants no more of them.
    """

    request: Id
    subscription: Id


class Call(msgspec.Struct, frozen=True, array_like=True, tag=48):
    """
    A client calls a procedure.
    """

    request: Id
    options: CallOptions
    procedure: str
    args: Args = []
    kwargs: Kwargs = {}


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=49):
    """
    A client gives up a call.
    """

    request: Id
    options: CancelOptions


class Register(msgspec.Struct, frozen=True, array_like=True, tag=64):
    """
    A client offers a procedure.
    """

    request: Id
    options: Kwargs
    procedure: str


class Unregister(msgspec.Struct, frozen=True, array_like=True, tag=66):
    """
    A client takes its offer back.
    """

    request: Id
    registration: Id


class Yield(msgspec.Struct, frozen=True, array_like=True, tag=70):
    """
    A client's answer to a call of ours.
    """

    request: Id
    options: YieldOptions
    args: Args = []
    kwargs: Kwargs = {}


Message: TypeAlias = (
    Hello
    | Abort
    | Authenticate
    | Goodbye
    | Error
    | Publish
    | Subscribe
    | Unsubscribe
    | Call
    | Cancel
    | Register
    | Unregister
    | Yield
)


def welcome(session: int, details: Mapping[str, Any]) -> Frame:
    """
    Say that a client has joined.
    """
    return [2, session, details]


def abort(reason: str, message: str = "") -> Frame:
    """
    Say that it has not, or that it broke the rules.
    """
    return [3, {"message": message} if message else {}, reason]


def challenge(method: str, extra: Mapping[str, Any]) -> Frame:
    """
    Ask a client to prove who it is.
    """
    return [4, method, extra]


def goodbye(reason: str, message: str = "") -> Frame:
    """
    Say that the session is over.
    """
    return [6, {"message": message} if message else {}, reason]


def error(
    kind: int,
    request: int,
    uri: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Frame:
    """
    Answer that a request of the *kind* failed.
    """
    return _payload([8, kind, request, {}, uri], args, kwargs)


def subscribed(request: int, subscription: int) -> Frame:
    """
    Answer that events will come.
    """
    return [33, request, subscription]


def unsubscribed(request: int) -> Frame:
    """
    Answer that no more will.
    """
    return [35, request]


def event(
    subscription: int, publication: int, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> Frame:
    """
    Tell a subscriber of an event.
    """
    return _payload([36, subscription, publication, {}], args, kwargs)


def result(
    request: int,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    progress: bool = False,
) -> Frame:
    """
    Answer a call, or a part of it.
    """
    return _payload([50, request, {"progress": True} if progress else {}], args, kwargs)


def registered(request: int, registration: int) -> Frame:
    """
    Answer that a procedure of the client's is known.
    """
    return [65, request, registration]


def unregistered(request: int) -> Frame:
    """
    Answer that it is forgotten.
    """
    return [67, request]


def invocation(
    request: int, registration: int, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> Frame:
    """
    Call a procedure of the client's.
    """
    return _payload([68, request, registration, {}], args, kwargs)


def interrupt(request: int) -> Frame:
    """
    Give that up.
    """
    return [69, request, {"mode": "killnowait"}]


def _payload(head: Frame, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Frame:
    if kwargs:
        head += args, kwargs
    elif args:
        head.append(args)
    return head


class Codec:
    """
    One encoding of the messages.

    Attributes:
        name: The subprotocol.
        binary: Whether its frames are binary ones.
    """

    __slots__ = ("_batched", "_decode", "_encode", "binary", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.binary = ".msgpack" in name
        self._batched = name.endswith(".batched")
        self._encode: Callable[[Any], bytes]
        self._decode: Callable[[Any], Message]
        if self.binary:
            self._encode = msgspec.msgpack.Encoder().encode
            self._decode = msgspec.msgpack.Decoder(Message).decode
        else:
            self._encode = msgspec.json.Encoder().encode
            self._decode = msgspec.json.Decoder(Message).decode

    def decode(self, frame: str | bytes) -> Iterable[tuple[Message, int]]:
        """
        Return the messages of a frame and their sizes; they may be decoded one by one.

        Raises:
            ProtocolViolation: Here or in the iteration, if it isn't one of this dialect.
        """
        if isinstance(frame, str) is self.binary:
            raise ProtocolViolation("a text frame and a binary one are not the same dialect")
        if not self._batched:
            return ((self._message(frame), len(frame)),)
        return ((self._message(piece), len(piece)) for piece in _pieces(frame))

    def encode(self, frame: Frame) -> bytes:
        """
        Return the bytes of a message; those of a text frame are UTF-8.

        Raises:
            Exception: Whatever msgspec says of a value that it can't encode.
        """
        if not self.binary:
            for i in range(3, len(frame)):
                if type(frame[i]) not in _ATOMS:
                    frame[i] = _mark_bytes(frame[i])
        data = self._encode(frame)
        if not self._batched:
            return data
        if self.binary:
            return len(data).to_bytes(_LENGTH) + data
        return data + _SEPARATOR.encode()

    def _message(self, data: str | bytes) -> Message:
        try:
            message = self._decode(data)
            if not self.binary and "\\u0000" in data:
                _restore_bytes(message)
        except (msgspec.MsgspecError, RecursionError, UnicodeError, binascii.Error):
            raise ProtocolViolation("malformed message") from None
        return message


def _pieces(frame: str | bytes) -> Iterator[str | bytes]:
    """
    Cut a batch into its messages.
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
        if begin > len(frame) or start > len(frame):
            raise ProtocolViolation("a batch whose last message is cut off")
        yield frame[begin:start]


def _mark_bytes(value: Any) -> Any:
    """
    Write bytes as WAMP does in JSON: Base64 behind a NUL.
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
    plain = msgspec.to_builtins(value, builtin_types=_BYTES)
    return plain if type(plain) is str else _mark_bytes(plain)


def _restore_bytes(message: Message) -> None:
    """
    Read bytes as WAMP writes them in JSON.
    """
    for values in (getattr(message, "args", None), getattr(message, "kwargs", None)):
        if values:
            _restore(values)


def _restore(values: Any) -> None:
    for key, value in enumerate(values) if isinstance(values, list) else values.items():
        if isinstance(value, str):
            if value.startswith("\0"):
                values[key] = base64.b64decode(value[1:], validate=True)
        elif isinstance(value, list | dict):
            _restore(value)


#: What is spoken, in the order of the table in the documents; the client's first offer counts.
CODECS: Final[Mapping[str, Codec]] = {
    name: Codec(name)
    for name in (
        "wamp.2.json",
        "wamp.2.msgpack",
        "wamp.2.json.batched",
        "wamp.2.msgpack.batched",
    )
}
