"""The file behind a site's privacy budget: SQLite, append-only, chained by hash, with a high-water mark beside it.

- `budget.db`: one row of identity, one row per charge. Rollback journal and `synchronous = EXTRA`: what was committed
  is on the disk, and the one file is the whole truth, so a copy of it is a backup.
- `budget.high-water`: number and hash of the last charge seen, written after each commit. A file that has fewer
  charges, or other ones, was restored from an old backup or rewritten.
- Triggers forbid UPDATE, DELETE and INSERT OR REPLACE. Whoever drops them breaks the chain instead.
"""

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from participant.durable import sync_folder, write_durably
from participant.errors import BudgetError, DiskFullError
from privacy.dp.events import Event, event_from_json, event_to_json

APPLICATION_ID = 0x434F4E42  # "CONB"
FILE_VERSION = 1
LOCK_SECONDS = 60.0
MARK_NAME = "budget.high-water"
MAX_MARK_BYTES = 4096
CHAIN_LABEL = b"concord/budget-charge/v1\0"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RESTORE = "Restore budget.db and budget.high-water together from the newest backup; nothing is trained until then."

TABLES = """
CREATE TABLE identity (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    data_set TEXT NOT NULL,
    unit TEXT NOT NULL,
    adjacency TEXT NOT NULL
) STRICT;
CREATE TABLE charge (
    number INTEGER PRIMARY KEY CHECK (number >= 1),
    intent TEXT NOT NULL UNIQUE,  -- one charge per intent, whoever asks, however often
    events TEXT NOT NULL,
    epsilon_after REAL NOT NULL,
    delta REAL NOT NULL,
    contract_epsilon REAL NOT NULL,
    at_microseconds INTEGER NOT NULL,
    chain BLOB NOT NULL CHECK (length(chain) = 32)
) STRICT;
CREATE TRIGGER charge_is_never_updated BEFORE UPDATE ON charge
    BEGIN SELECT RAISE(ABORT, 'charges are never updated'); END;
CREATE TRIGGER charge_is_never_deleted BEFORE DELETE ON charge
    BEGIN SELECT RAISE(ABORT, 'charges are never deleted'); END;
CREATE TRIGGER charge_follows_the_last BEFORE INSERT ON charge
    WHEN NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM charge)
        OR EXISTS (SELECT 1 FROM charge WHERE intent = NEW.intent)  -- INSERT OR REPLACE fires no delete trigger
    BEGIN SELECT RAISE(ABORT, 'charges are only appended'); END;
CREATE TRIGGER identity_is_never_updated BEFORE UPDATE ON identity
    BEGIN SELECT RAISE(ABORT, 'identity is never updated'); END;
CREATE TRIGGER identity_is_never_deleted BEFORE DELETE ON identity
    BEGIN SELECT RAISE(ABORT, 'identity is never deleted'); END;
"""
TRIGGERS = 5


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose budget the file is, and in which terms it counts."""

    data_set: str
    unit: str
    adjacency: str


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One row: what was charged, and the total after it."""

    number: int
    intent: str
    """What was charged for, for instance "<run>/<round>/<attempt>"; charged once."""
    events: tuple[Event, ...]
    epsilon_after: float
    """Total of the data set with this charge, at `delta`, as reckoned when it was made."""
    delta: float
    contract_epsilon: float
    """The contract's epsilon at that time."""
    at: datetime
    chain: bytes
    """Hash over this row and the chain before it."""


