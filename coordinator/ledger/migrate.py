"""Brings the ledger's schema to the one that this program knows, or refuses to touch it.

no schema      created by the migrations themselves, so that a fresh ledger and a migrated one cannot differ
older          migrated in one transaction, with a message in the log
this one       nothing to do
unknown        refused: a newer Concord wrote it, and what it means cannot be guessed

Alembic is configured here in code; there is no alembic.ini.
"""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from coordinator.errors import LedgerError, LedgerVersionError
from coordinator.ledger.engine import address, migrating, reading, sqlite_file
from coordinator.ledger.tables import Table

VERSION_TABLE = "concord_schema"
"""Its own name: Flower, too, keeps an `alembic_version`."""

MIGRATIONS = Path(__file__).parent / "migrations"

log = logging.getLogger(__name__)


def bring_up_to_date(engine: Engine, *, create: bool, migrations: Path = MIGRATIONS) -> None:
    """After this the ledger has the newest schema.

    Args:
        engine: the ledger's database.
        create: whether an empty database may become a ledger; a report must not make what it was asked to show.
        migrations: the folder that holds every step from the first schema to the newest.

    Raises:
        LedgerVersionError: the schema is unknown to this program.
        LedgerError: there is no ledger and `create` is false, or other tables are in the way.
    """
    path = sqlite_file(engine)
    if path is not None and not create and not path.is_file():
        raise _no_ledger(engine)
    scripts = ScriptDirectory.from_config(_config(migrations))
    (newest,) = scripts.get_heads()
    with reading(engine) as connection:
        if _found(connection, engine, scripts) == newest:
            return
    with migrating(engine) as connection:
        # Asked again under the lock: another process may have migrated in between.
        found = _found(connection, engine, scripts)
        if found == newest:
            return
        if found is None:
            _require_empty(connection, engine)
            if not create:
                raise _no_ledger(engine)
        command.upgrade(_config(migrations, connection), newest)
    if found is not None:
        log.warning("Ledger %s: schema migrated from %s to %s.", address(engine.url), found, newest)


def downgrade(engine: Engine, to: str) -> None:
    """Takes the schema back to an earlier version, or to `base`: no ledger at all. What is newer is lost."""
    with migrating(engine) as connection:
        command.downgrade(_config(MIGRATIONS, connection), to)


def _found(connection: Connection, engine: Engine, scripts: ScriptDirectory) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    known = [script.revision for script in scripts.walk_revisions()][::-1]
    if found is not None and found not in known:
        raise LedgerVersionError(
            f"Ledger {address(engine.url)}: found schema {found!r}, this program knows {', '.join(known)}. A newer "
            "Concord wrote it. Install that version again, or restore the backup made before the upgrade. Nothing "
            "was changed."
        )
    return found


def _require_empty(connection: Connection, engine: Engine) -> None:
    taken = sorted(set(inspect(connection).get_table_names()) & set(Table.metadata.tables))
    if taken:
        raise LedgerError(
            f"Ledger {address(engine.url)}: the database holds no ledger, but other tables named "
            f"{', '.join(taken)}. Give the ledger a database of its own (ledger_url in coordinator.toml)."
        )


def _no_ledger(engine: Engine) -> LedgerError:
    return LedgerError(
        f"There is no ledger at {address(engine.url)}. Check --home, or run `coordinator init` there first."
    )


def _config(migrations: Path, connection: Connection | None = None) -> Config:
    config = Config()
    # Alembic expands percent signs in its options.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
