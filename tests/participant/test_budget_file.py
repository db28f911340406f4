import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from participant.budget import SiteBudget
from participant.budget_file import MARK_NAME, write_mark
from participant.config import BudgetContract
from participant.errors import BudgetError
from privacy.dp.events import DiscreteLaplace, Event

CONTRACT = BudgetContract(data_set="heart", epsilon=3.0, delta=1e-5)
TENTH = (DiscreteLaplace(epsilon=0.1),)


def summed(events: Sequence[Event], delta: float) -> float:
    """An accountant of tests: pure epsilons add up."""
    return round(
        sum(event.epsilon * event.count for event in events if isinstance(event, DiscreteLaplace)),
        9,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    SiteBudget.create(tmp_path / "budget.db", CONTRACT)
    return tmp_path / "budget.db"


@pytest.fixture
def budget(path: Path) -> SiteBudget:
    return SiteBudget(path, CONTRACT, epsilon_of=summed)


def open_budget(path: Path) -> SiteBudget:
    return SiteBudget(path, CONTRACT, epsilon_of=summed)


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


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
    with pytest.raises(BudgetError, match="is gone, but its high-water mark shows charges"):
        SiteBudget.create(path, CONTRACT)


def test_creation_that_was_cut_short_can_be_repeated(tmp_path: Path) -> None:
    write_mark(tmp_path / "budget.db", (0, b""))

    SiteBudget.create(tmp_path / "budget.db", CONTRACT)

    assert open_budget(tmp_path / "budget.db").charges() == ()


def test_old_copy_is_recognised(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    shutil.copy(path, path.with_name("backup"))
    budget.reserve("run-1/2/1", TENTH)
    shutil.copy(path.with_name("backup"), path)

    with pytest.raises(BudgetError, match="holds 1 charges, but 2 were made: it was rolled back"):
        budget.reserve("run-1/3/1", TENTH)


def test_another_budget_of_the_same_length_is_recognised(
    path: Path, budget: SiteBudget, tmp_path: Path
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    (tmp_path / "other").mkdir()
    SiteBudget.create(tmp_path / "other" / "budget.db", CONTRACT)
    open_budget(tmp_path / "other" / "budget.db").reserve("run-1/1/1", TENTH)
    shutil.copy(tmp_path / "other" / "budget.db", path)

    with pytest.raises(BudgetError, match="charge 1 is not the one that was made"):
        open_budget(path)


def test_deleted_mark_is_an_error(path: Path, budget: SiteBudget) -> None:
    path.with_name(MARK_NAME).unlink()

    with pytest.raises(BudgetError, match="high-water mark is gone"):
        open_budget(path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"charges": "x", "chain": ""}', b"\xff" * 9000]
)
def test_damaged_mark_is_an_error(path: Path, content: bytes) -> None:
    path.with_name(MARK_NAME).write_bytes(content)

    with pytest.raises(BudgetError, match="cannot be read"):
        open_budget(path)


def test_altered_row_breaks_the_chain_even_where_triggers_were_put_back(
    path: Path, budget: SiteBudget
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)
    with closing(sqlite3.connect(path)) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'charge_is_never_updated'"
        ).fetchone()
    execute(
        path,
        "DROP TRIGGER charge_is_never_updated",
        "UPDATE charge SET events = '[]' WHERE number = 1",
        trigger,
    )

    with pytest.raises(BudgetError, match="charge 1 was altered or removed"):
        open_budget(path)


def test_dropped_trigger_is_noticed(path: Path) -> None:
    execute(path, "DROP TRIGGER charge_is_never_deleted")

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


def test_newer_file_is_left_alone(path: Path) -> None:
    execute(path, "PRAGMA user_version = 2")
    before = path.read_bytes()

    with pytest.raises(BudgetError, match="has version 2; this Concord knows version 1"):
        open_budget(path)

    assert path.read_bytes() == before


def test_another_kind_of_database_is_refused(path: Path) -> None:
    execute(path, "PRAGMA application_id = 1")

    with pytest.raises(BudgetError, match="another kind of database"):
        open_budget(path)


def test_budget_of_another_data_set_is_refused(path: Path) -> None:
    with pytest.raises(BudgetError, match="belongs to"):
        SiteBudget(path, replace(CONTRACT, data_set="lungs"))


def test_message_that_may_leave_the_site_has_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        open_budget(tmp_path / "budget.db")

    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in caught.value.local_message
