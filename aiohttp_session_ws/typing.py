"""
Type aliases and protocols for the annotations of an application.
"""

from __future__ import annotations

import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
)
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar

from aiohttp import web

__all__ = [
    "Authorize",
    "ConnectionContext",
    "Data",
    "IdFactory",
    "Identified",
    "Identify",
    "Labels",
    "Origins",
    "SupportsClose",
    "WebSocketHook",
    "WebSocketOptions",
]

C = TypeVar("C")

#: A message that can be pushed: a text, or bytes for a binary message.
Data: TypeAlias = str | bytes | bytearray | memoryview

#: Returns a new session ws id; sync or async.
IdFactory: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable]]


class Identified(NamedTuple):
    """
    An identity that is valid until a certain time; ``identify`` may return it, as for a token.

    Attributes:
        identity: Whom the session belongs to; ``None`` if it is anonymous.
        until: When its sockets are closed with 4401, in seconds since the epoch: the ``exp`` of
            a token. No socket opens after that time.
    """

    identity: Hashable | None
    until: float = math.inf


#: Returns whom a request's session belongs to, ``None`` if it is anonymous; sync or async. With an
#: :class:`Identified` it also returns until when.
Identify: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable | None] | None]

#: Returns further names by which a request's session can be ended, as a dict; sync or async.
Labels: TypeAlias = Callable[[web.Request], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]

#: Returns whether a handshake may open a socket, sync or async; or a ``Close``, which is sent to
#: the client.
Authorize: TypeAlias = Callable[[web.Request], object]

#: Which pages may connect: those of the same host, those of the listed origins, those that a
#: callable accepts, or all.
Origins: TypeAlias = (
    Literal["same"] | Collection[str] | Callable[[web.Request], bool | Awaitable[bool]] | None
)

#: An async generator function with one ``yield``: ``ConnectionContext[Connection]``.
ConnectionContext: TypeAlias = Callable[[C], AsyncIterator[None]]

#: An async callable that is called with each websocket: ``WebSocketHook[WebSocket]``.
WebSocketHook: TypeAlias = Callable[[C], Awaitable[object]]


class SupportsClose(Protocol):
    """
    An object that can be closed, and so may be registered by hand.
    """

    @property
    def close(self) -> Any:
        """
        Called with ``code=`` and ``message=`` if it accepts them; may be async.
        """


class WebSocketOptions(TypedDict, total=False):
    """
    The options of :class:`aiohttp.web.WebSocketResponse`.
    """

    timeout: float
    receive_timeout: float | None
    autoclose: bool
    autoping: bool
    heartbeat: float | None
    protocols: Iterable[str]
    compress: bool
    max_msg_size: int
    writer_limit: int
    decode_text: bool
