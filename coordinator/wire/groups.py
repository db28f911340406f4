"""Groups of a cohort, each with a secure sum of its own: drawn by the coordinator, checked and used alike by every site.

The draw is random and anew for every attempt: malicious sites cannot choose to sit together, or beside a given site. It
is part of the signed plan, so all sites work with the same one.
"""

import hashlib
import secrets
from dataclasses import replace

from coordinator.wire.plan import RoundPlan
from privacy.secagg.plan import SumPlan, sum_threshold
from privacy.secagg.protocol import SumContext

Groups = tuple[tuple[str, ...], ...]


def draw_groups(cohort: tuple[str, ...], groups: int) -> Groups:
    """The cohort in so many random groups whose sizes differ by one at most; groups and their sites sorted.

    Raises:
        ValueError: fewer sites than groups.
    """
    if not 1 <= groups <= len(cohort):
        raise ValueError(f"Expected 1 <= groups={groups} <= {len(cohort)} sites.")
    shuffled = list(cohort)
    secrets.SystemRandom().shuffle(shuffled)
    return tuple(sorted(tuple(sorted(shuffled[start::groups])) for start in range(groups)))


def groups_problem(plan: RoundPlan) -> str:
    """What keeps the plan's groups from being groups of its cohort; empty if nothing does."""
    members = [site for group in plan.groups for site in group]
    is_sorted = list(plan.groups) == sorted(tuple(sorted(group)) for group in plan.groups)
    if not is_sorted or sorted(members) != list(plan.cohort):
        return "groups that do not hold every site of the cohort exactly once, sorted"
    sizes = {len(group) for group in plan.groups}
    if min(sizes, default=0) < 1 or max(sizes) - min(sizes) > 1:
        return "groups whose sizes differ by more than one"
    return ""


def group_of(plan: RoundPlan, site: str) -> int:
    """Number of the group in which the site is.

    Raises:
        ValueError: in none.
    """
    for number, group in enumerate(plan.groups):
        if site in group:
            return number
    raise ValueError(f'Expected "{site}" in a group of the plan.')


def group_sum(plan: RoundPlan, group: int) -> SumPlan:
    """Parameters of one group's secure sum: the plan's own, for as many sites as the group has.

    Raises:
        ValueError: the group is too small for the plan's quorum or scheme.
    """
    if len(plan.groups) == 1:
        return plan.secure_sum
    sites, total = len(plan.groups[group]), plan.secure_sum
    return replace(total, max_sites=sites, threshold=sum_threshold(total.scheme, sites))


def group_context(plan: RoundPlan, payload: bytes, group: int) -> SumContext:
    """Which sum this is, for one group of a plan whose signed bytes are `payload`."""
    return SumContext(
        run_id=plan.run_id,
        round=plan.round,
        attempt=plan.attempt,
        plan_digest=hashlib.sha256(payload).digest(),
        model=plan.base_model,
        group=group,
    )
