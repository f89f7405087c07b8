"""
The cluster of all processes that share a Redis: creates, wires, starts and stops its parts.

An order is sent through ``outbound``, ``io/outbox`` and the script in ``io/scripts``, which
records it, gives it a number and publishes it. It is received through ``io/subscriber``,
``inbound`` and ``apply``. Missed orders are detected by heartbeats (``membership``) and then read
(``reconcile``). Three connections send commands, orders and data; two more are subscribed.

Methods of the ``Cluster`` protocol that a single part provides are that part's own. Over 300 lines
long: the parts notify each other through callbacks, which are defined here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import partial
from typing import Any, Final

from .._lineage import Lineage, Subject
from .._logging import OncePerMinute, fingerprint, log
from .._tasks import supervise
from ..exceptions import NotSetUp
from ..registry.cluster import LocalNode
from ..registry.order import Order
from ..registry.questions import Figures
from ..sessions.clock import PENDING
from ..sessions.encoding import encode
from ..sessions.records import IdNote, LineageEnded, LineageRenewed, SubjectEnded
from .apply import Applier
from .clock import RedisClock
from .decoding import read_records
from .encoder import Encoder, body_of
from .entries import AnyEntry
from .hand_over import hand_over
from .health import HEARTBEATS, RECEIVE_DATA, RECEIVE_ORDERS, RECORD, SEND_DATA, Health, State
from .inbound import Inbound
from .io.commands import Commands
from .io.connect import REDIS_ERRORS, REPLY_TIMEOUT, MakeClient, close_client, end_tasks, reason
from .io.line import Link
from .io.outbox import ORDERS, Outbox
from .io.publisher import Publisher
from .io.scripts import END_OTHERS, HEARTBEAT_TTL
from .io.subscriber import Handlers, Subscriber
from .lookup import Lookup, OnOutage
from .membership import Membership
from .messages import DATA, CloseSession, Record, split
from .outages import Outages
from .outbound import Outbound
from .pace import Pace
from .places import PlaceKeeper
from .queries import Queries
from .recent import ReceivedNumbers, RecentOrders, SeenOrders
from .reconcile import Reconciler
from .requests import REPORTS, Requests
from .unrecorded import Unrecorded
from .write_back import WriteBack

__all__: list[str] = []

#: Seconds that Redis' clock may be set forward: records are kept an hour longer than sessions.
LEAP: Final = 600.0


class RedisCluster:
    """
    A :class:`~..registry.cluster.Cluster` over Redis.

    Args:
        make: Makes a client.
        prefix: The prefix of all keys and channels.
        name: The name of this node.
        on_outage: What happens to handshakes while Redis is away.
        resolves: The kinds of subjects by which this node can find its sockets.
        journaled: Whether a journal keeps the orders that aren't recorded when the node stops.
        patience: Seconds to wait, when the node stops, until Redis has recorded its orders.
        grace: Seconds in which an older generation is replaced though the newer wasn't seen.
        changed: Called with the new state.

    Attributes:
        remote: Whether there may be other nodes.
        name: The name of this node.
        clock: The clock shared by all nodes.
        serves: Whether this node holds sockets: an application, and not a script.
    """

    remote = True

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        name: str,
        *,
        on_outage: OnOutage,
        resolves: frozenset[str],
        journaled: bool,
        patience: float,
        grace: float,
        changed: Callable[[State], None],
    ) -> None:
        self.name = name
        self.clock = RedisClock()
        self.serves = True
        self._make = make
        self._prefix = prefix
        self._on_outage: OnOutage = on_outage
        self._resolves = resolves
        self._journaled = journaled
        self._patience = patience
        self._grace = grace
        self._changed = changed
        self._logged = OncePerMinute()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outages = Outages()
        self._last_answered = time.monotonic()
        self._subscribers: tuple[Subscriber, ...] = ()
        self._stops = False
        self._pending_times = True  # whether an end may date from before the clock was known

    def _wire(self, node: LocalNode) -> None:
        """
        Create the parts, with an instance name that is unique to this start of the node.
        """
        make, prefix = self._make, self._prefix
        self.node = node
        self._stops = False
        self.instance = instance = f"{self.name}/{secrets.token_hex(4)}"
        self.numbers = ReceivedNumbers()
        self.recent = RecentOrders()
        self.seen = SeenOrders(instance)
        self.commands = Commands(make, prefix, self._availability_changed)
        self.health = health = Health(self.commands, self._outages, self._changed)
        self.places = PlaceKeeper(self.commands, self.clock, instance)
        self._wire_connections()
        self.membership = Membership(
            self.commands,
            instance,
            self.clock,
            self.numbers,
            node,
            self._heartbeat_answered,
            partial(health.mark_failed, HEARTBEATS),
            self._missed,
            self._lost,
            self._server_changed,
            self._evicted,
        )
        self._wire_recovery(node)
        self._wire_messaging(node)
        self._provide_methods()

    def _wire_connections(self) -> None:
        """
        Create the connections for orders and for data; the one for commands exists already.
        """
        make, prefix, health = self._make, self._prefix, self.health
        self.encoder = Encoder(prefix, self.instance, self._resolve)
        self.pace = Pace(self.clock)
        self.outbox = Outbox(
            make,
            prefix,
            self.encoder,
            self._merge,
            self._published,
            self.pace.wait,
            partial(health.mark_working, RECORD),
            partial(health.mark_failed, RECORD),
        )
        self._data = Link(
            make,
            prefix,
            lambda _: health.mark_working(SEND_DATA),
            partial(health.mark_failed, SEND_DATA),
        )

    def _wire_recovery(self, node: LocalNode) -> None:
        self.applier = Applier(node, self.seen, self.clock)
        self.lookup = Lookup(node, self.commands, self.applier, self._on_outage)
        self.write_back = WriteBack(
            self.instance,
            self.commands,
            self.outbox,
            self.membership,
            self.recent,
            node.records,
        )
        self.requests = Requests(
            self.instance,
            self.membership,
            Publisher(self.outbox.link),
            Publisher(self._data),
        )
        self.unrecorded = Unrecorded(
            self.membership, self.outbox, self.requests, self.write_back, node.tasks
        )
        self.reconciler = Reconciler(
            node,
            self.commands,
            self.lookup,
            self.applier,
            self.numbers,
            self.recent,
        )

    def _wire_messaging(self, node: LocalNode) -> None:
        instance = self.instance
        self.outbound = Outbound(
            node,
            self.outbox,
            self.requests,
            self.seen,
            self.clock,
            self.applier,
            resolves=self._resolves,
        )
        self.inbound = Inbound(
            instance,
            self.applier,
            self.numbers,
            self.recent,
            self.unrecorded.received,
            self.outbound.report_to,
            self.membership.heartbeat_soon,
            self.reconciler.unreadable,
            self.pace,
        )
        self.queries = Queries(
            node,
            instance,
            self.name,
            self.requests,
            self.unrecorded.publish_again,
            self.membership.add_listed,
            self.membership.remove_stopped,
            self._take_over,
            serves=self.serves,
            resolves=self._resolves,
        )

    def _provide_methods(self) -> None:
        """
        Provide methods of the parts as methods of the cluster; they are documented in
        :class:`~..registry.cluster.Cluster`.
        """
        self.record = self.outbound.record
        self.publish = self.outbound.publish
        self.check_due = self.lookup.check_due
        self.check_request = self.lookup.check_request
        self.check_handshake = self.lookup.check_handshake
        self.connections = self.queries.connections
        self.count = self.queries.count
        self.nodes = self.queries.nodes
        self.push = self.queries.push
        self.relay = self.queries.relay
        self.ask = self.queries.ask
        self.take_place = self.places.take
        self.report_places = self.places.report

    # State, start and stop

    @property
    def connected(self) -> bool:
        """
        Whether Redis answers, and everything that is done with it works.
        """
        return bool(self._tasks) and self.health.connected

    @property
    def state(self) -> State:
        """
        ``"degraded"`` while Redis doesn't answer or something doesn't work.
        """
        return self.health.state if self._tasks else "degraded"

    @property
    def why(self) -> str:
        """
        Why it is not connected, for messages.
        """
        return self.health.why

    async def start(self, node: LocalNode) -> None:
        """
        Connect, and learn which other nodes there are, or that Redis is away.

        Raises:
            NotSetUp: If the callable that makes clients can't be called or makes no usable one.
        """
        await self._expect_client()
        self._wire(node)
        self.membership.serves = self.serves
        handlers: Handlers = {f"{REPORTS}:{self.instance}": self.requests.receive_answer}
        data: Handlers = {f"{DATA}:{self.instance}": self.requests.receive_answer}
        if self.serves:
            handlers = {ORDERS: self.inbound.receive, **handlers}
            data = {DATA: self.queries.receive, **data}
        make, prefix = self._make, self._prefix
        orders = Subscriber(make, prefix, handlers, self._subscribed, self._unsubscribed)
        data_lost = partial(self.health.mark_failed, RECEIVE_DATA)
        others = Subscriber(make, prefix, data, self._subscribed_to_data, data_lost)
        self._subscribers = (orders, others)
        self._run(self.commands.link.run, "the connection for commands")
        self._run(self.outbox.link.run, "the connection for orders")
        self._run(self._data.run, "the connection for data")
        self._run(orders.run, "the subscription to orders")
        self._run(others.run, "the subscription to data")
        self._run(self.membership.run, "the heartbeat")
        self._run(self.reconciler.run, "the reconciliation")
        self._run(self.write_back.run, "the write-back")
        self._run(self._prepare, "the check of Redis' settings")
        try:
            await asyncio.wait_for(self.membership.first_heartbeat.wait(), 2 * REPLY_TIMEOUT)
            await self.health.settle(REPLY_TIMEOUT)
        except TimeoutError:
            await self.health.settle(0.0)
        except BaseException:  # cancelled
            await self.stop()
            raise
        if self.serves and not self.connected:
            log.warning("Redis can't be used (%s): the application starts without it", self.why)

    async def _expect_client(self) -> None:
        try:
            await close_client(self._make())
        except TypeError as exc:
            raise NotSetUp(
                f"redis= is a callable that raised TypeError ({exc}): it must take no argument and"
                " return a redis.asyncio client, such as lambda: redis.asyncio.Redis(...)"
            ) from exc
        except NotSetUp:
            raise
        except Exception as exc:  # noqa: BLE001  whatever the application raises
            log.warning("the Redis client can't be created, retrying: %s", reason(exc))

    def _run(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.add(asyncio.create_task(supervise(run, name), name=f"{name} to Redis"))

    async def stop(self) -> None:
        """
        Leave the cluster: for *patience* seconds at most, write the queued orders and the records
        that Redis has lost; then hand over the orders that are left to another node.
        """
        if not self._tasks:
            return
        self._stops = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        if self.commands.available:
            await self.membership.heartbeat_now()
            await self.write_back.finish(until - loop.time())
        left = await self.outbox.drain(until - loop.time())
        if left and self.commands.available:
            left = await hand_over(left, self.encoder, self.requests)
        if left:
            self._log_lost(left)
        if not await self.membership.leave():
            await self.queries.leave()
        self.commands.stop()
        self.outbox.stop()
        self.health.stop()
        await end_tasks(self._tasks)
        self._tasks.clear()

    def write_again(self) -> None:
        """
        Write the records of a journal that was read late; else :meth:`_prepare` does it.
        """
        if self._tasks:
            self.write_back.lost(everything=True)

    def _log_lost(self, left: Sequence[AnyEntry]) -> None:
        if self._journaled:
            log.warning(
                "%d orders were not recorded by Redis before this node stopped: the journal has"
                " them, and the next start writes them",
                len(left),
            )
            return
        orders = [entry.as_published_order(self.instance) for entry in left]
        # A log-in or a renewal makes several records of one lineage.
        names = [*dict.fromkeys(_name_of(record) for order in orders for record in order.changes)]
        log.error(
            "%d orders were lost: Redis didn't record them before this node stopped (a journal="
            " would keep them); they concerned %s",
            len(left),
            ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else ""),
        )

    async def _prepare(self) -> None:
        """
        Check the eviction policy of Redis once, and write the records read from a journal.
        """
        while not self.commands.available:
            await asyncio.sleep(REPLY_TIMEOUT)
        try:
            memory = await self.commands.call("INFO", "memory")
        except REDIS_ERRORS as exc:
            log.debug("the maxmemory policy of Redis can't be read: %s", reason(exc))
            memory = b""
        text = memory.decode() if isinstance(memory, bytes) else ""
        _, _, rest = text.partition("maxmemory_policy:")
        policy = rest.split(maxsplit=1)[0] if rest.strip() else "noeviction"
        if policy != "noeviction":
            log.warning(
                "Redis may evict the records of ended sessions (maxmemory-policy %s), whose stale"
                " cookies could then be used again: set it to noeviction",
                policy,
            )
        if self._journaled:
            await self.write_back.write(tuple(self.node.records))

    # Callbacks of the parts

    def _availability_changed(self) -> None:
        if self.commands.available:
            self.lookup.forget()
            self.membership.heartbeat_soon()
            self.node.recount()
        self.health.availability_changed()

    def _subscribed(self) -> None:
        self.lookup.forget()
        if self.serves:
            self.unrecorded.missed()
        self.membership.subscribed()
        self.health.mark_working(RECEIVE_ORDERS)

    def _subscribed_to_data(self) -> None:
        self.node.recount()  # a request to evict sockets may have been missed
        self.outbox.publish_again()  # and a request to do so, of a node not known here
        if self.serves:
            self.unrecorded.missed()
        self.membership.heartbeat_soon()
        self.health.mark_working(RECEIVE_DATA)

    def _unsubscribed(self, why: str) -> None:
        self.lookup.forget()
        self.health.mark_failed(RECEIVE_ORDERS, why)

    def _heartbeat_answered(self) -> None:
        """
        Handle an answered heartbeat; orders from before the clock was known get their time.
        """
        self.health.mark_working(HEARTBEATS)
        now, before = time.monotonic(), self._last_answered
        self._last_answered = now
        if now - before > HEARTBEAT_TTL:  # the other nodes have presumed this one gone
            self.node.recount()
        if self._pending_times and self.clock.known:
            self._pending_times = False
            self.node.effects.resolve()
        if self.clock.leap > LEAP:
            log.warning(
                "Redis' clock was set forward by %.0f s, or this machine was suspended: records"
                " that have expired are written back",
                self.clock.leap,
            )
            self._lost(everything=True)
        if self.lookup.unchecked:
            self.reconciler.missed()
        self.unrecorded.heartbeat_answered(receives_data=self.health.works(RECEIVE_DATA))
        self.write_back.resume_after_rest()
        self.pace.measure(len(self.membership.members))
        self.outbox.flush()

    def _take_over(self, body: bytes) -> bool:
        """
        Take over the orders of a node that stops; return false if this node is stopping, too.
        """
        if self._stops:
            return False
        records = self.write_back.take_over(body)
        self.applier.apply_missed(records)
        return True

    def _missed(self) -> None:
        if self.serves:
            self.reconciler.missed()
        else:
            self.numbers.missing.clear()  # a script has no sockets, and soon ends

    def _server_changed(self) -> None:
        """
        Reconnect all connections but the one for commands, which has reached another server.

        A primary that has become a replica, or is cut off, doesn't always break the others.
        """
        self.outbox.link.drop("another server answers")
        self._data.drop("another server answers")
        for subscriber in self._subscribers:
            subscriber.drop("another server answers")

    def _evicted(self) -> None:
        if self._logged.allows("evicted"):
            log.warning(
                "Redis has evicted keys, possibly records of ended sessions: this node writes its"
                " records back; set maxmemory-policy to noeviction"
            )
        self.write_back.evicted = True

    def _lost(self, everything: bool) -> None:
        self.write_back.lost(everything=everything)
        self.node.recount()
        if self.serves:
            self.reconciler.check_all_connections()

    def _merge(self, known: Sequence[bytes]) -> None:
        """
        Merge the records of which Redis knew more than this node.
        """
        records, _ = read_records(known)
        changes, _ = split(records)
        self.node.effects.apply_missed(changes)

    def _published(self, body: bytes) -> None:
        self.recent.add(self.instance, body)

    def _resolve(self, record: Record) -> Record | None:
        """
        Return a record with its time resolved; ``None`` while the clock isn't known.

        How long other nodes need an end wasn't known either, so its TTL is raised, too.
        """
        if isinstance(record, IdNote) or record.at < PENDING:
            return record
        if not self.clock.known:
            return None
        record = record._replace(at=self.clock.resolve(record.at))
        if isinstance(record, LineageEnded | SubjectEnded):
            record = record._replace(ttl=max(self.node.ttl, record.ttl))
        return record

    # Methods of the protocol

    def check_subject(self, value: Hashable) -> None:
        """
        Check that an id, an identity or a label's value can be published as JSON.

        Raises:
            TypeError: If it can't.
        """
        if type(value) is not str:
            _ = encode(value)

    @property
    def may_miss_orders(self) -> bool:
        """
        Whether orders may be missed now: then a handshake asks Redis right before it opens.
        """
        return (
            not self.health.receives_orders
            or self.membership.may_have_missed
            or bool(self.numbers.missing)
        )

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Record and publish an order if its own session is alive by all that is recorded.

        The script that writes the records checks this. No answer within a second is a refusal,
        and the script does nothing after that. The message names no sender: if only the answer is
        lost, this node applies it as the others do. Sockets close when the response has been sent.

        Args:
            order: The end of an identity and of the lineage that ends the others.
            lineage: That lineage.
            subjects: Its id, and its identity and labels.
            since: From when on an end of the identity concerns the session that continues.
        """
        if not self.clock.known:
            return False
        until = asyncio.get_running_loop().time() + REPLY_TIMEOUT
        channel = self.outbox.channel
        deadline = self.clock.now() + REPLY_TIMEOUT - self.clock.error
        args = Encoder(self._prefix, "", self._resolve).end_others_arguments(
            order.changes, channel, lineage, subjects, since, self._grace, deadline
        )
        answer = self.commands.run_script(END_OTHERS, *args, repeat=False)
        try:
            async with asyncio.timeout_at(until):
                ended = bool(await answer)
        except REDIS_ERRORS as exc:
            if self._logged.allows("end others"):
                log.warning("log out everywhere else was refused: %s", reason(exc))
            # A server whose connection was given up may run the script until then.
            await asyncio.sleep(until - asyncio.get_running_loop().time())
            return False
        if ended:
            self._published(body_of(args))  # it didn't go through the outbox
        return ended

    def figures(self) -> Figures:
        """
        Return what was counted; may be called from any thread.
        """
        number, seconds = self._outages.so_far()
        if not self._tasks:
            return Figures(outages=number, outage_seconds=seconds)
        return Figures(len(self.outbox), self.reconciler.found, number, seconds)

    async def living(self) -> frozenset[str] | None:
        """
        Return the instances of the other nodes that are alive; ``None`` if Redis can't be asked.
        """
        if not (self.commands.available and self.health.receives_orders):
            return None
        try:
            return frozenset(await self.membership.living()) - {self.instance}
        except REDIS_ERRORS:
            return None


def _name_of(record: Record) -> str:
    match record:
        case LineageEnded(token=token) | LineageRenewed(token=token) | IdNote(token=token):
            return f"lineage {fingerprint(token)}"
        case SubjectEnded(subject=subject) | CloseSession(subject=subject):
            return f"{subject.kind} {fingerprint(subject.value)}"
