import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from participant import budget_file, durable
from participant.budget import SiteBudget
from participant.budget_file import MARK_NAME, write_mark
from participant.config import BudgetContract
from participant.errors import BudgetError, BudgetExhausted, DiskFullError, ParticipantError
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian

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


def test_charge_is_there_after_a_restart(path: Path, budget: SiteBudget) -> None:
    charge = budget.reserve("run-1/1/1", TENTH)

    (again,) = open_budget(path).charges()
    assert again == charge
    assert (again.intent, again.events, again.epsilon_after) == ("run-1/1/1", TENTH, 0.1)
    assert abs(again.at - datetime.now(UTC)) < timedelta(minutes=1)


def test_gaussian_and_laplace_compose_in_one_figure(tmp_path: Path) -> None:
    contract = replace(CONTRACT, epsilon=8.0)
    SiteBudget.create(tmp_path / "budget.db", contract)
    budget = SiteBudget(tmp_path / "budget.db", contract)
    training = SubsampledGaussian(sample_rate=0.0256, noise_multiplier=1.5, steps=2000)

    alone = budget.reserve("run-1/1/1", (training,))
    both = budget.reserve("run-1/count", (DiscreteLaplace(epsilon=0.1, sensitivity=64, count=50),))

    assert alone.epsilon_after == pytest.approx(3.78, abs=0.01)
    assert both.epsilon_after == pytest.approx(4.95, abs=0.02)


def test_spent_is_stated_with_delta_unit_and_adjacency(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)

    spent = budget.spent()

    assert (spent.epsilon, spent.contract_epsilon, spent.delta, spent.charges) == (
        0.2,
        3.0,
        1e-5,
        2,
    )
    assert (spent.data_set, spent.unit, spent.adjacency) == (
        "heart",
        "patient",
        "add-or-remove-one",
    )


def test_same_intent_is_charged_once(budget: SiteBudget) -> None:
    first = budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)

    assert budget.reserve("run-1/1/1", TENTH) == first
    assert len(budget.charges()) == 2


def test_same_intent_with_other_events_is_refused(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(BudgetError, match="charged before, for other events"):
        budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=0.2),))

    assert budget.spent().epsilon == 0.1


@pytest.mark.parametrize(("intent", "events"), [("run-1/1/1", ()), ("", TENTH), ("x" * 501, TENTH)])
def test_charge_for_nothing_or_nobody_is_a_wrong_argument(
    budget: SiteBudget, intent: str, events: tuple[Event, ...]
) -> None:
    with pytest.raises(ValueError, match="Expected"):
        budget.reserve(intent, events)


def test_charge_beyond_the_contract_is_refused_with_the_figures(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=2.5),))

    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve("run-1/2/1", (DiscreteLaplace(epsilon=0.6),))

    message = str(caught.value)
    assert "Spent so far: epsilon 2.5000; with this: epsilon 3.1000; contract: epsilon 3" in message
    assert "delta 1e-05, unit patient, adjacency add-or-remove-one" in message
    assert len(budget.charges()) == 1


def test_contract_can_be_used_up_to_the_last_digit(budget: SiteBudget) -> None:
    assert budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=3.0),)).epsilon_after == 3.0


def test_refused_charge_leaves_room_for_a_smaller_one(budget: SiteBudget) -> None:
    with pytest.raises(BudgetExhausted):
        budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=3.1),))

    assert budget.reserve("run-1/1/1", TENTH).number == 1


def test_total_that_is_no_number_is_refused(path: Path) -> None:
    budget = SiteBudget(path, CONTRACT, epsilon_of=lambda events, delta: float("nan"))

    with pytest.raises(BudgetExhausted):
        budget.reserve("run-1/1/1", TENTH)


def test_failing_accountant_charges_nothing_and_frees_the_lock(
    path: Path, budget: SiteBudget
) -> None:
    def fails(events: Sequence[Event], delta: float) -> float:
        raise ValueError("unknown event")

    with pytest.raises(ValueError, match="unknown event"):
        SiteBudget(path, CONTRACT, epsilon_of=fails).reserve("run-1/1/1", TENTH)

    assert budget.reserve("run-1/1/1", TENTH).number == 1


def test_raised_contract_has_more_room_for_the_same_file(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=3.0),))

    raised = SiteBudget(path, replace(CONTRACT, epsilon=4.0), epsilon_of=summed)

    assert raised.reserve("run-1/2/1", TENTH).contract_epsilon == 4.0


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE charge SET epsilon_after = 0", "never updated"),
        ("DELETE FROM charge", "never deleted"),
        (
            "INSERT INTO charge SELECT 5, 'x', events, 0, 0, 0, 0, chain FROM charge",
            "only appended",
        ),
        ("UPDATE identity SET data_set = 'x'", "never updated"),
        ("DELETE FROM identity", "never deleted"),
    ],
)
def test_triggers_guard_what_was_charged(
    path: Path, budget: SiteBudget, statement: str, reason: str
) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(sqlite3.IntegrityError, match=reason):
        execute(path, statement)


