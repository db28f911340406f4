import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from participant.budget import SiteBudget
from participant.budget_entries import CHARGE, PROGRAMME, RELEASE, entry_chain
from participant.budget_mark import MARK_NAME, Mark, write_mark
from participant.config import BudgetContract
from participant.errors import BudgetError
from tests.participant.budget_fixtures import (
    CONTRACT,
    DIGEST,
    TENTH,
    execute,
    make_budget,
    microseconds,
)


@pytest.fixture
def budget(tmp_path: Path) -> SiteBudget:
    return make_budget(tmp_path)


@pytest.fixture
def path(budget: SiteBudget) -> Path:
    return budget.path


def open_budget(path: Path) -> SiteBudget:
    return SiteBudget(path, CONTRACT)


def append_forged(
    path: Path, kind: str, name: str, content: str, *, age: timedelta = timedelta()
) -> None:
    """Appends an entry as somebody would who knows how the chain is made."""
    last = open_budget(path).history().rows[-1]
    at = microseconds(last.at - age)
    number = last.number + 1
    chain = entry_chain(
        last.chain, number=number, kind=kind, name=name, content=content, at_microseconds=at
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", (number, kind, name, content, at, chain)
        )


def test_missing_budget_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="does not exist"):
        open_budget(tmp_path / "budget.db")

    assert list(tmp_path.iterdir()) == []


def test_budget_is_made_once(path: Path) -> None:
    with pytest.raises(BudgetError, match="exists already"):
        SiteBudget.create(path, CONTRACT)


def test_deleted_budget_is_neither_opened_nor_made_again(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    path.unlink()

    with pytest.raises(BudgetError, match="does not exist"):
        budget.reserve("run-1/2/1", TENTH)
    with pytest.raises(BudgetError, match="is gone, but its high-water mark shows entries"):
        SiteBudget.create(path, CONTRACT)


def test_creation_that_was_cut_short_can_be_repeated(tmp_path: Path) -> None:
    write_mark(tmp_path / "budget.db", Mark(number=0, chain=b""))

    SiteBudget.create(tmp_path / "budget.db", CONTRACT)

    assert open_budget(tmp_path / "budget.db").charges() == ()


def test_old_copy_is_recognised(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    shutil.copy(path, path.with_name("backup"))
    budget.reserve("run-1/2/1", TENTH)
    shutil.copy(path.with_name("backup"), path)

    with pytest.raises(BudgetError, match="holds 1 entries, but 2 were made: it was rolled back"):
        budget.reserve("run-1/3/1", TENTH)


def test_another_budget_of_the_same_length_is_recognised(
    path: Path, budget: SiteBudget, tmp_path: Path
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    (tmp_path / "other").mkdir()
    SiteBudget.create(tmp_path / "other" / "budget.db", CONTRACT)
    open_budget(tmp_path / "other" / "budget.db").reserve("run-1/1/1", TENTH)
    shutil.copy(tmp_path / "other" / "budget.db", path)

    with pytest.raises(BudgetError, match="entry 1 is not the one that was made"):
        open_budget(path)


def test_deleted_mark_is_an_error(path: Path, budget: SiteBudget) -> None:
    path.with_name(MARK_NAME).unlink()

    with pytest.raises(BudgetError, match="high-water mark is gone"):
        open_budget(path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"entries": "x", "chain": ""}', b"\xff" * 9000]
)
def test_damaged_mark_is_an_error(path: Path, content: bytes) -> None:
    path.with_name(MARK_NAME).write_bytes(content)

    with pytest.raises(BudgetError, match="cannot be read"):
        open_budget(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET content = replace(content, '0.1', '0.01') WHERE number = 1",
        "UPDATE entry SET name = 'run-9/1/1' WHERE number = 1",
        "UPDATE entry SET at_microseconds = at_microseconds - 1 WHERE number = 1",
        "UPDATE entry SET kind = 'programme' WHERE number = 1",
        "UPDATE entry SET number = 7 WHERE number = 1",
    ],
)
def test_altered_row_breaks_the_chain_even_where_triggers_were_put_back(
    path: Path, budget: SiteBudget, statement: str
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)
    with closing(sqlite3.connect(path)) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'entry_is_never_updated'"
        ).fetchone()
    execute(
        path,
        "DROP TRIGGER entry_is_never_updated",
        statement,
        trigger,
    )

    with pytest.raises(BudgetError, match="entry 1 was altered or removed"):
        open_budget(path)


