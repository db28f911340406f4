"""A round's life: planned -> open -> aggregating -> committed | aborted. One function per allowed transition.

planned      the plan is in the ledger, nobody has been asked
open         sites were asked; they train and take part in the secure sum
aggregating  every contribution that will count has been sealed; nothing more is accepted
committed    the new model is durable and is the truth
aborted      this attempt produced nothing; the previous round is still the truth

The transitions are pure: they return the next value or raise. The ledger enforces the same order in SQL, so that two
processes cannot both believe they moved a round.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from coordinator.errors import TransitionError
from coordinator.ledger.states import RoundState
from coordinator.run_spec import RunSpec
from coordinator.wire.contribution import contribution_layout
from coordinator.wire.groups import draw_groups
from coordinator.wire.plan import RoundPlan
from privacy.secagg.plan import SumPlan, sum_threshold


@dataclass(frozen=True, kw_only=True)
class RoundProgress:
    """The state of one attempt and the sites that still count in it."""

    plan: RoundPlan
    state: RoundState = RoundState.PLANNED
    sites: tuple[str, ...] = ()
    """Sites whose contribution may still count; the cohort when open, the survivors later."""


def open_round(progress: RoundProgress) -> RoundProgress:
    """Planned -> open: the cohort is about to be asked."""
    _require(progress, RoundState.OPEN, RoundState.PLANNED)
    return replace(progress, state=RoundState.OPEN, sites=progress.plan.cohort)


def begin_aggregation(progress: RoundProgress, sealed: tuple[str, ...]) -> RoundProgress:
    """Open -> aggregating: only `sealed` sites count from here on.

    Raises:
        TransitionError: the round is not open, a site was never asked, or fewer sites than the quorum have sealed.
    """
    _require(progress, RoundState.AGGREGATING, RoundState.OPEN)
    strangers = set(sealed) - set(progress.plan.cohort)
    count = len(set(sealed))
    if strangers or count < progress.plan.quorum:
        raise TransitionError(
            f"{_name(progress)}: {count} sealed contributions, quorum {progress.plan.quorum}, "
            f"never asked: {sorted(strangers)}. The attempt is aborted; the previous round stays the truth."
        )
    return replace(progress, state=RoundState.AGGREGATING, sites=tuple(sorted(set(sealed))))


def commit_round(progress: RoundProgress) -> RoundProgress:
    """Aggregating -> committed: the model is durable."""
    _require(progress, RoundState.COMMITTED, RoundState.AGGREGATING)
    return replace(progress, state=RoundState.COMMITTED)


def abort_round(progress: RoundProgress) -> RoundProgress:
    """Planned, open or aggregating -> aborted: nothing of this attempt counts."""
    _require(
        progress, RoundState.ABORTED, RoundState.PLANNED, RoundState.OPEN, RoundState.AGGREGATING
    )
    return replace(progress, state=RoundState.ABORTED, sites=())


def plan_round(
    spec: RunSpec,
    *,
    run_id: str,
    number: int,
    attempt: int,
    cohort: tuple[str, ...],
    base_model: str,
    base_model_bytes: int,
    now: datetime,
) -> RoundPlan:
    """The plan of one attempt, derived from the run's request and the sites that are online; its groups are drawn here.

    Raises:
        ValueError: fewer sites than a group takes.
    """
    groups = draw_groups(cohort, min(spec.robust.groups, len(cohort) // spec.least_group))
    largest = max(map(len, groups))
    return RoundPlan(
        run_id=run_id,
        round=number,
        attempt=attempt,
        rounds_charged=spec.rounds + spec.spare_attempts,
        cohort=tuple(sorted(cohort)),
        groups=groups,
        quorum=spec.quorum,
        deadline=now.astimezone(UTC) + timedelta(seconds=spec.timing.round_seconds),
        silence_seconds=spec.timing.silence_seconds,
        base_model=base_model,
        base_model_bytes=base_model_bytes,
        model=spec.model,
        table=spec.table,
        training=spec.training,
        privacy=spec.privacy,
        secure_sum=SumPlan(
            scheme=spec.secure_sum.scheme,
            dimension=contribution_layout(spec.model, spec.table, spec.privacy).dimension,
            max_sites=largest,
            quorum=spec.quorum,
            threshold=sum_threshold(spec.secure_sum.scheme, largest),
            value_range=1.0,
            value_bits=spec.secure_sum.value_bits,
            key_holder=spec.secure_sum.key_holder,
            obfuscation=spec.secure_sum.obfuscation,
        ),
        update_range=spec.secure_sum.update_range,
        weight_cap=spec.secure_sum.weight_cap,
        seed=spec.seed,
        robust=spec.robust.plan,
    )


def _require(progress: RoundProgress, target: RoundState, *allowed: RoundState) -> None:
    if progress.state not in allowed:
        raise TransitionError(
            f"{_name(progress)} is {progress.state}; only {' or '.join(allowed)} may become {target}."
        )


def _name(progress: RoundProgress) -> str:
    return (
        f"Run {progress.plan.run_id}, round {progress.plan.round}, attempt {progress.plan.attempt}"
    )
