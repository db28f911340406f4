"""What the sums of a run with shared noise cost, reckoned from the sites that stayed in them.

Sites reserve by the noise that the plan promises, before they see who survives. Afterwards more is known: a sum over more
sites than the plan counts on holds more noise. For one patient of a site that was in every sum:

- a committed round costs what its survivors left in it, less the colluders that the plan allows for;
- an aborted attempt that a site was charged for costs what was planned, since its sum may have been opened;
- the count, and the metrics of each of these attempts, cost what they always do.

The figure is not above what was reserved for the same attempts, and holds if no more sites collude than the plan says.
Budgets are not refunded the difference.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from coordinator.ledger.records import RESERVED_EPSILON, SURVIVORS_EPSILON, Metric, RunHistory
from coordinator.ledger.states import RoundState
from coordinator.wire.charges import gradient_event, side_events
from coordinator.wire.plan import PrivacyPlan, RoundPlan
from privacy.dp.accounting import epsilon_spent
from privacy.dp.distributed import survivors_event
from privacy.dp.events import Event

SUM_NOISE = "sum_noise_multiplier"


def survivors_metrics(
    plan: RoundPlan, survivors: int, history: RunHistory
) -> tuple[Metric, Metric, Metric]:
    """Noise of this round's sum, and epsilon of all sums of the run so far: as released, and as reserved.

    Args:
        plan: of the round that is about to be committed, with `distributed-dp`.
        survivors: sites in its sum; in the smallest one, if there are several.
        history: of the run before.

    Raises:
        ValueError: fewer sites are in the sum than the plan counts on: it should never have been opened.
    """
    privacy = plan.privacy
    noise = survivors_event(
        gradient_event(privacy, plan.training),
        survivors,
        privacy.colluding_sites,
        honest_sites=privacy.honest_sites,
    ).noise_multiplier
    noises = [*_noises_before(plan, history), noise]
    statement = (
        f"delta {privacy.delta:g}, per {privacy.unit}, {privacy.adjacency}, {_assumption(privacy)}"
    )
    return (
        Metric(
            name=SUM_NOISE,
            value=noise,
            released_with=f"survivors counted, {_assumption(privacy)}",
        ),
        Metric(
            name=SURVIVORS_EPSILON,
            value=_epsilon(plan, noises),
            released_with=f"accountant, from the survivors of every sum so far; {statement}",
        ),
        Metric(
            name=RESERVED_EPSILON,
            value=_epsilon(plan, [privacy.noise_multiplier] * len(noises)),
            released_with=f"accountant, as planned for the same sums; {statement}",
        ),
    )


def _noises_before(plan: RoundPlan, history: RunHistory) -> Iterator[float]:
    """Noise multiplier of every sum before this one that may have been opened."""
    charged = {(entry.round, entry.attempt) for entry in history.charges}
    found = {row.round: row.metric.value for row in history.metrics if row.metric.name == SUM_NOISE}
    for attempt in history.attempts:
        if (attempt.round, attempt.attempt) == (plan.round, plan.attempt):
            continue
        if attempt.state is RoundState.COMMITTED:
            yield found.get(attempt.round, plan.privacy.noise_multiplier)
        elif (attempt.round, attempt.attempt) in charged:
            yield plan.privacy.noise_multiplier


def _epsilon(plan: RoundPlan, noises: Iterable[float]) -> float:
    step = gradient_event(plan.privacy, plan.training)
    times = Counter(noises)
    gradients: list[Event] = [
        replace(step, noise_multiplier=noise, steps=count * step.steps)
        for noise, count in times.items()
    ]
    events = (*gradients, *side_events(plan.privacy, times.total()))
    return epsilon_spent(events, plan.privacy.delta)


def _assumption(privacy: PrivacyPlan) -> str:
    if privacy.colluding_sites == 0:
        return "if every site in a sum adds its share of the noise and tells nobody"
    return f"if all sites in a sum but {privacy.colluding_sites} add their share of the noise and tell nobody"
