"""What privacy costs: the private federated model beside the same model without privacy, for several epsilons.

Epsilons, aims and runs are fixed before any record is read (`sims/utility_plan.py`). What is measured, for every seed (another split, another start; in a scenario of made-up people, other people):
1. the run without privacy, and for every epsilon the private run, each a whole rehearsal: ledger, budgets and secure
   sums included; epsilon is the total at each site, its count and training losses included;
2. beside each a federated logistic regression under the same budget: what a mixture of experts must at least reach.

Whether the people are too few for an epsilon follows from public numbers alone (`noise_share`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.run_spec import RunSpec, load_run_spec
from coordinator.wire.plan import PrivacyPlan
from sims.comparison import NO_PRIVACY, in_workers, judge_logistic, judge_run
from sims.evaluation import Score, read_tables
from sims.scenario import Scenario, load_scenario, scenario_path
from sims.utility_plan import Changes, Level, UtilityPlan, load_plan, merged

POINTS = 100.0
LARGEST_NOISE_SHARE = 0.115
"""Above it, people are too few for the epsilon. On the heart tables (688 patients, seeds 100 to 104) the share is 0.113 at
epsilon 1, which cost 1.8 points of AUC, and 0.22 at 0.5, which cost 6.9."""

# S seeds

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run on one split, and the logistic regression beside it."""

    seed: int
    epsilon: float | None
    """None: without privacy."""
    privacy: PrivacyPlan
    people: int
    """Patients or customers trained on, at all sites."""
    noise_share: float
    mixture: Score
    logistic: Score


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    spread: float
    """Standard deviation over the seeds; 0 for one."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What privacy cost, in points, and what it might have."""

    points: Spread
    """Of the differences on each split: what the splits have in common is no cost."""
    aim: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether the mean is within the aim; None without one."""
        return None if self.aim is None else self.points.mean <= self.aim


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of one kind of model at one level."""

    auc: Spread
    accuracy: Spread
    auc_loss: Loss | None
    """Against the same kind of model without privacy; None for that one."""
    accuracy_loss: Loss | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A level over all seeds."""

    privacy: PrivacyPlan
    people: int
    noise_share: float
    mixture: Quality
    logistic: Quality

    @property
    def is_useful(self) -> bool:
        """Whether the people are enough for the epsilon."""
        return self.noise_share <= LARGEST_NOISE_SHARE


@dataclass(frozen=True, kw_only=True)
class UtilityReport:
    """What `sims run NAME --seeds N` found."""

    scenario: str
    seeds: tuple[int, ...]
    plain: Outcome
    levels: tuple[Outcome, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One for each epsilon for which the people are too few, with the figures."""
        return tuple(
            _too_few(outcome.privacy, outcome.noise_share, outcome.people)
            + _measured(outcome.mixture.auc_loss)
            for outcome in self.levels
            if not outcome.is_useful
        )

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "scenario": self.scenario,
            "seeds": list(self.seeds),
            "people": self.plain.people,
            "no_privacy": {
                "mixture": _quality_json(self.plain.mixture),
                "logistic": _quality_json(self.plain.logistic),
            },
            "levels": [_level_json(outcome) for outcome in self.levels],
            "warnings": list(self.warnings),
        }


def noise_share(spec: RunSpec, *, people: int) -> float:
    """How long the noise is beside the largest signal, for a linear model of the table's columns.

    Over T steps the mean of K sites' gradients, weighted by their people, adds up to a signal of at most T C and to
    noise of deviation sigma C sqrt(T K / h) / (q N) in each of d coordinates, where h sites together make the noise of
    one. The share is sigma sqrt(K d / (h T)) / (q N); C cancels. d counts the weights of the linear part alone: what
    the experts cost beyond it is measured, not foretold.

    Args:
        spec: the run; its noise multiplier sigma, sample rate q, steps T, sites K and honest sites h.
        people: patients or customers at all sites together (N), a number that is public or was released.

    Returns:
        0 without privacy.
    """
    steps = spec.rounds * spec.training.local_steps
    dimension = spec.table.flat_encoding_width + 1
    share_makers = spec.privacy.honest_sites if spec.privacy.mechanism == "distributed-dp" else 1
    batch = spec.training.sample_rate * people
    return (
        spec.privacy.noise_multiplier
        * math.sqrt(spec.sites * dimension / (share_makers * steps))
        / batch
    )


def size_warning(scenario: Scenario) -> str | None:
    """What to know before a private run whose people are too few for its epsilon; None where they are enough.

    A scenario's tables are public, so their sizes are: one row is one patient or customer.
    """
    people = sum(map(len, scenario.train.values()))
    share = noise_share(scenario.spec, people=people)
    return _too_few(scenario.spec.privacy, share, people) if share > LARGEST_NOISE_SHARE else None


def _too_few(privacy: PrivacyPlan, share: float, people: int) -> str:
    return (
        f"epsilon {privacy.epsilon:g} (delta {privacy.delta:g}, {privacy.unit}, {privacy.adjacency}) is not useful at this "
        f"size: over the whole training the noise is {share:.1%} as long as the largest signal that {people} "
        f"{privacy.unit}s can give; at most {LARGEST_NOISE_SHARE:.1%} is useful. Find more {privacy.unit}s or ask for a "
        "larger epsilon."
    )


def _measured(loss: Loss | None) -> str:
    return "" if loss is None else f" Measured: {loss.points.mean:.1f} points of AUC lost."


