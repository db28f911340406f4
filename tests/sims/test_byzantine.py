"""Whole federations with a malicious site: what it does to a plain mean, and what groups and a robust rule leave of it."""

from typing import Any

import numpy as np
import pytest

from coordinator.errors import QuorumError
from coordinator.ledger.states import RoundState, RunState
from coordinator.wire.plan import SignedPlan, verify_plan
from model.parameters import read_model
from sims.evaluation import evaluate_file, read_tables
from sims.scenario import Scenario, load_scenario
from tests.sims.driven_federation import RUN_ID, DrivenFederation
from tests.sims.malicious_site import (
    attacks,
    everything_as_large_as_it_goes,
    flipped_and_large,
    without_weight,
)
from tests.sims.scripted_grid import quits_before, use_scripts
from tests.sims.small_federation import SITES, WITH_DP, small_spec, small_table

# Opacus' hooks under threads; see tests/coordinator/test_training_run.py.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

HEART: dict[str, Any] = {
    "rounds": 3,
    "spare_attempts": 0,
    "seed": 1,
    "quorum": 1,
    "training": {"local_steps": 5},
    "privacy": {"mechanism": "none"},
    "secure_sum": {"scheme": "plain"},
}
TWELVE = tuple(f"site-{number:02d}" for number in range(12))


def twelve(folder, **changes):
    """Twelve small sites in three masked groups; one round."""
    groups = {"rule": "median", "groups": 3, "tolerate": 1}
    spec = small_spec(folder / "scenario", **{"rounds": 1, "sites": 12, "robust": groups} | changes)
    return Scenario(
        name="twelve",
        spec=spec,
        schema_path=folder / "scenario" / "schema.toml",
        train={site: small_table(site) for site in TWELVE},
        held_out={},
    )


@pytest.fixture
def made(tmp_path):
    """Makes federations; closes them after the test."""
    federations: list[DrivenFederation] = []

    def make(**changes):
        federations.append(DrivenFederation(tmp_path / f"run-{len(federations)}", **changes))
        return federations[-1]

    yield make
    for federation in federations:
        federation.__exit__(None, None, None)


def attacked_hearts(made, attack, robust):
    """AUC over all hospitals' held-out patients, after one hospital of four attacked every round."""
    scenario = load_scenario("heart", split_seed=0, **HEART, robust=robust)
    federation = made(scenario=scenario)
    use_scripts(federation, {"va": attacks(federation, "va", attack)})
    federation.run().drive()
    model = federation.checkpoints.require(federation.model_hashes()[-1])
    held_out = read_tables(scenario, held_out=True)
    return evaluate_file(model, scenario=scenario, held_out=held_out).pooled.auc


@pytest.mark.slow
def test_one_hospital_of_four_ruins_a_plain_mean(made):
    assert attacked_hearts(made, flipped_and_large, {"rule": "mean"}) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "attack"),
    [("median", flipped_and_large), ("geometric-median", everything_as_large_as_it_goes)],
)
def test_a_robust_rule_over_four_groups_stands_one_malicious_hospital(made, rule, attack):
    robust = {"rule": rule, "groups": 4, "tolerate": 1}
    assert attacked_hearts(made, attack, robust) > 0.8


def drift(federation):
    """Mean change of a weight in the first round: honest updates go up and down alike."""
    before, after = (
        read_model(federation.checkpoints.require(sha256)).vector
        for sha256 in federation.model_hashes()
    )
    return float(np.mean(after - before))


def metrics(federation):
    return {row.metric.name: row.metric.value for row in federation.history().metrics}


@pytest.mark.parametrize(
    ("robust", "is_ruined"),
    [
        ({"rule": "median", "groups": 3, "tolerate": 1}, False),
        ({"rule": "mean", "groups": 3}, True),
        ({"rule": "mean"}, True),
    ],
)
def test_masked_groups_stand_a_malicious_site_that_a_mean_does_not(
    made, tmp_path, robust, is_ruined
):
    federation = made(scenario=twelve(tmp_path, robust=robust))
    use_scripts(
        federation, {TWELVE[5]: attacks(federation, TWELVE[5], everything_as_large_as_it_goes)}
    )
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(TWELVE, "counted")
    assert (drift(federation) > 0.05) is is_ruined


def test_every_attempt_is_split_anew_and_the_split_is_in_the_signed_plan(made, tmp_path):
    federation = made(scenario=twelve(tmp_path, rounds=3))
    federation.run().drive()
    plans = []
    for number in (1, 2, 3):
        payload, signature = federation.ledger.rounds.signed_plan(RUN_ID, round=number, attempt=1)
        signed = SignedPlan(payload=payload, signature=signature)
        plans.append(verify_plan(signed, federation.key.public_key()))
    assert {len(group) for plan in plans for group in plan.groups} == {4}
    # 5775 splits: all three alike by chance with probability 3e-8.
    assert len({plan.groups for plan in plans}) > 1
    assert metrics(federation)["groups_counted"] == 3.0
    assert metrics(federation)["malicious_sites_tolerated"] == 1.0


def test_groups_go_together_with_privacy(made, tmp_path):
    federation = made(scenario=twelve(tmp_path, **WITH_DP))
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(TWELVE, "counted")
    assert {row.charge.site for row in federation.history().charges} == set(TWELVE)


ALONE = {
    "rounds": 1,
    "quorum": 1,
    "spare_attempts": 0,
    "secure_sum": {"scheme": "plain"},
    "timing": {"silence_seconds": 1.0},
}


def test_a_group_whose_sum_is_nonsense_is_out_with_its_site_and_the_round_commits(made):
    federation = made(**ALONE, robust={"rule": "median", "groups": 4, "tolerate": 1})
    use_scripts(federation, {"dora": attacks(federation, "dora", without_weight)})
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(SITES[:3], "counted") | {"dora": "lost"}
    (detail,) = [
        row.participation.detail
        for row in federation.history().participations
        if row.participation.site == "dora"
    ]
    assert "is out: The sum cannot be averaged" in detail
    assert metrics(federation)["groups_counted"] == 3.0


def test_a_group_may_be_lost_while_the_rest_keeps_the_promise(made):
    federation = made(**ALONE, robust={"rule": "median", "groups": 4, "tolerate": 1})
    use_scripts(federation, {"dora": quits_before("seal", federation, "dora")})
    federation.run().drive()
    assert federation.states(1, 1) == dict.fromkeys(SITES[:3], "counted") | {"dora": "lost"}
    assert metrics(federation)["malicious_sites_tolerated"] == 1.0


def test_an_attempt_without_enough_groups_for_the_promise_is_aborted(made):
    federation = made(**ALONE, robust={"rule": "median", "groups": 4, "tolerate": 1})
    quitters = {site: quits_before("seal", federation, site) for site in SITES[2:]}
    use_scripts(federation, quitters)
    with pytest.raises(QuorumError, match="2 groups are left of 4; median needs 3"):
        federation.run().drive()
    history = federation.history()
    assert history.run.state is RunState.FAILED
    assert [attempt.state for attempt in history.attempts] == [RoundState.ABORTED]
    assert len(history.models) == 1
