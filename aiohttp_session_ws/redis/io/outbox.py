"""
The outbox of a node: a queue of orders that Redis has not recorded yet.

An order is sent at once or queued. Then it is recorded, or it is refused, times out or is lost
with the connection, and is retried.

Over 300 lines long: these are the states of one state machine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from ..._logging import OncePerMinute, log
from ...exceptions import RedisUnavailable
from ..encoder import Encoder, body_of, is_published
from ..entries import AnyEntry, Argument
from .connect import (
    REPLY_TIMEOUT,
    MakeClient,
    is_temporary,
    needs_other_server,
    reason,
    refusal,
)
from .line import Line, Link
from .scripts import WRITE
from .watchdog import Watchdog

__all__: list[str] = []

ORDERS: Final = "orders"  # the channel of orders
DEPTH: Final = 1_000_000  # orders
BATCH: Final = 500  # records in one run of the script
AT_ONCE: Final = 2  # batches in flight
FULL_AT_ONCE: Final = 8  # full batches in flight: in a burst, Redis records while orders come in
SOON: Final = 0.1  # seconds until orders that were set aside are retried, doubled each time
MAX_RETRY_DELAY: Final = 1.0  # the maximum of this delay, in seconds


class Batch(NamedTuple):
    """
    Entries that are sent together.

    Attributes:
        entries: The entries.
        args: The arguments of the script.
        sent: When they were sent, by the event loop's clock.
        again: Whether they had been set aside.
    """

    entries: list[AnyEntry]
    args: list[Argument]
    sent: float
    again: bool


class Outbox:
    """
    Writes orders to Redis and retries until it has recorded them; writing one twice is harmless.

    If nothing else is pending, an order is written in the same turn of the event loop. Orders are
    independent: a batch that fails or times out is halved until the order at fault is found, which
    is set aside. So are orders that Redis refuses to record, though it publishes them.

    Args:
        make: Creates a client.
        prefix: The prefix of all keys.
        encoder: Encodes entries as arguments of the script.
        known: Called with the merged records, as JSON, where Redis knew more than the order.
        published: Called with each message that was recorded and published.
        wait: Returns for how many seconds an order that is given now is delayed, to be batched.
        up: Called when connected.
        down: Called with the reason when the connection was lost or could not be made.

    Attributes:
        channel: The channel of orders; "" before the first connection.
        refused: The code word with which Redis refuses writes, "" if it doesn't.
    """

    def __init__(
        self,
        make: MakeClient,
        prefix: str,
        encoder: Encoder,
        known: Callable[[list[bytes]], None],
        published: Callable[[bytes], None],
        wait: Callable[[], float] = lambda: 0.0,
        up: Callable[[], None] = lambda: None,
        down: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.link = Link(make, prefix, self.connected, self.disconnected)
        self._encoder = encoder
        self._known = known
        self._published = published
        self._wait = wait
        self._up = up
        self._down = down
        self._tick: asyncio.TimerHandle | None = None  # of the next flush
        self._queue: deque[AnyEntry] = deque()
        self._aside: deque[AnyEntry] = deque()
        self._in_flight: deque[Batch] = deque()
        self._size = BATCH
        self._delay = SOON
        self._lost = 0
        self._missed_at = 0.0  # when another node may have missed messages
        self._watchdog = Watchdog(self._oldest, self._timed_out)
        self._retry: asyncio.TimerHandle | None = None
        self._primary_rechecked = False  # for another primary, since the last successful write
        self._logged = OncePerMinute()
        self._empty = asyncio.Event()
        self._empty.set()
        self._idle = asyncio.Event()  # nothing is pending but orders that can't be written
        self._idle.set()
        self.channel = ""
        self.refused = ""

    def __len__(self) -> int:
        # A copy: stats() may be called in another thread.
        flying = sum(len(batch.entries) for batch in tuple(self._in_flight))
        return len(self._queue) + len(self._aside) + flying

    def put(self, entry: AnyEntry) -> None:
        """
        Write *entry*, now or as soon as possible.
        """
        line = self.link.line
        waiting = self._queue or self._in_flight or self._aside or self._wait()
        if not waiting and line is not None and self._send(line, [entry]):  # the usual case
            self._empty.clear()
            self._idle.clear()
            return
        if len(self._queue) + len(self._aside) >= DEPTH:
            _ = (self._aside or self._queue).popleft()
            if self._lost % 10_000 == 0:
                log.error(
                    "more than %d orders wait for Redis: the oldest are dropped, and their"
                    " sessions are ended on this node only",
                    DEPTH,
                )
            self._lost += 1
        self._queue.append(entry)
        self._empty.clear()
        self._idle.clear()
        flying, full = len(self._in_flight), len(self._queue) >= BATCH
        if full and flying < FULL_AT_ONCE:
            self.flush()
        elif flying < AT_ONCE and self._tick is None:
            if wait := self._wait():
                self._tick = asyncio.get_running_loop().call_later(wait, self.flush)
            else:
                self.flush()

    def flush(self) -> None:
        """
        Send as many queued entries as may be sent now.
        """
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        line = self.link.line
        while line is not None and self._queue and len(self._in_flight) < self._most:
            entries = self._pop_batch(self._queue, self._size)
            if not self._send(line, entries):
                self._queue.extendleft(reversed(entries))
                return

    @property
    def _most(self) -> int:
        """
        How many batches may be in flight.
        """
        full = self._size == BATCH and len(self._queue) >= BATCH
        return FULL_AT_ONCE if full else AT_ONCE

    def publish_again(self) -> None:
        """
        Publish again now what Redis refuses to record: another node may have missed it.
        """
        self._missed_at = asyncio.get_running_loop().time()
        for entry in self._left():
            entry.published = False
        aside, self._aside = self._aside, deque()
        for entry in aside:  # the usual retry sends some hundred a second
            (self._aside if entry.alone else self._queue).append(entry)
        self.flush()

    async def wait_idle(self) -> None:
        """
        Wait until nothing is pending except orders that fail even when they are sent alone.
        """
        await self._idle.wait()

    async def drain(self, timeout: float) -> list[AnyEntry]:
        """
        Wait until all is written, for *timeout* seconds at most; return the entries left.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            pass
        return self._left()

    def _left(self) -> list[AnyEntry]:
        flying = [entry for batch in self._in_flight for entry in batch.entries]
        return [*flying, *self._queue, *self._aside]

    def stop(self) -> None:
        """
        Cancel all timers: nothing is retried any more.
        """
        self._watchdog.stop()
        for timer in (self._retry, self._tick):
            if timer is not None:
                timer.cancel()

    # Sending

    def _pop_batch(self, queue: deque[AnyEntry], most: int) -> list[AnyEntry]:
        """
        Take entries with at most *most* records in total from a queue, but at least one entry.
        """
        first = queue.popleft()
        entries, size = [first], first.size
        while queue and not first.alone:
            entry = queue[0]
            size += entry.size or 1
            if size > most or entry.alone:
                break
            entries.append(queue.popleft())
        return entries

    def _send(self, line: Line, entries: list[AnyEntry], *, again: bool = False) -> bool:
        """
        Send *entries* (*again*: they were set aside); return false if the time isn't known yet.
        """
        args = self._encoder.arguments(entries, self.channel)
        if args is None:
            return False
        answer = line.run(WRITE, *args)
        batch = Batch(entries, args, asyncio.get_running_loop().time(), again)
        self._in_flight.append(batch)
        answer.add_done_callback(partial(self._answered, batch))
        self._watchdog.start()
        return True

    # Replies

    def _answered(self, batch: Batch, answer: asyncio.Future[Any]) -> None:
        if batch not in self._in_flight:
            return  # it was given up, and put back
        exc = answer.exception()
        if isinstance(exc, RedisUnavailable):
            return  # disconnected() puts the batch back
        self._in_flight.remove(batch)
        self._watchdog.answered()
        if exc is None:
            self._recorded(batch, answer.result())
        elif word := refusal(exc):
            self._refuse(batch, word)
        elif is_temporary(exc):
            self._aside.extend(batch.entries)
            self._retry_later()
        elif needs_other_server(exc):
            self._queue.extendleft(reversed(batch.entries))
            self.link.drop(reason(exc))
        else:
            self._set_aside(batch, reason(exc))
        if self._tick is None:  # else that timer flushes
            self.flush()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        """
        Wake up :meth:`drain` and :meth:`wait_idle` if nothing is left that they wait for.
        """
        if not len(self):
            self._empty.set()
        flying = (entry for batch in self._in_flight for entry in batch.entries)
        if not self._queue and all(e.alone for e in self._aside) and all(e.alone for e in flying):
            self._idle.set()

    def _recorded(self, batch: Batch, known: list[bytes]) -> None:
        self._size = min(BATCH, 2 * self._size)
        if batch.again and self._aside:
            self._retry_now()  # the others may have had the same problem, which is over
        elif self.refused or not self._aside:
            self._delay = SOON
        self.refused = ""
        self._primary_rechecked = False
        self._published(body_of(batch.args))
        for entry in batch.entries:
            entry.finish()
        if known:
            self._known(known)

    def _refuse(self, batch: Batch, word: str) -> None:
        """
        Set aside a batch that Redis refused to record, and retry it later.
        """
        self.refused = word
        if self._logged.allows(word):
            log.error(
                "Redis refuses writes (%s): orders are still published, and recording them is"
                " retried; %d pending",
                word,
                len(self) + len(batch.entries),
            )
        # If there is another primary, its subscribers have not received the message.
        published, self._primary_rechecked = word != "READONLY" or self._primary_rechecked, True
        # Nor has a node that subscribed while the batch was in flight.
        published = published and is_published(batch.args) and batch.sent >= self._missed_at
        for entry in batch.entries:
            entry.published = entry.published or published
        self._aside.extend(batch.entries)
        self._retry_later()
        if word == "READONLY":
            self.link.drop("the server is a replica")  # there may be another primary by now

    def _set_aside(self, batch: Batch, why: str) -> None:
        """
        Put back a batch that failed: several orders in halves, a single one behind all others.
        """
        if len(batch.entries) > 1:
            self._size = max(1, sum(entry.size for entry in batch.entries) // 2)
            self._queue.extendleft(reversed(batch.entries))
            return
        self._size = BATCH
        batch.entries[0].alone = True
        self._aside.extend(batch.entries)
        if self._logged.allows(why):
            log.error("an order could not be recorded (%s), retrying", why)
        self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(self._delay, self._try_again)
            self._delay = min(MAX_RETRY_DELAY, 2 * self._delay)

    def _retry_now(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry, self._delay = None, 0.0
        self._retry_later()
        self._delay = SOON

    def _try_again(self) -> None:
        self._retry = None
        line = self.link.line
        if line is not None and self._aside and len(self._in_flight) < AT_ONCE:
            entries = self._pop_batch(self._aside, self._size)
            if not self._send(line, entries, again=True):
                self._aside.extendleft(reversed(entries))
        if self._aside:
            self._retry_later()

    # The connection

    def connected(self, line: Line) -> None:
        """
        Send pending orders over a new connection.
        """
        self.channel = line.channel(ORDERS)
        self._put_back()
        self.flush()
        self._up()

    def disconnected(self, why: str) -> None:
        """
        Put the batches in flight back into the queue.
        """
        self._put_back()
        self._down(why)

    def _put_back(self) -> None:
        while self._in_flight:
            self._queue.extendleft(reversed(self._in_flight.pop().entries))

    def _oldest(self) -> float | None:
        return self._in_flight[0].sent if self._in_flight else None

    def _timed_out(self) -> None:
        """
        Give up the oldest batch, which got no reply in time, and reconnect.
        """
        first = self._in_flight.popleft()
        self._put_back()
        self._set_aside(first, f"no answer within {REPLY_TIMEOUT:g} s")
        self._wake_waiters()
        self.link.drop(f"no answer within {REPLY_TIMEOUT:g} s")
