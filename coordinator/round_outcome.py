"""What the ledger keeps of an attempt: how far each site came, what it charged, and what was released."""

from collections.abc import Mapping

from coordinator.ledger.records import Charge, Metric, NewModel, Participation, RoundOutcome
from coordinator.ledger.states import ParticipationState
from coordinator.summation import SiteRecord, Summation
from coordinator.wire.contribution import MeanContribution
from coordinator.wire.plan import RoundPlan
from coordinator.wire.receipt import RoundReceipt


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
    """What the ledger keeps of a committed round: who took part, what they charged, and the released metric."""
    charges = tuple(
        site_charge(site, record.receipt)
        for site, record in summation.sites.items()
        if record.receipt is not None
    )
    released_with = (
        "secure sum" if plan.privacy.mechanism == "none" else "secure sum, discrete Laplace"
    )
    metrics = (
        (Metric(name="training_loss", value=mean.loss, released_with=released_with),)
        if plan.privacy.mechanism == "none" or plan.privacy.metric_epsilon > 0
        else ()
    )
    return RoundOutcome(
        model=model,
        participations=site_participations(plan, summation.sites, seconds=seconds),
        charges=charges,
        metrics=metrics,
    )
