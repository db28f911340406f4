"""What a run may release besides the update, and noise that the sites share: whole rehearsals, read from the ledger."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.ledger.records import RunHistory
from model.parameters import read_model
from model.routing import bias_slots
from participant.budget import SiteBudget
from participant.config import load_site
from sims.rehearsal import rehearse
from tests.sims.small_federation import SITES, small_scenario

ROUNDS = 2


def rehearsed(folder: Path, **changes: Any) -> RunHistory:
    scenario = small_scenario(folder / "scenario", seed=None, **changes)
    return rehearse(scenario, folder / "run")


def metrics(history: RunHistory, name: str) -> list[float]:
    return [m.metric.value for m in history.metrics if m.metric.name == name]


def released_biases(folder: Path, history: RunHistory) -> list[np.ndarray]:
    newest = history.rounds[-1].model_sha256
    stored = read_model(folder / "run" / "coordinator" / "models" / f"{newest}.safetensors")
    slots = bias_slots(stored.config, stored.table)
    return [stored.vector[slot.start : slot.stop] for slot in slots]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunHistory]:
    """A run that releases loads, scores and the loss."""
    folder = tmp_path_factory.mktemp("everything")
    history = rehearsed(
        folder,
        privacy={
            "mechanism": "dp-sgd",
            "auc_epsilon": 0.1,
            "load_noise_multiplier": 10.0,
        },
        training={"balance_loss": 0.05},
        server={"balance_rate": 0.1},
    )
    return folder, history


def test_every_round_releases_a_loss_and_an_auc(everything: tuple[Path, RunHistory]) -> None:
    _, history = everything
    assert len(metrics(history, "training_loss")) == ROUNDS
    assert all(0.0 <= auc <= 1.0 for auc in metrics(history, "training_auc"))


def test_released_loads_move_the_routers_balance_and_nothing_else_does(
    everything: tuple[Path, RunHistory],
) -> None:
    folder, history = everything
    (bias,) = released_biases(folder, history)
    assert np.abs(bias).max() > 0.0
    assert bias.sum() == pytest.approx(0.0, abs=1e-6)


def test_a_site_spends_no_more_than_the_run_declared_and_every_release_has_its_charge(
    everything: tuple[Path, RunHistory],
) -> None:
    folder, _ = everything
    home = folder / "run" / "anna"
    budget = SiteBudget(home / "budget.db", load_site(home).budget)
    assert budget.spent().epsilon <= 8.0
    intents = {charge.intent for charge in budget.charges()}
    assert {release.intent for release in budget.releases()} == intents
    assert len(intents) == 1 + ROUNDS


def test_sites_share_the_noise_of_a_sum(tmp_path: Path) -> None:
    history = rehearsed(
        tmp_path,
        privacy={"mechanism": "distributed-dp", "honest_sites": 3},
        training={"local_steps": 1},
        secure_sum={"update_range": 256.0},
    )
    assert [r.model_sha256 is not None for r in history.rounds] == [True] * ROUNDS
    plan_noise = small_scenario(
        tmp_path / "again",
        seed=None,
        privacy={"mechanism": "distributed-dp", "honest_sites": 3},
        training={"local_steps": 1},
        secure_sum={"update_range": 256.0},
    ).spec.privacy.noise_multiplier
    # All four sites stayed in, where the epsilon counts on three.
    expected = plan_noise * (len(SITES) / 3) ** 0.5
    assert metrics(history, "sum_noise_multiplier") == pytest.approx([expected] * ROUNDS)
