import json

import pytest

from sims.evaluation import read_tables
from sims.outcome import read_outcome
from sims.rehearsal import rehearse
from tests.sims.small_federation import SITES, WITH_DP, small_scenario

# Opacus' hooks under threads; see tests/coordinator/test_training_run.py.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def outcome_of(folder, **changes):
    scenario = small_scenario(folder / "scenario", **changes)
    history = rehearse(scenario, folder / "run")
    outcome = read_outcome(
        history,
        scenario=scenario,
        held_out=read_tables(scenario, held_out=True),
        models=folder / "run" / "coordinator" / "models",
        seconds=1.5,
    )
    return outcome, history


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    return outcome_of(tmp_path_factory.mktemp("private"), **WITH_DP)


def test_every_committed_round_is_judged_in_order(private):
    outcome, history = private
    assert [facts.number for facts in outcome.rounds] == [1, 2]
    assert outcome.quality == outcome.rounds[-1].quality
    assert outcome.model_hash == history.models[-1].sha256


def test_an_epsilon_never_stands_alone(private):
    outcome, _ = private
    assert sorted(outcome.spent) == sorted(SITES)
    for spent in outcome.spent.values():
        assert 0 < spent.epsilon <= 8.0
        assert (spent.delta, spent.unit, spent.adjacency) == (1e-5, "patient", "add-or-remove-one")


def test_epsilon_grows_from_round_to_round(private):
    outcome, _ = private
    first, second = (facts.epsilon_by_site for facts in outcome.rounds)
    assert all(first[site] < second[site] for site in SITES)


def test_bytes_are_counted_for_every_site_and_round(private):
    outcome, _ = private
    model_bytes = 4 * 1000
    for facts in outcome.rounds:
        assert sorted(facts.bytes_by_site) == sorted(SITES)
        assert min(facts.bytes_by_site.values()) > model_bytes


def test_the_object_for_scripts_has_its_keys_and_is_json(private):
    outcome, _ = private
    found = json.loads(json.dumps(outcome.as_json()))
    required = {
        "scenario",
        "rounds",
        "sites",
        "model_hash",
        "auc",
        "accuracy",
        "epsilon",
        "bytes_per_round",
        "seconds",
    }
    assert required <= set(found)
    assert found["rounds"] == 2
    assert found["sites"] == list(SITES)
    assert found["seconds"] == 1.5
    assert set(found["epsilon"]["anna"]) == {"epsilon", "delta", "unit", "adjacency"}
    assert set(found["bytes_per_round"]) == set(SITES)


def test_without_privacy_no_epsilon_is_claimed_as_a_guarantee(tmp_path):
    outcome, _ = outcome_of(tmp_path, rounds=1)
    assert all(spent.epsilon == 0 for spent in outcome.spent.values())
    assert outcome.rounds[0].training_loss == pytest.approx(0.69, abs=0.5)
