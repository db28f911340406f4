"""Kills at every step of a charge and of a release, many jobs at once, and disks that refuse."""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import resource
import secrets
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from participant import budget as budget_module
from participant import budget_entries, budget_file, durable
from participant.budget import SiteBudget
from participant.errors import BudgetExhausted, DiskFullError, ParticipantError
from participant.outbox import Outbox, OutboxKey
from tests.participant.budget_fixtures import (
    CONTRACT,
    DIGEST,
    TENTH,
    in_child,
    kill_me,
    make_budget,
    most_charges,
    overspent,
    received,
)

JOBS = 8
KILLS = 24


@pytest.fixture
def budget(tmp_path: Path) -> SiteBudget:
    return make_budget(tmp_path)


def send_all(folder: Path, name: str) -> None:
    """A job: reserve, compute, store, spend, send; until the contract is used up. A restart finds what was done."""
    budget, outbox = SiteBudget(folder / "budget.db", CONTRACT), Outbox(folder / "outbox")
    with contextlib.suppress(BudgetExhausted):
        for number in itertools.count():
            intent = f"{name}/{number}"
            budget.reserve(intent, TENTH)
            key = OutboxKey(run_id=name, name=intent)
            answer = outbox.get(key) or secrets.token_bytes(16)  # computed anew, it is another one
            outbox.put(key, answer)
            digest = hashlib.sha256(answer).hexdigest()
            budget.spend(intent, sha256=digest)
            with (folder / "wire").open("a") as wire:
                wire.write(f"{intent} {digest}\n")


def faults(folder: Path) -> str:
    """What is wrong at this moment with what left and with what was charged; empty if nothing is."""
    left = dict[str, str]()
    for line in (folder / "wire").read_text().splitlines():  # read first: it may only be behind
        intent, digest = line.split()
        if left.setdefault(intent, digest) != digest:
            return f"two answers left under {intent}"
    history = SiteBudget(folder / "budget.db", CONTRACT).history()
    spent = {release.intent: release.sha256 for release in history.releases}
    if not left.items() <= spent.items():
        return "something left that the budget does not know"
    return overspent(history, CONTRACT)


def watch(folder: Path, stop: Connection) -> None:
    """Looks for faults until told to stop; tells what it found and how often it looked."""
    looks, found = 0, set[str]()
    while not stop.poll():
        found.add(faults(folder))
        looks += 1
    stop.send((looks, found))


def kill_and_restart(jobs: list[BaseProcess], folder: Path) -> None:
    """Kills jobs at moments that fall anywhere in their work, and starts each of them again."""
    moments = np.random.default_rng(20260504)
    for _ in range(KILLS):
        index = int(moments.integers(JOBS))
        jobs[index].join(timeout=float(moments.uniform(0.0, 0.12)))
        jobs[index].kill()
        jobs[index].join()
        jobs[index] = in_child(send_all, folder, f"job-{index}")


@pytest.mark.processes
def test_eight_jobs_killed_again_and_again_never_overspend_at_any_moment(tmp_path: Path) -> None:
    make_budget(tmp_path)
    (tmp_path / "wire").touch()
    ours, theirs = multiprocessing.Pipe()
    watcher = in_child(watch, tmp_path, theirs)
    theirs.close()
    jobs = [in_child(send_all, tmp_path, f"job-{index}") for index in range(JOBS)]

    kill_and_restart(jobs, tmp_path)

    for job in jobs:
        job.join()
    ours.send("stop")
    looks, found = ours.recv()
    watcher.join()
    assert [job.exitcode for job in jobs] == [0] * JOBS
    assert found == {""}
    assert looks > 5
    budget = SiteBudget(tmp_path / "budget.db", CONTRACT)
    assert len(budget.charges()) == most_charges(CONTRACT, TENTH)
    assert faults(tmp_path) == ""


def reserve_all(path: Path, name: str, told: Connection) -> None:
    """Charges a tenth again and again and tells each one after it was granted."""
    budget = SiteBudget(path, CONTRACT)
    with contextlib.suppress(BudgetExhausted):
        for number in itertools.count():
            told.send(budget.reserve(f"{name}/{number}", TENTH).intent)
    told.close()


def test_acknowledged_charges_survive_a_kill_at_any_time(budget: SiteBudget) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = in_child(reserve_all, budget.path, "job", sender)
    sender.close()
    told = list(itertools.islice(received(receiver), 15))

    child.kill()
    child.join()

    told += received(receiver)
    charged = [charge.intent for charge in budget.charges()]
    assert charged[: len(told)] == told
    assert len(charged) <= len(told) + 1
    assert budget.reserve("after/1", TENTH).number == len(charged) + 1


