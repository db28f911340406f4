"""What the ledger keeps of an attempt: how far each site came, what it charged, and what was released."""

from collections.abc import Mapping

from coordinator.ledger.records import Charge, Metric, NewModel, Participation, RoundOutcome
from coordinator.ledger.states import ParticipationState
from coordinator.summation import SiteRecord, Summation
from coordinator.wire.contribution import MeanContribution, histogram_auc
from coordinator.wire.plan import RoundPlan
from coordinator.wire.receipt import RoundReceipt
from privacy.dp.distributed import share_noise_multiplier, survivors_noise_multiplier


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
) -> RoundOutcome:
    """What the ledger keeps of a committed round: who took part, what they charged, and the released metrics."""
    charges = tuple(
        site_charge(site, record.receipt)
        for site, record in summation.sites.items()
        if record.receipt is not None
    )
    return RoundOutcome(
        model=model,
        participations=site_participations(plan, summation.sites, seconds=seconds),
        charges=charges,
        metrics=_metrics(plan, mean, survivors=len(summation.result.sites)),
    )


def _metrics(plan: RoundPlan, mean: MeanContribution, *, survivors: int) -> tuple[Metric, ...]:
    """What the sum says of the base model, and with distributed noise how much of it the survivors left in the sum."""
    privacy = plan.privacy
    released_with = "secure sum, discrete Laplace" if privacy.is_private else "secure sum"
    metrics = []
    if not privacy.is_private or privacy.metric_epsilon > 0:
        metrics.append(Metric(name="training_loss", value=mean.loss, released_with=released_with))
    auc = None if mean.counts is None else histogram_auc(mean.counts)
    if auc is not None:
        metrics.append(Metric(name="training_auc", value=auc, released_with=released_with))
    if privacy.mechanism == "distributed-dp":
        share = share_noise_multiplier(privacy.noise_multiplier, privacy.honest_sites)
        noise = survivors_noise_multiplier(share, survivors, honest_sites=privacy.honest_sites)
        metrics.append(
            Metric(name="sum_noise_multiplier", value=noise, released_with="survivors counted")
        )
    return tuple(metrics)
