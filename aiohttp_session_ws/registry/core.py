"""
The parts of a registry, wired together.

Theory of operation
===================

*State decides, messages hurry, revalidation is the net*: records decide which sockets may live,
published orders make all nodes act at once, and a periodic check catches what both have missed.

Every session carries its id and a *lineage*: a random token, a generation and the time it began.
The end or renewal of a session is a *record* (``sessions/records.py``), and one function judges by
the records whether a session is alive, replaced or ended (``sessions/status.py``). It is called
for a request on arrival, for a handshake, when a request is settled, by the periodic check, and
when a node receives records that it had missed.

*A request* is judged on arrival, before a handler sees its session (``arrival.py``). If the
session has ended, the request is given a new, empty one. When the handler is done, the request is
settled, exactly once and before the response is sent (``settle.py``): id, lineage and identity are
compared with those on arrival, changes are recorded, and what would revive an ended session isn't
saved.

*An order* (``order.py``) consists of records, and of subjects (ids, identities, labels) whose
sockets are to reconnect. It takes effect in the same way on every node, whoever gave it:
:meth:`.Effects.apply` merges the records, then judges every connection that they may concern.
Handshakes are rejected at once. Open sockets are closed by :meth:`.Effects.carry_out`; for an
order of a request about its own session, after the response has been sent (``deferred.py``).

*A log-out* by one of our helpers (``request_orders.py``) is recorded before anything is awaited. A
log-out without one, as by emptying the session, is detected when its request is settled. All other
orders, such as an administrator's, are in ``orders.py``.

*A handshake* (``web/handshake.py``) goes through fixed steps that decide whether it may open. It
is judged and added to the index with no await in between: the judgement sees the orders given
before, and later orders find the handshake in the index. ``sessions/close_orders.py`` remembers
orders to reconnect for handshakes that are still loading their session, which no index holds.

*Closing* (``connections/closing.py``) takes a bounded time, whatever the peers do: all close
frames are written first, then one deadline applies to all peers, then the rest is aborted.

*Other nodes* are behind :class:`~.cluster.Cluster`. An order is recorded there before it is
published. A handshake reads the records of its session there, unless its request has on arrival;
a node that was disconnected applies what it has missed by :meth:`.Effects.apply_missed`. With
Redis, orders are sent by ``redis/outbound.py`` and received by ``redis/inbound.py``.

*Records are stored* in memory by ``sessions/records.py``, on disk by ``sessions/journal.py``, and
for all processes by the cluster. Another storage for one process would replace the journal; one
that processes share would be a ``Cluster``.

What may not be awaited where
-----------------------------

- nothing between the last judgement of a handshake and its entry into the index, nor between the
  judgement of an identity and the entry under it;
- no other node before the sockets of this one are closed;
- no code of the application or its storage in the request's own task once its handler is done: if
  the client disconnects, that task may be cancelled, and the log-out with it. Such code runs in
  ``tasks``, which live as long as the application.

Over 300 lines long: the theory, and one attribute for each part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from aiohttp_session import AbstractStorage

from .._lineage import Lineage, Subject
from .._logging import log
from .._origin import OriginPolicy
from .._tasks import BackgroundTasks, maybe_await
from ..close_codes import GOING_AWAY, RECONNECT, SESSION_ENDED, Close
from ..connections.connection import (
    Connection,
    TrackedConnection,
)
from ..connections.handshakes import Handshakes
from ..connections.manager import ConnectionManager
from ..exceptions import InvalidSessionWSId, NotSetUp, WrongLoop
from ..results import CloseReport, Delivery, Snapshot
from ..sessions.clock import Clock
from ..sessions.close_orders import CloseOrders
from ..sessions.context import HANDLING, current_connection, current_request
from ..sessions.journal import Journal
from ..sessions.records import Change, IdNote, LineageEnded, Records, SubjectEnded
from ..sessions.status import ALIVE, State, Status, effective_began, status
from ..signals import Signals
from ..typing import Data
from .announce import Announcer
from .cluster import Cluster
from .draining import Drainer
from .effects import Effects
from .hooks import Adopt, Hooks, Ids, Overrides
from .identify import ANONYMOUS, Identifier, Owner, expect_usable, subjects_of
from .judging import NO_EFFECT, NOTHING_CLOSED, Effect
from .order import Order
from .places import Places, places_for
from .presence import Presence
from .questions import Questions
from .relay import Relays
from .revalidation import Revalidator
from .settings import Options, expect
from .traffic import Traffic
from .warn import Warnings

__all__: list[str] = []

SHUTDOWN_CLOSE: Final = 0.5  # seconds: aiohttp no longer reads what clients answer
STORAGES: Final = 16  # storages that are remembered: a site has one or two

_running_loop: Final = asyncio.get_running_loop  # bound once: every public call uses it


class Core:
    """
    The parts of a registry.

    Attributes:
        ids: Reads and writes the session ws id of a request.
        hooks: The other methods that the application may override.
        overrides: Which methods it has overridden.
        keys: Our keys in a session.
        records: What has ended or was renewed.
        close_orders: Recent close orders, which a handshake may have missed.
        connections: The sockets of this process.
        cluster: The other nodes.
        clock: The shared clock by which lineages begin and end.
        identifier: Finds the identity and the labels of a request.
        announcer: Logs orders and sends ``on_order``.
        effects: Applies orders on this node.
        questions: The questions of other nodes that this one answers.
        revalidator: Checks the sessions of open sockets from time to time.
        tasks: Tasks that no request can cancel.
        handshake_may_wait: Whether a handshake may have to wait for ``identify``, other nodes or a
            free place.
        warn: Warns of misuse, once.
        presence: Tracks which identities have sockets, for ``on_first`` and ``on_last``.
        places: Counts sockets for limits over all nodes; ``None`` if there is no such limit.
        traffic: Limits what clients send, and keeps their sessions alive by it.
        ttl: Seconds to keep an end after its last hit: the most that this node or another needs.
        own_ttl: Seconds that this node needs it, by the storages that it has seen; 0 if it has
            seen none.
        drainer: Closes the sockets little by little before this process stops.
    """

    def __init__(
        self,
        *,
        ids: Ids,
        hooks: Hooks,
        overrides: Overrides,
        options: Options,
        cluster: Cluster,
        journal: Journal | None,
        signals: Signals,
    ) -> None:
        self.ids = ids
        self.hooks = hooks
        self.overrides = overrides
        self.id_factory = options.id_factory
        self.keys = options.keys
        self.authorize = options.authorize
        self.origin_policy = OriginPolicy(options.origins)
        self.limits = options.limits
        self.expiry = options.expiry
        self.timeouts = options.timeouts
        self.handle_key = options.handle_key
        self.cluster = cluster
        self.clock: Clock = cluster.clock
        self.journal, self.signals = journal, signals
        self.identifier = Identifier(options.identify, options.labels, cluster.check_subject)
        self.records = Records()
        self.close_orders = CloseOrders()
        self.tasks = BackgroundTasks()
        self.connections = ConnectionManager(
            options.timeouts, options.push_queue, self.tasks, current_connection
        )
        self.connections.on_removed = self._call_unregister
        self.relays = Relays(self.tasks)
        self.questions = Questions()
        self.announcer = Announcer(self.tasks, signals.on_order, cluster.name)
        self.handshakes = Handshakes(options.timeouts.handshake)
        self.revalidator = Revalidator(self)
        self.effects = Effects(self)
        self._begin()

    def _begin(self) -> None:
        """
        Make the parts that use other parts, and initialize what is set while an application runs.
        """
        limits = self.limits
        self.handshake_may_wait = (
            self.identifier.configured
            or self.cluster.remote
            or limits.per_session is not None
            or limits.per_identity is not None
        )
        self.warn = Warnings()
        self.drainer = Drainer(self.connections, self.tasks)
        self.traffic = Traffic(self, self.limits, self.expiry)
        self.presence = Presence(self)
        self.places: Places | None = places_for(self, self.limits)
        self.adopt: Adopt | None = None  # given by setup()
        self.known_apps: set[int] = set()  # applications in which this registry is the only one
        self.first_socket = True  # none has been opened yet
        self.loop: asyncio.AbstractEventLoop | None = None  # the application's, while it runs
        # The latest that sessions were loaded from: an application may make one per request.
        self.storages: list[AbstractStorage] = []
        self.own_ttl = self._others_ttl = 0.0
        self._started = 0.0  # by the shared clock, which may not be known yet
        self._set_ttl()

    # Time

    def saw_storage(self, storage: AbstractStorage) -> None:
        """
        Take into account for how long a storage keeps sessions.
        """
        if storage in self.storages:
            return
        del self.storages[: 1 - STORAGES]
        self.storages.append(storage)
        self.own_ttl = max(self.own_ttl, self.expiry.ttl(storage.max_age))
        self._set_ttl()

    def keep_ends(self, ttl: float) -> None:
        """
        Keep ends for at least *ttl* seconds, since another node needs that.
        """
        if ttl > self._others_ttl:
            self._others_ttl = ttl
            self._set_ttl()

    def _set_ttl(self) -> None:
        self.ttl = max(self.own_ttl or self.expiry.ttl(None), self._others_ttl)

    # The question

    def judge(
        self,
        lineage: Lineage,
        session_ws_id: Hashable | None,
        owner: Owner = ANONYMOUS,
    ) -> Status:
        """
        Judge a session by the records of this node.
        """
        if not self.records.may_concern(lineage.token):
            return ALIVE  # a shortcut: the rest would return the same
        subjects = subjects_of(session_ws_id, owner)
        return status(self.records, lineage, subjects, self.clock, self.expiry.renewal_grace)

    def status_of(self, connection: TrackedConnection) -> Status:
        """
        Judge the session of a connection.

        A connection registered by hand may have no known lineage: then any end of its id or
        identity concerns it.
        """
        if connection.proven is not None:
            identity, since = connection.proven
            before = self.records.ended_before(Subject("identity", identity))
            if before >= since:
                return Status(State.ENDED, self.clock.age(before))
        owner = Owner(connection.identity, connection.labels)
        return self.judge(connection.lineage, connection.session_ws_id, owner)

    def close_for(self, found: Status) -> Close | None:
        """
        Return the close for sockets of a session with status *found*; ``None`` if it is alive.
        """
        if found.state is State.ALIVE:
            return None
        if found.state is State.REPLACED:
            return RECONNECT
        may_reconnect = found.carries and found.age < self.expiry.renewal_grace
        return RECONNECT if may_reconnect else SESSION_ENDED

    # Orders

    def expect_arguments(
        self, by: object, wait: object, except_: Connection | None = None
    ) -> None:
        """
        Validate the optional arguments of an order, before any of it takes effect.

        Raises:
            TypeError: If *by* is not a str, *wait* not a number, or *except_* not a connection.
        """
        if by is not None:
            _ = expect(by, str, "by")
        if not isinstance(wait, int | float):
            raise TypeError(f"wait is a number of seconds, not {wait!r}")
        if except_ is not None:
            _ = self.connections.tracked(except_)

    async def issue(
        self,
        order: Order,
        wait: float = 0.0,
        except_: Connection | None = None,
        first: Sequence[TrackedConnection] = (),
    ) -> CloseReport:
        """
        Apply an order on this node and all others, and wait until its sockets are gone.

        Args:
            order: The order.
            wait: Seconds to wait for the reports of other nodes.
            except_: A connection of this node that stays open.
            first: Connections whose close frames have been written already.
        """
        spared = None if except_ is None else self.connections.tracked(except_)
        try:
            try:
                # Published first, since it takes longer; nothing is awaited in between.
                pending = self.cluster.publish(order, wait=wait)
            finally:
                effect = self.effects.apply(order)
        except BaseException:
            if order.close is not None:
                self.connections.close_soon(first, order.close)
            raise
        if spared is not None:
            effect = _without(spared, effect)
        if effect is NO_EFFECT:
            self.announcer.given(order, effect)
            report = await pending.report(NOTHING_CLOSED)
        else:
            closing = self.effects.carry_out(effect)  # writes the frames; the rest is less urgent
            self.announcer.given(order, effect)
            report = await pending.report(await closing)
        if self.journal is not None and order.changes and not await self.effects.committed():
            report = replace(report, stored=False)
        return report

    def record_own_end(self, end: SubjectEnded) -> None:
        """
        Remember an end ordered by a handler: a lineage that its request begins must begin later.
        """
        context = current_request()
        if context is not None and context.stage is HANDLING and context.connection is None:
            context.ordering().own_ends[end.subject] = end.at

    def issue_soon(self, order: Order) -> None:
        """
        Apply an order on this node and all others, without waiting.
        """
        effect = self.effects.apply(order)
        self.announcer.given(order, effect)
        self.effects.carry_out_soon(effect)
        self.cluster.publish(order)

    def usable_id(self, session_ws_id: Hashable) -> Hashable:
        """
        Return *session_ws_id* if it can be used as an id.

        Raises:
            InvalidSessionWSId: If it is ``None``, unhashable, an object that has an id (such as
                a request), or can't be sent to other nodes.
        """
        if type(session_ws_id) is str:
            return session_ws_id  # the usual case, which any node can be sent
        if session_ws_id is None:
            raise InvalidSessionWSId("a session ws id can't be None: return a str or an int")
        msg = "a session ws id must be hashable: return a str, an int or a tuple of such"
        try:
            expect_usable(session_ws_id, msg, self.cluster.check_subject)
        except TypeError as exc:
            raise InvalidSessionWSId(str(exc)) from None
        return session_ws_id

    def note(self, session_ws_id: Hashable, lineage: Lineage) -> IdNote:
        """
        Return the record of which lineage an id belongs to.
        """
        began = effective_began(lineage, self.clock.now())
        return IdNote(session_ws_id, lineage.token, began, self.ttl)

    def end_of(
        self,
        lineage: Lineage,
        session_ws_id: Hashable | None,
        at: float,
        *,
        carries: bool,
        minor: bool = False,
    ) -> tuple[Change, ...]:
        """
        Return the records of the end of a lineage that has an id.

        The second one makes a later registration by hand under that id fail.
        """
        end = LineageEnded(lineage.token, at, carries, self.ttl, minor)
        if minor or session_ws_id is None or not self.overrides.random_ids:
            return (end,)
        return end, self.note(session_ws_id, lineage)

    # Sockets

    async def current_id(self, request: web.Request) -> Hashable | None:
        """
        Return the id of the session of *request*.
        """
        session_ws_id: Hashable | None = await maybe_await(self.ids.get_id(request))
        return session_ws_id

    def _call_unregister(self, connection: TrackedConnection) -> Any:
        if not self.overrides.unregister:
            return None
        first_id = connection.first_id
        session_ws_id = connection.session_ws_id if first_id is None else first_id
        return self.hooks.unregister(session_ws_id, connection.ws)

    def snapshot(self, subject: Subject | None) -> Snapshot:
        """
        Describe the open connections of this node.
        """
        return self.connections.snapshot(subject, self.cluster.name)

    def recount(self) -> None:
        """
        Report all places again, if there are limits over all nodes.
        """
        if self.places is not None:
            self.places.recount()

    async def push_here(
        self, subject: Subject | None, data: Data, except_: Connection | None = None
    ) -> Delivery:
        """
        Push to the sockets of this node.
        """
        found = self.connections.open_of(subject)
        if except_ is not None:
            spared = self.connections.tracked(except_)
            found = [connection for connection in found if connection is not spared]
        sockets, missed = self.connections.push(found, data)
        # Without this, a caller that pushes in a loop would keep the queues from being sent.
        await asyncio.sleep(0)
        return Delivery(sockets, complete=not missed)

    # The application's life

    def expect_loop(self) -> None:
        """
        Raise an error unless called in the event loop of the running application.

        Raises:
            NotSetUp: If no application has started this registry.
            WrongLoop: In another thread or event loop.
        """
        try:
            if _running_loop() is self.loop:
                return
        except RuntimeError:
            pass
        if self.loop is None:
            raise NotSetUp(
                "the registry isn't started: call aiohttp_session_ws.setup(app, registry) and use"
                " it while the application runs"
            )
        raise WrongLoop(
            "the registry belongs to the event loop of its application; from another thread"
            " call registry.threadsafe.end_session(id), or asyncio.run_coroutine_threadsafe()"
            " with any of its coroutines and the loop of the application"
        )

    async def start(self) -> None:
        """
        Begin to serve an application.

        Raises:
            NotSetUp: If another application is being served.
        """
        if self.loop is not None:
            raise NotSetUp(
                "this registry is in use by another application: call setup() once for a tree"
                " of applications, for its root, and create a registry for each tree"
            )
        self.loop = asyncio.get_running_loop()
        self.drainer.start()
        try:
            self.connections.start(self.timeouts)
            self.revalidator.start()
            if self.journal is not None:
                clock, journal = self.clock, self.journal
                self._started = clock.order_time()
                has, time_to_store = self.records.has, clock.reserved_until
                late, again = self._apply_late, self._rewrite_journal
                stored = await journal.start(clock.now, has, time_to_store, late, again)
                clock.start_after(journal.last_time)
                _ = self.effects.merge_stored(stored, self._last_start(journal))
                clock.on_reserve(journal.store_time)
            await self.cluster.start(self)
            self.presence.start()
            if self.places is not None:
                self.places.start()
        except BaseException:
            await self.stop()
            raise

    def _apply_late(self, changes: Sequence[Change]) -> None:
        """
        Apply what the journal holds, if that could not be read at the start.
        """
        assert self.journal is not None
        self.clock.start_after(self.journal.last_time)
        applying = self._apply_stored(changes, self._last_start(self.journal))
        _ = self.tasks.spawn(applying, "apply journal records")

    async def _apply_stored(self, changes: Sequence[Change], until: float) -> None:
        await self.effects.apply_stored(changes, until)
        self.cluster.write_again()

    def _last_start(self, journal: Journal) -> float:
        """
        Return when this process started: no earlier than any time used by a previous one.
        """
        started = max(self.clock.resolve(self._started), journal.last_time)
        return min(self.clock.order_time(), started)

    def _rewrite_journal(self) -> None:
        """
        Write all records into the journal, which has begun a new file.
        """
        _ = self.tasks.spawn(self.effects.rewrite_journal(), "rewrite the journal")

    async def shut_down(self) -> None:
        """
        Refuse handshakes and close all sockets with 1001; never raise.
        """
        self.drainer.refuses = True
        if self.timeouts.drain:
            try:
                await self.drainer.drain(self.timeouts.drain)
            except Exception:
                log.exception("draining at shutdown failed")
        try:
            await self.connections.close_for_shutdown(GOING_AWAY, SHUTDOWN_CLOSE)
            if self.overrides.close_all:
                await maybe_await(self.hooks.close_all())
        except Exception:
            log.exception("closing the websockets at shutdown failed")

    async def stop(self) -> None:
        """
        Stop the tasks, the cluster and the journal, once no handler runs any more.
        """
        self.revalidator.stop()
        self.handshakes.stop()
        await self.connections.stop()
        await self.tasks.stop(self.timeouts.handler_grace)
        await self.cluster.stop()
        if self.journal is not None:
            await self.journal.stop()
        self.loop = None


def _without(connection: TrackedConnection, effect: Effect) -> Effect:
    """
    Return *effect* without one connection, which stays open.
    """
    if effect.unjudged is not None:
        effect.unjudged.spare(connection)
    closing = [
        (close, tuple(one for one in found if one is not connection))
        for close, found in effect.closing
    ]
    return effect._replace(closing=tuple(closing))
