"""The comparison: every method on every seed, its means, and what it says about the aims."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from coordinator.wire.plan import PrivacyPlan
from sims.comparison import (
    ALONE,
    CENTRAL,
    FEDERATED_PLAIN,
    FEDERATED_PRIVATE,
    LOGISTIC,
    METHODS,
    SeedResult,
    compare,
    compare_scenarios,
    summarise,
    verdicts,
)
from sims.evaluation import Quality, Score
from tests.sims.small_federation import PATIENTS, SITES, WITH_DP, small_scenario

AS_AIMED = {
    FEDERATED_PRIVATE: 0.87,
    FEDERATED_PLAIN: 0.89,
    CENTRAL: 0.895,
    ALONE: 0.85,
    LOGISTIC: 0.86,
}
PROMISE = PrivacyPlan(
    mechanism="dp-sgd",
    epsilon=8.0,
    delta=1e-5,
    noise_multiplier=1.0,
    clipping_norm=1.0,
    count_epsilon=0.1,
    metric_epsilon=0.02,
)


def result(seed: int, aucs: Mapping[str, float | None]) -> SeedResult:
    """Made-up figures; the second hospital's AUC is never defined."""
    return SeedResult(
        seed=seed,
        privacy=PROMISE,
        by_method={
            method: Quality(
                pooled=Score(auc=auc, accuracy=0.75 + 0.01 * seed, patients=80),
                sites={
                    "anna": Score(auc=auc, accuracy=0.8, patients=40),
                    "berta": Score(auc=None, accuracy=0.7, patients=40),
                },
            )
            for method, auc in aucs.items()
        },
    )


def verdicts_of(**changes: float) -> list[str]:
    names = {
        "private": FEDERATED_PRIVATE,
        "plain": FEDERATED_PLAIN,
        "central": CENTRAL,
        "alone": ALONE,
    }
    return verdicts(summarise([result(0, AS_AIMED | {names[k]: v for k, v in changes.items()})]))


def test_every_method_is_judged_on_the_held_out_patients_of_every_site(tmp_path: Path) -> None:
    found = compare_scenarios(
        private=small_scenario(tmp_path / "private", **WITH_DP),
        plain=small_scenario(tmp_path / "plain"),
        seed=7,
    )
    assert tuple(found.by_method) == METHODS
    assert {tuple(quality.sites) for quality in found.by_method.values()} == {SITES}
    assert {q.pooled.patients for q in found.by_method.values()} == {PATIENTS * len(SITES)}
    assert (found.seed, found.privacy.epsilon) == (7, 8.0)


@pytest.mark.processes
@pytest.mark.slow
def test_workers_compare_every_seed_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    results = compare(
        "heart",
        (1, 0),
        processes=1,
        niceness=1,
        on_seed=lambda found: told.append(found.seed),
        tier="cpu-small",
        rounds=1,
        training={"local_steps": 1},
    )
    assert [found.seed for found in results] == [0, 1]
    assert sorted(told) == [0, 1]
    assert capfd.readouterr().out == ""


def test_summary_is_mean_and_sample_deviation_over_the_seeds():
    better = {method: auc + 0.02 for method, auc in AS_AIMED.items()}
    summary = summarise([result(0, AS_AIMED), result(1, better)])[0]
    assert summary.method == FEDERATED_PRIVATE
    assert summary.auc_mean == pytest.approx(0.88)
    assert summary.auc_spread == pytest.approx(0.02 / 2**0.5)
    assert summary.accuracy_mean == pytest.approx(0.755)


def test_one_seed_has_no_spread():
    assert summarise([result(0, AS_AIMED)])[0].auc_spread == 0.0


def test_undefined_auc_of_a_hospital_is_left_out_of_the_means():
    (summary, *_) = summarise([result(0, AS_AIMED)])
    assert set(summary.site_auc_mean) == {"anna"}


def test_only_the_private_methods_carry_a_promise():
    promises = {s.method: s.privacy for s in summarise([result(0, AS_AIMED)])}
    assert promises[FEDERATED_PRIVATE] == promises[LOGISTIC] == PROMISE
    assert promises[FEDERATED_PLAIN] is promises[CENTRAL] is promises[ALONE] is None


def test_verdicts_state_figures_aims_and_the_whole_promise():
    assert verdicts_of() == [
        "DP off: federated 0.8900 vs central 0.8950: difference 0.0050 (aim <= 0.01): met",
        "DP off: federated 0.8900 vs mean of the hospitals alone 0.8500 (aim: above): met",
        "epsilon 8 (delta 1e-05, patient, add-or-remove-one): federated 0.8700, "
        "0.0200 below DP off (aim <= 0.03): met",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"central": 0.91}, ["missed", "met", "met"]),
        ({"alone": 0.89}, ["met", "missed", "met"]),
        ({"private": 0.85}, ["met", "met", "missed"]),
    ],
)
def test_what_falls_short_is_said_to_be_missed(changes, expected):
    assert [sentence.rpartition(": ")[2] for sentence in verdicts_of(**changes)] == expected
