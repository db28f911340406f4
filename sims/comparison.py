"""The federated model beside its alternatives, over several splits of the patients: mean, spread and verdict.

Every seed is another split and another start. The two federated rows are whole rehearsals: ledger, budgets and secure
sums included. The scenario was tuned on other splits than those of the report (seeds from 100 on, never 0 to 4).
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from coordinator.wire.plan import PrivacyPlan
from participant.data import SiteData
from sims.baselines import train_alone, train_central, train_logistic
from sims.evaluation import (
    Quality,
    Score,
    evaluate_file,
    evaluate_weights,
    quality,
    read_tables,
)
from sims.rehearsal import rehearse
from sims.scenario import Scenario, load_scenario

FEDERATED_PRIVATE = "federated, private"
FEDERATED_PLAIN = "federated, no privacy"
CENTRAL = "central, no privacy"
ALONE = "each hospital alone, no privacy"
LOGISTIC = "federated logistic regression, private"
METHODS = (FEDERATED_PRIVATE, FEDERATED_PLAIN, CENTRAL, ALONE, LOGISTIC)
PRIVATE_METHODS = (FEDERATED_PRIVATE, LOGISTIC)

Result = TypeVar("Result")

NO_PRIVACY = {"mechanism": "none"}

CENTRAL_AIM = 0.01
"""AUC that federating may cost, against the same model trained centrally."""
PRIVACY_AIM = 0.03
"""AUC that the scenario's epsilon may cost, against the federation without privacy."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Every method's quality on one split."""

    seed: int
    privacy: PrivacyPlan
    """What the private methods promise every hospital's patients."""
    by_method: Mapping[str, Quality]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method over all seeds."""

    method: str
    privacy: PrivacyPlan | None
    """What every hospital's patients are promised; None is no promise."""
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
    niceness: int = 0,
    on_seed: Callable[[SeedResult], None] = lambda _: None,
    **changes: Any,
) -> list[SeedResult]:
    """Runs every method on every seed, in worker processes of one thread each that print nothing.

    Args:
        name: of the scenario.
        seeds: splits of the patients; nothing else tells one result from another.
        processes: workers.
        niceness: added to the workers' own, so that something else goes first.
        on_seed: told each result as it comes, in no particular order.
        changes: of the scenario's run, as for `load_scenario`; `privacy` among them holds for the private methods.

    Raises:
        RoundError: a rehearsed run failed.
    """
    jobs = [partial(compare_seed, name, seed, **changes) for seed in seeds]
    results = in_workers(jobs, processes=processes, niceness=niceness, on_result=on_seed)
    return sorted(results, key=lambda result: result.seed)


def in_workers(
    jobs: Iterable[Callable[[], Result]],
    *,
    processes: int,
    niceness: int = 0,
    on_result: Callable[[Result], None],
) -> list[Result]:
    """Results of all jobs, as they come; a job that fails ends the others that have not begun.

    Args:
        jobs: can be pickled, and so can what they return.
        processes: workers of one thread each, which print nothing.
        niceness: added to the workers' own.
        on_result: told each result.
    """
    workers = ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_prepare_worker,
        initargs=(niceness,),
    )
    results = []
    try:
        futures = [workers.submit(job) for job in jobs]
        for future in as_completed(futures):
            results.append(future.result())
            on_result(results[-1])
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
    return results


def compare_seed(name: str, seed: int, **changes: Any) -> SeedResult:
    """Every method on one split of the named scenario."""
    no_privacy = {**changes, "privacy": {**changes.get("privacy", {}), **NO_PRIVACY}, "seed": seed}
    return compare_scenarios(
        private=load_scenario(name, split_seed=seed, **changes),
        plain=load_scenario(name, split_seed=seed, **no_privacy),
        seed=seed,
    )


def compare_scenarios(*, private: Scenario, plain: Scenario, seed: int) -> SeedResult:
    """Every method on one split.

    Args:
        private: the run and its tables.
        plain: the same without privacy.
        seed: of the models' first weights and of all draws that need not be secret.
    """
    held_out = read_tables(private, held_out=True)
    train = read_tables(private, held_out=False)
    central = train_central(plain.spec, train, seed=seed)
    return SeedResult(
        seed=seed,
        privacy=private.spec.privacy,
        by_method={
            FEDERATED_PRIVATE: judge_run(private, held_out),
            FEDERATED_PLAIN: judge_run(plain, held_out),
            CENTRAL: evaluate_weights(
                central, config=plain.spec.model, scenario=plain, held_out=held_out
            ),
            ALONE: _alone(plain, train, held_out, seed=seed),
            LOGISTIC: judge_logistic(private, train, held_out, seed=seed),
        },
    )


