from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from participant.budget import CLOCK_TOLERANCE, SiteBudget
from participant.budget_mark import MARK_NAME
from participant.errors import BudgetError, BudgetExhausted, ContractError
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian
from tests.participant.budget_fixtures import (
    CONTRACT,
    DIGEST,
    NOW,
    OTHER_DIGEST,
    TENTH,
    SettableClock,
    filter_of,
    make_budget,
    most_charges,
    programme,
)


@pytest.fixture
def budget(tmp_path: Path) -> SiteBudget:
    return make_budget(tmp_path)


def reopened(budget: SiteBudget) -> SiteBudget:
    return SiteBudget(budget.path, budget.contract)


def no_accountant(events: Sequence[Event], delta: float) -> float:
    raise AssertionError("the accountant was asked")


def test_charge_is_there_after_a_restart(budget: SiteBudget) -> None:
    charge = budget.reserve("run-1/1/1", TENTH)

    (again,) = reopened(budget).charges()
    assert again == charge
    assert (again.intent, again.events, again.run) == ("run-1/1/1", TENTH, "run-1")
    assert again.rdp_after == filter_of(CONTRACT).cost(TENTH)
    assert (again.terms.epsilon, again.terms.delta) == (3.0, 1e-5)
    assert abs(again.at - datetime.now(UTC)) < timedelta(minutes=1)


def test_gaussian_and_laplace_compose_in_one_figure(tmp_path: Path) -> None:
    budget = make_budget(tmp_path, replace(CONTRACT, epsilon=8.0))
    training = SubsampledGaussian(sample_rate=0.0256, noise_multiplier=1.5, steps=2000)

    budget.reserve("run-1/1/1", (training,))
    alone = budget.spent().epsilon
    budget.reserve("run-1/count", (DiscreteLaplace(epsilon=0.1, sensitivity=64, count=50),))

    assert alone == pytest.approx(3.78, abs=0.01)
    assert budget.spent().epsilon == pytest.approx(4.95, abs=0.02)


def test_spent_is_stated_with_delta_unit_and_adjacency(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)
    budget.spend("run-1/1/1", sha256=DIGEST)

    spent = budget.spent()

    assert spent.filter_epsilon is not None
    assert 0 < spent.epsilon <= 0.2
    assert spent.epsilon <= spent.filter_epsilon <= spent.contract_epsilon == 3.0
    assert spent.left_epsilon == 3.0 - spent.filter_epsilon
    assert (spent.charges, spent.releases, spent.dedicated_to) == (2, 1, None)
    assert (spent.data_set, spent.delta, spent.unit) == ("heart", 1e-5, "patient")
    assert (spent.adjacency, spent.warnings) == ("add-or-remove-one", ())


def test_same_intent_is_charged_once(budget: SiteBudget) -> None:
    first = budget.reserve("run-1/1/1", TENTH)
    budget.reserve("run-1/2/1", TENTH)

    assert budget.reserve("run-1/1/1", TENTH) == first
    assert len(budget.charges()) == 2


def test_same_intent_with_other_events_is_refused(budget: SiteBudget) -> None:
    charge = budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(BudgetError, match="charged before, for other events"):
        budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=0.2),))

    assert budget.charges() == (charge,)


def test_same_intent_of_another_run_is_refused(budget: SiteBudget) -> None:
    charge = budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(BudgetError, match="charged before, for other events"):
        budget.reserve("run-1/1/1", TENTH, programme=programme(*TENTH))

    assert budget.charges() == (charge,)


@pytest.mark.parametrize(("intent", "events"), [("run-1/1/1", ()), ("", TENTH), ("x" * 501, TENTH)])
def test_charge_for_nothing_or_nobody_is_a_wrong_argument(
    budget: SiteBudget, intent: str, events: tuple[Event, ...]
) -> None:
    with pytest.raises(ValueError, match="Expected"):
        budget.reserve(intent, events)

    assert budget.charges() == ()


def test_charge_of_an_unknown_mechanism_is_a_wrong_argument(budget: SiteBudget) -> None:
    with pytest.raises(ValueError, match="unknown to the accountant"):
        budget.reserve("run-1/1/1", ("a secret sauce",))  # type: ignore[arg-type]

    assert budget.charges() == ()


def test_charge_beyond_the_contract_is_refused_with_the_figures(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=1.0),))

    with pytest.raises(BudgetExhausted) as caught:
        budget.reserve("run-1/2/1", (DiscreteLaplace(epsilon=1.0),))

    message = str(caught.value)
    assert "run-1/2/1 was refused and not charged" in message
    assert f"Spent so far: epsilon {budget.spent().filter_epsilon:.4f}; with this" in message
    assert "delta 1e-05, unit patient, adjacency add-or-remove-one" in message
    assert len(budget.charges()) == 1


