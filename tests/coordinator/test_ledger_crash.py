"""Whatever dies, and whenever: the ledger shows a round either committed with all its parts or not at all."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.errors import StaleEpochError
from coordinator.ledger.store import open_ledger
from tests.coordinator.ledger_cases import START_MODEL, digest, outcome

pytest_plugins = ["tests.coordinator.ledger_fixtures"]

ROOT = Path(__file__).parents[2]


def kill_in_commit(url: str, instant: str) -> None:
    """Another process commits round 1 and is killed at that instant."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.coordinator.ledger_killed", url, instant],
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL


def test_killed_before_the_end_of_a_commit_the_previous_round_is_the_truth(driving, ledger_url):
    driving.to_aggregating()
    before = driving.ledger.history("heart-1")

    kill_in_commit(ledger_url, "before")

    assert driving.ledger.history("heart-1") == before
    assert driving.ledger.runs.last_committed("heart-1").model_sha256 == START_MODEL


def test_killed_after_a_commit_its_repetition_changes_nothing(driving, ledger_url):
    driving.to_aggregating()

    kill_in_commit(ledger_url, "after")

    history = driving.ledger.history("heart-1")
    assert driving.ledger.runs.last_committed("heart-1").model_sha256 == digest("one")
    assert len(history.charges) == 4
    assert not driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)
    assert driving.ledger.history("heart-1") == history


def test_a_successor_goes_on_after_the_kill(driving, ledger_url):
    driving.to_aggregating()
    kill_in_commit(ledger_url, "before")

    successor = driving.ledger.runs.take_over("heart-1")

    with pytest.raises(StaleEpochError):
        driving.ledger.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)
    assert successor.epoch == 2
    assert [attempt.attempt for attempt in driving.ledger.rounds.attempts("heart-1")] == [1]


def test_of_eight_that_take_a_run_over_at_once_each_has_its_own_epoch(driving, ledger_url):
    def epoch(_: int) -> int:
        with open_ledger(ledger_url, create=False) as mine:
            return mine.runs.take_over("heart-1").epoch

    with ThreadPoolExecutor(8) as pool:
        epochs = sorted(pool.map(epoch, range(8)))

    assert epochs == list(range(2, 10))


def test_of_eight_that_commit_one_round_at_once_exactly_one_does(driving, ledger_url):
    driving.to_aggregating()

    def commits(_: int) -> bool:
        with open_ledger(ledger_url, create=False) as mine:
            return mine.rounds.commit_round(driving.lease, outcome(), round=1, attempt=1)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(commits, range(8))) == 1

    assert len(driving.ledger.history("heart-1").charges) == 4
