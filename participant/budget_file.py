"""The file behind a site's privacy budget: SQLite, append-only, chained by hash, with a high-water mark beside it.

- `budget.db`: one row of identity, one row per entry (`participant.budget_entries`). Rollback journal and
  `synchronous = EXTRA`: what was committed is on the disk, and the one file is the whole truth, so a copy of it is a
  backup.
- `budget.high-water`: the newest entry that was seen (`participant.budget_mark`).
- Triggers forbid UPDATE, DELETE, INSERT OR REPLACE, and a release without a charge. Whoever drops them breaks the chain
  instead.
- One writer at a time, over all processes. A process that is killed frees the lock and leaves whole entries or none.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from participant.budget_entries import (
    CLOCK,
    EPOCH,
    Charge,
    Declaration,
    Entry,
    History,
    Identity,
    Release,
    Row,
    entry_chain,
    read_entry,
)
from participant.budget_mark import RESTORE, Mark, read_mark, require_mark, write_mark
from participant.durable import sync_folder
from participant.errors import BudgetError, DiskFullError

APPLICATION_ID = 0x434F4E42  # "CONB"
FILE_VERSION = 2
LOCK_SECONDS = 60.0
COLUMNS = "number, kind, name, content, at_microseconds, chain"

TABLES = """
CREATE TABLE identity (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    data_set TEXT NOT NULL,
    unit TEXT NOT NULL,
    adjacency TEXT NOT NULL,
    rdp_order REAL NOT NULL
) STRICT;
CREATE TABLE entry (
    number INTEGER PRIMARY KEY CHECK (number >= 1),
    kind TEXT NOT NULL CHECK (kind IN ('programme', 'charge', 'release', 'clock')),
    name TEXT NOT NULL,
    content TEXT NOT NULL,
    at_microseconds INTEGER NOT NULL,
    chain BLOB NOT NULL CHECK (length(chain) = 32),
    UNIQUE (kind, name)  -- one charge and one release per intent, whoever asks, however often
) STRICT;
CREATE TRIGGER entry_is_never_updated BEFORE UPDATE ON entry
    BEGIN SELECT RAISE(ABORT, 'entries are never updated'); END;
CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry
    BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER entry_follows_the_last BEFORE INSERT ON entry
    WHEN NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM entry)
        OR EXISTS (SELECT 1 FROM entry WHERE kind = NEW.kind AND name = NEW.name)  -- REPLACE fires no delete trigger
    BEGIN SELECT RAISE(ABORT, 'entries are only appended'); END;
CREATE TRIGGER release_has_a_charge BEFORE INSERT ON entry
    WHEN NEW.kind = 'release' AND NOT EXISTS (SELECT 1 FROM entry WHERE kind = 'charge' AND name = NEW.name)
    BEGIN SELECT RAISE(ABORT, 'nothing is released without a charge'); END;
CREATE TRIGGER identity_is_never_updated BEFORE UPDATE ON identity
    BEGIN SELECT RAISE(ABORT, 'identity is never updated'); END;
CREATE TRIGGER identity_is_never_deleted BEFORE DELETE ON identity
    BEGIN SELECT RAISE(ABORT, 'identity is never deleted'); END;
"""
TRIGGERS = 6


def create_budget_file(path: Path, identity: Identity) -> None:
    """Makes an empty budget, once for a data set.

    Raises:
        BudgetError: there is one, or there was one.
        DiskFullError: no room; nothing was made.
    """
    mark = read_mark(path)
    if path.exists() or (mark is not None and mark.number > 0):
        problem = (
            "exists already" if path.exists() else "is gone, but its high-water mark shows entries"
        )
        raise BudgetError(
            path=path, problem=f"{problem}; a data set gets one budget, once. {RESTORE}"
        )
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(part, isolation_level=None)) as connection:
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FILE_VERSION};"
            )
            connection.executescript(f"PRAGMA synchronous = EXTRA; BEGIN; {TABLES} COMMIT;")
            connection.execute("INSERT INTO identity VALUES (1, ?, ?, ?, ?)", astuple(identity))
        write_mark(path, Mark(number=0, chain=identity.chain))
        os.link(part, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise BudgetError(
            path=path, problem="was made by another process just now; use that one."
        ) from None
    except sqlite3.Error as error:
        raise _translate(path, error) from error
    except OSError as error:
        raise BudgetError(path=path, problem=f"cannot be made: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def budget_transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, found to be whole and locked for writing; commits at the end, rolls back on any error.

    Raises:
        BudgetError: missing, damaged, of another version, or locked for longer than `LOCK_SECONDS`.
        DiskFullError: no room; nothing was written.
    """
    if not path.exists():
        raise BudgetError(
            path=path,
            problem='does not exist. The first "participant run" makes one for a new data set. If there was one, it holds '
            f"what was spent. {RESTORE}",
        )
    try:
        uri = f"file:{quote(str(path.absolute()))}?mode=rw"  # never creates
        with closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            try:
                _require_whole(path, connection)
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def read_history(path: Path, connection: sqlite3.Connection) -> History:
    """Everything in the file, its chain recomputed and compared with the high-water mark.

    Raises:
        BudgetError: a gap, an altered entry, one that cannot stand in its place, or fewer or other entries than the mark.
    """
    (fields,) = connection.execute(
        "SELECT data_set, unit, adjacency, rdp_order FROM identity"
    ).fetchall()
    identity = Identity(
        data_set=fields[0], unit=fields[1], adjacency=fields[2], rdp_order=fields[3]
    )
    rows: list[Row] = []
    entries: list[Entry] = []
    previous, latest = identity.chain, 0
    for number, kind, name, content, at, stored in connection.execute(
        f"SELECT {COLUMNS} FROM entry ORDER BY number"  # noqa: S608 - a constant
    ):
        previous = entry_chain(
            previous, number=number, kind=kind, name=name, content=content, at_microseconds=at
        )
        if number != len(rows) + 1 or previous != stored or (at < latest and kind != CLOCK):
            raise BudgetError(
                path=path, problem=f"entry {len(rows) + 1} was altered or removed. {RESTORE}"
            )
        row = Row(
            number=number, kind=kind, name=name, content=content, at_microseconds=at, chain=stored
        )
        latest = at
        rows.append(row)
        entries.append(_read(path, row))
    history = History(identity=identity, rows=tuple(rows), entries=tuple(entries))
    _require_consistent(path, history)
    require_mark(path, history)
    return history


