"""
The journal's file: merged as in memory, bounded, private, and used by one process.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aiohttp_session_ws._lineage import Subject
from aiohttp_session_ws.exceptions import JournalError
from aiohttp_session_ws.sessions import journal_file
from aiohttp_session_ws.sessions.clock import PENDING
from aiohttp_session_ws.sessions.journal_file import JournalFile
from aiohttp_session_ws.sessions.journal_rows import POOLS, VERSION, Pool, as_row
from aiohttp_session_ws.sessions.records import (
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    Records,
    SubjectEnded,
)
from tests.support import PATIENCE

#: Fork a child that exits normally; write before, meanwhile and afterwards; be killed.
FORK = """
import os, pathlib, signal, sys, time
from aiohttp_session_ws.sessions.journal_file import JournalFile
from aiohttp_session_ws.sessions.journal_rows import as_row
from aiohttp_session_ws.sessions.records import LineageEnded

def write(numbers):
    changes = [LineageEnded(f"token-{n}", 1.8e9, False, 86400.0) for n in numbers]
    file.write([as_row(change, 1.8e9) for change in changes])

file = JournalFile(pathlib.Path(sys.argv[1]), lambda: 1.8e9)
write(range(1000))
reader, writer = os.pipe()
if not os.fork():
    os.read(reader, 1)
    sys.exit()
for number in range(1000, 5000, 100):
    write(range(number, number + 100))
os.write(writer, b"x")
os.wait()
write([5000])
os.kill(os.getpid(), signal.SIGKILL)
"""

NOW = 1_800_000_000.0
DAY = 86_400.0
ANN = Subject("identity", "ann")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the file."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file."""
    return tmp_path / "ends.db"


@pytest.fixture
def file(path: Path, clock: Clock) -> Iterator[JournalFile]:
    """An open file that holds nothing."""
    file = JournalFile(path, clock)
    file.open()
    yield file
    file.close()


def write(file: JournalFile, *changes: Change, now: float = NOW) -> None:
    """Write changes in one transaction."""
    file.write([as_row(change, now) for change in changes])


def tidy(file: JournalFile) -> None:
    """Delete all expired and surplus rows."""
    while file.tidy():
        pass


def count(path: Path, table: str) -> int:
    """Count the rows of a table in a closed file."""
    with closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return number


def ended(number: int, ttl: float = DAY, *, minor: bool = False) -> LineageEnded:
    """Return the end of a lineage."""
    return LineageEnded(f"token-{number}", NOW, carries=False, ttl=ttl, minor=minor)


def some_change(choose: random.Random) -> Change:
    """Return a random change of one of a few lineages and subjects."""
    token, time = choose.choice("ab"), float(choose.randrange(5))
    match choose.randrange(4):
        case 0:
            return LineageEnded(token, time, choose.random() < 0.5, DAY, choose.random() < 0.5)
        case 1 | 2:
            after = choose.randrange(3)
            seen, login = choose.random() < 0.5, choose.random() < 0.5
            return LineageRenewed(token, choose.randrange(1, 4), after, time, login, seen, DAY)
    if choose.random() < 0.5:
        return SubjectEnded(Subject("identity", choose.randrange(2)), time, DAY)
    return IdNote(choose.randrange(2), token, time, DAY)


class TestMerge:
    @pytest.mark.parametrize("seed", range(40))
    def test_as_memory_does(self, path: Path, seed: int) -> None:
        """Changes that are written in any order and portions are read as memory merges them."""
        choose = random.Random(seed)
        changes = [some_change(choose) for _ in range(choose.randrange(1, 25))]
        records, file = Records(), JournalFile(path, lambda: NOW)
        for change in changes:
            records.merge(change)
        choose.shuffle(changes)
        while changes:
            portion = choose.randrange(1, 6)
            write(file, *changes[:portion])
            del changes[:portion]
        read, _ = file.load()
        file.close()

        assert set(read) == set(records)
        assert len(read) == len(records)

    def test_round_trip_of_ids(self, file: JournalFile) -> None:
        """Ids keep their types and characters."""
        notes = [IdNote(id_, "\ud800", NOW, DAY) for id_ in (7, "7", ("shop", 7), "\x00é\ud800")]
        write(file, *notes)

        assert set(file.load()[0]) == set(notes)

    def test_unknown_time(self, file: JournalFile) -> None:
        """A pending time is replaced by the next real one, although that is earlier."""
        renewed = LineageRenewed("b", 1, 1, PENDING, False, seen=False, ttl=DAY)
        ended = LineageEnded("a", PENDING, carries=False, ttl=DAY)
        changes = (SubjectEnded(ANN, PENDING, DAY), ended, renewed)
        for at in (PENDING + 7.0, NOW, NOW - 1.0):
            write(file, *(change._replace(at=at) for change in changes))

        assert set(file.load()[0]) == {change._replace(at=NOW) for change in changes}

    def test_all_or_none(self, file: JournalFile) -> None:
        """A transaction that fails writes nothing, and doesn't affect later ones."""
        broken = LineageEnded("token", float("nan"), carries=False, ttl=DAY)
        with pytest.raises(sqlite3.IntegrityError):
            write(file, ended(1), broken)
        assert file.load()[0] == []
        write(file, ended(2))

        assert file.load()[0] == [ended(2)]


