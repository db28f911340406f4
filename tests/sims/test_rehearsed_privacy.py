"""What a run may release besides the update, and noise that the sites share: whole rehearsals, read from the ledger."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from coordinator.ledger.cli import ledger_app
from coordinator.ledger.records import RunHistory
from coordinator.ledger.report import shared_noise_guarantee
from model.parameters import read_model
from model.routing import bias_slots
from participant.budget import SiteBudget
from participant.config import load_site
from sims.evaluation import read_tables
from sims.outcome import read_outcome
from sims.rehearsal import rehearse
from sims.report import print_outcome
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


SHARED: dict[str, Any] = {
    "privacy": {"mechanism": "distributed-dp", "honest_sites": 2, "colluding_sites": 1},
    "training": {"local_steps": 1},
    "secure_sum": {"update_range": 256.0, "value_bits": 20},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunHistory]:
    """A run whose sites share the noise, on a grid coarser than usual."""
    folder = tmp_path_factory.mktemp("shared")
    return folder, rehearsed(folder, **SHARED)


def test_sites_share_the_noise_of_a_sum(shared: tuple[Path, RunHistory], tmp_path: Path) -> None:
    _, history = shared
    assert [r.model_sha256 is not None for r in history.rounds] == [True] * ROUNDS
    planned = small_scenario(tmp_path, seed=None, **SHARED).spec.privacy.noise_multiplier
    # All four sites stayed in and one is taken to collude, where the epsilon counts on two.
    expected = planned * ((len(SITES) - 1) / 2) ** 0.5
    assert metrics(history, "sum_noise_multiplier") == pytest.approx([expected] * ROUNDS)


def test_the_ledger_tells_what_the_sums_cost_beside_what_was_reserved(
    shared: tuple[Path, RunHistory],
) -> None:
    folder, history = shared
    told = shared_noise_guarantee(history)
    assert told is not None
    first, last = metrics(history, "survivors_epsilon")
    assert 0.0 < first < last == told.epsilon < told.reserved < 8.0
    # A site reserves for the same two attempts, by the same accountant, at the same delta.
    assert [c.charge.epsilon for c in history.charges][-1] == pytest.approx(told.reserved, abs=0.02)
    shown = CliRunner().invoke(
        ledger_app, ["show", "small", "--home", str(folder / "run" / "coordinator")]
    )
    assert shown.exit_code == 0, shown.output
    assert f"epsilon {told.epsilon:.3f} as released" in shown.stdout
    assert "survivors_epsilon" in shown.stdout


def test_the_outcome_of_a_run_states_both_figures(
    shared: tuple[Path, RunHistory], tmp_path: Path
) -> None:
    folder, history = shared
    scenario = small_scenario(tmp_path, seed=None, **SHARED)
    outcome = read_outcome(
        history,
        scenario=scenario,
        held_out=read_tables(scenario, held_out=True),
        models=folder / "run" / "coordinator" / "models",
        seconds=1.0,
    )
    printed = StringIO()
    print_outcome(outcome, Console(width=240, file=printed))
    facts = outcome.as_json()["shared_noise"]
    assert facts["epsilon"] < facts["reserved"]
    assert facts["colluding_sites"] == 1
    assert (facts["delta"], facts["unit"], facts["adjacency"]) == (
        1e-5,
        "patient",
        "add-or-remove-one",
    )
    assert f"epsilon {facts['epsilon']:.3f} as released (reserved" in printed.getvalue()
