"""
The signals of a registry, and the details that their receivers are given.
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

#: What was ordered: ``"end"`` ends sessions, ``"close"`` makes sockets reconnect, ``"renew"`` and
#: ``"refresh"`` give a session another id, the latter without closing its sockets.
OrderKind: TypeAlias = Literal["end", "close", "renew", "refresh"]

#: What an order applies to; a lineage stands for a session whose id isn't known.
SubjectKind: TypeAlias = Literal["id", "identity", "label", "lineage"]


class Signal(aiosignal.Signal[D]):
    """
    A list of async callables that are awaited one after another.

    They run in the task of the handshake, so that a context variable set by a receiver
    is visible to the handler and to later receivers. An error of a receiver is logged, and the
    next one is called. Receivers may be added at any time::

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
    A handshake that passed the origin check, with a session that is alive as far as this node
    knows; the remaining checks follow.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuthDetails:
    """
    A handshake that ``authorize`` has accepted or refused; without ``authorize`` all are accepted.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)
    identity: Hashable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FailDetails:
    """
    A handshake that failed or was refused, for whatever reason.
    """

    request: web.Request
    exception: BaseException


@dataclass(frozen=True, slots=True)
class OpenDetails:
    """
    A socket that has opened; its contexts and its handler run next.
    """

    request: web.Request
    session_ws_id: Hashable = field(repr=False)
    ws: web.WebSocketResponse
    identity: Hashable | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CloseDetails:
    """
    A socket whose handler is done, and that is about to leave the registry.

    Attributes:
        request: The request that was upgraded.
        session_ws_id: The id of its session.
        identity: Whom the session belongs to; ``None`` if it is anonymous.
        ws: The socket; it may be closed already.
        code: The close code that was sent first, by either side; 1005 if a client's close
            frame had none, 1006 if there was no close frame.
        by: Who closed first: an ``order`` of the registry, the ``handler``, or the ``client``.
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
        subject_kind: What it applies to.
        subject: The id, the identity, the name and value of the label, or the lineage's token.
        by: Who gave it, as passed in ``by=``; ``None`` if that wasn't passed.
        sockets: How many open sockets of this node it closes.
        handshakes: How many handshakes of this node it refuses.
        node: The name of the node that gave it; empty without a cluster, or if this node missed
            the order and read its record later.
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
        The hash that stands for the subject in logs.
        """
        return fingerprint(self.subject)


@dataclass(frozen=True, slots=True)
class PresenceDetails:
    """
    An identity whose first socket has opened, or whose last one has gone.

    Attributes:
        identity: The identity.
        node: The name of the node that has or had the socket; empty without a cluster.
        news: Whether it has just happened. False if this process learns of it late, because it
            started later or missed it.
    """

    identity: Hashable = field(repr=False)
    node: str
    news: bool


class HookList(list[H]):
    """
    A list of callables that is also a decorator, which returns the function unchanged.
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
