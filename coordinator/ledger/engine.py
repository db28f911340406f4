"""The database behind the ledger: addresses, connections and transactions. All that is peculiar to SQLite or
PostgreSQL is in this file.

SQLite   write-ahead log with `synchronous=FULL` (a commit survives a power cut), foreign keys on, file mode 0600. A
         writing transaction takes the write lock at once (BEGIN IMMEDIATE), a reading one never takes it.
others   the database's own transactions; writers of one run queue at its row (`coordinator.ledger.fencing`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from coordinator.errors import ConfigError, LedgerError

LOCK_SECONDS = 30
"""How long a writer waits for another. The longest transaction, a commit with 64 sites, took 0.3 s on two busy cores."""

_MIGRATION_LOCK = 0x434F4E43  # any constant that all coordinators share

_HINTS = {
    "database is locked": "Another process holds the write lock; see which with `fuser`, then try again.",
    "database or disk is full": "Make room on that disk; what was committed is safe.",
    "file is not a database": "The path names some other file; correct ledger_url in coordinator.toml.",
    "readonly database": "Run the command as the user that owns the file.",
}


def make_engine(url: str) -> Engine:
    """Connections to the ledger at an SQLAlchemy URL; opens none yet.

    Raises:
        ConfigError: not a URL, a database or driver that is not installed, or SQLite without a file.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite_engine(parsed)
        return create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
    except NoSuchModuleError as error:
        raise ConfigError(
            f"ledger_url {address(parsed)} asks for the database {parsed.drivername!r}, which SQLAlchemy does not "
            "know. Use sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE."
        ) from error
    except ArgumentError as error:
        # The text may hold a password, so it is not repeated here.
        raise ConfigError(
            "ledger_url is not an SQLAlchemy URL. Expected for example sqlite:////srv/concord/ledger.db or "
            "postgresql+psycopg://USER@HOST/DATABASE."
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"ledger_url {address(parsed)} needs the Python package {error.name!r}, which is not installed. "
            "For PostgreSQL: pip install 'psycopg[binary]' (the extra `postgres` of Concord pins it)."
        ) from error


def address(url: URL) -> str:
    """The URL as it may be shown: without its password."""
    return url.render_as_string(hide_password=True)


def sqlite_file(engine: Engine) -> Path | None:
    """The file of a ledger on SQLite, None for any other database."""
    if engine.dialect.name != "sqlite":
        return None
    return Path(str(engine.url.database))


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that may write: all of it is committed at the end of the block, or nothing.

    Raises:
        LedgerError: the database failed. When it failed during the commit the outcome is unknown; ask the ledger.
    """
    with _explained(engine), engine.connect() as connection:
        connection.execution_options(concord_writes=True)
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that sees a single state of the ledger and blocks nobody."""
    with _explained(engine), engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction in which tables may be rebuilt, by one process at a time.

    Rebuilding a table on SQLite drops it for a moment, which live foreign keys would refuse or cascade; they are off
    meanwhile, and every one of them is checked before the commit.
    """
    if engine.dialect.name != "sqlite":
        with writing(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            yield connection
        return
    with _explained(engine), engine.connect() as connection:
        connection.execution_options(concord_writes=True)
        connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise LedgerError(
                        f"Ledger {address(engine.url)}: a migration would break {len(broken)} references, the first "
                        f"in table {broken[0][0]!r}. Nothing was changed; report this with the version of Concord."
                    )
        finally:
            connection.connection.cursor().execute("PRAGMA foreign_keys=ON")


@contextmanager
def _explained(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        found = str(error.orig).strip()
        hint = next(
            (hint for words, hint in _HINTS.items() if words in found),
            "Check that the database runs.",
        )
        raise LedgerError(f"Ledger {address(engine.url)}: {found}. {hint}") from error


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigError(
            "ledger_url names an SQLite database in memory, which would be lost with the process. "
            "Name a file: sqlite:///PATH."
        )
    if url.database.startswith("file:"):
        raise ConfigError(
            "ledger_url must name an SQLite file by its path (sqlite:///PATH), not by a file: URI."
        )
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS})
    path = Path(url.database)

    @event.listens_for(engine, "do_connect")
    def _private_file(*_: Any) -> None:
        if not path.parent.is_dir():
            raise LedgerError(
                f"Ledger {path}: the folder {path.parent} does not exist. Run `coordinator init` first."
            )
        # A file that exists is never opened here: closing any descriptor of it would drop the locks that this
        # process holds through SQLite, and two writers would then destroy the database (sqlite.org/howtocorrupt, 2.2).
        try:
            # SQLite gives its -wal and -shm files the mode of the database file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("concord_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
