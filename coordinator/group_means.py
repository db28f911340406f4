"""From the sums of the groups to the one mean that moves the model.

`mean` (and every run without groups): the sums are added and divided by the whole weight, as if there had been one sum.

A robust rule: every group's sum becomes its mean, and every group counts once.
1. A group whose sum no honest sites can have made (no weight) is out, and proves a malicious site.
2. Coordinates are cut to `update_range`: the mean of honest changes lies within it, whatever their weights.
3. The rule combines the changes. Enough groups must be left for the promise, or the attempt is aborted.
4. Loss, scores and loads are taken per unit of weight, and the median of each over the groups is what counts: they drive a
   figure that people read and the router's balance, so one group must not move them at will. The median needs no more
   groups than any of the rules. The whole weight is the median group weight times the groups, and scales them back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coordinator.errors import AggregationError
from coordinator.strategies.robust import robust_change
from coordinator.wire.contribution import MeanContribution, unpack_sum
from coordinator.wire.plan import RoundPlan
from coordinator.wire.robustness import fewest_groups, left_to_expect
from privacy.secagg.protocol import SumResult


@dataclass(frozen=True, kw_only=True)
class GroupMeans:
    """The mean that counts, and the groups that turned out not to."""

    mean: MeanContribution
    spoilt: Mapping[int, str]
    """Groups whose sums cannot stem from honest sites, with the reason."""


def mean_of_groups(
    plan: RoundPlan, sums: Mapping[int, SumResult], *, spoilt: int = 0
) -> GroupMeans:
    """The mean over the groups, by the plan's rule.

    Args:
        plan: of the attempt.
        sums: opened sums by group; the memory of their integers is used up.
        spoilt: groups that are out already because their sums could not stem from honest sites.

    Raises:
        AggregationError: nothing to average, or fewer groups left than the promise takes.
    """
    if plan.robust.rule == "mean":
        return GroupMeans(mean=_plain_mean(plan, sums), spoilt={})
    means: dict[int, MeanContribution] = {}
    bad: dict[int, str] = {}
    for group, result in sums.items():
        try:
            means[group] = unpack_sum(plan, result.integers, step=1.0 / result.scale)
        except ValueError as error:
            bad[group] = str(error)
    if problem := promise_problem(plan, left=len(means), spoilt=spoilt + len(bad)):
        raise AggregationError(f"{problem} {' '.join(bad.values())}".rstrip())
    expected = left_to_expect(plan.robust, spoilt=spoilt + len(bad))
    return GroupMeans(mean=_robust_mean(plan, list(means.values()), expected), spoilt=bad)


def promise_problem(plan: RoundPlan, *, left: int, spoilt: int) -> str:
    """What keeps the groups that are left from keeping the plan's promise; empty if nothing does.

    Args:
        plan: of the attempt.
        left: groups that are still in.
        spoilt: groups that are out because their sums cannot stem from honest sites.
    """
    robust = plan.robust
    where = f"Run {plan.run_id}, round {plan.round}"
    if robust.rule != "mean" and spoilt > robust.tolerate:
        return (
            f"{where}: the sums of {spoilt} groups cannot stem from honest sites, and the run promises to stand "
            f"{robust.tolerate} malicious sites. The attempt is aborted."
        )
    needed = fewest_groups(robust.rule, left_to_expect(robust, spoilt=spoilt))
    if left < needed:
        return (
            f"{where}: {left} groups are left of {len(plan.groups)}; {robust.rule} needs {needed} to stand the malicious sites "
            "that may be among them. The attempt is aborted."
        )
    return ""


def _plain_mean(plan: RoundPlan, sums: Mapping[int, SumResult]) -> MeanContribution:
    first, *others = sums.values()
    total: NDArray[np.int32] | NDArray[np.float64] = first.integers
    if others:  # together they may need more than 32 bits
        total = first.integers.astype(np.float64)
        for other in others:
            total += other.integers
    try:
        return unpack_sum(plan, total, step=1.0 / first.scale)
    except ValueError as error:
        raise AggregationError(
            f"Run {plan.run_id}, round {plan.round}: {error} The attempt is aborted."
        ) from error


def _robust_mean(
    plan: RoundPlan, means: list[MeanContribution], malicious: int
) -> MeanContribution:
    for mean in means:
        np.clip(mean.change, -plan.update_range, plan.update_range, out=mean.change)
    weight = float(np.median([mean.weight for mean in means])) * len(means)
    first = means[0]
    return replace(
        first,
        change=robust_change(
            plan.robust.rule, [mean.change for mean in means], malicious=malicious
        ),
        weight=weight,
        loss=float(np.median([mean.loss for mean in means])),
        counts=None if first.counts is None else weight * _middle(means, "counts"),
        loads=None if first.loads is None else weight * _middle(means, "loads"),
    )


def _middle(means: list[MeanContribution], field: str) -> NDArray[np.float64]:
    """Median over the groups of what each says per unit of its weight."""
    middle: NDArray[np.float64] = np.median(
        [getattr(mean, field) / mean.weight for mean in means], axis=0
    )
    return middle
