"""Clauses about the secure sum of a round: what a plan must satisfy so that only sums over enough sites are opened.

A clause says what is kept, what was asked and what is allowed; `require_all` turns the first broken one into a refusal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.wire.groups import group_of, group_sum, groups_problem
from coordinator.wire.plan import RoundPlan
from coordinator.wire.robustness import RobustPlan, tolerance
from participant.errors import PolicyRefusal


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One thing a plan must satisfy."""

    name: str
    is_kept: bool
    wanted: str
    allowed: str


def require_all(clauses: Sequence[Clause] | Iterator[Clause], plan: RoundPlan, site: str) -> None:
    """Raises for the first clause that is not kept."""
    for clause in clauses:
        if clause.is_kept:
            continue
        if clause.name.startswith("plan."):
            remedy = "No policy allows this; the coordinator must send another plan."
        else:
            place = "site.toml" if clause.name.startswith("budget.") else "policy.toml"
            remedy = f"The site's administrator may change {clause.name} in {place}; the coordinator may ask for less."
        raise PolicyRefusal(
            clause=clause.name,
            context=f'Run "{plan.run_id}", round {plan.round}, site "{site}"',
            wanted=clause.wanted,
            allowed=clause.allowed,
            remedy=remedy,
        )


def secure_sum_clauses(
    plan: RoundPlan,
    *,
    site: str,
    schemes: Sequence[str],
    key_holders: Sequence[str],
    minimum_quorum: int,
) -> Iterator[Clause]:
    """Whether the coordinator could learn more than a sum over enough sites, this one among them."""
    total = plan.secure_sum
    yield Clause(
        name="secure_sum_schemes",
        is_kept=total.scheme in schemes,
        wanted=f'scheme "{total.scheme}"',
        allowed=listed(schemes),
    )
    yield Clause(
        name="paillier_key_holders",
        is_kept=not total.key_holder or total.key_holder in key_holders,
        wanted=f'site "{total.key_holder}" as the maker of the key',
        allowed=listed(key_holders),
    )
    yield Clause(
        name="minimum_quorum",
        is_kept=min(plan.quorum, total.quorum) >= minimum_quorum,
        wanted=f"a sum over {min(plan.quorum, total.quorum)} sites",
        allowed=f"at least {minimum_quorum}",
    )
    yield Clause(
        name="plan.quorum",
        is_kept=plan.quorum == total.quorum <= len(plan.cohort),
        wanted=f"quorum {plan.quorum} of the round, {total.quorum} of its sum, {len(plan.cohort)} sites",
        allowed="one quorum for both, not above the cohort",
    )
    groups = groups_problem(plan)
    yield Clause(
        name="plan.groups",
        is_kept=not groups,
        wanted=groups or f"{len(plan.groups)} groups",
        allowed="every site of the cohort in exactly one group, groups of equal size but for one site",
    )
    problem = groups or _own_sum_problem(plan, site)
    yield Clause(
        name="plan.secure_sum",
        is_kept=not problem,
        wanted=problem or "a sum",
        allowed="for this site's group: at least a quorum of sites, a threshold above two thirds of them, room for every one",
    )


def robust_clauses(plan: RoundPlan, *, max_update_norm: float | None) -> Iterator[Clause]:
    """Whether what the plan says about malicious sites can be true, and whether updates may be shortened."""
    problem = _robust_problem(plan)
    yield Clause(
        name="plan.robust",
        is_kept=not problem,
        wanted=problem or f"rule {plan.robust.rule}",
        allowed="a rule and enough groups for the malicious sites that the round must stand; with distributed-dp a plain mean",
    )
    yield Clause(
        name="max_update_norm",
        is_kept=max_update_norm is None or plan.privacy.mechanism != "distributed-dp",
        wanted='mechanism "distributed-dp", where an update is a share of the noise and must not be shortened',
        allowed=f"updates shortened to {max_update_norm} by this site",
    )


def listed(values: Sequence[str]) -> str:
    """The values in one line."""
    return ", ".join(values) or "none"


def _own_sum_problem(plan: RoundPlan, site: str) -> str:
    """What is wrong with the secure sum of this site's group; empty if nothing is."""
    try:
        group = group_of(plan, site)
        group_sum(plan, group).require_cohort(plan.groups[group])
    except ValueError as error:
        return str(error)
    return ""


def _robust_problem(plan: RoundPlan) -> str:
    norm = plan.robust.update_norm
    if norm is not None and norm <= 0:
        return f"update norm {norm:g}"
    if plan.privacy.mechanism == "distributed-dp" and (
        plan.robust != RobustPlan() or len(plan.groups) != 1
    ):
        return f"rule {plan.robust.rule}, {len(plan.groups)} groups, update norm {norm} with distributed-dp"
    try:
        tolerance(plan.robust, groups=len(plan.groups), sites=len(plan.cohort))
    except ValueError as error:
        return str(error)
    return ""
