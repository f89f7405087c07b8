"""
The journal: the records on disk, so that an end outlives the process.

The event loop passes changes to a thread without blocking. The thread writes them, and their
future is resolved in the event loop once they are on disk.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from .._logging import log
from . import journal_writer
from .journal_file import JournalFile
from .journal_rows import POOLS, Pool, as_row
from .journal_writer import JournalWriter, Loaded
from .records import Change

__all__: list[str] = []

SLOW: Final = 5.0  # seconds after which a disk that doesn't answer counts as failing


class PendingWrite(NamedTuple):
    """
    Changes that were passed to the thread and are not on disk yet.

    Attributes:
        rows: How many rows they have.
        since: When they were passed, by the monotonic clock.
        future: The future to resolve.
    """

    rows: int
    since: float
    future: asyncio.Future[bool]


class Journal:
    """
    Records in an SQLite file that belongs to this process.

    Args:
        path: The file; its directory must exist. SQLite keeps another beside it, ``…-wal``.
        clock: Seconds since the epoch, unless :meth:`start` is given another clock.
        pools: How many records of each kind are kept.

    Attributes:
        path: The file.
        last_time: The latest time that an earlier process has written: the clock must not
            start before it. Set by :meth:`start`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        pools: Mapping[str, Pool] = POOLS,
    ) -> None:
        try:
            self.path = Path(path).absolute()
        except TypeError:
            raise TypeError(f"journal must be a str or Path, not {type(path).__name__}") from None
        if not Path(path).name:
            raise ValueError("journal must be the path of a file, not of a directory")
        self.last_time = 0.0
        self._file = JournalFile(self.path, clock, pools)
        self._writer = JournalWriter(self._file, partial(self._call_in_loop, self._resolve_oldest))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[None] | None = None  # None: not started, or stopped
        self._waiting: deque[PendingWrite] = deque()  # the oldest first
        self._waiting_rows = 0

    @property
    def failing(self) -> bool:
        """
        Whether the disk fails, or has not answered for 5 s.
        """
        hangs = bool(self._waiting) and time.monotonic() - self._waiting[0].since > SLOW
        return self._writer.failed or hangs

    @property
    def commits(self) -> int:
        """
        How many transactions have been committed.
        """
        return self._writer.commits

    async def start(
        self,
        clock: Callable[[], float] | None = None,
        is_in_memory: Callable[[Change], bool] | None = None,
        time_to_store: Callable[[], float] | None = None,
        on_late_read: Callable[[list[Change]], None] | None = None,
        on_new_file: Callable[[], None] | None = None,
    ) -> list[Change]:
        """
        Open the file and return what it holds.

        A damaged file is renamed and a new one begun, with an error in the log. A failing disk
        is an error in the log, too; then the result is empty, reading is retried, and
        *on_late_read* is called with the records as soon as they can be read.

        Args:
            clock: The clock of the records, in seconds since the epoch. The thread calls it, too.
            is_in_memory: Returns whether memory still has a record, since it was used after it was
                written: then it isn't deleted. The thread calls it.
            time_to_store: Returns the time from which the next process may continue; it is written
                with each commit, instead of that of the clock. The thread calls it.
            on_late_read: Called in the event loop with the records that could not be read at once;
                :attr:`last_time` is set by then.
            on_new_file: Called in the event loop when a new file is begun, since the one in use
                was damaged or deleted: then all records are to be written again.

        Raises:
            JournalError: If another process has the file, it can't be opened, or isn't a journal.
        """
        if clock is not None:
            self._file.clock = self._file.time_to_store = clock
        if is_in_memory is not None:
            self._file.is_in_memory = is_in_memory
        if time_to_store is not None:
            self._file.time_to_store = time_to_store
        if on_new_file is not None:
            self._file.on_new_file = partial(self._call_in_loop, on_new_file)
        self._loop = loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Loaded] = loop.create_future()
        finished: asyncio.Future[None] = loop.create_future()
        self._writer.start(
            partial(self._call_in_loop, _resolve, loaded),
            partial(self._call_in_loop, self._read_late, on_late_read),
            partial(self._call_in_loop, _resolve, finished, None),
        )
        try:
            changes, self.last_time = await loaded
        except asyncio.CancelledError:  # the caller of start()
            self._writer.put(None)
            raise
        self._finished = finished
        return changes

    def _read_late(
        self, on_late_read: Callable[[list[Change]], None] | None, loaded: Loaded
    ) -> None:
        changes, self.last_time = loaded
        if on_late_read is not None:
            on_late_read(changes)

    def append(self, changes: Iterable[Change]) -> asyncio.Future[bool]:
        """
        Queue *changes* and the time to be written. To write a change again restarts its TTL.

        Returns:
            A future: true once they are on disk and survive ``kill -9`` and a power cut. False
            if the disk fails (they are written when it works again), or if they are not taken,
            since the journal is stopped or too much is waiting.

        Raises:
            TypeError: If an id, identity or label can't be stored; the message names the type.
        """
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[bool] = self._loop.create_future()
        now = self._file.clock()
        rows = [as_row(change, now) for change in changes]
        if self._finished is None or self._waiting_rows + len(rows) > journal_writer.BACKLOG:
            log.error(
                "the journal %s is stopped or its backlog is full: an end is kept in memory only",
                self.path,
            )
            future.set_result(False)
        else:
            self._waiting.append(PendingWrite(len(rows), time.monotonic(), future))
            self._waiting_rows += len(rows)
            self._writer.put(rows)
        return future

    def store_time(self) -> None:
        """
        Queue the time to be written; may be called from any thread.
        """
        self._call_in_loop(self._append_time)

    def _append_time(self) -> None:
        if self._finished is not None:
            _ = self.append(())  # not awaited

    def _resolve_oldest(self, count: int, written: bool) -> None:
        """
        Resolve the *count* oldest futures: the thread writes in the order of the calls.
        """
        for _ in range(count):
            waiting = self._waiting.popleft()
            self._waiting_rows -= waiting.rows
            _resolve(waiting.future, written)

    async def stop(self, timeout: float = 5.0) -> None:
        """
        Write what is left and close the file. It may be called twice.

        Args:
            timeout: Seconds to wait for a disk that hangs.
        """
        finished, self._finished = self._finished, None
        if finished is None:
            return
        self._writer.put(None)
        await asyncio.wait([finished], timeout=timeout)
        if not finished.done():
            log.error(
                "the journal %s: the disk doesn't respond, and the last ends may be lost",
                self.path,
            )

    def _call_in_loop(self, function: Callable[..., None], *args: object) -> None:
        """
        Call something in the event loop, from the thread.
        """
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed; nothing is awaited any more
            return


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    """
    Resolve a future with *result*, or fail it with an exception, unless it was cancelled.
    """
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
