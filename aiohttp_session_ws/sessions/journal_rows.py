"""
The rows of the journal: its tables, how a change becomes a row, and how SQL merges rows.

There is one row for each record. Rows are merged as :class:`~.records.Records` merges changes in
memory, so the order in which they are written doesn't matter, except for pending timestamps (taken
before the clock was known): the next one that is written replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple, cast

from .._lineage import Subject
from .clock import PENDING
from .encoding import decode, encode
from .records import (
    MINOR,
    MINOR_TTL,
    RECORDS,
    Change,
    IdNote,
    LineageEnded,
    LineageRenewed,
    SubjectEnded,
)

__all__: list[str] = []

APPLICATION_ID: Final = 0x61735753  # "asWS", which tells a journal from other databases
VERSION: Final = 1
LOGIN: Final = 2  # the bit of a log-in in the column "causes"

SCHEMA: Final = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE clock (id INTEGER PRIMARY KEY, last_time REAL NOT NULL);
CREATE TABLE ended (
    key TEXT PRIMARY KEY, at REAL NOT NULL, carries INTEGER NOT NULL, minor INTEGER NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE subjects (
    key TEXT PRIMARY KEY, before REAL NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE renewed (
    key TEXT PRIMARY KEY, generation INTEGER NOT NULL, given_to INTEGER NOT NULL,
    at REAL NOT NULL, causes INTEGER NOT NULL, seen INTEGER NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE notes (
    key TEXT PRIMARY KEY, token TEXT NOT NULL, began REAL NOT NULL,
    ttl REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX ended_expires ON ended (minor, expires);
CREATE INDEX subjects_expires ON subjects (expires);
CREATE INDEX renewed_expires ON renewed (expires);
CREATE INDEX notes_expires ON notes (expires);
COMMIT;
"""


def _later(column: str, known: str = "") -> str:
    """
    Return SQL for the merged time of a column: the later one, or the new one if either is pending.
    """
    latest = f"max({known or column}, excluded.{column})"
    pending = f"max({column}, excluded.{column}) >= {PENDING}"
    return f"iif({pending}, excluded.{column}, {latest})"


_KEPT = "ttl = max(ttl, excluded.ttl), expires = max(expires, excluded.expires)"
#: How a row is merged into each table. An end beats renewals; the greater generation wins, and
#: two of the same are combined; the later end wins; and of two lineages the one that began first.
MERGE: Final[dict[str, str]] = {
    "ended": f"""
        INSERT INTO ended VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
        at = {_later("at")}, carries = max(carries, excluded.carries),
        minor = min(minor, excluded.minor), {_KEPT}""",
    "subjects": f"""
        INSERT INTO subjects VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
        before = {_later("before")}, {_KEPT}""",
    "renewed": f"""
        INSERT INTO renewed SELECT * FROM (SELECT ? AS key, ?, ?, ?, ?, ?, ?, ?) AS new
        WHERE NOT EXISTS (SELECT 1 FROM ended WHERE ended.key = new.key)
        ON CONFLICT (key) DO UPDATE SET
        given_to = max(excluded.given_to, given_to * (excluded.generation = generation)),
        at = {_later("at", "at * (excluded.generation = generation)")},
        causes = excluded.causes | (causes * (excluded.generation = generation)),
        seen = max(excluded.seen, seen * (excluded.generation = generation)),
        generation = excluded.generation, {_KEPT}
        WHERE excluded.generation >= generation""",
    "notes": f"""
        INSERT INTO notes VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
        token = iif((excluded.began, excluded.token) < (began, token), excluded.token, token),
        began = min(began, excluded.began), {_KEPT}""",
}


class Pool(NamedTuple):
    """
    Rows that share a limit, so that other kinds of records don't evict them.

    Attributes:
        table: Their table.
        where: Which rows of the table they are, as an SQL condition.
        limit: Their maximum number.
    """

    table: str
    where: str
    limit: int


POOLS: Final[dict[str, Pool]] = {
    "ended": Pool("ended", "minor = 0", RECORDS),
    "minor": Pool("ended", "minor = 1", MINOR),
    "subjects": Pool("subjects", "true", RECORDS),
    "renewed": Pool("renewed", "true", RECORDS),
    "notes": Pool("notes", "true", RECORDS),
}


class Row(NamedTuple):
    """
    A change as a row to write.

    Attributes:
        pool: The pool that it counts for.
        values: The values of the table's columns, the key first.
    """

    pool: str
    values: tuple[Any, ...]


def as_row(change: Change, now: float) -> Row:
    """
    Return *change* as a row whose TTL starts at *now*.

    Raises:
        TypeError: If its id, identity or label can't be stored; the message names the type.
    """
    match change:
        case LineageEnded(token, at, carries, ttl, minor):
            expires = now + (min(ttl, MINOR_TTL) if minor else ttl)
            values = encode(token), at, carries, minor, ttl, expires
            return Row("minor" if minor else "ended", values)
        case SubjectEnded(subject, before, ttl):
            return Row("subjects", (encode(subject), before, ttl, now + ttl))
        case LineageRenewed(token, generation, after, at, login, seen, ttl):
            key, causes = encode(token), LOGIN * login
            return Row("renewed", (key, generation, after, at, causes, seen, ttl, now + ttl))
        case IdNote(session_ws_id, token, began, ttl):
            return Row("notes", (encode(session_ws_id), encode(token), began, ttl, now + ttl))


def read_ended(key: str, at: float, carries: int, minor: int, ttl: float) -> Change:
    """
    Return the change in a row of ``ended``.
    """
    return LineageEnded(str(decode(key)), at, bool(carries), ttl, bool(minor))


def read_subject(key: str, before: float, ttl: float) -> Change:
    """
    Return the change in a row of ``subjects``.
    """
    kind, value = cast("tuple[Any, Hashable]", decode(key))
    return SubjectEnded(Subject(kind, value), before, ttl)


def read_renewed(
    key: str, generation: int, given_to: int, at: float, causes: int, seen: int, ttl: float
) -> Change:
    """
    Return the change in a row of ``renewed``.
    """
    login = bool(causes & LOGIN)
    return LineageRenewed(str(decode(key)), generation, given_to, at, login, bool(seen), ttl)


def read_note(key: str, token: str, began: float, ttl: float) -> Change:
    """
    Return the change in a row of ``notes``.
    """
    return IdNote(decode(key), str(decode(token)), began, ttl)


READ: Final[dict[str, Callable[..., Change]]] = {
    "ended": read_ended,
    "subjects": read_subject,
    "renewed": read_renewed,
    "notes": read_note,
}
