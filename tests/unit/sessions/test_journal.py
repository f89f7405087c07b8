"""
The journal: acknowledged records survive the end of the process and failures of the disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.exceptions import JournalError
from aiohttp_session_ws.sessions import journal as journal_module, journal_writer
from aiohttp_session_ws.sessions.clock import PENDING
from aiohttp_session_ws.sessions.journal import Journal
from aiohttp_session_ws.sessions.journal_file import JournalFile
from aiohttp_session_ws.sessions.journal_rows import Row
from aiohttp_session_ws.sessions.records import (
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    SubjectEnded,
)
from tests.support import PATIENCE, until

ROOT = Path(__file__).parents[3]
DAY = 86_400.0

#: The common beginning of child processes.
CHILD = """
import asyncio, resource, sys
from aiohttp_session_ws.sessions.journal import Journal
from aiohttp_session_ws.sessions.records import LineageEnded

def ended(number):
    return LineageEnded(f"token-{number}", 1.7e9, False, 86400.0)

async def main(path):
    journal = Journal(path)
    await journal.start()
    print("started", flush=True)
"""
#: Write forever, and print the number of each end that is on disk.
WRITER = """
    number = 0
    while await journal.append([ended(number)]):
        print(number, flush=True)
        number += 1
"""
#: Write until the disk is full; make room; write on.
FULL = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    number = 0
    while await journal.append([ended(number + n) for n in range(100)]):
        number += 100
    print("full", number, journal.failing, flush=True)
    print(await journal.append([ended(-1)]), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while journal.failing:
        await asyncio.sleep(0.05)
    print(await journal.append([ended(-2)]), journal.failing, flush=True)
    await journal.stop()
"""
RUN = "\nasyncio.run(main(sys.argv[1]))\n"