class TestBounds:
    def test_expired(self, file: JournalFile, path: Path, clock: Clock) -> None:
        """Expired rows are deleted by the clean-up."""
        write(file, ended(1, 10.0), ended(2, DAY), SubjectEnded(ANN, NOW, 10.0))
        clock.now += 10.0
        tidy(file)
        assert file.load()[0] == [ended(2)]
        file.close()

        assert (count(path, "ended"), count(path, "subjects")) == (1, 0)

    def test_met_since(self, file: JournalFile, path: Path, clock: Clock) -> None:
        """An expired row is kept for another TTL if its record is still in memory."""
        file.is_in_memory = lambda change: change == ended(2, 10.0)
        write(file, ended(1, 10.0), ended(2, 10.0))
        clock.now += 10.0
        tidy(file)
        assert file.load()[0] == [ended(2, 10.0)]
        file.is_in_memory = lambda change: False
        clock.now += 10.0
        tidy(file)
        file.close()

        assert count(path, "ended") == 0

    def test_written_again(self, file: JournalFile, clock: Clock) -> None:
        """Writing a record again restarts its TTL."""
        write(file, ended(1, 10.0))
        write(file, ended(1, 10.0), now=NOW + 9)
        clock.now += 15

        assert file.load()[0] == [ended(1, 10.0)]

    def test_minor_end_is_short(self, file: JournalFile, clock: Clock) -> None:
        """The end of a session that held nothing expires after an hour."""
        write(file, ended(1, minor=True))
        clock.now += 3600.0
        tidy(file)

        assert file.load()[0] == []

    def test_pools(self, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each kind of row keeps its newest ones, and evicts none of another kind."""
        monkeypatch.setattr(journal_file, "SLICE", 7)
        pools = {name: Pool(pool.table, pool.where, 100) for name, pool in POOLS.items()}
        file = JournalFile(path, clock, pools)
        write(file, ended(1, 10.0), SubjectEnded(ANN, NOW, 5.0), IdNote(1, "a", NOW, 5.0))
        write(file, *[ended(n, minor=True) for n in range(1000, 1300)])
        for number in range(2, 302):
            write(file, ended(number, 10.0 + number))
        read = file.load()[0]
        tidy(file)
        file.close()

        assert len(read) == 100 + 100 + 2
        assert read[99] == ended(301, 311.0)
        assert 99 * 2 <= count(path, "ended") <= 100 * 2
        assert (count(path, "subjects"), count(path, "notes")) == (1, 1)

    def test_shrinks(self, file: JournalFile, path: Path, clock: Clock) -> None:
        """The file shrinks when rows are deleted."""
        write(file, *[ended(number, 10.0) for number in range(60_000)])
        file.close()
        full = path.stat().st_size
        clock.now += 10
        tidy(file)
        file.close()

        assert path.stat().st_size < full / 2


class TestOpening:
    def test_private(self, file: JournalFile, path: Path) -> None:
        """Only the owner may read and write the files, since they name users."""
        write(file, ended(1))

        for name in (path, f"{path}-wal"):
            assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600

    def test_time(self, file: JournalFile, path: Path, clock: Clock) -> None:
        """The latest time that was written is kept when the clock is set back."""
        write(file, ended(1))
        clock.now -= 3600
        write(file, ended(2))

        assert file.load()[1] == NOW

    def test_in_use(self, file: JournalFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file can be opened once only, until it is closed; the error says what to do."""
        monkeypatch.setattr(journal_file, "LOCK_WAIT", 0.0)
        other = JournalFile(path, lambda: NOW)
        with pytest.raises(JournalError, match="a path of its own, or use RedisSessionWSRegistry"):
            other.open()
        write(file, ended(1))
        file.close()

        assert other.load()[0] == [ended(1)]
        other.close()

    def test_no_directory(self, tmp_path: Path) -> None:
        """A path in a directory that doesn't exist raises an error that names the path."""
        with pytest.raises(JournalError, match=r"nowhere.ends\.db can't be opened"):
            JournalFile(tmp_path / "nowhere/ends.db", lambda: NOW).open()

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE customers (name TEXT)",
            f"PRAGMA user_version = {VERSION + 1}",
        ],
    )
    def test_not_ours(self, path: Path, statement: str) -> None:
        """The database of another program, or a later version's journal, is left unchanged."""
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(statement)
        before = path.read_bytes()
        with pytest.raises(JournalError, match="choose another path"):
            JournalFile(path, lambda: NOW).open()

        assert path.read_bytes() == before