def reserve_and_be_killed_at(path: Path, module: object, function: str) -> None:
    budget = SiteBudget(path, CONTRACT)
    setattr(module, function, kill_me)
    budget.reserve("run-1/1/1", TENTH)


@pytest.mark.parametrize(
    ("module", "function", "is_charged"),
    [
        (budget_entries, "event_to_json", False),  # lock held, about to insert
        (budget_module, "raise_mark", True),  # committed
        (os, "replace", True),  # the new mark is written beside the old one
        (durable, "sync_folder", True),  # mark raised, caller not yet told
    ],
)
def test_kill_between_the_steps_of_a_charge_loses_nothing(
    budget: SiteBudget, module: object, function: str, is_charged: bool
) -> None:
    child = in_child(reserve_and_be_killed_at, budget.path, module, function)
    child.join()

    assert child.exitcode == -signal.SIGKILL
    assert [charge.intent for charge in budget.charges()] == ["run-1/1/1"] * is_charged
    assert budget.reserve("run-1/1/1", TENTH).number == 1
    assert budget.reserve("run-1/2/1", TENTH).number == 2


def spend_and_be_killed_at(path: Path, module: object, function: str) -> None:
    budget = SiteBudget(path, CONTRACT)
    setattr(module, function, kill_me)
    budget.spend("run-1/1/1", sha256=DIGEST)


@pytest.mark.parametrize(
    ("module", "function", "is_recorded"),
    [
        (budget_file, "read_entry", False),  # inserted, not committed
        (os, "replace", True),  # committed, the new mark is written beside the old one
        (durable, "sync_folder", True),  # mark raised, caller not yet told
    ],
)
def test_kill_between_the_steps_of_a_release_can_be_repeated(
    budget: SiteBudget, module: object, function: str, is_recorded: bool
) -> None:
    budget.reserve("run-1/1/1", TENTH)
    child = in_child(spend_and_be_killed_at, budget.path, module, function)
    child.join()

    assert child.exitcode == -signal.SIGKILL
    assert len(budget.releases()) == is_recorded
    budget.spend("run-1/1/1", sha256=DIGEST)
    assert [release.sha256 for release in budget.releases()] == [DIGEST]


def work_with_small_files(path: Path, told: Connection) -> None:
    budget = SiteBudget(path, CONTRACT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
    for work in (
        lambda: budget.reserve("run-1/2/1", TENTH),
        lambda: budget.spend("run-1/1/1", sha256=DIGEST),
    ):
        try:
            work()
        except ParticipantError as error:
            told.send(str(error))


def test_disk_that_refuses_writes_charges_and_releases_nothing(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    receiver, sender = multiprocessing.Pipe(duplex=False)

    child = in_child(work_with_small_files, budget.path, sender)
    child.join()

    refusal = "Nothing was written; the same call works once the disk does."
    assert refusal in receiver.recv()
    assert refusal in receiver.recv()
    assert (len(budget.charges()), budget.releases()) == (1, ())
    budget.spend("run-1/1/1", sha256=DIGEST)
    assert budget.reserve("run-1/2/1", TENTH).number == 3


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


def fill(folder: Path) -> Path:
    with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 1024)
    return folder / "filler"


def test_full_disk_charges_nothing_and_the_budget_goes_on_once_there_is_room(
    small_disk: Path,
) -> None:
    budget = make_budget(small_disk)
    budget.reserve("run-1/1/1", TENTH)
    filler = fill(small_disk)

    with pytest.raises(DiskFullError, match="No room on the site's disk"):
        budget.reserve("run-1/2/1", TENTH)

    assert [charge.intent for charge in budget.charges()] == ["run-1/1/1"]
    filler.unlink()
    assert budget.reserve("run-1/2/1", TENTH).number == 2


def test_disk_that_fills_up_between_charge_and_release_lets_nothing_leave_until_there_is_room(
    small_disk: Path,
) -> None:
    budget = make_budget(small_disk)
    budget.reserve("run-1/1/1", TENTH)
    filler = fill(small_disk)

    with pytest.raises(DiskFullError, match="No room on the site's disk"):
        budget.spend("run-1/1/1", sha256=DIGEST)

    assert budget.releases() == ()
    filler.unlink()
    budget.spend("run-1/1/1", sha256=DIGEST)
    assert [release.sha256 for release in budget.releases()] == [DIGEST]
