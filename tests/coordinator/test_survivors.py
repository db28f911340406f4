"""What the ledger says of noise that sites share: each round's sum, and what all sums so far cost."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from coordinator.ledger.records import (
    Attempt,
    AttemptCharge,
    Metric,
    NewModel,
    RoundMetric,
    Run,
    RunHistory,
)
from coordinator.ledger.report import shared_noise_guarantee
from coordinator.ledger.states import RoundState, RunState
from coordinator.round_outcome import round_outcome
from coordinator.summation import Summation
from coordinator.survivors import survivors_metrics
from coordinator.wire.charges import run_events
from coordinator.wire.contribution import MeanContribution
from coordinator.wire.plan import RoundPlan
from privacy.dp.accounting import epsilon_spent
from privacy.secagg.protocol import SumResult
from tests.coordinator.ledger_cases import charge
from tests.sims.small_federation import SITES, small_plan, small_spec

AT = datetime(2026, 1, 2, tzinfo=UTC)
ROUNDS = 3


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RoundPlan:
    spec = small_spec(
        tmp_path_factory.mktemp("plan"),
        privacy={"mechanism": "distributed-dp", "honest_sites": 2, "colluding_sites": 1},
        training={"local_steps": 1},
        secure_sum={"update_range": 256.0},
        rounds=ROUNDS,
        spare_attempts=2,
        seed=None,
    )
    return small_plan(spec)


def history(
    *, committed: dict[int, float], aborted: tuple[int, ...] = (), spec: str = "{}"
) -> RunHistory:
    """Rounds and the noise recorded for each; `aborted` rounds had a first attempt that sites were charged for."""
    second = {number: 2 if number in aborted else 1 for number in committed}
    attempts = [(number, second[number], RoundState.COMMITTED) for number in committed]
    attempts += [(number, 1, RoundState.ABORTED) for number in aborted]
    return RunHistory(
        run=Run(
            run_id="small",
            spec=spec,
            state=RunState.RUNNING,
            rounds=ROUNDS,
            epoch=1,
            flower_run_id=1,
            created_at=AT,
            finished_at=None,
            reason=None,
        ),
        rounds=(),
        attempts=tuple(make_attempt(*attempt) for attempt in sorted(attempts)),
        participations=(),
        models=(),
        charges=tuple(
            AttemptCharge(round=number, attempt=attempt, recorded_at=AT, charge=charge("anna"))
            for number, attempt, _ in sorted(attempts)
        ),
        metrics=tuple(
            RoundMetric(
                round=number,
                metric=Metric(name="sum_noise_multiplier", value=noise, released_with="counted"),
            )
            for number, noise in committed.items()
        ),
        incidents=(),
    )


def make_attempt(number: int, attempt: int, state: RoundState) -> Attempt:
    return Attempt(
        run_id="small",
        round=number,
        attempt=attempt,
        state=state,
        epoch=1,
        plan_sha256="00" * 32,
        cohort=SITES,
        quorum=3,
        opened_at=AT,
        deadline=AT,
        closed_at=AT,
        reason=None,
    )


NOTHING = history(committed={})


def values(metrics: tuple[Metric, ...]) -> tuple[float, ...]:
    return tuple(metric.value for metric in metrics)


@pytest.mark.parametrize(("survivors", "honest"), [(3, 2), (4, 3)])
def test_the_noise_of_a_sum_is_that_of_its_survivors_less_the_colluders(
    plan: RoundPlan, survivors: int, honest: int
) -> None:
    noise, _, _ = values(survivors_metrics(plan, survivors, NOTHING))
    assert noise == pytest.approx(plan.privacy.noise_multiplier * (honest / 2) ** 0.5)


def test_a_sum_over_the_fewest_sites_costs_what_was_reserved(plan: RoundPlan) -> None:
    _, epsilon, reserved = values(survivors_metrics(plan, 3, NOTHING))
    assert epsilon == reserved


def test_more_survivors_than_planned_cost_less_than_was_reserved(plan: RoundPlan) -> None:
    _, epsilon, reserved = values(survivors_metrics(plan, 4, NOTHING))
    assert 0.0 < epsilon < 0.95 * reserved


def test_a_sum_that_should_never_have_been_opened_is_refused(plan: RoundPlan) -> None:
    with pytest.raises(ValueError, match="must not be opened"):
        survivors_metrics(plan, 2, NOTHING)


def test_epsilon_adds_up_over_the_committed_rounds_as_the_accountant_says(plan: RoundPlan) -> None:
    target = plan.privacy.noise_multiplier
    before = history(committed={1: target, 2: target})
    last = replace(plan, round=3)
    _, epsilon, reserved = values(survivors_metrics(last, 3, before))
    whole_run = run_events(replace(plan, rounds_charged=3))
    assert epsilon == reserved == pytest.approx(epsilon_spent(whole_run, plan.privacy.delta))


def test_an_aborted_attempt_that_was_charged_counts_as_planned(plan: RoundPlan) -> None:
    noise = 1.3 * plan.privacy.noise_multiplier
    last = replace(plan, round=3)
    smooth = history(committed={1: noise, 2: noise})
    bumpy = history(committed={1: noise, 2: noise}, aborted=(2,))
    _, epsilon, reserved = values(survivors_metrics(last, 4, smooth))
    _, more, more_reserved = values(survivors_metrics(last, 4, bumpy))
    assert more > epsilon
    assert more_reserved > reserved
    assert more < more_reserved


def test_the_attempt_that_is_being_committed_counts_once(plan: RoundPlan) -> None:
    under_way = history(committed={}, aborted=())
    charged = replace(
        under_way,
        attempts=(make_attempt(1, 1, RoundState.AGGREGATING),),
        charges=history(committed={1: 1.0}).charges,
    )
    assert survivors_metrics(plan, 4, charged) == survivors_metrics(plan, 4, NOTHING)


def test_the_whole_run_never_costs_more_than_it_promised(plan: RoundPlan) -> None:
    target = plan.privacy.noise_multiplier
    all_used = history(committed={1: target, 2: target}, aborted=(1, 2))
    _, epsilon, reserved = values(survivors_metrics(replace(plan, round=3), 3, all_used))
    assert epsilon == reserved <= plan.privacy.epsilon * (1.0 + 1e-9)


def test_an_epsilon_is_recorded_with_delta_unit_adjacency_and_assumption(plan: RoundPlan) -> None:
    noise, epsilon, reserved = survivors_metrics(plan, 4, NOTHING)
    words = "delta 1e-05, per patient, add-or-remove-one, if all sites in a sum but 1"
    assert words in epsilon.released_with
    assert words in reserved.released_with
    assert "but 1 add their share" in noise.released_with


def outcome_metrics(plan: RoundPlan, evidence: dict[str, float]) -> dict[str, Metric]:
    result = SumResult(
        integers=np.zeros(1, dtype=np.int32), scale=1.0, sites=SITES, evidence=evidence
    )
    mean = MeanContribution(
        change=np.zeros(1, np.float32), weight=1.0, loss=0.5, counts=None, loads=None
    )
    outcome = round_outcome(
        plan,
        Summation(sums={0: result}, sites={}),
        mean,
        model=NewModel(sha256="00" * 32, bytes=1, parent_sha256="11" * 32),
        seconds=1.0,
        history=lambda: NOTHING,
    )
    return {metric.name: metric for metric in outcome.metrics}


def test_what_the_scheme_knows_of_a_sum_is_recorded(plan: RoundPlan) -> None:
    found = outcome_metrics(plan, {"key_epoch_decryptions": 7.0, "largest_error": 1e-6})
    assert found["key_epoch_decryptions"].value == 7.0
    assert found["largest_error"].released_with == "secure sum"
    assert "survivors_epsilon" in found


def test_without_shared_noise_no_epsilon_of_survivors_is_recorded(plan: RoundPlan) -> None:
    alone = replace(plan, privacy=replace(plan.privacy, mechanism="dp-sgd"))
    assert set(outcome_metrics(alone, {})) == {"training_loss"}


def test_the_report_states_the_newest_figures_with_all_they_depend_on(plan: RoundPlan) -> None:
    spec = {
        "privacy": {
            "delta": 1e-5,
            "unit": "patient",
            "adjacency": "add-or-remove-one",
            "colluding_sites": 1,
        }
    }
    recorded = tuple(
        RoundMetric(round=number, metric=Metric(name=name, value=value, released_with="accountant"))
        for number, name, value in [
            (1, "survivors_epsilon", 1.0),
            (1, "reserved_epsilon", 1.5),
            (2, "survivors_epsilon", 2.0),
            (2, "reserved_epsilon", 2.75),
        ]
    )
    told = shared_noise_guarantee(
        replace(history(committed={}, spec=json.dumps(spec)), metrics=recorded)
    )
    assert told is not None
    assert told.words == (
        "epsilon 2.000 as released (reserved 2.750) at delta 1e-05, per patient, add-or-remove-one, if at most 1 of the sites in a "
        "sum tell their share of the noise"
    )


def test_a_run_without_shared_noise_has_no_such_figure() -> None:
    assert shared_noise_guarantee(NOTHING) is None