def measure_utility(
    name: str,
    *,
    seeds: Sequence[int],
    epsilons: Sequence[float] = (),
    people: int | None = None,
    processes: int = 2,
    on_trial: Callable[[Trial], None] = lambda _: None,
    **changes: Any,
) -> UtilityReport:
    """Every epsilon on every seed.

    Args:
        name: of the scenario.
        seeds: one split each.
        epsilons: instead of those of the plan.
        people: as for `load_scenario`.
        processes: workers.
        on_trial: told each trial as it comes, in no particular order.
        changes: of all runs, above the plan's; as for `load_run_spec`.

    Raises:
        ConfigError: no plan, or a run that contradicts itself.
        RoundError: a run failed.
    """
    plan = load_plan(name)
    levels = [plan.level(e) for e in sorted(set(epsilons))] or list(plan.levels)
    recipes = {
        level.epsilon if level else None: merged(_recipe(plan, level), changes)
        for level in (None, *levels)
    }
    for recipe in recipes.values():
        load_run_spec(scenario_path(name), **recipe)  # refused here, before anything is tried
    jobs = [
        partial(_try, name, seed, people, epsilon, recipe)
        for seed in seeds
        for epsilon, recipe in recipes.items()
    ]
    trials = in_workers(jobs, processes=processes, on_result=on_trial)
    return summarise_trials(name, plan, trials)


def count_trials(name: str, *, seeds: int, epsilons: Sequence[float]) -> int:
    """How many trials `measure_utility` makes."""
    return seeds * (1 + len(set(epsilons) or load_plan(name).levels))


def summarise_trials(name: str, plan: UtilityPlan, trials: Sequence[Trial]) -> UtilityReport:
    """Means, spreads and losses; every level was tried on the same seeds as the run without privacy."""
    by_level: dict[float | None, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        by_level.setdefault(trial.epsilon, []).append(trial)
    plain = by_level.pop(None)
    return UtilityReport(
        scenario=name,
        seeds=tuple(trial.seed for trial in plain),
        plain=_outcome(plain, plain, None),
        levels=tuple(
            _outcome(by_level[epsilon], plain, plan.level(epsilon))
            for epsilon in sorted(e for e in by_level if e is not None)
        ),
    )


def _recipe(plan: UtilityPlan, level: Level | None) -> dict[str, Any]:
    if level is None:
        return merged(plan.no_privacy, {"privacy": NO_PRIVACY})
    return merged(level.changes, {"privacy": {"epsilon": level.epsilon}})


def _try(name: str, seed: int, people: int | None, epsilon: float | None, recipe: Changes) -> Trial:
    """One run on one split; only one without privacy may have a seed for its draws."""
    seeded = {"seed": seed} if epsilon is None else {}
    scenario = load_scenario(name, split_seed=seed, people=people, **recipe, **seeded)
    held_out = read_tables(scenario, held_out=True)
    train = read_tables(scenario, held_out=False)
    trained = sum(data.patients for data in train.values())
    return Trial(
        seed=seed,
        epsilon=epsilon,
        privacy=scenario.spec.privacy,
        people=trained,
        noise_share=noise_share(scenario.spec, people=trained),
        mixture=judge_run(scenario, held_out).pooled,
        logistic=judge_logistic(scenario, train, held_out, seed=seed).pooled,
    )


def _outcome(trials: list[Trial], plain: list[Trial], level: Level | None) -> Outcome:
    unaimed = level and replace(level, auc_aim=None, accuracy_aim=None)
    return Outcome(
        privacy=trials[0].privacy,
        people=trials[0].people,
        noise_share=trials[0].noise_share,
        mixture=_quality(_scores(trials, "mixture"), _scores(plain, "mixture"), level),
        logistic=_quality(_scores(trials, "logistic"), _scores(plain, "logistic"), unaimed),
    )


def _scores(trials: list[Trial], kind: Literal["mixture", "logistic"]) -> Floats:
    """AUC and accuracy of every trial [2, S]; an AUC that is not defined is NaN, and so is every mean of it."""
    scores = [trial.mixture if kind == "mixture" else trial.logistic for trial in trials]
    aucs = [math.nan if score.auc is None else score.auc for score in scores]
    return np.array([aucs, [score.accuracy for score in scores]])


def _quality(scores_2S: Floats, plain_2S: Floats, level: Level | None) -> Quality:
    auc, accuracy = map(_spread, scores_2S)
    if level is None:
        return Quality(auc=auc, accuracy=accuracy, auc_loss=None, accuracy_loss=None)
    auc_loss, accuracy_loss = map(_spread, POINTS * (plain_2S - scores_2S))
    return Quality(
        auc=auc,
        accuracy=accuracy,
        auc_loss=Loss(points=auc_loss, aim=level.auc_aim),
        accuracy_loss=Loss(points=accuracy_loss, aim=level.accuracy_aim),
    )


def _spread(values_S: Floats) -> Spread:
    spread = float(np.std(values_S, ddof=1)) if len(values_S) > 1 else 0.0
    return Spread(mean=float(np.mean(values_S)), spread=spread)


def _level_json(outcome: Outcome) -> dict[str, Any]:
    privacy = outcome.privacy
    return {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "unit": privacy.unit,
        "adjacency": privacy.adjacency,
        "noise_multiplier": privacy.noise_multiplier,
        "noise_share": outcome.noise_share,
        "is_useful": outcome.is_useful,
        "mixture": _quality_json(outcome.mixture),
        "logistic": _quality_json(outcome.logistic),
    }


def _quality_json(quality: Quality) -> dict[str, Any]:
    found: dict[str, Any] = {"auc": asdict(quality.auc), "accuracy": asdict(quality.accuracy)}
    for name, loss in (("auc_loss", quality.auc_loss), ("accuracy_loss", quality.accuracy_loss)):
        if loss is not None:
            found[name] = {**asdict(loss.points), "aim": loss.aim, "is_met": loss.is_met}
    return found
