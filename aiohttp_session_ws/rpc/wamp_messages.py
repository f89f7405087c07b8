"""
WAMP's messages: a class for each that a client may send, which msgspec checks; and for each that
we send, a function of its name that returns the list. Over 300 lines long: there are 26 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from .errors import RPCError

__all__: list[str] = []

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Timeout: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Kwargs: TypeAlias = dict[str, Any]
Args: TypeAlias = list[Any]
Frame: TypeAlias = list[Any]
Named: TypeAlias = Mapping[str, Any] | None


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
    timeout: Timeout | None = None


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


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """
    A list whose first element tells what it is.
    """


class Hello(_Message, frozen=True, tag=1):
    """
    A client wants to join a realm.
    """

    realm: str
    details: HelloDetails


class Abort(_Message, frozen=True, tag=3):
    """
    A client doesn't want to join any more.
    """

    details: Kwargs
    reason: str


class Authenticate(_Message, frozen=True, tag=5):
    """
    The answer to a challenge.
    """

    signature: str
    extra: Kwargs


class Goodbye(_Message, frozen=True, tag=6):
    """
    A client leaves, or answers that it was told to.
    """

    details: Kwargs
    reason: str


class Error(_Message, frozen=True, tag=8):
    """
    A client could not do what we asked.
    """

    kind: int
    request: Id
    details: Kwargs
    uri: str
    args: Args = []
    kwargs: Kwargs = {}


class Publish(_Message, frozen=True, tag=16):
    """
    A client's event, which nobody will get.
    """

    request: Id
    options: PublishOptions
    topic: str


class Subscribe(_Message, frozen=True, tag=32):
    """
    A client wants a topic's events.
    """

    request: Id
    options: Kwargs
    topic: str


class Unsubscribe(_Message, frozen=True, tag=34):
    """
    A client wants no more of them.
    """

    request: Id
    subscription: Id


class Call(_Message, frozen=True, tag=48):
    """
    A client calls a procedure.
    """

    request: Id
    options: CallOptions
    procedure: str
    args: Args = []
    kwargs: Kwargs = {}


class Cancel(_Message, frozen=True, tag=49):
    """
    A client gives up a call.
    """

    request: Id
    options: Kwargs


class Register(_Message, frozen=True, tag=64):
    """
    A client offers a procedure.
    """

    request: Id
    options: Kwargs
    procedure: str


class Unregister(_Message, frozen=True, tag=66):
    """
    A client takes its offer back.
    """

    request: Id
    registration: Id


class Yield(_Message, frozen=True, tag=70):
    """
    A client's answer to a call of ours.
    """

    request: Id
    options: YieldOptions
    args: Args = []
    kwargs: Kwargs = {}


Asked: TypeAlias = Publish | Subscribe | Unsubscribe | Register | Unregister
Message: TypeAlias = (
    Hello | Abort | Authenticate | Goodbye | Error | Publish | Subscribe | Unsubscribe | Call
    | Cancel | Register | Unregister | Yield
)  # fmt: skip


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


def error(kind: int, request: int, failure: RPCError) -> Frame:
    """
    Answer that a request of the *kind* failed.
    """
    return _payload([8, kind, request, {}, failure.uri], failure.args, failure.kwargs)


def refused(message: Asked, failure: RPCError) -> Frame:
    """
    Answer that the request of a message failed.
    """
    kind: Any = message.__struct_config__.tag
    return error(kind, message.request, failure)


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


def event(subscription: int, publication: int, args: Sequence[Any], kwargs: Named) -> Frame:
    """
    Tell a subscriber of an event.
    """
    return _payload([36, subscription, publication, {}], args, kwargs)


def result(
    request: int, args: Sequence[Any] = (), kwargs: Named = None, *, progress: bool = False
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


def invocation(request: int, registration: int, args: Sequence[Any], kwargs: Named) -> Frame:
    """
    Call a procedure of the client's.
    """
    return _payload([68, request, registration, {}], args, kwargs)


def interrupt(request: int) -> Frame:
    """
    Give that up.
    """
    return [69, request, {"mode": "killnowait"}]


def _payload(head: Frame, args: Sequence[Any], kwargs: Named) -> Frame:
    if kwargs:
        head += args, kwargs
    elif args:
        head.append(args)
    return head
