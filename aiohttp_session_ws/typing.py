"""
Aliases and protocols to annotate an application with.
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

#: What can be pushed: a text, or bytes for a binary message.
Data: TypeAlias = str | bytes | bytearray | memoryview

#: Returns a new session ws id; sync or async.
IdFactory: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable]]


class Identified(NamedTuple):
    """
    What ``identify`` may return to say until when it holds, as for a token that expires.

    Attributes:
        identity: Whom the session belongs to; ``None`` if it is anonymous.
        until: When its sockets are closed with 4401, in seconds since the epoch: the ``exp`` of
            a token. From then on none is opened.
    """

    identity: Hashable | None
    until: float = math.inf


#: Returns whom a request's session belongs to, ``None`` for nobody; sync or async. An
#: :class:`Identified` says until when, too.
Identify: TypeAlias = Callable[[web.Request], Hashable | Awaitable[Hashable | None] | None]

#: Returns further names that a request's session can be ended by, as a dict; sync or async.
Labels: TypeAlias = Callable[[web.Request], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]

#: Tells whether a handshake may open a socket, sync or async; a ``Close`` tells a page why not.
Authorize: TypeAlias = Callable[[web.Request], object]

#: Which pages may connect: those of this host, of these origins, those that a callable
#: accepts, or all.
Origins: TypeAlias = (
    Literal["same"] | Collection[str] | Callable[[web.Request], bool | Awaitable[bool]] | None
)

#: An async generator function with one ``yield``: ``ConnectionContext[Connection]``.
ConnectionContext: TypeAlias = Callable[[C], AsyncIterator[None]]

#: An async callable that is given each websocket: ``WebSocketHook[WebSocket]``.
WebSocketHook: TypeAlias = Callable[[C], Awaitable[object]]


class SupportsClose(Protocol):
    """
    What may be registered by hand: anything that can be closed.
    """

    @property
    def close(self) -> Any:
        """
        Called with ``code=`` and ``message=`` where it takes them; may be async.
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
