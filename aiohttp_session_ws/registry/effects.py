"""
Applies orders on this node, in one way, whichever node gave them.

The records of an order are merged, handshakes that it concerns are rejected, and open sockets are
found and closed. Orders of this node come from :mod:`.core`, those of others from the cluster.

Over 300 lines long: these are the steps of one procedure.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Hashable, Iterable, Sequence, Set as AbstractSet
from itertools import islice
from typing import Final, Protocol

from .._lineage import LAST_GENERATION, Kind, Lineage
from .._logging import log
from .._tasks import BackgroundTasks
from ..close_codes import RECONNECT, Close
from ..connections.connection import OPEN, OPENING, TrackedConnection
from ..connections.manager import ConnectionManager
from ..results import CloseReport
from ..sessions.clock import PENDING, Clock
from ..sessions.close_orders import CloseOrders
from ..sessions.journal import Journal
from ..sessions.records import (
    Change,
    IdNote,
    Records,
    SubjectEnded,
)
from ..signals import Signals
from .announce import Announcer
from .hooks import Overrides
from .judging import NO_EFFECT, Effect, Judge, Sessions, UnjudgedSockets, closes_in_any_case
from .order import Order, Refresh
from .revalidation import Revalidator

__all__: list[str] = []

JUDGED_AT_ONCE: Final = 100  # connections that are judged before the first of them is closed
REFRESH_WAIT: Final = 1.0  # seconds to wait for the order that keeps sockets open after a renewal
COMMIT_WAIT: Final = 0.25  # seconds that a response waits for the journal
BATCH: Final = 1000  # records of a journal that are applied in a row, which takes some ms
BATCHES_IN_FLIGHT: Final = (
    10  # appended to the journal at a time: its writer takes so many at once
)


class Node(Sessions, Protocol):
    """
    What :class:`Effects` needs from a registry, besides its judgements.
    """

    announcer: Announcer
    clock: Clock
    close_orders: CloseOrders
    connections: ConnectionManager
    journal: Journal | None
    overrides: Overrides
    records: Records
    revalidator: Revalidator
    signals: Signals
    tasks: BackgroundTasks


class Effects:
    """
    Applies orders.

    Args:
        core: The parts of the registry.
    """

    def __init__(self, core: Node) -> None:
        self._core = core
        self._connections = core.connections
        self._records = core.records
        self._commit: asyncio.Future[bool] | None = None  # of the journal's latest write

    def merge(self, changes: Iterable[Change]) -> list[Change]:
        """
        Merge records, and return those that changed what is known.
        """
        news = list(filter(self._records.merge, changes))
        self._journal(news)
        return news

    def merge_stored(self, stored: Iterable[Change], until: float) -> list[Change]:
        """
        Merge the records of the journal, and return those that changed what is known.

        Args:
            stored: The records.
            until: When this process started. It becomes the time of what an earlier process
                ordered before it knew the clock: that may have been at any time until then.
        """
        changes = list(stored)
        moved: list[Change] = []
        for i, change in enumerate(changes):
            if not isinstance(change, IdNote) and change.at >= PENDING:
                changes[i] = change._replace(at=until)
                moved.append(changes[i])
        self._journal(moved)
        return list(filter(self._records.merge, changes))

    def resolve(self) -> None:
        """
        Give the records made before the clock was known their time.
        """
        self._journal(self._records.resolve(self._core.clock.resolve))

    def _journal(self, changes: Sequence[Change]) -> None:
        if changes and self._core.journal is not None:
            self._commit = self._core.journal.append(changes)

    async def committed(self) -> bool:
        """
        Wait until the journal has stored what was merged, for :data:`COMMIT_WAIT` seconds at most.

        Returns:
            Whether it has stored that; true without a journal.
        """
        commit = self._commit
        if commit is None:
            return True
        done, _ = await asyncio.wait({commit}, timeout=COMMIT_WAIT)
        if not done:
            log.warning("the journal is slow: recent session ends are not on disk yet")
        return bool(done) and commit.result()

    def apply(self, order: Order, *, before: float | None = None) -> Effect:
        """
        Apply an order: merge its records, reject handshakes, find open sockets to close.

        Args:
            order: The order.
            before: When it was given, by the event loop's clock, if that was not right now: a
                handshake that began later needn't reconnect.
        """
        if order.changes:
            self.merge(order.changes)
        if order.refresh is not None:
            self._refresh(order.refresh)
        if order.closes:
            given = time.monotonic() if before is None else before
            for subject in order.closes:
                self._core.close_orders.add(subject, given)
        return self.effect_of(order, before=before)

    def _refresh(self, refresh: Refresh) -> None:
        """
        Keep the sockets of a lineage open under its new id and next generation.
        """
        lineage, session_ws_id, until, was = refresh
        for connection in self._connections.of_lineage(lineage.token):
            # The later of two overlapping renewals has the same generation and another id.
            older = connection.lineage.generation < lineage.generation or (
                connection.lineage.generation == lineage.generation
                and connection.session_ws_id != session_ws_id
            )
            if not older or connection.state is not OPEN:
                continue
            self._connections.refile(connection, session_ws_id, lineage)
            if connection.request is not None:
                self._core.revalidator.set_identity_expiry(connection, until)
                if self._core.signals.on_refresh:
                    sending = self._core.signals.on_refresh.send(connection)
                    _ = self._core.tasks.spawn(sending, "send on_refresh")
        if self._core.overrides.random_ids:  # else other sessions may share the id
            for connection in self._connections.open.of(was):
                if connection.request is None and connection.state is OPEN:
                    self._connections.refile(connection, session_ws_id, lineage)

    def effect_of(self, order: Order, *, before: float | None = None) -> Effect:
        """
        Judge every connection that an order may concern; many open ones only while closing them.

        Args:
            order: An order whose records are merged.
            before: Connections whose handshake began later needn't reconnect.
        """
        found = self._concerned(order, before)
        if not found:
            return NO_EFFECT  # the usual case
        if len(found) == 1 and order.close is not None:
            ((connection, must_reconnect),) = found.items()
            if connection.state is not OPENING and closes_in_any_case(
                order.changes, connection, must_reconnect
            ):
                return Effect(((order.close, (connection,)),))
        judge = Judge(order, self._core)
        handshakes = 0
        for connection in [c for c in found if c.state is OPENING]:
            close = judge.close_of(connection, found.pop(connection))
            if close is not None:
                connection.reject(close)
                handshakes += 1
        if len(found) > JUDGED_AT_ONCE:
            return Effect((), handshakes, (), UnjudgedSockets(found, judge))
        closing: dict[Close, list[TrackedConnection]] = {}
        for connection, must_reconnect in found.items():
            close = judge.close_of(connection, must_reconnect)
            if close is not None:
                closing.setdefault(close, []).append(connection)
        groups = tuple([(close, tuple(group)) for close, group in closing.items()])
        return Effect(groups, handshakes, tuple(judge.replaced))

    def _concerned(self, order: Order, before: float | None) -> dict[TrackedConnection, bool]:
        """
        Find the connections that an order may concern, each once, and whether each has to
        reconnect in any case.
        """
        found: dict[TrackedConnection, bool] = {}
        for change in order.changes:
            found.update(dict.fromkeys(self._connections_of(change), False))
        for subject in order.closes:
            for connection in self._connections.of_subject(subject):
                if before is None or connection.started <= before:
                    found[connection] = True
                else:
                    found.setdefault(connection, False)
        return found

    def _connections_of(self, change: Change) -> list[TrackedConnection]:
        if isinstance(change, IdNote):
            self._file_by_hand(change)
        if not isinstance(change, SubjectEnded):
            return self._connections.of_lineage(change.token)
        connections = self._connections.of_subject(change.subject)
        if change.subject.kind == "id":
            note = self._records.note_of(change.subject.value)
            if note is not None:  # the lineage may have ended with its id
                connections += self._connections.of_lineage(note.token)
        return connections

    def _file_by_hand(self, note: IdNote) -> None:
        """
        File objects registered by hand under an id by the lineage of the id, too.

        They stay under that id if the session was given another one and this node missed it.
        """
        if not self._core.overrides.random_ids:
            return  # other sessions may share the id
        lineage = Lineage(note.token, LAST_GENERATION, note.began)
        for connection in self._connections.open.of(note.session_ws_id):
            if connection.request is None and not connection.lineage.token:
                self._connections.refile(connection, note.session_ws_id, lineage)

    def concerned(
        self, kind: Kind, values: Sequence[Hashable], *, ends: bool
    ) -> AbstractSet[Hashable]:
        """
        Return those of some ids, identities or labels whose orders must be carried out one by one.

        Those that a connection here has, and ended ids whose lineage is known; but all of them if
        orders are announced, or ends are written to a journal.

        Args:
            kind: Whether they are ids, identities or labels.
            values: The ids, identities or labels.
            ends: Whether they end; else their sockets are to reconnect.
        """
        if self._core.announcer.announces or (ends and self._core.journal is not None):
            return frozenset(values)
        found = self._connections.held_among(kind, values)
        if ends and kind == "id":
            found += self._records.with_note(values)
        return frozenset(found)

    def note_ends(
        self, kind: Kind, values: Sequence[Hashable], times: Sequence[float], ttl: float
    ) -> None:
        """
        Add ends, ordered by another node, that concern nothing on this node.

        Args:
            kind: Whether ids, identities or labels ended.
            values: The ids, identities or labels.
            times: When each ended, by the shared clock.
            ttl: Seconds to keep each end after its last hit.
        """
        self._records.end_subjects(kind, values, times, ttl)
        self._core.announcer.orders_heard += len(values)

    def note_closes(self, kind: Kind, values: Sequence[Hashable], times: Sequence[float]) -> None:
        """
        Add close orders of another node that concern nothing on this node.

        Args:
            kind: Whether ids, identities or labels are to reconnect.
            values: The ids, identities or labels.
            times: When each order was given, by the event loop's clock.
        """
        self._core.close_orders.add_many(kind, values, times)
        self._core.announcer.orders_heard += len(values)

    def carry_out(self, effect: Effect) -> Awaitable[CloseReport]:
        """
        Close the sockets of an order; their close frames are written before this returns.

        Of many, only the first are; the rest follow in slices, before any answer is processed.
        """
        sockets, waits = 0, []
        for close, found in effect.closing:
            for connection in found:
                sockets += not connection.removed
            waits.append(self._connections.close_now(found, close))
        if effect.unjudged is not None:
            waits.append(self._close_unjudged(effect.unjudged))
        self._recheck_later(effect.replaced)
        return self._report(waits, sockets, effect)

    def _close_unjudged(self, unjudged: UnjudgedSockets) -> Awaitable[tuple[int, int]]:
        unjudged.when_judged(lambda: self._recheck_later(unjudged.replaced))
        return self._connections.close_unjudged(unjudged)

    async def _report(
        self, waits: Sequence[Awaitable[tuple[int, int]]], sockets: int, effect: Effect
    ) -> CloseReport:
        aborted = cancelled = 0
        for wait in waits:
            some_aborted, some_cancelled = await wait
            aborted += some_aborted
            cancelled += some_cancelled
        if effect.unjudged is not None:
            sockets += effect.unjudged.sockets
        return CloseReport(sockets, aborted, cancelled, effect.handshakes)

    def carry_out_soon(self, effect: Effect) -> None:
        """
        Write the close frames of an order now; wait for the rest in the background.
        """
        for close, found in effect.closing:
            self._connections.close_soon(found, close)
        if effect.unjudged is not None:
            _ = self._close_unjudged(effect.unjudged)
        self._recheck_later(effect.replaced)

    def _recheck_later(self, replaced: Sequence[TrackedConnection]) -> None:
        """
        Close sockets of an older generation in a moment, unless an order to keep them arrives.
        """
        if replaced:
            loop, context = asyncio.get_running_loop(), contextvars.Context()
            _ = loop.call_later(REFRESH_WAIT, self._close_replaced, replaced, context=context)

    def _close_replaced(self, replaced: Sequence[TrackedConnection]) -> None:
        core = self._core
        found = (
            (c, RECONNECT) if c.state is OPEN and core.close_for(core.status_of(c)) else None
            for c in replaced
        )
        _ = self._connections.close_each(found, len(replaced))

    def apply_missed(self, changes: Sequence[Change]) -> None:
        """
        Apply records that this node had missed; close what they end in the background.
        """
        self._take_effect(self.merge(changes))

    async def apply_stored(self, changes: Sequence[Change], until: float) -> None:
        """
        Apply records that the journal already holds, a part at a time.

        Args:
            changes: The records.
            until: When this process started.
        """
        for start in range(0, len(changes), BATCH):
            part = changes[start : start + BATCH]
            self._take_effect(self.merge_stored(part, until))
            await asyncio.sleep(0)

    async def rewrite_journal(self) -> None:
        """
        Write all records into the journal, a few parts at a time, so that its queue has room for
        what ends meanwhile.
        """
        journal = self._core.journal
        assert journal is not None
        changes = iter(self._records)
        parts = iter(lambda: tuple(islice(changes, BATCH)), ())
        waiting: deque[asyncio.Future[bool]] = deque()
        try:
            for part in parts:
                waiting.append(journal.append(part))
                if len(waiting) < BATCHES_IN_FLIGHT:
                    await asyncio.sleep(0)
                else:
                    await waiting.popleft()
        except asyncio.CancelledError:  # the process stops, and waits for what is appended
            for part in parts:
                _ = journal.append(part)
            raise

    def _take_effect(self, news: Sequence[Change]) -> None:
        if news:
            self.carry_out_soon(self.effect_of(Order(tuple(news))))
