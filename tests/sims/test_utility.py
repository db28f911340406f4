"""What privacy costs: aims, losses, warnings, and the run of every level."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.wire.plan import PrivacyPlan
from sims.evaluation import Score
from sims.report import print_utility
from sims.scenario import load_scenario
from sims.utility import (
    LARGEST_NOISE_SHARE,
    Trial,
    UtilityReport,
    count_trials,
    measure_utility,
    noise_share,
    size_warning,
    summarise_trials,
)
from sims.utility_plan import Level, UtilityPlan, load_plan, merged
from tests.sims.small_federation import WITH_DP, small_scenario, small_spec

PLAN = UtilityPlan(
    levels=(
        Level(epsilon=0.5, changes={"rounds": 3}),
        Level(epsilon=3.0, auc_aim=3.0, accuracy_aim=1.0, changes={"rounds": 5}),
    ),
    no_privacy={"rounds": 9},
)


def privacy(epsilon: float | None) -> PrivacyPlan:
    return PrivacyPlan(
        mechanism="none" if epsilon is None else "dp-sgd",
        epsilon=epsilon or 0.0,
        delta=1e-5,
        noise_multiplier=0.0 if epsilon is None else 1.0,
        clipping_norm=1.0,
        count_epsilon=0.1,
        metric_epsilon=0.0,
    )


def trial(seed: int, epsilon: float | None, auc: float | None, *, share: float = 0.05) -> Trial:
    """A made-up trial whose logistic regression is one point worse."""
    return Trial(
        seed=seed,
        epsilon=epsilon,
        privacy=privacy(epsilon),
        people=690,
        noise_share=0.0 if epsilon is None else share,
        mixture=Score(auc=auc, accuracy=0.8, patients=230),
        logistic=Score(auc=None if auc is None else auc - 0.01, accuracy=0.79, patients=230),
    )


def report(*losses: float, epsilon: float = 3.0, share: float = 0.05) -> UtilityReport:
    """One seed for each loss of AUC at `epsilon`; the seeds differ more than privacy costs."""
    plain = [trial(seed, None, 0.85 + 0.03 * seed) for seed in range(len(losses))]
    private = [
        trial(seed, epsilon, 0.85 + 0.03 * seed - loss, share=share)
        for seed, loss in enumerate(losses)
    ]
    return summarise_trials("small", PLAN, [*private, *plain])


def test_a_loss_is_the_mean_of_the_differences_on_each_split() -> None:
    (level,) = report(0.01, 0.03).levels
    assert level.mixture.auc_loss is not None
    assert level.mixture.auc_loss.points.mean == pytest.approx(2.0)
    assert level.mixture.auc_loss.points.spread == pytest.approx(math.sqrt(2))
    assert level.mixture.auc.mean == pytest.approx(0.845)


@pytest.mark.parametrize(("loss", "is_met"), [(0.029, True), (0.031, False), (-0.02, True)])
def test_an_aim_is_met_by_a_mean_loss_within_it(loss: float, is_met: bool) -> None:
    (level,) = report(loss).levels
    assert level.mixture.auc_loss is not None
    assert (level.mixture.auc_loss.aim, level.mixture.auc_loss.is_met) == (3.0, is_met)


def test_nothing_is_aimed_at_where_the_plan_has_no_aim() -> None:
    (level,) = report(0.2, epsilon=0.5).levels
    assert level.mixture.auc_loss is not None
    assert level.mixture.auc_loss.is_met is None


def test_the_logistic_regression_stands_beside_every_level_and_has_no_aim() -> None:
    found = report(0.01)
    (level,) = found.levels
    assert found.plain.logistic.auc.mean == pytest.approx(0.84)
    assert level.logistic.auc.mean == pytest.approx(0.83)
    assert level.logistic.auc_loss is not None
    assert level.logistic.auc_loss.points.mean == pytest.approx(1.0)
    assert level.logistic.auc_loss.aim is None


def test_an_undefined_auc_is_never_filled_in() -> None:
    found = summarise_trials("small", PLAN, [trial(0, None, None), trial(0, 3.0, 0.8)])
    (level,) = found.levels
    assert level.mixture.auc_loss is not None
    assert math.isnan(level.mixture.auc_loss.points.mean)
    assert level.mixture.auc_loss.is_met is False


def test_levels_come_by_rising_epsilon_whatever_the_order_of_the_trials() -> None:
    trials = [trial(0, 3.0, 0.8), trial(0, None, 0.85), trial(0, 0.5, 0.7)]
    found = summarise_trials("small", PLAN, trials)
    assert [level.privacy.epsilon for level in found.levels] == [0.5, 3.0]


def test_too_few_people_are_warned_of_with_the_figures() -> None:
    (warning,) = report(0.2, epsilon=0.5, share=0.22).warnings
    assert "epsilon 0.5 (delta 1e-05, patient, add-or-remove-one)" in warning
    assert "not useful at this size" in warning
    assert "22.0% as long" in warning
    assert "690 patients" in warning
    assert "20.0 points of AUC lost" in warning


def test_enough_people_are_not_warned_of() -> None:
    assert report(0.01, share=LARGEST_NOISE_SHARE).warnings == ()


def test_the_table_shows_both_models_the_aim_and_the_whole_promise() -> None:
    paper = io.StringIO()
    print_utility(report(0.02), Console(width=140, file=paper))
    text = " ".join(paper.getvalue().split())
    assert "delta 1e-05, patient, add-or-remove-one" in text
    assert "no DP │ mixture of experts │ 0.8500 ± 0.0000" in text
    assert "3 │ mixture of experts │ 0.8300 ± 0.0000 │ 2.00 ± 0.00 │ <= 3 met" in text
    assert "3 │ logistic regression │ 0.8200 ± 0.0000 │ 2.00 ± 0.00" in text


def test_the_object_for_scripts_never_shows_an_epsilon_alone() -> None:
    found = report(0.04, 0.04).as_json()
    (level,) = found["levels"]
    assert (found["seeds"], found["people"], found["warnings"]) == ([0, 1], 690, [])
    promise = {key: level[key] for key in ("epsilon", "delta", "unit", "adjacency")}
    assert promise == {
        "epsilon": 3.0,
        "delta": 1e-5,
        "unit": "patient",
        "adjacency": "add-or-remove-one",
    }
    assert level["mixture"]["auc_loss"] == {
        "mean": pytest.approx(4.0),
        "spread": pytest.approx(0.0, abs=1e-9),
        "aim": 3.0,
        "is_met": False,
    }


def test_every_level_and_the_baseline_are_tried_on_every_seed() -> None:
    assert count_trials("heart", seeds=5, epsilons=()) == 5 * (1 + 3)
    assert count_trials("heart", seeds=2, epsilons=(1.0, 1.0, 3.0)) == 2 * (1 + 2)


def test_noise_share_is_the_formula_of_its_docstring(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, **WITH_DP)
    spec = replace(spec, privacy=replace(spec.privacy, noise_multiplier=3.0))
    # 4 sites, 2 rounds of 2 steps, rate 0.5; slots of the linear part: 4 + 3 + 3 and a constant.
    expected = 3.0 * math.sqrt(4 * 11) / (0.5 * 1000 * math.sqrt(4))
    assert noise_share(spec, people=1000) == pytest.approx(expected)


def test_shared_noise_is_smaller_by_the_root_of_those_who_share_it(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, **WITH_DP)
    shared = replace(
        spec, privacy=replace(spec.privacy, mechanism="distributed-dp", honest_sites=4)
    )
    assert noise_share(shared, people=100) == pytest.approx(noise_share(spec, people=100) / 2)


def test_a_run_without_privacy_has_no_noise_and_no_warning(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path)
    assert noise_share(scenario.spec, people=160) == 0.0
    assert size_warning(scenario) is None


@pytest.mark.parametrize("epsilon", [0.5, 0.75, 0.95])
def test_heart_is_too_small_below_an_epsilon_of_one(epsilon: float) -> None:
    warning = size_warning(level_of("heart", epsilon))
    assert warning is not None
    assert f"epsilon {epsilon:g} " in warning
    assert "688 patients" in warning


@pytest.mark.parametrize(
    ("name", "epsilon"), [("heart", 1.0), ("heart", 3.0), ("heart", 8.0), ("credit", 0.5)]
)
def test_people_are_enough_for_every_epsilon_with_an_aim(name: str, epsilon: float) -> None:
    assert size_warning(level_of(name, epsilon)) is None


def level_of(name: str, epsilon: float) -> Any:
    """The scenario as it is run at that epsilon."""
    changes = merged(load_plan(name).level(epsilon).changes, {"privacy": {"epsilon": epsilon}})
    return load_scenario(name, split_seed=0, **changes)


@pytest.mark.slow
@pytest.mark.slow
def test_a_few_made_up_customers_go_through_every_step() -> None:
    told: list[float | None] = []
    found = measure_utility(
        "credit",
        seeds=(100, 101),
        epsilons=(8.0,),
        processes=1,
        on_trial=lambda done: told.append(done.epsilon),
        people=800,
        rounds=1,
        training={"local_steps": 2},
    )
    assert sorted(told, key=str) == [8.0, 8.0, None, None]
    assert found.seeds == (100, 101)
    assert found.plain.people == pytest.approx(600, abs=5)
    (level,) = found.levels
    assert (level.privacy.epsilon, level.privacy.unit) == (8.0, "customer")
    assert 0.4 < level.mixture.auc.mean < 0.9
    assert 0.4 < level.logistic.auc.mean < 0.9
    assert not level.is_useful
    assert len(found.warnings) == 1
