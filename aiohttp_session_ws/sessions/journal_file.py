"""
The SQLite file of the journal: opened, read, written and kept small, by one thread.

Over 300 lines long: all operations on the file are in one class.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from .._logging import log
from ..exceptions import JournalError
from .journal_rows import APPLICATION_ID, MERGE, POOLS, READ, SCHEMA, VERSION, Pool, Row
from .records import MINOR_TTL, Change

__all__: list[str] = []

SLICE: Final = 2_000  # rows deleted, or pages returned, in one transaction: an end may be waiting
SPARE: Final = 256  # free pages, of 4 KiB, that are not worth returning to the file system
SOON: Final = 120.0  # seconds before its expiry at which a record that is still in use is extended
LOCK_WAIT: Final = 1.0  # seconds to wait for an earlier process that is about to exit

DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
NO_ACCESS: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH}
)


class JournalFile:
    """
    The file of the journal. Each method may raise :class:`sqlite3.Error` when the disk fails.

    Args:
        path: Its path.
        clock: Returns seconds since the epoch, by the clock of the records.
        pools: The limits of the kinds of records.

    Attributes:
        path: Its path.
        clock: The clock.
        time_to_store: Returns the time to write, from which the next process continues.
        is_in_memory: Returns whether memory still has a record, since it was used; called by the
            thread.
        on_new_file: Called by the thread when a new file takes the place of one in use.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], pools: Mapping[str, Pool] = POOLS
    ) -> None:
        self.path = path
        self.clock = clock
        self.time_to_store = clock
        self.is_in_memory: Callable[[Change], bool] = lambda change: False
        self.on_new_file: Callable[[], None] = lambda: None
        self._pools = pools
        self._sizes: dict[str, int] = {}  # upper bounds: a row written twice counts twice
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, ...] = ()  # the inodes of the file and its WAL

    def open(self) -> sqlite3.Connection:
        """
        Open or create the file, unless it is open; until :meth:`close` no other process can.

        A damaged file is renamed and a new one begun, with an error in the log. A new one is begun
        as well if the file or its WAL was moved or deleted, as by a cleanup job.

        Raises:
            JournalError: If another process has it open, it can't be opened, or isn't a journal.
        """
        if self._was_removed():
            log.error(
                "the journal %s was moved or deleted: a new file is created from the"
                " records in memory",
                self.path,
            )
            self.close()
            self._opened = ()
            self.on_new_file()
        if self._connection is None:
            try:
                self._connection = self._connect()
            except sqlite3.Error as exc:
                if not is_damage(exc):
                    raise self._explain(exc) from exc
                self.set_aside(exc)
                self._connection = self._connect()
            self._opened = self._inodes() or ()
            _CONNECTED.add(self)
        return self._connection

    def _was_removed(self) -> bool:
        """
        Return whether the file that was opened, or its WAL, was replaced or removed.

        A connection would continue to write to a file that no longer has a name.
        """
        inodes = self._inodes() if self._opened else None
        if inodes is None:
            return False
        # While it is closed, since the disk has failed, its WAL may rightly be gone.
        return inodes != self._opened if self._connection else inodes[0] != self._opened[0]

    def _inodes(self) -> tuple[int, ...] | None:
        """
        Return the inodes of the file and its WAL, 0 for a missing one; ``None`` if the disk
        fails.
        """
        found = []
        for path in (self.path, f"{self.path}-wal"):
            try:
                found.append(os.stat(path).st_ino)
            except FileNotFoundError:
                found.append(0)
            except OSError:
                return None
        return tuple(found)

    def _explain(self, exc: sqlite3.Error) -> Exception:
        """
        Return the exception to raise when the file can't be opened.
        """
        code = primary_code(exc)
        if code == sqlite3.SQLITE_BUSY:
            return JournalError(
                f"the journal {self.path} is in use by another process: give each worker a path"
                " of its own, or use RedisSessionWSRegistry"
            )
        if code in NO_ACCESS:
            return JournalError(
                f"the journal {self.path} can't be opened or created ({exc}): make"
                " sure that its directory exists and is writable"
            )
        return exc  # the disk fails

    def _connect(self) -> sqlite3.Connection:
        with suppress(OSError):  # it names users: readable by our account only
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self.path, timeout=LOCK_WAIT, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """
        Lock, check and set up the file.
        """
        execute = connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        new = self._is_new(connection)
        if new:
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there is a table
        execute("PRAGMA journal_mode = WAL").fetchall()
        execute("PRAGMA synchronous = FULL")  # an end survives a power cut, too
        execute("PRAGMA journal_size_limit = 4194304")  # bytes
        execute("BEGIN EXCLUSIVE")
        execute("COMMIT")
        (result,) = execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            exc = sqlite3.DatabaseError(str(result).splitlines()[-1])
            exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise exc
        if new:
            connection.executescript(SCHEMA)
        self._sizes = {
            name: execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]
            for name, (table, where, _) in self._pools.items()
        }

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """
        Return whether the file is empty; raise if it is neither empty nor a journal.
        """
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not version and not tables:
            return True
        if application != APPLICATION_ID or version != VERSION:
            raise JournalError(
                f"{self.path} is no journal, or one of another version: choose another path"
            )
        return False

    def set_aside(self, exc: sqlite3.Error) -> None:
        """
        Rename a damaged file, and log that.
        """
        self.close()
        self._opened = ()
        aside = f"{self.path}.damaged-{time.time_ns()}"
        # Its WAL is renamed, too: it would damage the new file.
        for suffix in ("-wal", ""):
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        log.error(
            "the journal %s is damaged (%s) and was renamed to %s: a new file is created from"
            " the records in memory; cookies of other ended sessions could be used again",
            self.path,
            exc,
            aside,
        )
        self.on_new_file()

    def load(self) -> tuple[list[Change], float]:
        """
        Return the records, each kind ordered by expiry, and the last time of the clock.

        Expired ones are included: only :meth:`tidy` deletes them, since it checks memory. Here
        only the wall clock could decide, and one that is or was wrong for a moment must not delete
        all ends.
        """
        execute = self.open().execute
        row = execute("SELECT last_time FROM clock").fetchone()
        last_time = 0.0 if row is None else row[0]
        changes: list[Change] = []
        for table, where, limit in self._pools.values():
            newest = f"SELECT * FROM {table} WHERE {where} ORDER BY expires DESC LIMIT ?"
            rows = execute(f"SELECT * FROM ({newest}) ORDER BY expires", (limit,))
            changes += [READ[table](*row[:-1]) for row in rows]
        return changes, last_time

    def write(self, rows: Iterable[Row]) -> None:
        """
        Write *rows*, and the time, in one transaction: all of them or none.
        """
        pools: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        for row in rows:
            pools[row.pool].append(row.values)
        with transaction(self.open()) as connection:
            for pool, values in pools.items():
                table = self._pools[pool].table
                connection.executemany(MERGE[table], values)
                if table == "ended":
                    keys = [(value[0],) for value in values]
                    connection.executemany("DELETE FROM renewed WHERE key = ?", keys)
            connection.execute(
                "INSERT INTO clock VALUES (1, ?)"
                " ON CONFLICT (id) DO UPDATE SET last_time = max(last_time, excluded.last_time)",
                (self.time_to_store(),),
            )
        for pool, values in pools.items():
            self._sizes[pool] += len(values)

    def tidy(self) -> bool:
        """
        Delete a slice of the records that have expired or exceed a limit, or return free pages.

        A record that has expired here but was used since is kept for another TTL.

        Returns:
            Whether there is more to do.
        """
        now = self.clock()
        done = [self._expire(name, now) or self._evict(name) for name in self._pools]
        return any(done) or self._shrink()

    def _expire(self, name: str, now: float) -> bool:
        table, where, _ = self._pools[name]
        due = f"{where} AND expires <= ? AND expires <= ? + ttl / 2 ORDER BY expires LIMIT ?"
        again: list[tuple[float, str]] = []
        over: list[tuple[str]] = []
        with transaction(self.open()) as connection:
            rows = connection.execute(
                f"SELECT * FROM {table} WHERE {due}", (now + SOON, now, SLICE)
            )
            for row in rows:
                key, ttl, expires = row[0], row[-2], row[-1]
                if self.is_in_memory(READ[table](*row[:-1])):
                    again.append((now + (min(ttl, MINOR_TTL) if name == "minor" else ttl), key))
                elif expires <= now:
                    over.append((key,))
            connection.executemany(f"UPDATE {table} SET expires = ? WHERE key = ?", again)
            connection.executemany(f"DELETE FROM {table} WHERE key = ?", over)
        self._sizes[name] -= len(over)
        return bool(again or over)

    def _evict(self, name: str) -> bool:
        table, where, limit = self._pools[name]
        if self._sizes[name] <= limit:
            return False
        with transaction(self.open()) as connection:
            count = f"SELECT count(*) FROM {table} WHERE {where}"
            size = self._sizes[name] = connection.execute(count).fetchone()[0]
            if size <= limit:
                return False
            # A hundredth of the limit more, or each new row would require a count.
            first = f"SELECT key FROM {table} WHERE {where} ORDER BY expires LIMIT ?"
            delete = f"DELETE FROM {table} WHERE key IN ({first})"
            excess = min(size - limit + limit // 100, SLICE)
            self._sizes[name] -= connection.execute(delete, (excess,)).rowcount
        return True

    def _shrink(self) -> bool:
        """
        Return a slice of the free pages to the file system if at least a quarter is free.
        """
        execute = self.open().execute
        (free,) = execute("PRAGMA freelist_count").fetchone()
        (pages,) = execute("PRAGMA page_count").fetchone()
        if free < SPARE or free * 4 < pages:
            return False
        execute(f"PRAGMA incremental_vacuum({SLICE})").fetchall()
        return True

    def finish(self) -> None:
        """
        Write the real time instead of the reserved one, since no more is issued; close the file.
        """
        if self._connection is not None:
            update = "UPDATE clock SET last_time = min(last_time, ?)"
            self._connection.execute(update, (self.clock(),))
        self.close()
        self._opened = ()

    def close(self) -> None:
        """
        Close the file, if it is open; then other processes may open it.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """
        Leak the connection in a process that was forked: it belongs to the parent.

        Closing it, SQLite would write the WAL into the file as it was at the fork and delete it,
        without checking the lock, which it believes to hold.
        """
        connection, self._connection = self._connection, None
        if connection is not None:  # not even the interpreter's exit closes it
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_CONNECTED: Final[WeakSet[JournalFile]] = WeakSet()  # some may be closed since


def _abandon_all() -> None:
    for file in _CONNECTED:
        file.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """
    Commit what the block does, or roll it back if the block or the commit fails.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise


def primary_code(exc: sqlite3.Error) -> int:
    """
    Return the primary result code of an error, without the extended part.
    """
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_damage(exc: BaseException) -> bool:
    """
    Return whether the file itself is damaged, rather than the disk full or away.
    """
    return isinstance(exc, sqlite3.Error) and primary_code(exc) in DAMAGE
