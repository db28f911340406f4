"""How good a model is on the held-out patients: pooled, and for each hospital by itself.

AUC is undefined where all held-out patients carry one label; it is then None and left out of means.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, roc_auc_score

from model.build import build_model
from model.config import ModelConfig
from model.parameters import load_vector, read_model
from participant.data import SiteData
from sims.scenario import Scenario, read_site_data

DECISION_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Score:
    """Quality on one set of patients."""

    auc: float | None
    accuracy: float
    patients: int


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality on all held-out patients together, and by hospital."""

    pooled: Score
    sites: Mapping[str, Score]


def read_tables(scenario: Scenario, *, held_out: bool) -> dict[str, SiteData]:
    """Every site's records, through the reader that sites use."""
    tables = scenario.held_out if held_out else scenario.train
    with tempfile.TemporaryDirectory() as folder:
        return {
            site: read_site_data(table, scenario.spec.table, Path(folder))
            for site, table in tables.items()
        }


def score(probabilities_N: NDArray[np.float64], labels_N: NDArray[np.float32]) -> Score:
    """AUC and accuracy of predicted probabilities [N] for labels [N]."""
    has_both = len(np.unique(labels_N)) == 2
    return Score(
        auc=float(roc_auc_score(labels_N, probabilities_N)) if has_both else None,
        accuracy=float(accuracy_score(labels_N, probabilities_N >= DECISION_THRESHOLD)),
        patients=len(labels_N),
    )


def quality(
    probabilities: Mapping[str, NDArray[np.float64]], held_out: Mapping[str, SiteData]
) -> Quality:
    """Quality of per-site predictions."""
    labels = {site: held_out[site].labels_N for site in probabilities}
    return Quality(
        pooled=score(
            np.concatenate(list(probabilities.values())), np.concatenate(list(labels.values()))
        ),
        sites={site: score(probabilities[site], labels[site]) for site in probabilities},
    )


def evaluate_weights(
    weights: NDArray[np.float32],
    *,
    config: ModelConfig,
    scenario: Scenario,
    held_out: Mapping[str, SiteData],
) -> Quality:
    """Quality of the model with these weights [P]."""
    model = build_model(config, scenario.spec.table, seed=0).eval()
    load_vector(model, weights)
    with torch.inference_mode():
        predictions = {
            site: torch.sigmoid(model(torch.from_numpy(data.values_NF))).double().numpy()
            for site, data in held_out.items()
        }
    return quality(predictions, held_out)


def evaluate_file(path: Path, *, scenario: Scenario, held_out: Mapping[str, SiteData]) -> Quality:
    """Quality of a model file."""
    stored = read_model(path)
    return evaluate_weights(
        stored.vector, config=stored.config, scenario=scenario, held_out=held_out
    )
