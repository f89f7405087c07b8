"""
The registry of an application: which sockets belong to which session, and the orders that close
them.

Over 300 lines long: most of it documents the options and signals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from ..connections.connection import Connection
from ..exceptions import NotSetUp, SessionEnded
from ..options import Expiry, Limits, PushQueue, Timeouts
from ..sessions.journal import Journal
from ..sessions.session import DEFAULT_SESSION_KEY, SessionKeys
from ..signals import (
    AuthDetails,
    CloseDetails,
    FailDetails,
    HandshakeDetails,
    HookList,
    OpenDetails,
    OrderDetails,
    PresenceDetails,
    Signal,
    Signals,
)
from ..typing import (
    Authorize,
    ConnectionContext,
    Identify,
    IdFactory,
    Labels,
    Origins,
    SupportsClose,
    WebSocketHook,
)
from .by_hand import add_by_hand, is_unaffected, remove_by_hand
from .cluster import Cluster
from .core import Core
from .handles import Handles, add_resolving
from .hooks import Overrides
from .ids import DEFAULT_ID_FACTORY, Ids
from .operations import Operations, add_answers
from .orders import Orders
from .proofs import Proofs
from .push import Pushes
from .queries import Queries
from .request_orders import ScheduledOrders
from .settings import Options, expect, expect_callable, expect_identify, expect_key, option
from .single_process import SingleProcess
from .threads import ThreadSafe

__all__ = ["SessionWSRegistry"]


class SessionWSRegistry(
    Ids,
    Orders,
    ScheduledOrders,
    Proofs,
    Pushes,
    Queries,
    Operations,
    Handles,
    Mapping[Hashable, "frozenset[web.WebSocketResponse]"],
):
    """
    The sockets of this process by the id of their session, and the orders to close them.

    As a mapping it returns a snapshot of the open sockets of an id. Call all methods in the event
    loop that the application runs in; from other threads, use :attr:`threadsafe`.

    Args:
        id_factory: Called with the request, sync or async; returns a new hashable id.
        session_key: The key of the id in the session.
        identify: Called with the request, sync or async; returns the identity that its session
            belongs to, a hashable, or ``None`` if it is anonymous. It reads the session that
            the request carries; ``aiohttp_security.authorized_userid`` can be used. With it,
            log-ins and log-outs are detected without a call by the application. To limit how
            long the identity is valid, return an :class:`~aiohttp_session_ws.typing.Identified`.
        labels: Called as ``identify`` is; returns a dict of further names that the session can
            be ended by, at most 8: ``{"device": ..., "sid": ...}``.
        authorize: Called with the request before the upgrade, sync or async. A handshake for
            which it returns something false gets 403; one for which it returns a
            :class:`~aiohttp_session_ws.Close` is accepted and closed with it, which a page's
            script can see.
        origins: Which pages may connect: ``"same"``, a collection of origins, a callable, or
            ``None`` for all.
        limits: Limits on the number of sockets and on rates; by default, there are none.
        expiry: When sockets expire with their sessions, and how long ends are kept.
        push_queue: How many pushed messages are queued for a slow peer, and for how long.
        timeouts: How long to wait for peers, handlers and responses.
        journal: The path of a file that keeps ended sessions across restarts of the process;
            for a registry of one process.
        handle_key: A secret that all processes share, for :meth:`handle`.

    Attributes:
        connection_ctx: Async generator functions with one ``yield``, like aiohttp's
            ``cleanup_ctx``. Each is called with every
            :class:`~aiohttp_session_ws.Connection` that opens; the code after the ``yield`` runs
            however the connection ends. May be used as a decorator.
        on_request: Async callables, called with each
            :class:`~aiohttp_session_ws.WebSocket` before its handler is, to connect on the
            handler's behalf or to refuse. May be used as a decorator.
        on_response: Async callables, called with the websocket once its handler has returned;
            it may still be open. They nest with those of ``on_request`` as middlewares do: the
            first one there is the last one here. May be used as a decorator.
        on_handshake: Signal; a handshake has passed the origin check.
        on_auth_success: Signal; ``authorize`` has accepted a handshake.
        on_auth_fail: Signal; ``authorize`` has rejected a handshake.
        on_fail: Signal; a handshake failed, for whatever reason.
        on_open: Signal; a socket has opened; the contexts and the handler run next.
        on_close: Signal; a socket is removed from the registry next.
        on_first: Signal; the first socket of an identity on any node has opened. Sent on all
            nodes within seconds; add receivers before the application starts.
        on_last: Signal; the last one has been gone for 5 s, or with its node.
        on_order: Signal; an order has taken effect on this node, whichever node gave it. It is
            sent in the background, with its :class:`~aiohttp_session_ws.signals.OrderDetails`.
        on_refresh: Signal; the session of an open connection was renewed with
            ``sockets="keep"``; the connection stays open under the new id.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option has an invalid value.
    """

    def __init__(
        self,
        *,
        id_factory: IdFactory = DEFAULT_ID_FACTORY,
        session_key: str = DEFAULT_SESSION_KEY,
        identify: Identify | None = None,
        labels: Labels | None = None,
        authorize: Authorize | None = None,
        origins: Origins = "same",
        limits: Limits | None = None,
        expiry: Expiry | None = None,
        push_queue: PushQueue | None = None,
        timeouts: Timeouts | None = None,
        journal: str | Path | None = None,
        handle_key: str | bytes | None = None,
    ) -> None:
        options = Options(
            id_factory=expect_callable(id_factory, "id_factory"),
            keys=SessionKeys(expect(session_key, str, "session_key")),
            identify=expect_callable(identify, "identify"),
            labels=expect_callable(labels, "labels"),
            authorize=expect_callable(authorize, "authorize"),
            origins=origins,
            limits=option(limits, Limits, "limits"),
            expiry=option(expiry, Expiry, "expiry"),
            push_queue=option(push_queue, PushQueue, "push_queue"),
            timeouts=option(timeouts, Timeouts, "timeouts"),
            handle_key=expect_key(handle_key, "handle_key"),
        )
        expect_identify(options)
        self._core = Core(
            ids=self,
            hooks=self,
            overrides=self._overrides(id_factory),
            options=options,
            cluster=self._make_cluster(journaled=journal is not None),
            journal=None if journal is None else Journal(journal),
            signals=Signals(self),
        )
        self._finish(self._core)

    def _finish(self, core: Core) -> None:
        """
        Register the answers to other nodes' requests, and expose the signals.
        """
        add_answers(core)
        add_resolving(core)
        signals = core.signals
        self.connection_ctx: HookList[ConnectionContext[Connection]] = signals.connection_ctx
        self.on_request: HookList[WebSocketHook[Any]] = signals.on_request
        self.on_response: HookList[WebSocketHook[Any]] = signals.on_response
        self.on_handshake: Signal[HandshakeDetails] = signals.on_handshake
        self.on_auth_success: Signal[AuthDetails] = signals.on_auth_success
        self.on_auth_fail: Signal[AuthDetails] = signals.on_auth_fail
        self.on_fail: Signal[FailDetails] = signals.on_fail
        self.on_open: Signal[OpenDetails] = signals.on_open
        self.on_close: Signal[CloseDetails] = signals.on_close
        self.on_first: Signal[PresenceDetails] = signals.on_first
        self.on_last: Signal[PresenceDetails] = signals.on_last
        self.on_order: Signal[OrderDetails] = signals.on_order
        self.on_refresh: Signal[Connection] = signals.on_refresh

    def adopt(
        self, request: web.Request, ws: web.WebSocketResponse
    ) -> AbstractAsyncContextManager[Connection, None]:
        """
        Tie a websocket that another library has opened to the session of *request*.

        Enter it in the task of the handler, after ``ws.prepare()``. It returns the websocket's
        :class:`~aiohttp_session_ws.Connection`, which takes no pushes. On exit, the websocket is
        closed and waited for.

        Args:
            request: The request that was upgraded.
            ws: The websocket.

        Raises:
            NotSetUp: If *ws* has not been prepared, or :func:`setup` was not called.
            SessionWSClosed: If the session may not open a socket; *ws* has been closed with a
                code for the reason. Nothing is registered in that case.
        """
        if self._core.adopt is None:
            raise NotSetUp("no application: call aiohttp_session_ws.setup(app, registry) first")
        return self._core.adopt(request, ws)

    def _make_cluster(self, *, journaled: bool) -> Cluster:
        return SingleProcess(journaled=journaled)

    @classmethod
    def _overrides(cls, id_factory: IdFactory) -> Overrides:
        base = SessionWSRegistry

        def own(*names: str) -> bool:
            return any(getattr(cls, name) is not getattr(base, name) for name in names)

        ids = own("get_id", "set_id", "delete_id")
        made_by_us = id_factory is DEFAULT_ID_FACTORY and not own("generate_id", "new_id")
        return Overrides(
            ids=ids,
            random_ids=made_by_us and not ids,
            register=own("register"),
            unregister=own("unregister"),
            close_all=own("close_all"),
            close_all_session=own("close_all_session"),
        )

    @property
    def threadsafe(self) -> ThreadSafe:
        """
        The registry's methods that other threads may call; each blocks, for 10 s at most.
        """
        return ThreadSafe(self._core, self)

    @property
    def state(self) -> Literal["connected", "degraded"]:
        """
        ``"connected"``, or ``"degraded"`` while the journal can't be written.
        """
        journal = self._core.journal
        return "degraded" if journal is not None and journal.failing else "connected"

    def __bool__(self) -> bool:
        """
        Return true, also without connections, so that ``registry or default`` works as expected.
        """
        return True

    def __getitem__(self, session_ws_id: Hashable) -> frozenset[web.WebSocketResponse]:
        connections = self._core.connections.open.of(session_ws_id)
        if not connections:
            raise KeyError(session_ws_id)
        return frozenset(connection.ws for connection in connections if not connection.is_stream)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._core.connections.open.keys())

    def __len__(self) -> int:
        return len(self._core.connections.open)

    def register(
        self, session_ws_id: Hashable, ws: SupportsClose, *, identity: Hashable | None = None
    ) -> Awaitable[None] | None:
        """
        Add *ws* to the sockets of a session.

        ``session_ws`` calls an override of this, sync or async, when a socket has opened.
        Whatever the override does, the socket is registered before the call and until its
        transport is closed. The application may register any object that has a ``close()``; an
        order calls that, with ``code=`` and ``message=`` if it accepts them.

        Args:
            session_ws_id: The id of the session.
            ws: The object to close with the session.
            identity: The identity that it belongs to; an end of that identity then closes it.
                Without it only an end of the session does. An end of a label never does.

        Raises:
            SessionEnded: If the session has ended; or, outside of a request of that session, if
                *identity* was ever ended, since it isn't known there when the session began.
                Nothing is registered.
            NotSetUp: If *identity* is given and the registry has no ``identify``.
            InvalidSessionWSId: If *session_ws_id* can't be an id.
            TypeError: If *ws* can't be hashed, or has no ``close()``.
        """
        core = self._core
        core.expect_loop()
        if type(ws) is not web.WebSocketResponse:  # its hash is slow, and never fails
            hash(ws)
            if not callable(getattr(ws, "close", None)):
                kind = type(ws).__name__
                raise TypeError(
                    f"register(id, ws): ws must have a close() method, a {kind} has none"
                )
        if (
            identity is None
            and type(session_ws_id) is str
            and (not core.records.epoch or is_unaffected(core, session_ws_id))
        ):
            core.connections.open.add_object(session_ws_id, ws)
            return None
        if identity is not None:
            core.identifier.subject_of(identity)
        if not add_by_hand(core, core.usable_id(session_ws_id), ws, identity):
            raise SessionEnded("the session has ended: the object was not registered, close it")
        return None

    def unregister(self, session_ws_id: Hashable, ws: SupportsClose) -> Awaitable[None] | None:
        """
        Remove an object that the application has registered; do nothing if there is none.

        ``session_ws`` calls an override of this when a socket is gone. It can't remove a
        socket that ``session_ws`` still serves.
        """
        core = self._core
        core.expect_loop()
        if type(session_ws_id) is not str or not core.connections.open.discard_object(
            session_ws_id, ws
        ):
            remove_by_hand(core, core.usable_id(session_ws_id), ws)
        return None


def core_of(registry: SessionWSRegistry) -> Core:
    """
    Return the parts of a registry.
    """
    return registry._core
