"""What a declared run may do with a data set, and what is left for others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from participant.budget import SiteBudget
from participant.errors import BudgetError, BudgetExhausted
from privacy.dp.accounting import calibrate_noise, epsilon_spent
from privacy.dp.events import DiscreteLaplace, Event
from tests.participant.budget_fixtures import (
    CONTRACT,
    TENTH,
    filter_of,
    gaussian,
    make_budget,
    most_charges,
    overspent,
    programme,
)

NOISE = calibrate_noise(epsilon=3.0, delta=1e-5, sample_rate=0.05, steps=60)
"""Calibrated for the whole contract over 60 steps: more than the filter admits."""
WHOLE = programme(gaussian(60, NOISE), name="run-1")
ATTEMPT = (gaussian(20, NOISE),)
SMALL = programme(gaussian(60, 4.0), DiscreteLaplace(epsilon=0.1), name="run-1")
SMALL_ATTEMPT = (gaussian(20, 4.0),)


@pytest.fixture
def budget(tmp_path: Path) -> SiteBudget:
    return make_budget(tmp_path)


def dedicated(budget: SiteBudget) -> SiteBudget:
    budget.reserve("run-1/1/1", ATTEMPT, programme=WHOLE)
    return budget


def test_run_calibrated_for_the_whole_contract_is_more_than_the_filter_admits() -> None:
    assert not filter_of(CONTRACT).admits(WHOLE.events)
    assert 2.98 < epsilon_spent(WHOLE.events, 1e-5) <= 3.0


def test_first_run_may_use_the_whole_contract_and_has_the_data_set_for_itself(
    budget: SiteBudget,
) -> None:
    dedicated(budget)
    budget.reserve("run-1/2/1", ATTEMPT, programme=WHOLE)
    budget.reserve("run-1/3/1", ATTEMPT, programme=WHOLE)

    with pytest.raises(BudgetExhausted, match="dedicated to run run-1"):
        budget.reserve("run-2/1/1", TENTH)

    spent = budget.spent()
    assert 2.98 < spent.epsilon <= 3.0
    assert (spent.dedicated_to, spent.left_epsilon, spent.rounds_left) == ("run-1", 0.0, 0)


@pytest.mark.parametrize("other", [None, programme(*TENTH, name="run-2")])
def test_dedicated_data_set_is_left_to_its_run_before_that_has_spent_anything_much(
    budget: SiteBudget, other
) -> None:
    dedicated(budget)

    with pytest.raises(BudgetExhausted, match="dedicated to run run-1"):
        budget.reserve("run-2/1/1", TENTH, programme=other)

    assert budget.spent().rounds_left == 2
    assert len(budget.charges()) == 1


def test_accountant_is_asked_once_in_the_life_of_a_dedicated_data_set(tmp_path: Path) -> None:
    asked = []

    def counting(events: Sequence[Event], delta: float) -> float:
        asked.append(events)
        return epsilon_spent(events, delta)

    budget = dedicated(make_budget(tmp_path, epsilon_of=counting))
    budget.reserve("run-1/2/1", ATTEMPT, programme=WHOLE)

    assert asked == [WHOLE.events]


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), 3.0001])
def test_first_run_beyond_the_contract_is_refused_whole(tmp_path: Path, epsilon: float) -> None:
    budget = make_budget(tmp_path, epsilon_of=lambda events, delta: epsilon)

    with pytest.raises(BudgetExhausted, match="all that run run-1 declares: epsilon"):
        budget.reserve("run-1/1/1", ATTEMPT, programme=WHOLE)

    assert budget.history().rows == ()


def test_failing_accountant_charges_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    def fails(events: Sequence[Event], delta: float) -> float:
        raise ValueError("out of range")

    budget = make_budget(tmp_path, epsilon_of=fails)
    with pytest.raises(ValueError, match="out of range"):
        budget.reserve("run-1/1/1", ATTEMPT, programme=WHOLE)

    assert budget.reserve("run-1/1/1", TENTH).number == 1


def test_only_the_first_run_may_use_the_whole_contract(budget: SiteBudget) -> None:
    budget.reserve("run-0/count", (DiscreteLaplace(epsilon=0.001),))

    with pytest.raises(BudgetExhausted, match="all else that its run declares"):
        budget.reserve("run-1/1/1", ATTEMPT, programme=WHOLE)

    assert len(budget.charges()) == 1


def test_first_run_that_fits_the_filter_leaves_room_for_others_and_counts_whole(
    budget: SiteBudget,
) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)
    filter_ = filter_of(CONTRACT)
    room = int((filter_.limit - filter_.cost(SMALL.events)) / filter_.cost(TENTH))
    for number in range(room):
        budget.reserve(f"run-2/{number}/1", TENTH)

    with pytest.raises(BudgetExhausted, match="Spent so far"):
        budget.reserve("run-2/last/1", TENTH)
    budget.reserve("run-1/2/1", SMALL_ATTEMPT, programme=SMALL)
    budget.reserve("run-1/3/1", SMALL_ATTEMPT, programme=SMALL)

    assert 0 < room < most_charges(CONTRACT, TENTH)
    assert overspent(budget.history(), CONTRACT) == ""


def test_first_run_is_not_counted_twice_when_it_is_charged(budget: SiteBudget) -> None:
    charges = [budget.reserve(f"run-1/{n}/1", SMALL_ATTEMPT, programme=SMALL) for n in range(3)]

    assert {charge.rdp_after for charge in charges} == {filter_of(CONTRACT).cost(SMALL.events)}


@pytest.mark.parametrize(
    "events",
    [
        (gaussian(41, 4.0),),
        (gaussian(1, 4.5),),
        (gaussian(1, 3.5),),
        (DiscreteLaplace(epsilon=0.1, count=2),),
        (DiscreteLaplace(epsilon=0.1, sensitivity=2),),
    ],
)
def test_run_is_never_charged_for_more_than_it_declared(
    budget: SiteBudget, events: tuple[Event, ...]
) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)

    with pytest.raises(BudgetExhausted, match="goes beyond what run run-1 declared"):
        budget.reserve("run-1/2/1", events, programme=SMALL)

    assert len(budget.charges()) == 1


def test_run_that_declares_other_events_later_is_refused(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)
    other = replace(SMALL, events=(gaussian(80, 4.0),))

    with pytest.raises(BudgetError, match="parameters are fixed before the first release"):
        budget.reserve("run-1/2/1", SMALL_ATTEMPT, programme=other)

    assert len(budget.charges()) == 1


def test_declaration_may_be_written_in_another_order_and_in_more_pieces(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)
    pieces = (DiscreteLaplace(epsilon=0.1), gaussian(20, 4.0), gaussian(40, 4.0))

    charge = budget.reserve("run-1/2/1", SMALL_ATTEMPT, programme=replace(SMALL, events=pieces))

    assert [row.kind for row in budget.history().rows] == ["programme", "charge", "charge"]
    assert charge.programme == "run-1"


def test_later_run_is_refused_at_once_if_it_could_not_be_finished(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)
    later = programme(gaussian(60, NOISE), name="run-2")

    with pytest.raises(BudgetExhausted, match="all else that its run declares"):
        budget.reserve("run-2/1/1", (gaussian(1, NOISE),), programme=later)

    assert len(budget.charges()) == 1


def test_later_run_counts_what_it_was_charged_and_no_more(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", SMALL_ATTEMPT, programme=SMALL)
    later = programme(gaussian(40, 4.0), name="run-2")

    charge = budget.reserve("run-2/1/1", SMALL_ATTEMPT, programme=later)

    filter_ = filter_of(CONTRACT)
    assert charge.rdp_after == filter_.cost((*SMALL.events, *SMALL_ATTEMPT))


def test_dedicated_run_stops_where_the_contract_was_lowered(budget: SiteBudget) -> None:
    dedicated(budget)
    lowered = SiteBudget(budget.path, replace(CONTRACT, epsilon=2.9))

    with pytest.raises(BudgetExhausted, match="contract was lowered"):
        lowered.reserve("run-1/2/1", ATTEMPT, programme=WHOLE)

    assert budget.reserve("run-1/2/1", ATTEMPT, programme=WHOLE).number == 3


def test_dedicated_run_stops_where_delta_was_lowered(budget: SiteBudget) -> None:
    dedicated(budget)
    lowered = SiteBudget(budget.path, replace(CONTRACT, delta=1e-6))

    with pytest.raises(BudgetExhausted, match="contract was lowered"):
        lowered.reserve("run-1/2/1", ATTEMPT, programme=WHOLE)


def test_raised_contract_opens_a_dedicated_data_set_to_what_the_filter_admits(
    budget: SiteBudget,
) -> None:
    whole = programme(gaussian(640, 2.0))  # 2.9 by its PLD, 3.2 by the filter
    budget.reserve("run-1/1/1", (gaussian(64, 2.0),), programme=whole)
    contract = replace(CONTRACT, epsilon=8.0)

    raised = SiteBudget(budget.path, contract)

    with pytest.raises(BudgetExhausted, match="dedicated to run run-1"):
        budget.reserve("run-2/1/1", TENTH)
    assert raised.reserve("run-2/1/1", TENTH).number == 3
    assert overspent(raised.history(), contract) == ""
