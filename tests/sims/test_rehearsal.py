import os

import pytest

from coordinator.config import EXCHANGE_VARIABLE, HOME_VARIABLE
from coordinator.errors import ConfigError, QuorumError
from coordinator.ledger.states import RunState
from coordinator.ledger.store import open_ledger
from participant.budget import SiteBudget
from participant.config import load_site
from sims.rehearsal import rehearse
from tests.sims.small_federation import SITES, WITH_DP, small_scenario

# Opacus' hooks under threads; see tests/coordinator/test_training_run.py.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def hashes(folder, **changes):
    """Model hash of every round."""
    history = rehearse(small_scenario(folder / "scenario", **changes), folder / "run")
    return [model.sha256 for model in history.models]


def test_two_rehearsals_with_one_seed_give_the_same_models(tmp_path):
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


def test_masks_cancel_to_the_last_bit(tmp_path):
    plain = hashes(tmp_path / "plain", secure_sum={"scheme": "plain"})
    assert hashes(tmp_path / "mask", secure_sum={"scheme": "mask"}) == plain


def test_another_seed_gives_another_model(tmp_path):
    assert hashes(tmp_path / "seven")[-1] != hashes(tmp_path / "eight", seed=8)[-1]


@pytest.mark.parametrize("server", ["fedavg", "fedadam", "fedyogi"])
def test_every_server_optimiser_is_reproducible(tmp_path, server):
    first = hashes(tmp_path / "first", server={"name": server})
    assert first == hashes(tmp_path / "second", server={"name": server})
    assert len(set(first)) == 3


def test_under_privacy_no_two_rehearsals_are_alike(tmp_path):
    first, second = (hashes(tmp_path / name, **WITH_DP) for name in ("first", "second"))
    assert first[-1] != second[-1]


def test_the_ledger_reports_of_every_site_what_its_own_budget_says(tmp_path):
    history = rehearse(small_scenario(tmp_path / "scenario", **WITH_DP), tmp_path / "run")
    assert history.run.state is RunState.FINISHED
    reported = {row.charge.site: row.charge for row in history.charges}
    assert sorted(reported) == sorted(SITES)
    for site in SITES:
        home = tmp_path / "run" / site
        spent = SiteBudget(home / "budget.db", load_site(home).budget).spent()
        assert reported[site].epsilon == pytest.approx(spent.epsilon, rel=1e-9)
        assert spent.epsilon <= 8.0
        assert (spent.unit, spent.adjacency) == ("patient", "add-or-remove-one")


def test_a_rehearsal_leaves_the_homes_of_a_real_federation(tmp_path):
    rehearse(small_scenario(tmp_path / "scenario", rounds=1), tmp_path / "run")
    coordinator = tmp_path / "run" / "coordinator"
    assert (coordinator / "ledger.db").is_file()
    assert len(list((coordinator / "models").glob("*.safetensors"))) == 2
    assert (tmp_path / "run" / "anna" / "policy.toml").is_file()
    assert list((tmp_path / "run" / "anna" / "outbox").rglob("*.entry")) == []


def test_a_run_that_fails_says_why_in_the_ledger_and_leaves_the_environment_clean(tmp_path):
    scenario = small_scenario(
        tmp_path / "scenario",
        sites=SITES[:2],
        timing={"online_seconds": 0.2, "join_seconds": 0.1},
    )
    with pytest.raises(QuorumError):
        rehearse(scenario, tmp_path / "run")
    with open_ledger(f"sqlite:///{tmp_path / 'run' / 'coordinator' / 'ledger.db'}") as ledger:
        assert ledger.runs.get("small").state is RunState.FAILED
    assert HOME_VARIABLE not in os.environ
    assert EXCHANGE_VARIABLE not in os.environ


def test_a_rehearsal_never_runs_in_a_folder_that_holds_another(tmp_path):
    scenario = small_scenario(tmp_path / "scenario", rounds=1)
    rehearse(scenario, tmp_path / "run")
    with pytest.raises(ConfigError, match="never overwritten"):
        rehearse(scenario, tmp_path / "run")
