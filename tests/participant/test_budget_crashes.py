import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from participant import budget_file, durable
from participant.budget import SiteBudget
from participant.config import BudgetContract
from participant.errors import BudgetExhausted, DiskFullError, ParticipantError
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


def in_child(work: Callable[..., None], *arguments: object) -> BaseProcess:
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
    assert [child.exitcode for child in children] == [0, 0, 0]
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
        (os, "replace", True),  # committed, mark not yet raised
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
