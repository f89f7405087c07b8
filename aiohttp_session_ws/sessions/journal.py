"""
The journal: the records on disk, so that an end outlives the process.

The event loop hands changes over and goes on. A thread writes them and the future of whoever
waits is resolved, in the loop, once they are on disk.
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


class Waiting(NamedTuple):
    """
    What was handed over and is not on disk yet.

    Attributes:
        rows: How many rows.
        since: When, by the monotonic clock.
        future: Of whoever waits.
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
            raise TypeError(f"journal: a str or Path, not {type(path).__name__}") from None
        if not Path(path).name:
            raise ValueError("journal: the path of a file, not of a directory")
        self.last_time = 0.0
        self._file = JournalFile(self.path, clock, pools)
        self._writer = JournalWriter(self._file, partial(self._in_loop, self._answer))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[None] | None = None  # None: not started, or stopped
        self._waiting: deque[Waiting] = deque()  # the oldest first
        self._waiting_rows = 0

    @property
    def failing(self) -> bool:
        """
        Whether the disk refuses to be written, or has not answered for 5 s.
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
        knows: Callable[[Change], bool] | None = None,
        promised: Callable[[], float] | None = None,
        learn: Callable[[list[Change]], None] | None = None,
        begun: Callable[[], None] | None = None,
    ) -> list[Change]:
        """
        Open the file and return what it holds.

        A damaged file is renamed and a new one begun, with an error in the log. A disk that
        fails is an error in the log too; then nothing is returned, and it is tried again: *learn*
        is given what it holds as soon as that can be read.

        Args:
            clock: The clock of the records, in seconds since the epoch. The thread calls it, too.
            knows: Tells whether memory still has a record, since it was met after it was
                written: then it isn't deleted. The thread calls it.
            promised: Returns the time from which the next process may go on: it is written with
                each commit, instead of that of the clock. The thread calls it.
            learn: Called in the event loop with what could not be read at once;
                :attr:`last_time` is set by then.
            begun: Called in the event loop when another file is begun, since that in use was
                damaged or deleted: all that is known is to be written again.

        Raises:
            JournalError: If another process has the file, or it can't be opened or isn't ours.
        """
        if clock is not None:
            self._file.clock = self._file.promised = clock
        if knows is not None:
            self._file.knows = knows
        if promised is not None:
            self._file.promised = promised
        if begun is not None:
            self._file.begun = partial(self._in_loop, begun)
        self._loop = loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Loaded] = loop.create_future()
        finished: asyncio.Future[None] = loop.create_future()
        self._writer.start(
            partial(self._in_loop, _resolve, loaded),
            partial(self._in_loop, self._learn_late, learn),
            partial(self._in_loop, _resolve, finished, None),
        )
        try:
            changes, self.last_time = await loaded
        except asyncio.CancelledError:  # of whoever starts us
            self._writer.put(None)
            raise
        self._finished = finished
        return changes

    def _learn_late(self, learn: Callable[[list[Change]], None] | None, loaded: Loaded) -> None:
        changes, self.last_time = loaded
        if learn is not None:
            learn(changes)

    def append(self, changes: Iterable[Change]) -> asyncio.Future[bool]:
        """
        Have *changes* and the time written, without waiting for it. To write a change again
        restarts its time.

        Returns:
            A future: true once they are on disk, so that neither ``kill -9`` nor a power cut
            takes them back. False if the disk fails; they are written when it works again.

        Raises:
            TypeError: If an id, identity or label can't be stored; it names the type.
        """
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[bool] = self._loop.create_future()
        now = self._file.clock()
        rows = [as_row(change, now) for change in changes]
        if self._finished is None or self._waiting_rows + len(rows) > journal_writer.BACKLOG:
            log.error("the journal %s takes no more; an end is kept in memory only", self.path)
            future.set_result(False)
        else:
            self._waiting.append(Waiting(len(rows), time.monotonic(), future))
            self._waiting_rows += len(rows)
            self._writer.put(rows)
        return future

    def keep_time(self) -> None:
        """
        Have the time written soon; it may be called from any thread.
        """
        self._in_loop(self._keep_time)

    def _keep_time(self) -> None:
        if self._finished is not None:
            _ = self.append(())  # nobody waits for it

    def _answer(self, count: int, written: bool) -> None:
        """
        Tell those who have waited longest: the thread takes them one after another.
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
            log.error("the journal %s: the disk hangs, and the last ends may be lost", self.path)

    def _in_loop(self, function: Callable[..., None], *args: object) -> None:
        """
        Call something in the event loop, from the thread.
        """
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed; nobody waits any more
            return


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    """
    Give *result*, or raise it, unless whoever waited has lost patience.
    """
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
