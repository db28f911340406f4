import sqlite3
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from participant.budget import SiteBudget
from participant.budget_file import MARK_NAME
from participant.config import BudgetContract
from participant.errors import BudgetError, BudgetExhausted
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


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO charge SELECT number, 'x', events, 0, 0, 0, 0, chain FROM charge",
        "INSERT OR REPLACE INTO charge SELECT number + 1, intent, events, 0, 0, 0, 0, chain FROM charge",
    ],
)
def test_insert_or_replace_does_not_pass_the_triggers(
    path: Path, budget: SiteBudget, statement: str
) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(sqlite3.IntegrityError, match="only appended"):
        execute(path, statement)


def test_files_are_private(path: Path, budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"budget.db": 0o600, MARK_NAME: 0o600}


def test_reserving_takes_less_than_a_tenth_of_a_second_beyond_the_accountant(path: Path) -> None:
    budget = SiteBudget(path, replace(CONTRACT, epsilon=100.0), epsilon_of=summed)
    seconds = []
    for index in range(100):
        start_time = time.perf_counter()
        budget.reserve(f"run-1/{index}/1", TENTH)
        seconds.append(time.perf_counter() - start_time)

    assert statistics.median(seconds) < 0.1
