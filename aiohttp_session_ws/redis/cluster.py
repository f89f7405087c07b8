"""
The cluster of all processes that share a Redis: its parts, wired, started and stopped.

An order goes out through ``outbound``, ``io/outbox`` and the script in ``io/scripts``, which
records it, gives it a number and publishes it. It comes in through ``io/subscriber``, ``inbound``
and ``apply``. What a node has missed it finds by its heartbeats (``membership``), and reads
(``reconcile``). Three connections take commands, orders and data, and two listen.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Final, Literal, TypeAlias

from .._lineage import Lineage, Subject
from .._logging import OncePerMinute, fingerprint, log
from .._tasks import supervise
from ..connections.connection import TrackedConnection
from ..exceptions import NotSetUp
from ..registry.cluster import LocalNode, Order
from ..results import Count, Delivery, Nodes, Snapshot
from ..sessions.records import (
    IdNote,
    LineageEnded,
    LineageRenewed,
    SubjectEnded,
)
from ..typing import Data
from .apply import Applier
from .clock import PENDING, RedisClock
from .decoding import read_record
from .entries import Encoder, Entry
from .inbound import Inbound
from .io.commands import Commands
from .io.connect import LIMIT, TROUBLE, MakeClient, end_tasks, reason
from .io.line import Link
from .io.outbox import ORDERS, Outbox
from .io.publisher import Publisher
from .io.scripts import END_OTHERS
from .io.subscriber import Handlers, Subscriber
from .lookup import Lookup, OnOutage
from .membership import Membership
from .messages import CloseSession, Record, as_json, time_of, with_time
from .outbound import Outbound, Pending
from .queries import Queries
from .recent import HeardNumbers, RecentOrders, SeenOrders
from .reconcile import Reconciler
from .requests import DATA, REPORTS, Requests
from .write_back import WriteBack

__all__: list[str] = []

State: TypeAlias = Literal["connected", "degraded"]

STEADY: Final = 1.0  # seconds that a change has to last until it is one of the state


class RedisCluster:
    """
    A :class:`~..registry.cluster.Cluster` over Redis.

    Args:
        make: Makes a client.
        prefix: What all keys and channels begin with.
        name: What this node is called.
        on_outage: What happens to handshakes while Redis is away.
        identifies: Whether this node knows whom sessions belong to.
        journaled: Whether a journal keeps what Redis hasn't taken when the node stops.
        patience: Seconds that Redis has at the end to take what waits for it.
        grace: Seconds in which an older generation is replaced though the newer wasn't seen.
        changed: Called with the new state.

    Attributes:
        remote: There may be other nodes.
        name: What this node is called.
        clock: The one clock of all nodes.
        serves: Whether this node holds sockets: an application, and not a script.
        state: ``"degraded"`` while Redis doesn't answer or orders can't be heard.
    """

    remote = True

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        name: str,
        *,
        on_outage: OnOutage,
        identifies: bool,
        journaled: bool,
        patience: float,
        grace: float,
        changed: Callable[[State], None],
    ) -> None:
        self.name = name
        self.clock = RedisClock()
        self.serves = True
        self.state: State = "degraded"
        self._make = make
        self._prefix = prefix
        self._on_outage: OnOutage = on_outage
        self._identifies = identifies
        self._journaled = journaled
        self._patience = patience
        self._grace = grace
        self._changed = changed
        self._logged = OncePerMinute()
        self._tasks: set[asyncio.Task[None]] = set()
        self._steady: asyncio.TimerHandle | None = None
        self._hears = False  # orders
        self._hears_data = False
        self._why_deaf = "not subscribed yet"
        self._pending_times = False  # whether something ended before the clock was known
        self._settled = asyncio.Event()
        self._started = False
        self._changed_at = 0.0

    def _wire(self, node: LocalNode) -> None:
        """
        Make the parts, for a node with a name of its own.
        """
        make, prefix = self._make, self._prefix
        self._node = node
        self._instance = instance = f"{self.name}/{secrets.token_hex(4)}"
        self._numbers = HeardNumbers()
        self._recent = RecentOrders()
        self._seen = SeenOrders(instance)
        self._commands = Commands(make, prefix, self._availability_changed)
        self._encoder = Encoder(prefix, instance, self._resolve)
        self._outbox = Outbox(make, prefix, self._encoder, self._learn, self._published)
        self._data = Link(make, prefix, lambda _: None, lambda _: None)
        self._membership = Membership(
            self._commands,
            instance,
            self.clock,
            self._numbers,
            self._beaten,
            self._missed,
            self._lost,
        )
        self._applier = Applier(node, self._seen, self.clock)
        self._lookup = Lookup(node, self._commands, self._applier, self._keep, self._on_outage)
        self._write_back = WriteBack(
            instance, self._commands, self._outbox, self._membership, self._recent
        )
        self._reconciler = Reconciler(
            node,
            self._commands,
            self._membership,
            self._lookup,
            self._applier,
            self._numbers,
            self._recent,
        )
        self._requests = Requests(
            instance,
            self._membership,
            Publisher(prefix, self._outbox.link),
            Publisher(prefix, self._data),
        )
        self._outbound = Outbound(
            node,
            self._outbox,
            self._requests,
            self._seen,
            self.clock,
            self._applier,
            identifies=self._identifies,
        )
        self._inbound = Inbound(
            instance,
            self._applier,
            self._numbers,
            self._recent,
            self._outbound.report_to,
            self._membership.hurry,
            self._reconciler.unreadable,
        )
        self._queries = Queries(
            node,
            instance,
            self.name,
            self._requests,
            serves=self.serves,
            identifies=self._identifies,
        )

    # Its life

    @property
    def connected(self) -> bool:
        """
        Whether Redis answers, and orders are heard.
        """
        return bool(self._tasks) and self._commands.available and self._hears

    @property
    def why(self) -> str:
        """
        Why it is not connected, for messages.
        """
        return self._commands.why or f"it can't be subscribed to: {self._why_deaf}"

    async def start(self, node: LocalNode) -> None:
        """
        Come to know the other nodes, or find out that Redis is away.

        Raises:
            NotSetUp: If what makes a client can't.
        """
        self._expect_client()
        self._wire(node)
        self._membership.serves = self.serves
        handlers: Handlers = {f"{REPORTS}:{self._instance}": self._requests.take}
        data: Handlers = {f"{DATA}:{self._instance}": self._requests.take}
        if self.serves:
            handlers = {ORDERS: self._inbound.hear, **handlers}
            data = {DATA: self._queries.hear, **data}
        make, prefix = self._make, self._prefix
        orders = Subscriber(make, prefix, handlers, self._subscribed, self._unsubscribed)
        others = Subscriber(make, prefix, data, self._hear_data, self._lose_data)
        self._run(self._commands.link.run, "the connection for commands")
        self._run(self._outbox.link.run, "the connection for orders")
        self._run(self._data.run, "the connection for data")
        self._run(orders.run, "the subscription to orders")
        self._run(others.run, "the subscription to data")
        self._run(self._membership.run, "the heartbeat")
        self._run(self._reconciler.run, "the reconciliation")
        self._run(self._write_back.run, "the write-back")
        self._run(self._prepare, "the check of Redis' settings")
        try:
            await self._settle_in()
        except BaseException:  # it is cancelled
            await self.stop()
            raise
        if self.serves and not self.connected:
            log.warning("Redis can't be used (%s): the application starts without it", self.why)

    def _expect_client(self) -> None:
        try:
            _ = self._make()
        except NotSetUp:
            raise
        except Exception as exc:
            raise NotSetUp(
                f"redis= is a callable that raised {type(exc).__name__}: let it take no argument"
                " and return a redis.asyncio client, as lambda: redis.asyncio.Redis(...)"
            ) from exc

    def _run(self, run: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.add(asyncio.create_task(supervise(run, name), name=f"{name} to Redis"))

    async def _settle_in(self) -> None:
        """
        Wait until all is connected, or something can't be.
        """
        try:
            async with asyncio.timeout(2 * LIMIT):
                await self._membership.beaten.wait()
                while self._commands.available and not (self._hears and self._hears_data):
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            pass
        self._started = True
        self._report_now()

    async def stop(self) -> None:
        """
        Leave the other nodes: let Redis take what waits for it, for a few seconds at most.
        """
        if not self._tasks:
            return
        left = await self._outbox.drain(self._patience)
        if left:
            self._log_lost(left)
        await self._membership.leave()
        self._commands.stop()
        self._outbox.stop()
        if self._steady is not None:
            self._steady.cancel()
            self._steady = None
        await end_tasks(self._tasks)
        self._tasks.clear()
        self._started = False
        self._hears = self._hears_data = False
        self.state = "degraded"

    def _log_lost(self, left: Sequence[Entry]) -> None:
        if self._journaled:
            log.warning(
                "Redis didn't take %d orders before this node stopped; the journal has them, and"
                " the next start writes them",
                len(left),
            )
            return
        names = [_name_of(record) for entry in left for record in entry.changes]
        log.error(
            "Redis didn't take %d orders before this node stopped: they are lost, unless it is"
            " given a journal=; they ended %s",
            len(left),
            ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else ""),
        )

    async def _prepare(self) -> None:
        """
        Look once at how Redis is set up, and write what a journal has brought.
        """
        while not self._commands.available:
            await asyncio.sleep(LIMIT)
        try:
            memory = await self._commands.call("INFO", "memory")
        except TROUBLE as exc:
            log.debug("Redis doesn't tell how it is set up: %s", reason(exc))
            memory = b""
        text = memory.decode() if isinstance(memory, bytes) else ""
        _, _, rest = text.partition("maxmemory_policy:")
        policy = rest.split(maxsplit=1)[0] if rest.strip() else "noeviction"
        if policy != "noeviction":
            log.warning(
                "Redis may evict the records of ended sessions (maxmemory-policy %s): set it to"
                " noeviction, or stale cookies of theirs can be used again",
                policy,
            )
        if self._journaled:
            await self._write_back.write_records(tuple(self._node.records))

    # What happens to its connections

    def _availability_changed(self) -> None:
        if not self._commands.available:
            if self._logged.allows("away"):
                log.warning("Redis is away: %s", self._commands.why)
        else:
            self._lookup.forget()
            self._membership.hurry()
            self._reconciler.missed()
        self._report()

    def _subscribed(self) -> None:
        self._hears = True
        self._lookup.forget()
        self._membership.subscribed()
        self._report()

    def _unsubscribed(self, why: str) -> None:
        self._why_deaf = why
        if self._hears and self._logged.allows("deaf"):
            log.warning("orders of other nodes can't be heard: %s", why)
        self._hears = False
        self._lookup.forget()
        self._report()

    def _hear_data(self) -> None:
        self._hears_data = True
        self._settled.set()

    def _lose_data(self, why: str) -> None:
        self._hears_data = False
        self._settled.set()

    def _report(self) -> None:
        """
        Change the state soon, if it lasts: what Redis does in between is no news.
        """
        self._settled.set()
        loop = asyncio.get_running_loop()
        self._changed_at = loop.time()
        if not self._started:
            return
        if not self._commands.available:
            self._report_now()  # it has not answered for a second
        elif self._steady is None:
            self._steady = loop.call_later(STEADY, self._report_steady)

    def _report_steady(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < (until := self._changed_at + STEADY):
            self._steady = loop.call_at(until, self._report_steady)
        else:
            self._steady = None
            self._report_now()

    def _report_now(self) -> None:
        state: State = "connected" if self.connected else "degraded"
        if state != self.state:
            self.state = state
            log.info("the websocket registry is %s", state)
            self._changed(state)

    # What the parts tell each other

    def _beaten(self) -> None:
        """
        Give what was ordered before the clock was known its time.
        """
        if self._pending_times and self.clock.known:
            self._pending_times = False
            self._node.records.resolve(self.clock.resolve)
        self._outbox.flush()

    def _missed(self) -> None:
        if self.serves:
            self._reconciler.missed()
        else:
            self._numbers.missing.clear()  # a script has no sockets, and forgets soon

    def _lost(self) -> None:
        self._write_back.lost()
        if self.serves:
            self._reconciler.look_at_all()

    def _learn(self, known: Sequence[bytes]) -> None:
        """
        Learn by what records Redis knew more than this node.
        """
        records = [read_record(text) for text in known]
        self._node.learn([r for r in records if r and not isinstance(r, CloseSession)])

    def _published(self, body: bytes) -> None:
        self._recent.add(self._instance, body)

    def _keep(self, change: LineageEnded) -> None:
        """
        Restart the time of an end in Redis, too.
        """
        _ = self._outbox.put(Entry((change,), quiet=True))

    def _resolve(self, record: Record) -> Record | None:
        """
        Return a record with its time; ``None`` if that isn't known yet.
        """
        at = time_of(record)
        if at < PENDING:
            return record
        return with_time(record, self.clock.resolve(at)) if self.clock.known else None

    # What the registry asks for

    def check_subject(self, value: Hashable) -> None:
        """
        Expect an id, an identity or a label's value to be one that can be told as JSON.

        Raises:
            TypeError: If it isn't.
        """
        _ = as_json(value)

    def record(self, order: Order) -> None:
        """
        Record an order now, and tell nobody: the response that goes with it is on its way.
        """
        self._note_times()
        self._outbound.record(order)

    def publish(self, order: Order, *, wait: float = 0.0, recorded: bool = False) -> Pending:
        """
        Record an order and tell the other nodes.

        Args:
            order: The order.
            wait: Seconds to wait for what they report.
            recorded: Whether it is recorded already; it gets a number now all the same.
        """
        self._note_times()
        return self._outbound.publish(order, wait)

    def _note_times(self) -> None:
        self._pending_times = self._pending_times or not self.clock.known

    def check_due(self, token: str) -> bool:
        """
        Tell whether it is time to ask what is recorded of a lineage.
        """
        return self._lookup.check_due(token)

    async def check_request(self, token: str, subjects: Sequence[Subject]) -> bool:
        """
        Learn what is recorded of the session of an HTTP request; tell whether that is known.
        """
        return await self._lookup.check_request(token, subjects)

    @property
    def deaf(self) -> bool:
        """
        Whether orders may be missed now, so that a handshake has to ask right before it opens.
        """
        return not self._hears or bool(self._numbers.missing)

    async def check_handshake(self, connection: TrackedConnection) -> None:
        """
        Learn what is recorded of a handshake.

        Raises:
            aiohttp.web.HTTPServiceUnavailable: If Redis is away, and handshakes are refused
                then.
        """
        await self._lookup.check_handshake(connection)

    async def end_others(
        self, order: Order, lineage: Lineage, subjects: Sequence[Subject], since: float
    ) -> bool:
        """
        Record and publish an order if its own session is alive by all that is recorded.

        Redis judges in the script that makes the records; no answer within a second is a no.

        Args:
            order: The end of an identity and of the lineage that ends the others.
            lineage: That lineage.
            subjects: Its id, and its identity and labels.
            since: Up to when an end of the identity would concern the session that goes on.
        """
        if not self.clock.known:
            return False
        entry, channel = self._outbound.entry_of(order), self._outbox.channel
        args = self._encoder.to_judge(entry, channel, lineage, subjects, since, self._grace)
        answer = self._commands.run_script(END_OTHERS, *args, repeat=False)
        try:
            async with asyncio.timeout(LIMIT):
                return bool(await answer)
        except TROUBLE as exc:
            if self._logged.allows("end others"):
                log.warning("log out everywhere else was refused: %s", reason(exc))
            return False

    async def connections(self, subject: Subject | None, here: Snapshot) -> Snapshot:
        """
        Return the connections of all nodes; *here* are this one's.
        """
        return await self._queries.connections(subject, here)

    async def count(self, here: int) -> Count:
        """
        Return how many sockets all nodes have; *here* are this one's.
        """
        return await self._queries.count(here)

    async def nodes(self) -> Nodes:
        """
        Return the nodes that hold sockets.
        """
        return await self._queries.nodes()

    async def push(
        self, subject: Subject | None, data: Data, here: Delivery, *, wait: bool = False
    ) -> Delivery:
        """
        Push to the sockets of the other nodes.

        Args:
            subject: Whose sockets; all if it is ``None``.
            data: What.
            here: What became of it on this node.
            wait: Whether to ask the others, for a second at most, what became of it.
        """
        return await self._queries.push(subject, data, here, wait)


def _name_of(record: Record) -> str:
    match record:
        case LineageEnded(token=token) | LineageRenewed(token=token) | IdNote(token=token):
            return fingerprint(token)
        case SubjectEnded(subject=subject) | CloseSession(subject=subject):
            return f"{subject.kind} {fingerprint(subject.value)}"