def test_budget_is_used_up_by_exactly_what_the_filter_admits(budget: SiteBudget) -> None:
    room = most_charges(CONTRACT, TENTH)
    for number in range(room):
        budget.reserve(f"run-1/{number}/1", TENTH)

    with pytest.raises(BudgetExhausted):
        budget.reserve("run-1/last/1", TENTH)

    assert len(budget.charges()) == room
    assert budget.spent().epsilon <= 3.0


def test_refused_charge_leaves_room_for_a_smaller_one(budget: SiteBudget) -> None:
    with pytest.raises(BudgetExhausted):
        budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=3.1, count=5),))

    assert budget.reserve("run-1/1/1", TENTH).number == 1


def test_reserving_and_spending_ask_no_accountant(tmp_path: Path) -> None:
    budget = make_budget(tmp_path, epsilon_of=no_accountant)

    budget.reserve("run-1/1/1", TENTH, programme=programme(DiscreteLaplace(epsilon=0.1, count=3)))
    budget.reserve("run-2/1/1", TENTH)
    budget.spend("run-2/1/1", sha256=DIGEST)

    assert len(budget.charges()) == 2


def test_release_is_recorded_under_its_charge(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    budget.spend("run-1/1/1", sha256=DIGEST)

    (release,) = reopened(budget).releases()
    assert (release.intent, release.sha256) == ("run-1/1/1", DIGEST)


def test_same_bytes_leave_once_however_often_they_are_sent(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.spend("run-1/1/1", sha256=DIGEST)
    budget.spend("run-1/1/1", sha256=DIGEST)

    assert len(budget.releases()) == 1


def test_other_bytes_under_the_same_charge_are_refused(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    budget.spend("run-1/1/1", sha256=DIGEST)

    with pytest.raises(BudgetError, match="other bytes left under run-1/1/1 before"):
        budget.spend("run-1/1/1", sha256=OTHER_DIGEST)

    assert [release.sha256 for release in budget.releases()] == [DIGEST]


def test_nothing_leaves_without_a_charge(budget: SiteBudget) -> None:
    with pytest.raises(
        BudgetError, match="nothing was charged for run-1/1/1, so nothing may leave"
    ):
        budget.spend("run-1/1/1", sha256=DIGEST)

    assert budget.releases() == ()


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, "g" * 64, "ab" * 33])
def test_what_is_no_digest_is_a_wrong_argument(budget: SiteBudget, digest: str) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(ValueError, match="Expected sha256"):
        budget.spend("run-1/1/1", sha256=digest)


def test_what_was_reserved_and_never_spent_counts_for_ever(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)
    before = budget.spent()
    budget.spend("run-1/1/1", sha256=DIGEST)

    assert before.epsilon == budget.spent().epsilon > 0
    assert before.left_epsilon == budget.spent().left_epsilon


def test_raised_contract_has_more_room_for_the_same_file(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", (DiscreteLaplace(epsilon=1.0),))
    more = (DiscreteLaplace(epsilon=1.0),)
    with pytest.raises(BudgetExhausted):
        budget.reserve("run-1/2/1", more)

    raised = SiteBudget(budget.path, replace(CONTRACT, epsilon=8.0))

    assert raised.reserve("run-1/2/1", more).terms.epsilon == 8.0


def test_contract_lowered_below_its_order_charges_nothing(budget: SiteBudget) -> None:
    lowered = SiteBudget(budget.path, replace(CONTRACT, epsilon=0.01))

    with pytest.raises(ContractError, match="leaves room for nothing"):
        lowered.reserve("run-1/1/1", TENTH)

    assert budget.charges() == ()


def test_contract_above_8_is_accepted_and_called_weak(tmp_path: Path) -> None:
    budget = make_budget(tmp_path, replace(CONTRACT, epsilon=9.0))

    (warning,) = budget.spent().warnings
    assert "epsilon of 9 is weak" in warning


def test_nothing_is_charged_after_the_last_day_of_the_contract(tmp_path: Path) -> None:
    clock = SettableClock()
    contract = replace(CONTRACT, valid_until=date(2026, 5, 4))
    budget = make_budget(tmp_path, contract, clock=clock)
    charge = budget.reserve("run-1/1/1", TENTH)
    clock.advance(hours=12)

    with pytest.raises(ContractError, match="was valid until 2026-05-04"):
        budget.reserve("run-1/2/1", TENTH)

    assert budget.reserve("run-1/1/1", TENTH) == charge
    budget.spend("run-1/1/1", sha256=DIGEST)
    assert budget.charges() == (charge,)


def test_extended_contract_charges_again(tmp_path: Path) -> None:
    contract = replace(CONTRACT, valid_until=date(2026, 5, 3))
    budget = make_budget(tmp_path, contract, clock=SettableClock())
    with pytest.raises(ContractError):
        budget.reserve("run-1/1/1", TENTH)

    extended = replace(contract, valid_until=date(2026, 5, 4))
    again = SiteBudget(budget.path, extended, clock=SettableClock())

    assert again.reserve("run-1/1/1", TENTH).terms.valid_until == date(2026, 5, 4)


def test_clock_that_was_set_back_charges_and_releases_nothing(tmp_path: Path) -> None:
    clock = SettableClock()
    budget = make_budget(tmp_path, clock=clock)
    budget.reserve("run-1/1/1", TENTH)
    clock.advance(hours=-1)

    with pytest.raises(BudgetError, match="the clock was set back"):
        budget.reserve("run-1/2/1", TENTH)
    with pytest.raises(BudgetError, match="the clock was set back"):
        budget.spend("run-1/1/1", sha256=DIGEST)

    assert len(budget.history().rows) == 1


def test_clock_that_was_corrected_a_little_does_not_matter(tmp_path: Path) -> None:
    clock = SettableClock()
    budget = make_budget(tmp_path, clock=clock)
    budget.reserve("run-1/1/1", TENTH)
    clock.now -= CLOCK_TOLERANCE

    assert budget.reserve("run-1/2/1", TENTH).at == NOW


def test_clock_that_ran_ahead_can_be_put_right_by_the_administrator(tmp_path: Path) -> None:
    clock = SettableClock()
    budget = make_budget(tmp_path, clock=clock)
    clock.advance(days=3650)
    budget.reserve("run-1/1/1", TENTH)
    clock.now = NOW

    assert budget.accept_clock() == NOW

    assert budget.reserve("run-1/2/1", TENTH).at == NOW
    assert [row.kind for row in budget.history().rows] == ["charge", "clock", "charge"]


def test_clock_that_is_right_needs_no_acceptance(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    with pytest.raises(BudgetError, match="nothing to accept"):
        budget.accept_clock()


def test_order_is_chosen_and_fixed_when_the_budget_is_made(budget: SiteBudget) -> None:
    raised = SiteBudget(budget.path, replace(CONTRACT, epsilon=8.0))

    assert raised.history().identity.rdp_order == filter_of(CONTRACT).order
    assert filter_of(raised.contract).order != filter_of(CONTRACT).order


def test_order_of_the_contract_is_used_and_another_one_refused_later(tmp_path: Path) -> None:
    budget = make_budget(tmp_path, replace(CONTRACT, rdp_order=12.5))

    assert budget.spent().rdp_order == 12.5
    with pytest.raises(BudgetError, match="order were fixed when the file was made"):
        SiteBudget(budget.path, replace(CONTRACT, rdp_order=12.0))


def test_order_at_which_nothing_could_be_charged_makes_no_budget(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"was not made: Expected order=1\.5"):
        SiteBudget.create(tmp_path / "budget.db", replace(CONTRACT, rdp_order=1.5))

    assert list(tmp_path.iterdir()) == []


def test_attempts_left_are_counted_at_the_rate_of_the_latest_run(budget: SiteBudget) -> None:
    costly = (DiscreteLaplace(epsilon=0.5),)
    assert budget.spent().rounds_left is None
    budget.reserve("run-1/1/1", TENTH)
    after_first = budget.spent().rounds_left
    budget.reserve("run-2/count", TENTH)
    budget.reserve("run-2/1/1", costly)

    left = budget.spent().rounds_left
    assert left is not None
    for number in range(left):
        budget.reserve(f"run-2/{number + 2}/1", costly)

    assert after_first == most_charges(CONTRACT, TENTH) - 1
    with pytest.raises(BudgetExhausted):
        budget.reserve("run-2/last/1", costly)


def test_files_are_private(budget: SiteBudget) -> None:
    budget.reserve("run-1/1/1", TENTH)

    modes = {file.name: file.stat().st_mode & 0o777 for file in budget.path.parent.iterdir()}
    assert modes == {"budget.db": 0o600, MARK_NAME: 0o600}