def summarise(results: list[SeedResult]) -> list[Summary]:
    """Mean and spread of every method; a hospital whose AUC is never defined is left out."""
    return [_summary(method, results) for method in METHODS]


def verdicts(summaries: list[Summary]) -> list[str]:
    """One sentence for each aim, met or missed, from the means over the seeds."""
    by_method = {summary.method: summary for summary in summaries}
    private, plain = by_method[FEDERATED_PRIVATE], by_method[FEDERATED_PLAIN]
    central, alone = by_method[CENTRAL].auc_mean, by_method[ALONE].auc_mean
    gap = abs(central - plain.auc_mean)
    cost = plain.auc_mean - private.auc_mean
    sentences = (
        (
            f"DP off: federated {plain.auc_mean:.4f} vs central {central:.4f}: "
            f"difference {gap:.4f} (aim <= {CENTRAL_AIM:g})",
            gap <= CENTRAL_AIM,
        ),
        (
            f"DP off: federated {plain.auc_mean:.4f} vs mean of the hospitals alone {alone:.4f} (aim: above)",
            plain.auc_mean > alone,
        ),
        (
            f"{_promise(private.privacy)}: federated {private.auc_mean:.4f}, "
            f"{cost:.4f} below DP off (aim <= {PRIVACY_AIM:g})",
            cost <= PRIVACY_AIM,
        ),
    )
    return [f"{sentence}: {'met' if is_met else 'missed'}" for sentence, is_met in sentences]


def _summary(method: str, results: list[SeedResult]) -> Summary:
    scores = [result.by_method[method] for result in results]
    aucs = [auc for s in scores if (auc := s.pooled.auc) is not None]
    by_site = {
        site: [auc for s in scores if (auc := s.sites[site].auc) is not None]
        for site in scores[0].sites
    }
    return Summary(
        method=method,
        privacy=results[0].privacy if method in PRIVATE_METHODS else None,
        auc_mean=float(np.mean(aucs)),
        auc_spread=float(np.std(aucs, ddof=1)) if len(aucs) > 1 else 0.0,
        accuracy_mean=float(np.mean([s.pooled.accuracy for s in scores])),
        site_auc_mean={site: float(np.mean(values)) for site, values in by_site.items() if values},
    )


def _promise(privacy: PrivacyPlan | None) -> str:
    if privacy is None:
        return "no privacy"
    return f"epsilon {privacy.epsilon:g} (delta {privacy.delta:g}, {privacy.unit}, {privacy.adjacency})"


def _prepare_worker(niceness: int) -> None:
    os.nice(niceness)
    torch.set_num_threads(1)
    # Flower writes its log to standard output, which belongs to whoever asked for the comparison.
    logging.getLogger("flwr").setLevel(logging.WARNING)


def judge_run(scenario: Scenario, held_out: Mapping[str, SiteData]) -> Quality:
    """Quality of the model that a whole rehearsal ends with."""
    with tempfile.TemporaryDirectory() as folder:
        history = rehearse(scenario, Path(folder))
        (newest, *_) = [r.model_sha256 for r in reversed(history.rounds) if r.model_sha256]
        model = Path(folder) / "coordinator" / "models" / f"{newest}.safetensors"
        return evaluate_file(model, scenario=scenario, held_out=held_out)


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


def judge_logistic(
    scenario: Scenario,
    train: Mapping[str, SiteData],
    held_out: Mapping[str, SiteData],
    *,
    seed: int,
) -> Quality:
    """Quality of the logistic regression under the run's own budget."""
    model = train_logistic(scenario.spec, train, seed=seed)
    with torch.inference_mode():
        predictions = {
            site: torch.sigmoid(model(torch.from_numpy(data.values_NF))).double().numpy()
            for site, data in held_out.items()
        }
    return quality(predictions, held_out)