def test_dropped_trigger_is_noticed(path: Path) -> None:
    execute(path, "DROP TRIGGER entry_is_never_deleted")

    with pytest.raises(BudgetError, match="guards were removed"):
        open_budget(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a database" * 1000, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_damaged_file_is_an_error_and_stays_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(BudgetError, match=r"Restore budget\.db and budget\.high-water"):
        open_budget(path)

    assert path.read_bytes() == content


def test_truncated_file_is_an_error(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    os.truncate(path, path.stat().st_size - 4096)

    with pytest.raises(BudgetError, match="Restore"):
        open_budget(path)


@pytest.mark.parametrize("version", [1, 3])
def test_file_of_another_version_is_left_alone(path: Path, version: int) -> None:
    execute(path, f"PRAGMA user_version = {version}")
    before = path.read_bytes()

    with pytest.raises(BudgetError, match=f"has version {version}; this Concord knows version 2"):
        open_budget(path)

    assert path.read_bytes() == before


def test_another_kind_of_database_is_refused(path: Path) -> None:
    execute(path, "PRAGMA application_id = 1")

    with pytest.raises(BudgetError, match="another kind of database"):
        open_budget(path)


@pytest.mark.parametrize(
    "contract", [replace(CONTRACT, data_set="lungs"), replace(CONTRACT, unit="customer")]
)
def test_budget_of_another_data_set_or_unit_is_refused(
    path: Path, contract: BudgetContract
) -> None:
    with pytest.raises(BudgetError, match="belongs to"):
        SiteBudget(path, contract)


def test_identity_that_was_edited_breaks_the_chain(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'identity_is_never_updated'"
        ).fetchone()
    execute(
        path,
        "DROP TRIGGER identity_is_never_updated",
        "UPDATE identity SET rdp_order = rdp_order + 1",
        trigger,
    )

    with pytest.raises(BudgetError, match="entry 0 is not the one that was made"):
        open_budget(path)


def test_entry_that_is_gone_leaves_a_gap(path: Path, budget: SiteBudget) -> None:
    for number in (1, 2, 3):
        budget.reserve(f"run-1/{number}/1", TENTH)
    with closing(sqlite3.connect(path)) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'entry_is_never_deleted'"
        ).fetchone()
    execute(
        path, "DROP TRIGGER entry_is_never_deleted", "DELETE FROM entry WHERE number = 2", trigger
    )

    with pytest.raises(BudgetError, match="entry 2 was altered or removed"):
        open_budget(path)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE entry SET content = '{}'", "never updated"),
        ("DELETE FROM entry", "never deleted"),
        ("INSERT INTO entry SELECT 5, kind, 'x', content, 0, chain FROM entry", "only appended"),
        (
            "INSERT OR REPLACE INTO entry SELECT 1, kind, 'x', '', 0, chain FROM entry",
            "only append",
        ),
        (
            "INSERT OR REPLACE INTO entry SELECT 2, kind, name, '', 0, chain FROM entry",
            "only append",
        ),
        ("INSERT INTO entry SELECT 2, 'release', 'x', '', 0, chain FROM entry", "without a charge"),
        ("UPDATE identity SET data_set = 'x'", "never updated"),
        ("DELETE FROM identity", "never deleted"),
    ],
)
def test_triggers_guard_what_is_stored(
    path: Path, budget: SiteBudget, statement: str, reason: str
) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(sqlite3.IntegrityError, match=reason):
        execute(path, statement)


@pytest.mark.parametrize(
    ("kind", "name", "content", "problem"),
    [
        (CHARGE, "run-1/2/1", "{}", "cannot be reckoned"),
        (CHARGE, "run-1/2/1", "[]", "cannot be reckoned"),
        (CHARGE, "run-1/2/1", "not JSON", "cannot be reckoned"),
        (PROGRAMME, "run-1", '{"contract":{},"epsilon":1,"events":[]}', "cannot be reckoned"),
        (RELEASE, "run-1/1/1", '{"sha256":1,"more":2}', "cannot be reckoned"),
    ],
)
def test_entry_with_a_right_hash_and_another_content_is_an_error(
    path: Path, budget: SiteBudget, kind: str, name: str, content: str, problem: str
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    append_forged(path, kind, name, content)

    with pytest.raises(BudgetError, match=problem):
        open_budget(path)


def test_charge_of_a_run_that_was_never_declared_is_an_error(
    path: Path, budget: SiteBudget
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    content = budget.history().rows[0].content.replace('"programme":null', '"programme":"run-7"')
    append_forged(path, CHARGE, "run-7/1/1", content)

    with pytest.raises(BudgetError, match="entry 2 lacks the one that it rests on"):
        open_budget(path)


def test_entry_older_than_the_one_before_is_an_error(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.spend("run-1/1/1", sha256=DIGEST)
    content = budget.history().rows[0].content
    append_forged(path, CHARGE, "run-1/2/1", content, age=timedelta(hours=1))

    with pytest.raises(BudgetError, match="entry 3 was altered or removed"):
        open_budget(path)


def test_mark_never_goes_down(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)
    before = path.with_name(MARK_NAME).read_bytes()

    budget.reserve("run-1/1/1", TENTH)

    assert path.with_name(MARK_NAME).read_bytes() == before


def test_message_that_may_leave_the_site_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        open_budget(tmp_path / "budget.db")

    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in caught.value.local_message
