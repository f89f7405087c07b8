"""
Signals of a registry, and what their receivers are given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import aiosignal
from aiohttp import web

from ._logging import fingerprint, log
from ._tasks import expect_awaitable
from .typing import ConnectionContext, WebSocketHook

__all__ = [
    "AuthDetails",
    "CloseDetails",
    "FailDetails",
    "HandshakeDetails",
    "HookList",
    "OpenDetails",
    "OrderDetails",
    "OrderKind",
    "PresenceDetails",
    "Signal",
    "Signals",
    "SubjectKind",
]

D = TypeVar("D")
H = TypeVar("H")

#: What was ordered: something has ended, sockets are to reconnect, or a session goes on under
#: another id, with its sockets closed or kept.
OrderKind: TypeAlias = Literal["end", "close", "renew", "refresh"]

#: What an order is about; a lineage stands for a session whose id isn't known.
SubjectKind: TypeAlias = Literal["id", "identity", "label", "lineage"]


class Signal(aiosignal.Signal[D]):
    """
    A list of async callables that are awaited one after another.

    They run in the task of the handshake, so that a context variable set by a receiver
    is seen by the handler and by later receivers. One that raises is logged and does
    not stop the others. Receivers may be added at any time::

        @registry.on_open
        async def greet(details: OpenDetails) -> None:
            await details.ws.send_str("hello")
    """

    def append(self, value: Callable[[D], Awaitable[object]]) -> None:
        """
        Add a receiver.

        Raises:
            TypeError: If it can't be called.
        """
        if not callable(value):
            raise TypeError(f"a receiver must be callable, not {value!r}")
        super().append(value)

    async def send(self, *args: D, **kwargs: Any) -> None:
        """
        Await each receiver in turn.
        """
        for receiver in tuple(self):
            try:
                await expect_awaitable(receiver(*args, **kwargs), receiver)
            except Exception:
                log.exception("a receiver of a signal failed: %r", receiver)


@dataclass(frozen=True, slots=True)
class HandshakeDetails:
    """
    A handshake of a page that may connect, and of a session that is alive as far as this node
    knows; whether it may open is decided next.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthDetails:
    """
    What ``authorize`` said of a handshake; without ``authorize`` all succeed.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)
    identity: Hashable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FailDetails:
    """
    A handshake that did not come to be an open socket, whatever the reason.
    """

    request: web.Request
    exception: BaseException


@dataclass(frozen=True, slots=True)
class OpenDetails:
    """
    A socket that is open; the contexts and its handler run next.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)
    ws: web.WebSocketResponse
    identity: Hashable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CloseDetails:
    """
    A socket that is about to be let go.

    Attributes:
        request: The request that was upgraded.
        session_ws_id: The session whose socket it is.
        identity: Whom that belongs to; ``None`` if nobody is known.
        ws: The socket; it may be closed already.
        code: The close code that was sent first, by either side; 1005 if a client's close
            frame had none, 1006 if there was no close frame.
        by: Who began: an ``order`` of the registry, the ``handler``, or the ``client``.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)
    ws: web.WebSocketResponse
    code: int
    by: Literal["order", "handler", "client"]
    identity: Hashable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class OrderDetails:
    """
    An order that has taken effect on this node, whichever node gave it.

    Attributes:
        kind: What was ordered.
        subject_kind: What it is about.
        subject: The id, the identity, the name and value of the label, or the token.
        by: Who gave it, as told to ``by=``; ``None`` if nobody said.
        sockets: How many open sockets of this node it closes.
        handshakes: How many handshakes of this node it refuses.
        node: The node that gave it; empty on a registry that knows no other, or if an order was
            missed and its record found later.
    """

    kind: OrderKind
    subject_kind: SubjectKind
    subject: Hashable = field(repr=False)
    by: str | None
    sockets: int
    handshakes: int
    node: str

    @property
    def fingerprint(self) -> str:
        """
        What the subject is called in logs.
        """
        return fingerprint(self.subject)


@dataclass(frozen=True, slots=True)
class PresenceDetails:
    """
    An identity that has come, with its first socket, or gone, with its last.

    Attributes:
        identity: Whose socket it is.
        node: Where it was; empty on a registry that knows no other.
        news: Whether it has just happened. False if this process only learns of it now, since it
            has started later, or missed it.
    """

    identity: Hashable = field(repr=False)
    node: str
    news: bool


class HookList(list[H]):
    """
    A list of callables that is a decorator, too: it gives the function back.
    """

    def __call__(self, hook: H) -> H:
        """
        Add *hook* to the list.

        Raises:
            TypeError: If it can't be called.
        """
        if not callable(hook):
            raise TypeError(f"a hook must be callable, not {hook!r}")
        self.append(hook)
        return hook


class Signals:
    """
    The signals and hooks of a registry.

    Args:
        owner: The registry.
    """

    def __init__(self, owner: object) -> None:
        self.on_handshake: Signal[HandshakeDetails] = Signal(owner)
        self.on_auth_success: Signal[AuthDetails] = Signal(owner)
        self.on_auth_fail: Signal[AuthDetails] = Signal(owner)
        self.on_fail: Signal[FailDetails] = Signal(owner)
        self.on_open: Signal[OpenDetails] = Signal(owner)
        self.on_close: Signal[CloseDetails] = Signal(owner)
        self.on_order: Signal[OrderDetails] = Signal(owner)
        self.on_first: Signal[PresenceDetails] = Signal(owner)
        self.on_last: Signal[PresenceDetails] = Signal(owner)
        self.on_refresh: Signal[Any] = Signal(owner)  # of connections
        self.connection_ctx: HookList[ConnectionContext[Any]] = HookList()
        self.on_request: HookList[WebSocketHook[Any]] = HookList()
        self.on_response: HookList[WebSocketHook[Any]] = HookList()