class TestTakenAway:
    """Written records stay readable after files were deleted or closed."""

    def found(self, path: Path, clock: Clock) -> set[Change]:
        """Return the changes that another process would read after ``kill -9``."""
        copy = path.parent / "copy"
        copy.mkdir()
        for one in path.parent.glob("ends.db*"):
            shutil.copy(one, copy)
        file = JournalFile(copy / "ends.db", clock)
        changes, _ = file.load()
        file.close()
        return set(changes)

    def test_log_deleted(self, file: JournalFile, path: Path, clock: Clock) -> None:
        """Records survive if SQLite's write-ahead log is deleted, as by a clean-up job."""
        write(file, ended(1))
        path.with_name("ends.db-wal").unlink()
        write(file, ended(2))

        assert self.found(path, clock) == {ended(1), ended(2)}

    def test_fork(self, path: Path, clock: Clock) -> None:
        """A forked child that exits removes no record that its parent writes before or after."""
        command = [sys.executable, "-c", FORK, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

        assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
        assert len(self.found(path, clock)) == 5001

    def test_deleted_while_the_disk_failed(self, file: JournalFile, path: Path) -> None:
        """If the file was deleted while closed, ``on_new_file`` is called once to refill it."""
        again: list[int] = []
        file.on_new_file = lambda: again.append(len(again))
        write(file, ended(1))
        file.close()
        path.unlink()
        write(file, ended(2))
        write(file, ended(3))

        assert again == [0]

    def test_closed_by_the_disk(
        self, file: JournalFile, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that was closed since the disk failed, and still exists, is reopened silently."""
        write(file, ended(1))
        file.close()
        write(file, ended(2))

        assert set(file.load()[0]) == {ended(1), ended(2)}
        assert not caplog.text


class TestDamage:
    def check(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Check that a damaged file is renamed with an error in the log, and a new one works."""
        file = JournalFile(path, lambda: NOW)
        damaged = path.read_bytes()
        file.open()
        write(file, ended(1))
        assert file.load()[0] == [ended(1)]
        file.close()
        (aside,) = path.parent.glob("ends.db.damaged-*[0-9]")

        assert aside.read_bytes() == damaged
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert f"was renamed to {aside}" in caplog.text

    def test_garbage(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A file that is no database is set aside."""
        path.write_bytes(b"garbage " * 1000)

        self.check(path, caplog)

    @pytest.mark.parametrize("page", [2, 5, -2])
    def test_page(
        self, file: JournalFile, path: Path, page: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file with a broken page is set aside."""
        write(file, *[ended(number) for number in range(500)])
        file.close()
        content = bytearray(path.read_bytes())
        place = page * 4096 % len(content)
        content[place : place + 4096] = b"\xa5" * 4096
        path.write_bytes(content)

        self.check(path, caplog)

    def test_truncated(
        self, file: JournalFile, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that has lost its end is set aside."""
        write(file, *[ended(number) for number in range(500)])
        file.close()
        path.write_bytes(path.read_bytes()[: 3 * 4096])

        self.check(path, caplog)
