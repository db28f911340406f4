"""Every scheme carries a whole federation to the same model."""

import numpy as np
import pytest

from model.parameters import read_model
from sims.rehearsal import rehearse
from sims.scenario import load_scenario

SMALL = {
    "width": 8,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "experts": 2,
    "top_k": 1,
    "expert_width": 8,
}


def committed(scheme, folder, *, rounds=2):
    """Weights after the last round, and the metrics that the ledger keeps of it."""
    scenario = load_scenario(
        "heart",
        split_seed=0,
        rounds=rounds,
        tier=None,
        model=SMALL,
        privacy={"mechanism": "none"},
        seed=1,
        secure_sum={"scheme": scheme},
    )
    history = rehearse(scenario, folder / scheme)
    last = history.models[-1]
    stored = read_model(folder / scheme / "coordinator" / "models" / f"{last.sha256}.safetensors")
    return stored.vector, history


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ckks", "ckks-light", "paillier", "plain"])
def test_a_federation_arrives_at_the_same_model_in_every_scheme(scheme, tmp_path):
    expected, _ = committed("mask", tmp_path)
    found, _ = committed(scheme, tmp_path)
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_the_ledger_counts_the_openings_of_a_key_epoch(tmp_path):
    _, history = committed("ckks", tmp_path)
    counted = [
        entry.metric.value
        for entry in history.metrics
        if entry.metric.name == "key_epoch_decryptions"
    ]
    assert counted == [1.0, 2.0]
