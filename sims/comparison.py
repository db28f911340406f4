"""The federated model beside its alternatives, over several splits of the patients: mean, spread and verdict.

Every seed is another split and another start. The two federated rows are whole rehearsals: ledger, budgets and secure
sums included.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from participant.data import SiteData
from sims.baselines import train_alone, train_central, train_logistic
from sims.evaluation import Quality, Score, evaluate_weights, quality, read_tables
from sims.outcome import read_outcome
from sims.rehearsal import rehearse
from sims.scenario import Scenario, load_scenario

FEDERATED_PRIVATE = "federated, private"
FEDERATED_PLAIN = "federated, no privacy"
CENTRAL = "central, no privacy"
ALONE = "each hospital alone, no privacy"
LOGISTIC = "federated logistic regression, private"
METHODS = (FEDERATED_PRIVATE, FEDERATED_PLAIN, CENTRAL, ALONE, LOGISTIC)

NO_PRIVACY = {"mechanism": "none"}


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Every method's quality on one split."""

    seed: int
    by_method: Mapping[str, Quality]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method over all seeds."""

    method: str
    auc_mean: float
    auc_spread: float
    """Standard deviation over the seeds."""
    accuracy_mean: float
    site_auc_mean: Mapping[str, float]


def compare(
    name: str,
    seeds: Iterable[int],
    *,
    processes: int = 2,
    on_seed: Callable[[SeedResult], None] = lambda _: None,
) -> list[SeedResult]:
    """Runs every method on every seed, in `processes` worker processes of one thread each."""
    results = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as workers:
        futures = [workers.submit(compare_seed, name, seed) for seed in seeds]
        for future in as_completed(futures):
            results.append(future.result())
            on_seed(results[-1])
    return sorted(results, key=lambda result: result.seed)


def compare_seed(name: str, seed: int) -> SeedResult:
    """Every method on one split."""
    torch.set_num_threads(1)
    private = load_scenario(name, split_seed=seed)
    plain = load_scenario(name, split_seed=seed, privacy=NO_PRIVACY, seed=seed)
    held_out = read_tables(private, held_out=True)
    train = read_tables(private, held_out=False)
    central = train_central(plain.spec, train, seed=seed)
    return SeedResult(
        seed=seed,
        by_method={
            FEDERATED_PRIVATE: _rehearsed(private, held_out),
            FEDERATED_PLAIN: _rehearsed(plain, held_out),
            CENTRAL: evaluate_weights(
                central, config=plain.spec.model, scenario=plain, held_out=held_out
            ),
            ALONE: _alone(plain, train, held_out, seed=seed),
            LOGISTIC: _logistic(private, train, held_out, seed=seed),
        },
    )


def summarise(results: list[SeedResult]) -> list[Summary]:
    """Mean and spread of every method."""
    summaries = []
    for method in METHODS:
        scores = [result.by_method[method] for result in results]
        aucs = [auc for s in scores if (auc := s.pooled.auc) is not None]
        sites = scores[0].sites
        summaries.append(
            Summary(
                method=method,
                auc_mean=float(np.mean(aucs)),
                auc_spread=float(np.std(aucs, ddof=1)) if len(aucs) > 1 else 0.0,
                accuracy_mean=float(np.mean([s.pooled.accuracy for s in scores])),
                site_auc_mean={
                    site: float(
                        np.mean([a for s in scores if (a := s.sites[site].auc) is not None])
                    )
                    for site in sites
                },
            )
        )
    return summaries


def _rehearsed(scenario: Scenario, held_out: Mapping[str, SiteData]) -> Quality:
    with tempfile.TemporaryDirectory() as folder:
        history = rehearse(scenario, Path(folder))
        models = Path(folder) / "coordinator" / "models"
        return read_outcome(
            history, scenario=scenario, held_out=held_out, models=models, seconds=0.0
        ).quality


def _alone(
    scenario: Scenario,
    train: Mapping[str, SiteData],
    held_out: Mapping[str, SiteData],
    *,
    seed: int,
) -> Quality:
    """The mean of the hospitals: each one's own model, judged on everybody's and on its own held-out patients."""
    own: dict[str, Score] = {}
    pooled = []
    for site, data in train.items():
        weights = train_alone(scenario.spec, site, data, seed=seed)
        result = evaluate_weights(
            weights, config=scenario.spec.model, scenario=scenario, held_out=held_out
        )
        own[site] = result.sites[site]
        pooled.append(result.pooled)
    aucs = [score.auc for score in pooled if score.auc is not None]
    mean = Score(
        auc=float(np.mean(aucs)),
        accuracy=float(np.mean([score.accuracy for score in pooled])),
        patients=pooled[0].patients,
    )
    return Quality(pooled=mean, sites=own)


def _logistic(
    scenario: Scenario,
    train: Mapping[str, SiteData],
    held_out: Mapping[str, SiteData],
    *,
    seed: int,
) -> Quality:
    model = train_logistic(scenario.spec, train, seed=seed)
    with torch.inference_mode():
        predictions = {
            site: torch.sigmoid(model(torch.from_numpy(data.values_NF))).double().numpy()
            for site, data in held_out.items()
        }
    return quality(predictions, held_out)
