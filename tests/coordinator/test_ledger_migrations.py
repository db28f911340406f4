"""The schema of a fresh ledger, of a migrated one and of the table definitions are one; what is unknown is refused."""

import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from coordinator.errors import ConfigError, LedgerError, LedgerVersionError
from coordinator.ledger.engine import make_engine, migrating, reading, writing
from coordinator.ledger.migrate import MIGRATIONS, VERSION_TABLE, bring_up_to_date, downgrade
from coordinator.ledger.store import open_ledger
from coordinator.ledger.tables import Table
from tests.coordinator.ledger_cases import enrol

pytest_plugins = ["tests.coordinator.ledger_fixtures"]


TOMORROW = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    with op.batch_alter_table("sites", recreate="auto") as sites:
        sites.add_column(sa.Column("city", sa.String(40), nullable=False, server_default="-"))
        sites.alter_column("node_key", type_=sa.String(600))
"""


@pytest.fixture
def engine(ledger_url):
    engine = make_engine(ledger_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def tomorrows_migrations(tmp_path: Path) -> Path:
    """The migrations of this program and one more, which rebuilds a table that others refer to."""
    folder = tmp_path / "tomorrow"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "v0002_city.py").write_text(TOMORROW)
    return folder


def definitions(url: str) -> dict[str, list[str]]:
    """The lines of each table and index as SQLite keeps them, CHECKs included, in no order."""
    engine = create_engine(url)
    query = text("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE :own AND sql IS NOT NULL")
    with engine.connect() as connection:
        rows = connection.execute(query, {"own": VERSION_TABLE}).all()
    engine.dispose()
    return {name: sorted(line.strip(" ,\t") for line in sql.splitlines()) for name, sql in rows}


def test_the_migrations_arrive_at_the_defined_tables(engine):
    bring_up_to_date(engine, create=True)

    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Table.metadata) == []


def test_checks_and_foreign_keys_too_are_the_same_migrated_and_fresh(tmp_path, sqlite_url):
    open_ledger(sqlite_url).close()
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    engine = create_engine(fresh)
    Table.metadata.create_all(engine)
    engine.dispose()

    assert definitions(sqlite_url) == definitions(fresh)


def test_migrating_down_leaves_no_table_and_up_again_all_of_them(engine, ledger_url):
    bring_up_to_date(engine, create=True)

    downgrade(engine, "base")

    assert inspect(engine).get_table_names() == [VERSION_TABLE]
    bring_up_to_date(engine, create=True)
    assert set(inspect(engine).get_table_names()) == {VERSION_TABLE, *Table.metadata.tables}


def test_opening_again_changes_nothing(ledger_url):
    with open_ledger(ledger_url) as ledger:
        enrol(ledger, "st-anna")

    with open_ledger(ledger_url, create=False) as ledger:
        assert [site.name for site in ledger.sites.members()] == ["st-anna"]


def test_an_older_ledger_is_migrated_with_a_message_and_its_rows_stay(
    engine, ledger_url, tomorrows_migrations, caplog
):
    with open_ledger(ledger_url) as ledger:
        enrol(ledger, "st-anna")

    bring_up_to_date(engine, create=False, migrations=tomorrows_migrations)

    with reading(engine) as connection:
        assert connection.execute(text("SELECT name, city FROM sites")).all() == [("st-anna", "-")]
    (message,) = caplog.messages
    assert message.endswith("schema migrated from 0001 to 0002.")


def test_a_ledger_of_tomorrow_is_refused_today(engine, ledger_url, tomorrows_migrations):
    bring_up_to_date(engine, create=True, migrations=tomorrows_migrations)

    with pytest.raises(LedgerVersionError, match=r"found schema '0002', this program knows 0001\."):
        open_ledger(ledger_url)


def test_an_unknown_schema_is_refused_saying_what_was_found_and_what_is_known(engine, ledger_url):
    bring_up_to_date(engine, create=True)
    with writing(engine) as connection:
        connection.execute(text("UPDATE concord_schema SET version_num = '9999'"))

    with pytest.raises(
        LedgerVersionError,
        match=r"found schema '9999', this program knows .*0001.*Nothing was changed",
    ):
        open_ledger(ledger_url)

    with reading(engine) as connection:
        found = connection.execute(text("SELECT version_num FROM concord_schema")).scalar_one()
    assert found == "9999"


def test_a_report_does_not_make_the_ledger_it_was_asked_to_show(engine, ledger_url):
    with pytest.raises(LedgerError, match="There is no ledger at"):
        open_ledger(ledger_url, create=False)


def test_a_report_leaves_no_file_behind_where_there_was_none(tmp_path, sqlite_url):
    with pytest.raises(LedgerError, match="There is no ledger at"):
        open_ledger(sqlite_url, create=False)

    assert list(tmp_path.iterdir()) == []


def test_tables_of_somebody_else_are_not_touched(engine, ledger_url):
    with migrating(engine) as connection:
        connection.execute(text("CREATE TABLE runs (mine INTEGER)"))

    with pytest.raises(LedgerError, match="other tables named runs"):
        open_ledger(ledger_url)


def test_eight_that_open_a_new_ledger_at_once_make_one(ledger_url):
    def opened(_: int) -> str:
        with open_ledger(ledger_url) as ledger:
            return ledger.address

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(opened, range(8)))) == 1


def insert_orphan(engine: Engine) -> None:
    """A migration that leaves a round without its run."""
    with migrating(engine) as connection:
        connection.execute(
            text("INSERT INTO rounds (run_id, number, state) VALUES ('none', 1, 'open')")
        )


def test_a_migration_that_breaks_a_reference_is_undone(sqlite_url):
    open_ledger(sqlite_url).close()
    engine = make_engine(sqlite_url)

    with pytest.raises(LedgerError, match="would break 1 references, the first in table 'rounds'"):
        insert_orphan(engine)

    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM rounds")).scalar_one() == 0
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
    engine.dispose()


def test_sqlite_is_durable_and_private(tmp_path, sqlite_url):
    with open_ledger(sqlite_url) as ledger:
        ledger.record_incident("test", "so that the log files exist")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        engine = make_engine(sqlite_url)
        with reading(engine) as connection:
            settings = [
                connection.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        engine.dispose()

    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert settings == ["wal", 2, 1]


def test_a_ledger_that_others_may_read_is_made_private_when_opened(tmp_path, sqlite_url):
    open_ledger(sqlite_url).close()
    (tmp_path / "ledger.db").chmod(0o644)

    open_ledger(sqlite_url).close()

    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) == 0o600


def test_a_reader_is_not_blocked_by_a_writer_and_sees_one_state(sqlite_url):
    with open_ledger(sqlite_url) as ledger:
        engine = make_engine(sqlite_url)
        with writing(engine) as connection:
            connection.execute(
                text("INSERT INTO incidents (at, kind, text) VALUES ('2026-01-01', 'a', 'b')")
            )
            assert ledger.incidents() == ()
        engine.dispose()
        assert len(ledger.incidents()) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url at all", "not an SQLAlchemy URL"),
        ("oracular://host/name", "asks for the database 'oracular'"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:ledger.db?uri=true", "not by a file: URI"),
        ("postgresql+pg8000://host/name", "needs the Python package 'pg8000'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_what_to_write_instead(url, words):
    with pytest.raises(ConfigError, match=words):
        open_ledger(url)


@pytest.mark.parametrize(
    "url",
    ["oracular://me:hunter2@host/name", "postgresql+pg8000://me:hunter2@host/name", "me:hunter2@"],
)
def test_no_error_repeats_the_password(url):
    with pytest.raises(ConfigError) as refused:
        open_ledger(url)

    assert "hunter2" not in str(refused.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(LedgerError, match=r"the folder .*/nowhere does not exist"):
        open_ledger(f"sqlite:///{tmp_path}/nowhere/ledger.db")


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, sqlite_url):
    (tmp_path / "ledger.db").write_bytes(b"a text of mine\n" * 100)

    with pytest.raises(LedgerError, match=r"file is not a database.*correct ledger_url"):
        open_ledger(sqlite_url)

    assert (tmp_path / "ledger.db").read_bytes() == b"a text of mine\n" * 100
