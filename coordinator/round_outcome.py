"""What the ledger keeps of an attempt: how far each site came, what it charged, and what was released."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from coordinator.ledger.records import (
    Charge,
    Metric,
    NewModel,
    Participation,
    RoundOutcome,
    RunHistory,
)
from coordinator.ledger.states import ParticipationState
from coordinator.summation import SiteRecord, Summation
from coordinator.survivors import survivors_metrics
from coordinator.wire.contribution import MeanContribution, histogram_auc
from coordinator.wire.plan import RoundPlan
from coordinator.wire.receipt import RoundReceipt
from coordinator.wire.robustness import left_to_expect, tolerance


def site_participations(
    plan: RoundPlan, sites: Mapping[str, SiteRecord], *, seconds: float
) -> tuple[Participation, ...]:
    """How far each site came, for the ledger."""
    return tuple(
        Participation(
            site=site,
            state=ParticipationState(record.state),
            detail=record.detail,
            bytes_sent=record.bytes_received,
            bytes_received=record.bytes_sent + plan.base_model_bytes,
            seconds=seconds,
        )
        for site, record in sites.items()
    )


def site_charge(site: str, receipt: RoundReceipt) -> Charge:
    """What a site says it charged, for the ledger."""
    return Charge(
        site=site,
        epsilon=receipt.epsilon_spent,
        delta=receipt.delta,
        unit=receipt.unit,
        adjacency=receipt.adjacency,
        events=receipt.events,
    )


def round_outcome(
    plan: RoundPlan,
    summation: Summation,
    mean: MeanContribution,
    *,
    model: NewModel,
    seconds: float,
    history: Callable[[], RunHistory],
) -> RoundOutcome:
    """What the ledger keeps of a committed round: who took part, what they charged, and the released metrics.

    Args:
        plan: of the attempt.
        summation: what came of its secure sum.
        mean: what the sum says.
        model: the new model, durable on disk.
        seconds: how long the attempt took.
        history: reads what the ledger knows of the run so far; asked only where sites share noise.
    """
    charges = tuple(
        site_charge(site, record.receipt)
        for site, record in summation.sites.items()
        if record.receipt is not None
    )
    return RoundOutcome(
        model=model,
        participations=site_participations(plan, summation.sites, seconds=seconds),
        charges=charges,
        metrics=_metrics(plan, summation, mean, history),
    )


def _metrics(
    plan: RoundPlan,
    summation: Summation,
    mean: MeanContribution,
    history: Callable[[], RunHistory],
) -> tuple[Metric, ...]:
    """What the sum says of the base model, what the scheme says of the sum, and what shared noise the survivors left in it."""
    privacy = plan.privacy
    released_with = "secure sum, discrete Laplace" if privacy.is_private else "secure sum"
    metrics = []
    if not privacy.is_private or privacy.metric_epsilon > 0:
        metrics.append(Metric(name="training_loss", value=mean.loss, released_with=released_with))
    auc = None if mean.counts is None else histogram_auc(mean.counts)
    if auc is not None:
        metrics.append(Metric(name="training_auc", value=auc, released_with=released_with))
    metrics.extend(
        Metric(name=name, value=value, released_with="secure sum")
        for name, value in sorted(summation.evidence.items())
    )
    if plan.robust.rule != "mean":
        metrics.extend(_group_metrics(plan, summation))
    if privacy.mechanism == "distributed-dp":
        survivors = min(len(result.sites) for result in summation.sums.values())
        metrics.extend(survivors_metrics(plan, survivors, history()))
    return tuple(metrics)


def _group_metrics(plan: RoundPlan, summation: Summation) -> tuple[Metric, ...]:
    """How many groups the robust rule worked on, and how many malicious sites it then stood."""
    left = len(summation.sums)
    robust = replace(plan.robust, tolerate=left_to_expect(plan.robust, spoilt=summation.spoilt))
    stood = tolerance(robust, groups=left, sites=len(summation.counted))
    how = f"{plan.robust.rule} over {left} of {len(plan.groups)} groups"
    return (
        Metric(name="groups_counted", value=float(left), released_with=how),
        Metric(name="malicious_sites_tolerated", value=float(stood.tolerated), released_with=how),
    )
