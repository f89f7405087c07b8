"""
WAMP messages: a class for each that a client may send, validated by msgspec; and for each that
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
    The details of HELLO.
    """

    authid: str | None = None
    authmethods: list[str] | None = None
    authextra: Kwargs | None = None
    #: Whether each value is sent as one argument; our own client requests this.
    whole_values: bool | None = msgspec.field(default=None, name="_whole_values")


class CallOptions(msgspec.Struct, frozen=True):
    """
    The options of CALL.
    """

    receive_progress: bool | None = None
    timeout: Timeout | None = None


class PublishOptions(msgspec.Struct, frozen=True):
    """
    The options of PUBLISH: whether the client requests an answer.
    """

    acknowledge: bool | None = None


class YieldOptions(msgspec.Struct, frozen=True):
    """
    The options of YIELD: whether it is a progressive result.
    """

    progress: bool | None = None


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """
    A list whose first element is the message type.
    """


class Hello(_Message, frozen=True, tag=1):
    """
    HELLO: the client asks to join a realm.
    """

    realm: str
    details: HelloDetails


class Abort(_Message, frozen=True, tag=3):
    """
    ABORT: the client gives up joining.
    """

    details: Kwargs
    reason: str


class Authenticate(_Message, frozen=True, tag=5):
    """
    AUTHENTICATE: the answer to a challenge.
    """

    signature: str
    extra: Kwargs


class Goodbye(_Message, frozen=True, tag=6):
    """
    GOODBYE: the client leaves, or answers our GOODBYE.
    """

    details: Kwargs
    reason: str


class Error(_Message, frozen=True, tag=8):
    """
    ERROR: a call of a client's procedure failed.
    """

    kind: int
    request: Id
    details: Kwargs
    uri: str
    args: Args = []
    kwargs: Kwargs = {}


class Publish(_Message, frozen=True, tag=16):
    """
    PUBLISH: an event from the client, which is not delivered.
    """

    request: Id
    options: PublishOptions
    topic: str


class Subscribe(_Message, frozen=True, tag=32):
    """
    SUBSCRIBE: the client subscribes to a topic.
    """

    request: Id
    options: Kwargs
    topic: str


class Unsubscribe(_Message, frozen=True, tag=34):
    """
    UNSUBSCRIBE: the client ends a subscription.
    """

    request: Id
    subscription: Id


class Call(_Message, frozen=True, tag=48):
    """
    CALL: the client calls a procedure.
    """

    request: Id
    options: CallOptions
    procedure: str
    args: Args = []
    kwargs: Kwargs = {}


class Cancel(_Message, frozen=True, tag=49):
    """
    CANCEL: the client cancels a call.
    """

    request: Id
    options: Kwargs


class Register(_Message, frozen=True, tag=64):
    """
    REGISTER: the client registers a procedure of its own.
    """

    request: Id
    options: Kwargs
    procedure: str


class Unregister(_Message, frozen=True, tag=66):
    """
    UNREGISTER: the client withdraws a procedure.
    """

    request: Id
    registration: Id


class Yield(_Message, frozen=True, tag=70):
    """
    YIELD: the result of a call of a client's procedure.
    """

    request: Id
    options: YieldOptions
    args: Args = []
    kwargs: Kwargs = {}


Request: TypeAlias = Publish | Subscribe | Unsubscribe | Register | Unregister
Message: TypeAlias = (
    Hello | Abort | Authenticate | Goodbye | Error | Publish | Subscribe | Unsubscribe | Call
    | Cancel | Register | Unregister | Yield
)  # fmt: skip


def welcome(session: int, details: Mapping[str, Any]) -> Frame:
    """
    WELCOME: the client has joined.
    """
    return [2, session, details]


def abort(reason: str, message: str = "") -> Frame:
    """
    ABORT: the client was refused, or violated the protocol.
    """
    return [3, {"message": message} if message else {}, reason]


def challenge(method: str, extra: Mapping[str, Any]) -> Frame:
    """
    CHALLENGE: the client has to authenticate.
    """
    return [4, method, extra]


def goodbye(reason: str, message: str = "") -> Frame:
    """
    GOODBYE: the session is over.
    """
    return [6, {"message": message} if message else {}, reason]


def error(kind: int, request: int, failure: RPCError) -> Frame:
    """
    ERROR: a request of the message type *kind* failed.
    """
    return _payload([8, kind, request, {}, failure.uri], failure.args, failure.kwargs)


def refused(message: Request, failure: RPCError) -> Frame:
    """
    ERROR: the request of a message failed.
    """
    kind: Any = message.__struct_config__.tag
    return error(kind, message.request, failure)


def subscribed(request: int, subscription: int) -> Frame:
    """
    SUBSCRIBED: the client is subscribed to a topic.
    """
    return [33, request, subscription]


def unsubscribed(request: int) -> Frame:
    """
    UNSUBSCRIBED: the subscription is ended.
    """
    return [35, request]


def event(subscription: int, publication: int, args: Sequence[Any], kwargs: Named) -> Frame:
    """
    EVENT: an event for a subscriber.
    """
    return _payload([36, subscription, publication, {}], args, kwargs)


def result(
    request: int, args: Sequence[Any] = (), kwargs: Named = None, *, progress: bool = False
) -> Frame:
    """
    RESULT: the result of a call, or a progressive one.
    """
    return _payload([50, request, {"progress": True} if progress else {}], args, kwargs)


def registered(request: int, registration: int) -> Frame:
    """
    REGISTERED: the client's procedure is registered.
    """
    return [65, request, registration]


def unregistered(request: int) -> Frame:
    """
    UNREGISTERED: the client's procedure is removed.
    """
    return [67, request]


def invocation(request: int, registration: int, args: Sequence[Any], kwargs: Named) -> Frame:
    """
    INVOCATION: call a procedure of the client.
    """
    return _payload([68, request, registration, {}], args, kwargs)


def interrupt(request: int) -> Frame:
    """
    INTERRUPT: cancel an invocation.
    """
    return [69, request, {"mode": "killnowait"}]


def _payload(head: Frame, args: Sequence[Any], kwargs: Named) -> Frame:
    if kwargs:
        head += args, kwargs
    elif args:
        head.append(args)
    return head