def create_budget_file(path: Path, identity: Identity) -> None:
    """Makes an empty budget, once for a data set.

    Raises:
        BudgetError: there is one, or there was one.
        DiskFullError: no room; nothing was made.
    """
    mark = read_mark(path)
    if path.exists() or (mark is not None and mark[0] > 0):
        problem = (
            "exists already" if path.exists() else "is gone, but its high-water mark shows charges"
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
            connection.execute(
                "INSERT INTO identity VALUES (1, ?, ?, ?)",
                (identity.data_set, identity.unit, identity.adjacency),
            )
        write_mark(path, (0, b""))
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
def budget_transaction(path: Path, identity: Identity) -> Iterator[sqlite3.Connection]:
    """The file, verified and locked for writing; commits at the end, rolls back on any error.

    Raises:
        BudgetError: missing, damaged, newer, of another data set, or locked for longer than `LOCK_SECONDS`.
        DiskFullError: no room; nothing was charged.
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
                _require_ours(path, connection, identity)
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _translate(path, error) from error


def read_charges(path: Path, connection: sqlite3.Connection) -> tuple[Charge, ...]:
    """All charges, their chain recomputed and compared with the high-water mark.

    Raises:
        BudgetError: a gap, an altered row, an unknown event, or fewer or other charges than the mark.
    """
    charges: list[Charge] = []
    chain = b""
    for row in connection.execute("SELECT * FROM charge ORDER BY number"):
        number, intent, events, after, delta, contract, at, stored = row
        chain = _chain(chain, row[:-1])
        if number != len(charges) + 1 or chain != stored:
            raise BudgetError(
                path=path, problem=f"charge {len(charges) + 1} was altered or removed. {RESTORE}"
            )
        try:
            parsed = tuple(event_from_json(text) for text in json.loads(events))
        except ValueError as error:
            raise BudgetError(
                path=path,
                problem=f"charge {number} cannot be reckoned: {error} Install the Concord that wrote it.",
            ) from error
        charges.append(
            Charge(
                number=number,
                intent=intent,
                events=parsed,
                epsilon_after=after,
                delta=delta,
                contract_epsilon=contract,
                at=EPOCH + timedelta(microseconds=at),
                chain=chain,
            )
        )
    _require_mark(path, charges)
    return tuple(charges)


def append_charge(
    connection: sqlite3.Connection,
    previous: Charge | None,
    *,
    intent: str,
    events: tuple[Event, ...],
    epsilon_after: float,
    delta: float,
    contract_epsilon: float,
) -> Charge:
    """Adds the next charge; durable once the transaction has committed."""
    at = datetime.now(UTC)
    fields = (
        previous.number + 1 if previous else 1,
        intent,
        json.dumps([event_to_json(event) for event in events]),
        epsilon_after,
        delta,
        contract_epsilon,
        (at - EPOCH) // timedelta(microseconds=1),
    )
    chain = _chain(previous.chain if previous else b"", fields)
    connection.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, chain))
    return Charge(
        number=fields[0],
        intent=intent,
        events=events,
        epsilon_after=epsilon_after,
        delta=delta,
        contract_epsilon=contract_epsilon,
        at=at,
        chain=chain,
    )


def read_mark(path: Path) -> tuple[int, bytes] | None:
    """Number and chain of the newest charge that was seen, from beside the budget; None without a mark.

    Raises:
        BudgetError: the mark cannot be read.
    """
    try:
        with path.with_name(MARK_NAME).open("rb") as file:
            fields = json.loads(file.read(MAX_MARK_BYTES))
        return int(fields["charges"]), bytes.fromhex(fields["chain"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BudgetError(
            path=path.with_name(MARK_NAME), problem=f"cannot be read. {RESTORE}"
        ) from error


def write_mark(path: Path, mark: tuple[int, bytes]) -> None:
    """Remembers the newest charge.

    Raises:
        DiskFullError: no room; the mark stays where it was.
    """
    text = json.dumps({"charges": mark[0], "chain": mark[1].hex()}).encode()
    write_durably(path.with_name(MARK_NAME), (text,), replace=True)


def _require_mark(path: Path, charges: list[Charge]) -> None:
    mark = read_mark(path)
    if mark is None:
        raise BudgetError(path=path, problem=f"its high-water mark is gone. {RESTORE}")
    number, chain = mark
    if number > len(charges):
        raise BudgetError(
            path=path,
            problem=f"holds {len(charges)} charges, but {number} were made: it was rolled back to an old copy. {RESTORE}",
        )
    if number > 0 and charges[number - 1].chain != chain:
        raise BudgetError(
            path=path, problem=f"charge {number} is not the one that was made. {RESTORE}"
        )


def _require_ours(path: Path, connection: sqlite3.Connection, identity: Identity) -> None:
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
    row = connection.execute("SELECT data_set, unit, adjacency FROM identity").fetchone()
    if damage != "ok" or triggers != TRIGGERS or row is None:
        raise BudgetError(path=path, problem=f"is damaged, or its guards were removed. {RESTORE}")
    found = Identity(data_set=row[0], unit=row[1], adjacency=row[2])
    if found != identity:
        raise BudgetError(
            path=path,
            problem=f"belongs to {found}; site.toml says {identity}. Name the right data set.",
        )


def _chain(previous: bytes, fields: tuple[object, ...]) -> bytes:
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    return hashlib.sha256(CHAIN_LABEL + previous + text).digest()


def _translate(path: Path, error: sqlite3.Error) -> BudgetError | DiskFullError:
    """SQLite's error in the site's terms. A transaction that failed was rolled back by SQLite, now or at next use."""
    code = getattr(error, "sqlite_errorname", "")
    if code == "SQLITE_FULL":
        return DiskFullError(path=path, attempted="a charge to the privacy budget")
    if code.startswith("SQLITE_IOERR"):
        return BudgetError(
            path=path,
            problem=f"the disk refuses to read or write ({code}): it may be full, over a quota, or failing. Nothing was "
            "charged; the same call works once the disk does.",
        )
    if code.startswith("SQLITE_BUSY"):
        return BudgetError(
            path=path,
            problem=f"another process has held it for over {LOCK_SECONDS:g} s. Nothing was charged; try again.",
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return BudgetError(
            path=path,
            problem=f"cannot be written ({code}). Nothing was charged; check its owner and mode.",
        )
    return BudgetError(path=path, problem=f"is damaged or no budget ({code or error}). {RESTORE}")