def test_insert_or_replace_does_not_pass_the_triggers(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(sqlite3.IntegrityError, match="only appended"):
        execute(
            path,
            "INSERT OR REPLACE INTO charge SELECT number, 'x', events, 0, 0, 0, 0, chain FROM charge",
        )


def test_files_are_private(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"budget.db": 0o600, MARK_NAME: 0o600}


# ---- a budget that cannot be trusted


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


# ---- processes, kills, full disks


def in_child(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """A forked process, started: it shares the file with this one and nothing else."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def kill_me(*arguments: object, **options: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def spend_all(path: Path, name: str, epsilon: float, told: Connection) -> None:
    """Charges a tenth again and again and tells each one after it was granted."""
    budget = SiteBudget(path, replace(CONTRACT, epsilon=epsilon), epsilon_of=summed)
    with contextlib.suppress(BudgetExhausted):
        for number in itertools.count():
            told.send(budget.reserve(f"{name}/{number}", TENTH).intent)
    told.close()


def received(told: Connection) -> Iterator[str]:
    """Everything told until the other end is closed."""
    with contextlib.suppress(EOFError):
        while True:
            yield told.recv()


def test_concurrent_processes_never_overspend(path: Path, budget: SiteBudget) -> None:
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(3)]
    children = [
        in_child(spend_all, path, f"job-{index}", 3.0, pipe[1]) for index, pipe in enumerate(pipes)
    ]
    for _, sender in pipes:
        sender.close()

    told = [intent for receiver, _ in pipes for intent in received(receiver)]

    for child in children:
        child.join()
    assert len(told) == 30
    assert {charge.intent for charge in budget.charges()} == set(told)
    assert budget.spent().epsilon == 3.0


def test_acknowledged_charges_survive_a_kill_at_any_time(path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = in_child(spend_all, path, "job", 100.0, sender)
    sender.close()
    told = list(itertools.islice(received(receiver), 20))

    child.kill()
    child.join()

    told += received(receiver)
    budget = SiteBudget(path, replace(CONTRACT, epsilon=100.0), epsilon_of=summed)
    charged = [charge.intent for charge in budget.charges()]
    assert charged[: len(told)] == told
    assert len(charged) <= len(told) + 1
    assert budget.reserve("after/1", TENTH).number == len(charged) + 1


def reserve_and_be_killed_at(path: Path, module: object, function: str) -> None:
    setattr(module, function, kill_me)
    open_budget(path).reserve("run-1/1/1", TENTH)


@pytest.mark.parametrize(
    ("module", "function", "is_charged"),
    [
        (budget_file, "event_to_json", False),  # lock held, about to insert
        (durable.os, "replace", True),  # committed, mark not yet raised
        (durable, "sync_folder", True),  # mark raised, caller not yet told
    ],
)
def test_kill_between_the_steps_of_a_charge_loses_nothing(
    path: Path, module: object, function: str, is_charged: bool
) -> None:
    child = in_child(reserve_and_be_killed_at, path, module, function)
    child.join()

    assert child.exitcode == -signal.SIGKILL
    budget = open_budget(path)
    assert [charge.intent for charge in budget.charges()] == ["run-1/1/1"] * is_charged
    assert budget.reserve("run-1/1/1", TENTH).number == 1
    assert budget.reserve("run-1/2/1", TENTH).number == 2


def reserve_and_be_killed_while_reckoning(path: Path) -> None:
    SiteBudget(path, CONTRACT, epsilon_of=kill_me).reserve("run-1/1/1", TENTH)


def test_kill_under_the_lock_frees_it(path: Path, budget: SiteBudget) -> None:
    child = in_child(reserve_and_be_killed_while_reckoning, path)
    child.join()

    assert child.exitcode == -signal.SIGKILL
    assert budget.reserve("run-1/1/1", TENTH).number == 1


def reserve_with_small_files(path: Path, told: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
    try:
        open_budget(path).reserve("run-1/2/1", TENTH)
    except ParticipantError as error:
        told.send(str(error))


def test_charge_that_may_not_be_written_is_refused_and_the_budget_unharmed(
    path: Path, budget: SiteBudget
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    child = in_child(reserve_with_small_files, path, sender)
    child.join()

    assert "Nothing was charged; the same call works once the disk does." in receiver.recv()
    assert [charge.intent for charge in open_budget(path).charges()] == ["run-1/1/1"]
    assert budget.reserve("run-1/2/1", TENTH).number == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_charges_nothing_and_the_budget_goes_on_once_there_is_room(
    small_disk: Path,
) -> None:
    SiteBudget.create(small_disk / "budget.db", CONTRACT)
    budget = open_budget(small_disk / "budget.db")
    budget.reserve("run-1/1/1", TENTH)
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 1024)

    with pytest.raises(DiskFullError, match="No room on the site's disk"):
        budget.reserve("run-1/2/1", TENTH)

    assert [charge.intent for charge in budget.charges()] == ["run-1/1/1"]
    (small_disk / "filler").unlink()
    assert budget.reserve("run-1/2/1", TENTH).number == 2


def test_reserving_takes_less_than_a_tenth_of_a_second_beyond_the_accountant(path: Path) -> None:
    budget = SiteBudget(path, replace(CONTRACT, epsilon=100.0), epsilon_of=summed)
    seconds = []
    for index in range(100):
        start_time = time.perf_counter()
        budget.reserve(f"run-1/{index}/1", TENTH)
        seconds.append(time.perf_counter() - start_time)

    assert statistics.median(seconds) < 0.1
