"""
The thread that writes the journal, and retries while the disk fails.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from .._logging import log
from .journal_file import JournalFile, is_damage, primary_code
from .journal_rows import Row
from .records import Change

__all__: list[str] = []

BATCH: Final = 10_000  # rows in one transaction, approximately
BACKLOG: Final = 1_000_000  # rows kept for a disk that fails or hangs
RETRY: Final = 1.0  # seconds between the first two attempts at a failing disk
MAX_RETRY: Final = 10.0  # seconds between two attempts, at most
TIDY: Final = 60.0  # seconds between two clean-ups of expired rows
LOG_EVERY: Final = 60.0  # seconds between two lines in the log

#: The exceptions of SQLite that are due to a row, not to the disk.
ROW_ERRORS: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
)

#: What is read at the start: the records, and the last time of the clock.
Loaded: TypeAlias = tuple[list[Change], float]


class JournalWriter:
    """
    Writes rows in a thread: one commit for all that were put during the previous commit.

    Args:
        file: The file, which only the thread uses.
        on_written: Called in the thread with a number of the oldest puts, and whether those are
            on disk.

    Attributes:
        failed: Whether the disk has failed, and not taken all rows since.
        commits: How many transactions have been committed.
    """

    def __init__(self, file: JournalFile, on_written: Callable[[int, bool], None]) -> None:
        self.failed = False
        self.commits = 0
        self._file = file
        self._on_written = on_written
        self._queue: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._backlog: deque[Row] = deque()  # rows that a failing disk has not taken
        self._dropped = 0
        self._has_read = False  # whether the records of earlier processes were read
        self._on_late_read: Callable[[Loaded], None]
        self._retry_at = self._tidy_at = self._log_at = 0.0
        self._retry_wait = RETRY

    def start(
        self,
        loaded: Callable[[Loaded | BaseException], None],
        on_late_read: Callable[[Loaded], None],
        finished: Callable[[], None],
    ) -> None:
        """
        Start the thread, which calls *loaded* once and, unless with an exception, *finished* once.

        If the disk fails, *loaded* gets an empty result; *on_late_read* is called with the records
        as soon as they can be read, before any row is written.
        """
        self._has_read, self._on_late_read = False, on_late_read
        threading.Thread(
            target=self._run, args=(loaded, finished), name="session-ws-journal", daemon=True
        ).start()

    def put(self, rows: list[Row] | None) -> None:
        """
        Queue rows to be written; ``None`` stops the thread when all before it are written.
        """
        self._queue.put(rows)

    def _run(
        self,
        loaded: Callable[[Loaded | BaseException], None],
        finished: Callable[[], None],
    ) -> None:
        try:
            result = self._load()
        except BaseException as exc:  # noqa: BLE001 - Journal.start() raises it
            self._file.close()
            loaded(exc)
            return
        loaded(result)
        more = True
        while more:
            puts, more = self._next_puts()
            self._has_read |= not more  # at the end it needn't be read any more
            if puts:
                self._write(puts, hurry=not more)
            if more and time.monotonic() >= self._due:
                if self.failed:
                    self._retry()
                else:
                    self._tidy()
        self._finish()
        finished()

    def _load(self) -> Loaded:
        for _ in range(2):
            try:
                return self._read()
            except (sqlite3.Error, OSError) as exc:
                self._note_failure(exc)
                if not is_damage(exc):
                    break
                # Else damage that the check doesn't find; now the file is set aside.
        return [], 0.0

    def _read(self) -> Loaded:
        found = self._file.load()
        self._has_read = True
        self._tidy_at = time.monotonic() + TIDY  # memory, which tidy() checks, has them by then
        return found

    @property
    def _due(self) -> float:
        """
        When the next retry or clean-up is due, however many rows are put.
        """
        return self._retry_at if self.failed else self._tidy_at

    def _next_puts(self) -> tuple[list[list[Row]], bool]:
        """
        Wait for rows, or until something else is due; return them and whether more may come.
        """
        puts: list[list[Row]] = []
        size = 0
        try:
            rows = self._queue.get(timeout=max(0.0, self._due - time.monotonic()))
            while rows is not None:
                puts.append(rows)
                size += len(rows)
                if size >= BATCH:
                    return puts, True
                rows = self._queue.get_nowait()
        except queue.Empty:
            return puts, True
        return puts, False

    def _write(self, puts: list[list[Row]], hurry: bool) -> None:
        """
        Write rows and report the result; while the disk fails, try with back-off only.
        """
        rows = [row for put in puts for row in put]
        due = hurry or time.monotonic() >= self._retry_at
        if self._backlog or (self.failed and not due):
            self._add_to_backlog(rows)  # in order: a later row replaces a pending timestamp
            if due:
                self._retry()
            written = not self._backlog
        else:
            written = self._commit(rows)
        self._on_written(len(puts), written)

    def _retry(self) -> None:
        """
        Write the backlog until the disk fails again; if there is none, the time.
        """
        backlog = self._backlog
        more = True
        while more:
            rows = [backlog.popleft() for _ in range(min(BATCH, len(backlog)))]
            more = self._commit(rows) and bool(backlog)

    def _commit(self, rows: list[Row]) -> bool:
        try:
            if not self._has_read:
                self._on_late_read(self._read())
            self._file.write(rows)
        except ROW_ERRORS as exc:
            return self._commit_each(rows, exc)
        except Exception as exc:  # noqa: BLE001 - the thread must survive any error
            self._add_to_backlog(rows)
            self._note_failure(exc)
            return False
        self.commits += 1
        self._retry_wait = RETRY
        if self.failed and not self._backlog:
            self.failed = False
            log.warning("the journal %s can be written again", self._file.path)
        return True

    def _commit_each(self, rows: list[Row], exc: Exception) -> bool:
        """
        Write rows one by one if SQLite refuses one of them, so that it doesn't block the others.
        """
        if len(rows) > 1:
            written = [self._commit([row]) for row in rows]
            return all(written)
        log.error("the journal %s can't store a record: %s", self._file.path, type(exc).__name__)
        return False

    def _add_to_backlog(self, rows: list[Row]) -> None:
        self._backlog.extend(rows)
        while len(self._backlog) > BACKLOG:
            self._backlog.popleft()
            self._dropped += 1

    def _note_failure(self, exc: Exception) -> None:
        """
        Log a failure, at most once a minute, and schedule the next attempt.
        """
        now = time.monotonic()
        self.failed = True
        if isinstance(exc, sqlite3.Error) and is_damage(exc):
            with suppress(OSError):  # the disk is read-only; it is retried
                self._file.set_aside(exc)
        elif not isinstance(exc, sqlite3.Error) or primary_code(exc) != sqlite3.SQLITE_FULL:
            self._file.close()  # a volume that was away is usable only after a reopen
        self._retry_at = now + self._retry_wait
        self._retry_wait = min(2 * self._retry_wait, MAX_RETRY)
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY
            if not self._has_read:
                log.error(
                    "the journal %s can't be read (%s): sessions that ended before this process"
                    " started could be used again until it can; reading is retried",
                    self._file.path,
                    exc,
                )
                return
            log.error(
                "the journal %s can't be written (%s): session ends are kept in memory only, and"
                " a restart would lose %d records; writing is retried",
                self._file.path,
                exc,
                len(self._backlog) + self._dropped,
            )

    def _tidy(self) -> None:
        """
        Delete a slice of the expired rows, so that an end needn't wait; if none is left, write
        the time.
        """
        more = False
        try:
            more = self._file.tidy()
            if not more:
                self._file.write(())
        except Exception as exc:  # noqa: BLE001 - as above
            self._note_failure(exc)
        self._tidy_at = time.monotonic() + (0.0 if more else TIDY)

    def _finish(self) -> None:
        """
        Try to write the backlog once more, and the time; close the file.
        """
        self._retry()
        try:
            self._file.finish()
        except sqlite3.Error as exc:
            self._note_failure(exc)
        if lost := len(self._backlog) + self._dropped:
            log.error("the journal %s: %d records could not be written", self._file.path, lost)