def append_entry(
    connection: sqlite3.Connection,
    history: History,
    *,
    kind: str,
    name: str,
    content: str,
    at: datetime,
) -> History:
    """The history with one more entry, which is durable once the transaction has committed."""
    number = len(history.rows) + 1
    microseconds = (at - EPOCH) // timedelta(microseconds=1)
    row = Row(
        number=number,
        kind=kind,
        name=name,
        content=content,
        at_microseconds=microseconds,
        chain=entry_chain(
            history.head,
            number=number,
            kind=kind,
            name=name,
            content=content,
            at_microseconds=microseconds,
        ),
    )
    connection.execute(
        f"INSERT INTO entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
        astuple(row),
    )
    entries = (*history.entries, read_entry(row))
    return replace(history, rows=(*history.rows, row), entries=entries)


def raise_mark(path: Path, mark: Mark) -> None:
    """Moves the high-water mark up to a committed entry, never down.

    Raises:
        BudgetError: the mark is gone or cannot be read, or the file cannot be locked.
        DiskFullError: no room; the entry stands, the mark stays where it was.
    """
    with budget_transaction(path):
        present = read_mark(path)
        if present is None:
            raise BudgetError(path=path, problem=f"its high-water mark is gone. {RESTORE}")
        if present.number < mark.number:
            write_mark(path, mark)


def _read(path: Path, row: Row) -> Entry:
    try:
        return read_entry(row)
    except (ValueError, TypeError) as error:
        raise BudgetError(
            path=path,
            problem=f"entry {row.number} cannot be reckoned: {error} Install the Concord that wrote it.",
        ) from error


def _require_consistent(path: Path, history: History) -> None:
    """Every release follows its charge, every charge of a programme its declaration."""
    charged, declared = set[str](), set[str]()
    for entry in history.entries:
        match entry:
            case Declaration():
                declared.add(entry.programme.name)
                is_in_place = True
            case Charge():
                charged.add(entry.intent)
                is_in_place = entry.programme is None or entry.programme in declared
            case Release():
                is_in_place = entry.intent in charged
            case _:
                is_in_place = True
        if not is_in_place:
            raise BudgetError(
                path=path, problem=f"entry {entry.number} lacks the one that it rests on. {RESTORE}"
            )


def _require_whole(path: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise BudgetError(path=path, problem=f"is another kind of database. {RESTORE}")
    if version != FILE_VERSION:
        raise BudgetError(
            path=path,
            problem=f"has version {version}; this Concord knows version {FILE_VERSION}. Install the Concord that wrote "
            "it. Nothing was changed.",
        )
    (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    (triggers,) = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"
    ).fetchone()
    (identities,) = connection.execute("SELECT count(*) FROM identity").fetchone()
    if damage != "ok" or triggers != TRIGGERS or identities != 1:
        raise BudgetError(path=path, problem=f"is damaged, or its guards were removed. {RESTORE}")


def _translate(path: Path, error: sqlite3.Error) -> BudgetError | DiskFullError:
    """SQLite's error in the site's terms. A transaction that failed was rolled back by SQLite, now or at next use."""
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL":
        return DiskFullError(path=path, attempted="an entry of the privacy budget")
    if code.startswith("SQLITE_IOERR"):
        return BudgetError(
            path=path,
            problem=f"the disk refuses to read or write ({code}): it may be full, over a quota, or failing. Nothing was "
            "written; the same call works once the disk does.",
        )
    if code.startswith("SQLITE_BUSY"):
        return BudgetError(
            path=path,
            problem=f"another process has held it for over {LOCK_SECONDS:g} s. Nothing was written; try again.",
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return BudgetError(
            path=path,
            problem=f"cannot be written ({code}). Nothing was written; check its owner and mode.",
        )
    return BudgetError(path=path, problem=f"is damaged or no budget ({code or error}). {RESTORE}")