def ended(number: int) -> LineageEnded:
    """Return the end of a lineage."""
    return LineageEnded(f"token-{number}", 1.7e9, carries=False, ttl=DAY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the journal's file."""
    return tmp_path / "ends.db"


def spawn(path: Path, program: str) -> subprocess.Popen[str]:
    """Start a process that runs a program with a journal, and wait until the journal is open."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + program + RUN, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def find_full(self: JournalFile, *rows: object) -> Any:
    """Raise what SQLite raises when the disk is full."""
    exc = sqlite3.OperationalError("database or disk is full")
    exc.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise exc


def find_damage(self: JournalFile, *rows: object) -> Any:
    """Raise what SQLite raises when it reads a broken page."""
    exc = sqlite3.DatabaseError("database disk image is malformed")
    exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise exc


def find_read_only(*paths: object) -> None:
    """Raise what a read-only file system raises."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@asynccontextmanager
async def running(path: Path, **options: Any) -> AsyncIterator[tuple[Journal, list[Change]]]:
    """Run a journal; yield it with the changes that it has loaded."""
    journal = Journal(path, **options)
    changes = await journal.start()
    try:
        yield journal, changes
    finally:
        await journal.stop()


async def read(path: Path) -> set[Change]:
    """Return the changes that a journal contains."""
    async with running(path) as (_, changes):
        return set(changes)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that hangs until the event is set."""
    free, write = threading.Event(), JournalFile.write

    def wait_and_write(self: JournalFile, rows: list[Row]) -> None:
        free.wait(PATIENCE)
        write(self, rows)

    monkeypatch.setattr(JournalFile, "write", wait_and_write)
    return free


class TestReload:
    async def test_every_change(self, path: Path) -> None:
        """A change of any kind is loaded from the file when the next journal starts."""
        changes: list[Change] = [
            ended(1),
            LineageEnded("visitor", 5.0, carries=True, ttl=DAY, minor=True),
            LineageRenewed("b", 3, 2, 7.5, True, True, DAY),
            SubjectEnded(Subject("identity", ("shop", 7)), 8.0, DAY),
            SubjectEnded(Subject("label", ("sid", "x")), 8.5, DAY),
            IdNote("id", "b", 1.0, DAY),
        ]
        async with running(path) as (journal, loaded):
            assert (loaded, journal.last_time) == ([], 0.0)
            assert await journal.append(changes) is True

        assert await read(path) == set(changes)

    async def test_kill(self, path: Path) -> None:
        """An end that was acknowledged survives ``kill -9``."""
        process = await asyncio.to_thread(spawn, path, WRITER)
        assert process.stdout is not None
        for _ in range(50):
            await asyncio.to_thread(process.stdout.readline)
        process.kill()
        output, _ = process.communicate()
        answered = [int(line) for line in output.splitlines(keepends=True) if line[-1] == "\n"]

        assert {ended(number) for number in range(max(answered, default=49) + 1)} <= await read(
            path
        )

    async def test_stop_writes_what_is_left(self, path: Path) -> None:
        """``stop()`` writes all pending changes; later ones are refused."""
        async with running(path) as (journal, _):
            futures = [journal.append([ended(number)]) for number in range(100)]
        await journal.stop()

        assert all([await future for future in futures])
        assert await journal.append([ended(-1)]) is False
        assert await read(path) == {ended(number) for number in range(100)}

    async def test_time(self, path: Path) -> None:
        """The latest time is loaded by the next process, even if the clock was set back since."""
        async with running(path, clock=lambda: 2e9) as (journal, _):
            await journal.append([ended(1)])
        async with running(path, clock=lambda: 1e9) as (journal, _):
            assert journal.last_time == 2e9


class TestGroupCommit:
    async def test_few_commits(self, path: Path) -> None:
        """A thousand ends that are appended together take few commits."""
        async with running(path) as (journal, _):
            futures = [journal.append([ended(number)]) for number in range(1000)]
            assert all(await asyncio.gather(*futures))
            assert journal.commits <= 20

    async def test_more_than_a_batch(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many ends are split into transactions of a limited size, so that none takes long."""
        monkeypatch.setattr(journal_writer, "BATCH", 10)
        async with running(path) as (journal, _):
            futures = [journal.append([ended(number)]) for number in range(1000)]
            assert all(await asyncio.gather(*futures))
            assert journal.commits >= 50

        assert len(await read(path)) == 1000

    async def test_nothing(self, path: Path) -> None:
        """An append without changes is a commit, too."""
        async with running(path) as (journal, _):
            assert await journal.append([])
            assert journal.commits == 1

    async def test_cancelled(self, path: Path) -> None:
        """A change whose future was cancelled is written all the same, as are later ones."""
        async with running(path) as (journal, _):
            future = journal.append([ended(1)])
            assert future.cancel()
            assert await journal.append([ended(2)])

        assert await read(path) == {ended(1), ended(2)}

    async def test_loop_is_free(
        self, path: Path, stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the disk doesn't respond, the loop continues, and ``failing`` becomes true."""
        async with running(path) as (journal, _):
            future = journal.append([ended(1)])
            failing = [journal.failing]
            monkeypatch.setattr(journal_module, "SLOW", 0.0)  # seconds
            failing.append(journal.failing)
            stuck.set()
            assert await future
            failing.append(journal.failing)

        assert failing == [False, True, False]


class TestArguments:
    async def test_type_of_id(self, path: Path) -> None:
        """An id that can't be stored is an error at once, and nothing of that call is written."""
        async with running(path) as (journal, _):
            with pytest.raises(TypeError, match="a float can't be stored"):
                await journal.append([ended(1), IdNote(1.5, "a", 0.0, DAY)])
            assert await journal.append([ended(2)])

        assert await read(path) == {ended(2)}

    @pytest.mark.parametrize("path", [7, None, b"ends.db"])
    def test_type_of_path(self, path: Any) -> None:
        """A path of a wrong type raises a TypeError that names the option."""
        with pytest.raises(TypeError, match="journal must be a str or Path"):
            Journal(path)

    def test_no_path(self) -> None:
        """An empty path raises a ValueError that names the option."""
        with pytest.raises(ValueError, match="journal must be the path of a file"):
            Journal("")


class TestAnotherProcess:
    async def test_refused(self, path: Path) -> None:
        """A file in use by a process can't be opened by another one until that has died."""
        process = await asyncio.to_thread(spawn, path, "    await asyncio.Event().wait()")
        with process:
            with pytest.raises(JournalError, match="in use by another process: give each worker"):
                await Journal(path).start()
            process.kill()
        async with running(path) as (journal, _):
            assert await journal.append([ended(1)])

    async def test_start_again(self, path: Path) -> None:
        """A journal that was refused or stopped may be started again."""
        journal = Journal(path)
        async with running(path):
            with pytest.raises(JournalError):
                await journal.start()
        for number in range(2):
            assert len(await journal.start()) == number
            assert await journal.append([ended(number)])
            await journal.stop()

    async def test_start_cancelled(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A start that is cancelled releases the file."""
        load, free = JournalFile.load, threading.Event()

        def wait_and_load(self: JournalFile) -> tuple[list[Change], float]:
            free.wait(PATIENCE)
            return load(self)

        monkeypatch.setattr(JournalFile, "load", wait_and_load)
        task = asyncio.create_task(Journal(path).start())
        await asyncio.sleep(0)
        task.cancel()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: "session-ws-journal" not in {t.name for t in threading.enumerate()})

        assert await read(path) == set()


class TestFailingDisk:
    async def test_full(self, path: Path) -> None:
        """A full disk is logged once as an error; pending records are written when it has room."""
        process = await asyncio.to_thread(spawn, path, FULL)
        output, errors = await asyncio.to_thread(process.communicate)
        full, refused, again = output.splitlines()
        _, number, failing = full.split()
        wanted = {ended(n) for n in range(-2, int(number) + 100)}

        assert (failing, refused, again) == ("True", "False", "True False")
        assert int(number) >= 100
        assert errors.count("can't be written (") == 1
        assert await read(path) == wanted

    async def test_full_at_start(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If the file can't be read, the journal starts empty, and works once the disk does."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)

        def fail(self: JournalFile) -> None:
            exc = sqlite3.OperationalError("disk I/O error")
            exc.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise exc

        with monkeypatch.context() as broken:
            broken.setattr(JournalFile, "load", fail)
            journal = Journal(path)
            assert await journal.start() == []
        await until(lambda: not journal.failing)
        assert await journal.append([ended(1)])
        await journal.stop()

        assert await read(path) == {ended(1)}
        assert [r.levelname for r in caplog.records] == ["ERROR", "WARNING"]

    @pytest.mark.parametrize("stops", [False, True])
    async def test_read_late(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool
    ) -> None:
        """Records that can't be read at the start are reported by a retry, but not at the stop."""
        if not stops:
            monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        async with running(path) as (journal, _):
            await journal.append([ended(1)])
        late: list[Change] = []
        with monkeypatch.context() as broken:
            broken.setattr(JournalFile, "load", find_full)
            journal = Journal(path)
            assert await journal.start(on_late_read=late.extend) == []
        _ = journal.append([ended(2)])
        if not stops:
            await until(lambda: not journal.failing)
        await journal.stop()

        assert late == ([] if stops else [ended(1)])
        assert await read(path) == {ended(1), ended(2)}

    async def test_refused_record(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A record that SQLite refuses doesn't block others."""
        broken = LineageEnded("token", float("nan"), carries=False, ttl=DAY)
        async with running(path) as (journal, _):
            futures = [journal.append([change]) for change in (ended(1), broken, ended(2))]
            await asyncio.gather(*futures)
            assert not journal.failing

        assert await read(path) == {ended(1), ended(2)}
        assert "can't store a record: IntegrityError" in caplog.text

    async def test_damaged_while_open(
        self, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is found damaged is renamed; pending records are written to a new one."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        async with running(path) as (journal, _):
            await journal.append([ended(1)])
            with monkeypatch.context() as broken:
                broken.setattr(JournalFile, "write", find_damage)
                assert await journal.append([ended(2)]) is False
                assert journal.failing
            await until(lambda: not journal.failing)

        assert await read(path) == {ended(2)}
        assert "was renamed to" in caplog.text

    async def test_damaged_and_read_only(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When a damaged file can't be renamed, writing is retried, as after any other failure."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        async with running(path) as (journal, _):
            with monkeypatch.context() as broken:
                broken.setattr(JournalFile, "write", find_damage)
                broken.setattr(os, "replace", find_read_only)
                assert await journal.append([ended(1)]) is False
                assert await journal.append([ended(2)]) is False
            await until(lambda: not journal.failing)
        assert await read(path) == {ended(1), ended(2)}

    @pytest.fixture
    def garbage(self, path: Path) -> Path:
        """A file that is no database."""
        path.write_bytes(b"garbage " * 1000)
        return path

    async def test_garbage_and_read_only(
        self, garbage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When a file found damaged at the start can't be renamed, the journal retries."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        with monkeypatch.context() as broken:
            broken.setattr(os, "replace", find_read_only)
            async with running(garbage) as (journal, _):
                assert journal.failing
                broken.undo()
                await until(lambda: not journal.failing)

        assert "can't be read" in caplog.text

    async def test_under_load(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a failure pending records are written, even if new ones keep arriving."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.0)
        write, wrote, works = JournalFile.write, list[tuple[Any, ...]](), threading.Event()

        def write_and_put(self: JournalFile, rows: list[Row]) -> None:
            loop.call_soon_threadsafe(put)
            came.acquire(timeout=PATIENCE)
            if not works.is_set():
                works.set()
                find_full(self)
            write(self, rows)
            wrote.extend(row.values for row in rows)

        def put() -> None:
            if len(wrote) < 20:
                _ = journal.append([ended(1 + len(wrote))])
            came.release()

        loop, came = asyncio.get_running_loop(), threading.Semaphore(0)
        async with running(path) as (journal, _):
            monkeypatch.setattr(JournalFile, "write", write_and_put)
            await journal.append([ended(0)])
            await until(lambda: len(wrote) >= 20)

        assert '"token-0"' in [key for key, *_ in wrote[:10]]

    async def test_bounded_backlog(
        self, path: Path, stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the disk hangs, the number of pending appends is bounded: others are refused."""
        monkeypatch.setattr(journal_writer, "BACKLOG", 10)
        async with running(path) as (journal, _):
            futures = [journal.append([ended(number)]) for number in range(20)]
            assert [future.done() for future in futures] == [False] * 10 + [True] * 10
            stuck.set()
            assert (await asyncio.gather(*futures)) == [True] * 10 + [False] * 10

    async def test_hangs_at_stop(
        self, path: Path, stuck: threading.Event, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A disk that hangs doesn't keep ``stop()`` from returning."""
        journal = Journal(path)
        await journal.start()
        future = journal.append([ended(1)])
        await journal.stop(timeout=0.05)
        stuck.set()

        assert "the disk doesn't respond" in caplog.text
        assert await future

    async def test_full_until_the_end(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """All records that were never written are counted in the log, dropped ones included."""
        monkeypatch.setattr(journal_writer, "BACKLOG", 10)
        with monkeypatch.context() as broken:
            async with running(path) as (journal, _):
                broken.setattr(JournalFile, "write", find_full)
                written = [await journal.append([ended(number)]) for number in range(20)]

        assert written == [False] * 20
        assert "20 records could not be written" in caplog.text

    async def test_full_until_the_time_is_known(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A record with a pending time, written late, doesn't replace one with the real time."""
        end, known = SubjectEnded(Subject("identity", "ann"), PENDING, DAY), 1.7e9
        async with running(path) as (journal, _):
            with monkeypatch.context() as broken:
                broken.setattr(JournalFile, "write", find_full)
                assert not await journal.append([end])
            _ = journal.append([end._replace(at=known)])

        assert await read(path) == {end._replace(at=known)}

    async def test_damage_found_by_reading(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file whose broken page is found only by reading is renamed, too."""
        async with running(path) as (journal, _):
            await journal.append([ended(1)])
        load = JournalFile.load
        found: list[Callable[[JournalFile], Any]] = [find_damage]
        monkeypatch.setattr(JournalFile, "load", lambda self: (found or [load]).pop()(self))

        assert await read(path) == set()
        assert "was renamed to" in caplog.text

    async def test_tidying_fails(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A full disk during the clean-up of expired rows is logged and retried as any other."""
        monkeypatch.setattr(journal_writer, "RETRY", 0.01)
        slices: list[Callable[[JournalFile], Any]] = [find_full, bool, lambda file: False]
        monkeypatch.setattr(JournalFile, "tidy", lambda self: bool(slices and slices.pop()(self)))
        monkeypatch.setattr(journal_writer, "TIDY", 0.0)
        async with running(path) as (journal, _):
            await until(lambda: not slices and not journal.failing)
            monkeypatch.undo()
            assert await journal.append([ended(1)])

        assert "can't be written (database or disk is full)" in caplog.text

    def test_closed_loop(self, path: Path, stuck: threading.Event) -> None:
        """Changes that were appended before the event loop was closed are still written."""

        async def leave() -> None:
            journal = Journal(path)
            await journal.start()
            _ = [journal.append([ended(number)]) for number in (1, 2)]
            await journal.stop(timeout=0)

        asyncio.run(leave())
        stuck.set()
        (thread,) = [t for t in threading.enumerate() if t.name == "session-ws-journal"]
        thread.join(PATIENCE)

        assert asyncio.run(read(path)) == {ended(1), ended(2)}
