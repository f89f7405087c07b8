"""
The handshake: from a request to an open socket in the index, in one order of steps.

1. Check that there is room, then check the origin.
2. Arrival, unless the middleware has judged the request.
3. Add it to the index as *opening*: from here on orders apply to it.
4. ``identify``. Other nodes' records are read once, then the session is judged again.
5. ``authorize``, then the limits.
6. Refuse it if an order has rejected it meanwhile; then the upgrade.
7. Open.

Over 300 lines long: one class, whose methods are these steps.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Hashable
from typing import Final

from aiohttp import web

from .._lineage import Kind, Lineage, Subject
from .._origin import is_websocket
from .._refused import Forbidden, Unavailable
from .._tasks import maybe_await
from ..close_codes import INTERNAL_ERROR, RECONNECT, SESSION_ENDED, SESSION_EXPIRED, Close
from ..connections.connection import TrackedConnection
from ..connections.limits import make_room
from ..connections.metered import MeteredWebSocket
from ..connections.websocket import ServedWebSocket
from ..exceptions import (
    HandshakeRefused,
    IdentifyFailed,
    InvalidIdentity,
    NotSetUp,
    SessionWSClosed,
)
from ..registry.arrival import Arrival
from ..registry.deferred import context_for
from ..sessions import close_orders
from ..sessions.context import NO_ORDERS, RequestContext, context_of
from ..sessions.session import (
    put_session,
    storage_in,
    was_changed,
)
from ..sessions.status import ALIVE
from ..signals import AuthDetails, HandshakeDetails
from ..typing import WebSocketOptions
from .lookup import core_from, warn_workers
from .refusal import report_refusal

__all__: list[str] = []

#: Seconds between two pings; the pong may take half of that, then the peer is considered dead.
HEARTBEAT: Final = 30.0


class Handshake:
    """
    The handshake of one request.

    Args:
        request: The request.
        options: Those of the websocket response.
        save: Whether an id that the session is given by the handshake is saved; else it ends
            with the connection.

    Attributes:
        core: The registry's parts.
        denied: Whether ``authorize`` refused it, by what it returned or raised.

    Raises:
        NotSetUp: If there is no registry.
    """

    __slots__ = (
        "_connection",
        "_context",
        "_options",
        "_request",
        "_saves",
        "_task",
        "core",
        "denied",
    )

    def __init__(
        self, request: web.Request, options: WebSocketOptions, *, save: bool = True
    ) -> None:
        self.core = core = core_from(request)
        self.denied = False
        self._saves = save
        self._request = request
        # Passing the loop saves finding it, which takes a system call on Python 3.11.
        self._task = asyncio.current_task(core.loop)
        self._options = options
        self._context: RequestContext | None = None
        self._connection: TrackedConnection | None = None

    async def open(self) -> tuple[RequestContext, TrackedConnection]:
        """
        Perform the steps.

        Raises:
            HandshakeRefused: If the session may not open a socket.
            aiohttp.web.HTTPException: If the handshake is refused for another reason.
            SessionWSClosed: If an order was given while the upgrade was written.
        """
        core, request = self.core, self._request
        core.handshakes.begin(self, request, self._task)
        try:
            context = context_of(request)
            self._check_request(context)
            if not core.origin_policy.accepted_before(request):
                await core.origin_policy.check(request)
            if context is None:
                context = await context_for(core, request)
            if context.session_ws_id is None and context.status.alive:
                await Arrival(core, request, context).give_id()
            connection = self._file(context)
            if self._has_checks(context):
                await self._run_checks(context, connection)
            await self._upgrade(connection)
            if connection.sparse is not None and connection.rejected_with is not None:
                # By an order that was given meanwhile.
                await core.connections.wait_closed(connection, connection.rejected_with)
                raise SessionWSClosed(connection.ws)
            self._open(context, connection)
        except BaseException as exc:
            error = core.handshakes.fail(self, exc)
            self._clean_up()
            await report_refusal(core, request, error, "authorize" if self.denied else None)
            if error is exc:
                raise
            raise error from exc
        core.handshakes.end(self)
        return context, connection

    def _has_checks(self, context: RequestContext) -> bool:
        """
        Return whether anything has to be awaited before the upgrade.
        """
        core, signals = self.core, self.core.signals
        return bool(
            core.handshake_may_wait
            or core.authorize is not None
            or context.id_given
            or signals.on_handshake
            or signals.on_auth_success
        )

    async def _run_checks(self, context: RequestContext, connection: TrackedConnection) -> None:
        """
        Identify it, read other nodes' records, authorize it, and apply the limits; then save a
        session that was given an id.
        """
        core, request = self.core, self._request
        if core.signals.on_handshake:
            details = HandshakeDetails(request, connection.session_ws_id)
            await core.signals.on_handshake.send(details)
        if core.identifier.configured:
            await self._identify(context, connection)
        if core.cluster.remote and (not context.checked or core.cluster.may_miss_orders):
            await core.cluster.check_handshake(connection)
            self._judge(connection)
        if core.authorize is not None or core.signals.on_auth_success:
            await self._authorize(connection)
        if core.limits.per_session is not None or core.limits.per_identity is not None:
            await self._apply_limits(connection)
        if context.id_given:
            await self._save(context, connection)
        if core.cluster.remote and core.cluster.may_miss_orders:  # it may have missed an order
            await core.cluster.check_handshake(connection)
            self._judge(connection)
        self._expect_not_rejected(connection)

    def _make_response(self) -> web.StreamResponse:
        """
        Return the response of the connection.
        """
        kind = MeteredWebSocket if self.core.traffic.metered else ServedWebSocket
        if "heartbeat" in self._options:
            return kind(**self._options)
        return kind(heartbeat=HEARTBEAT, **self._options)

    def _upgrade(self, connection: TrackedConnection) -> Awaitable[object]:
        """
        Write the response to the handshake.
        """
        answer: Awaitable[object] = connection.ws.prepare(self._request)
        return answer

    async def _apply_limits(self, connection: TrackedConnection) -> None:
        """
        Apply the limits of the session and of the identity.
        """
        core = self.core
        self._expect_not_rejected(connection)  # a rejected handshake must not evict others
        if core.places is not None:
            await core.places.take(connection)
        else:
            await make_room(core.limits, core.connections, connection)

    def _check_request(self, context: RequestContext | None) -> None:
        """
        Refuse a handshake before its session is loaded.
        """
        if not is_websocket(self._request):
            text = "this address speaks websocket only: send GET with 'Upgrade: websocket'"
            raise web.HTTPBadRequest(text=text)
        self._check_admission(context)

    def _check_admission(self, context: RequestContext | None) -> None:
        """
        Refuse a connection if there is no room, or if the request has one already: a second
        response would be written into the middle of the first one.
        """
        if context is not None and context.connection is not None:
            raise NotSetUp(
                "this request is tied to its session already: enter one session_ws(),"
                " session_stream() or adopt() per request"
            )
        self._expect_room()

    def _expect_room(self) -> None:
        core = self.core
        if core.drainer.refuses:
            raise Unavailable("draining", "websocket refused: the server is stopping")
        if core.limits.total is not None and core.connections.total >= core.limits.total:
            raise Unavailable("total", "websocket refused: too many connections")

    def _file(self, context: RequestContext) -> TrackedConnection:
        """
        Judge a handshake and file it as opening, without an await in between.
        """
        core, request = self.core, self._request
        self._context = context
        if not context.behind_middleware:
            core.warn.missing_middleware()
        context.handshake_failed = True  # until it is open
        lineage = self._expect_alive(context)
        if core.traffic.rated:
            core.traffic.expect_rate(lineage.token)
        connection = TrackedConnection(
            context.session_ws_id, self._make_response(), request, self._task, context.started
        )
        connection.lineage = lineage
        if context.epoch == core.records.epoch:
            # It was alive on arrival, and no record has changed since then.
            self._expect_no_order(connection, "id", connection.session_ws_id)
        else:
            self._judge(connection)
        self._expect_room()
        core.connections.add_handshake(connection)
        self._connection = connection
        return connection

    def _expect_alive(self, context: RequestContext) -> Lineage:
        if context.lineage is None or (context.session_ws_id is None and not context.fresh):
            self.core.warn.no_id()
            raise Forbidden("no id", "websocket refused: the session has no session ws id")
        if context.status is ALIVE and context.orders is NO_ORDERS:
            return context.lineage
        close = self.core.close_for(context.status)
        if context.orders.ended is not None or (context.fresh and not context.status.carries):
            close = SESSION_ENDED  # also if it was replaced longer ago than the grace
        if close is not None:
            raise HandshakeRefused(close)
        return context.lineage

    def _judge(self, connection: TrackedConnection) -> None:
        """
        Refuse a handshake whose session has ended or was replaced, or that may have missed an
        order.
        """
        core = self.core
        close = core.close_for(core.status_of(connection))
        if close is not None:
            raise HandshakeRefused(close)
        self._expect_no_order(connection, "id", connection.session_ws_id)
        self._expect_not_rejected(connection)

    def _expect_no_order(self, connection: TrackedConnection, kind: Kind, value: Hashable) -> None:
        now, started = time.monotonic(), connection.started
        orders = self.core.close_orders
        if orders.latest < started and now - started < close_orders.HANDSHAKE_LIMIT:
            return  # there was none since it began
        if orders.missed(Subject(kind, value), started, now):
            raise HandshakeRefused(RECONNECT)

    def _expect_not_rejected(self, connection: TrackedConnection) -> None:
        """
        Refuse a handshake that an order has rejected meanwhile, or when the server is stopping.
        """
        if self.core.drainer.refuses:
            raise Unavailable("draining", "websocket refused: the server is stopping")
        if connection.sparse is not None and connection.rejected_with is not None:
            raise HandshakeRefused(connection.rejected_with)

    async def _identify(self, context: RequestContext, connection: TrackedConnection) -> None:
        """
        Identify the connection, judge it again, and file it, without an await in between.
        """
        core = self.core
        try:
            owner = await core.identifier.of(self._request)
        except (IdentifyFailed, InvalidIdentity) as exc:
            text = "websocket refused: the session can't be identified now"
            raise Unavailable("identify", text) from exc
        core.identifier.remember(self._request, connection.lineage.token, owner)
        if owner.until <= time.time():
            raise HandshakeRefused(SESSION_EXPIRED)
        if owner.until < math.inf:
            connection.until = owner.until
        subjects = owner.subjects
        if not subjects:
            return
        if context.epoch != core.records.epoch:  # else it is alive, whatever its identity
            found = core.judge(connection.lineage, connection.session_ws_id, owner)
            close = core.close_for(found)
            if close is not None:
                raise HandshakeRefused(close)
        for kind, value in subjects:
            self._expect_no_order(connection, kind, value)
        core.connections.file_identity(connection, owner.identity, owner.labels)

    async def _authorize(self, connection: TrackedConnection) -> None:
        core, request = self.core, self._request
        details = AuthDetails(request, connection.session_ws_id, connection.identity)
        if core.authorize is not None:
            try:
                allowed = await maybe_await(core.authorize(request))
            except web.HTTPException as exc:
                if exc.status < 500:  # a denial as well
                    await core.signals.on_auth_fail.send(details)
                    self.denied = True
                raise
            if isinstance(allowed, Close) or not allowed:
                await core.signals.on_auth_fail.send(details)
                self.denied = True
                if isinstance(allowed, Close):
                    raise HandshakeRefused(allowed)
                raise Forbidden("authorize", "websocket refused: not authorized")
        if core.signals.on_auth_success:
            await core.signals.on_auth_success.send(details)

    async def _save(self, context: RequestContext, connection: TrackedConnection) -> None:
        """
        Save a session that was given its id by this handshake.

        aiohttp_session doesn't save the session of a websocket: by then the response has been
        sent. A session that holds data is loaded again right before: saving an older copy could
        undo a log-out.
        """
        request = self._request
        session = context.session
        connection.keeps_id = self._saves
        if not self._saves or session is None or not was_changed(session):
            return
        storage = storage_in(request)
        if storage is None:
            return
        self._expect_not_rejected(connection)  # takes precedence over a changed session
        own = self.core.keys.own
        # The data as loaded, since the application's callables may have changed the session.
        loaded, context.loaded = context.loaded or {}, None
        held = {key: value for key, value in loaded.items() if key not in own}
        if held:
            stored = await storage.load_session(request)
            if {key: value for key, value in stored.items() if key not in own} != held:
                raise HandshakeRefused(RECONNECT)
        self._expect_not_rejected(connection)
        await storage.save_session(request, connection.ws, session)

    def _open(self, context: RequestContext, connection: TrackedConnection) -> None:
        core = self.core
        context.handshake_failed = False
        context.connection = connection
        if context.content is not None and not connection.is_stream:
            context.content = None  # its handler's changes of the session are not settled
        core.connections.open_connection(connection)
        if core.traffic.metered:
            core.traffic.meter(connection)
        core.revalidator.watch(connection)
        if core.first_socket and not core.cluster.remote:
            warn_workers(core, self._request)

    def _clean_up(self) -> None:
        """
        Clean up after a handshake that failed.
        """
        core, context, connection = self.core, self._context, self._connection
        if context is not None and not context.behind_middleware and context.given:
            put_session(self._request, None)  # the new id must not be saved with an error
        if connection is not None:
            self._close_unopened(connection)
            core.connections.discard_handshake(connection)

    def _close_unopened(self, connection: TrackedConnection) -> None:
        """
        Close the socket of a handshake that failed after its response was sent.
        """
        if connection.ws.prepared:
            self.core.connections.close_soon([connection], INTERNAL_ERROR)
