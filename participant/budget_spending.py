"""What a data set has spent of its contract, and how far what is left reaches."""

import math
from dataclasses import dataclass

from participant.budget_admission import (
    EpsilonOf,
    amounts,
    contract_filter,
    counted_events,
    dedicated_to,
    remaining_events,
)
from participant.budget_entries import History
from participant.config import BudgetContract
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import Event
from privacy.dp.filter import RdpFilter


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a data set has spent: one statement, never an epsilon alone."""

    data_set: str
    epsilon: float
    """All charges together by privacy loss distributions: for parameters that were fixed beforehand."""
    filter_epsilon: float | None
    """All charges together by the filter's Renyi order: for parameters chosen from earlier releases too. None: infinite."""
    contract_epsilon: float
    left_epsilon: float
    """What the filter still admits; 0 where the data set is dedicated to one run."""
    delta: float
    unit: str
    adjacency: str
    rdp_order: float
    charges: int
    releases: int
    dedicated_to: str | None
    """The one run that this data set is left to."""
    declared_epsilon: float | None
    """Of all that run declared, spent or not, by privacy loss distributions: what the contract holds for it."""
    rounds_left: int | None
    """How many more attempts as costly as the costliest of the latest run are admitted; None before any."""
    valid_until: str | None
    """Last day on which anything is charged."""
    warnings: tuple[str, ...]


def spending(
    history: History, contract: BudgetContract, *, epsilon_of: EpsilonOf = epsilon_spent
) -> Spending:
    """What a verified history has spent of the contract."""
    filter_ = contract_filter(contract, history.identity.rdp_order)
    charged = tuple(event for charge in history.charges for event in charge.events)
    dedicated = dedicated_to(history, filter_)
    counted = filter_.epsilon_of(counted_events(history))
    until = contract.valid_until
    return Spending(
        data_set=contract.data_set,
        epsilon=epsilon_of(charged, contract.delta),
        filter_epsilon=finite(filter_.epsilon_of(charged)),
        contract_epsilon=contract.epsilon,
        left_epsilon=0.0 if dedicated is not None else max(0.0, contract.epsilon - counted),
        delta=contract.delta,
        unit=contract.unit,
        adjacency=contract.adjacency,
        rdp_order=filter_.order,
        charges=len(history.charges),
        releases=len(history.releases),
        dedicated_to=None if dedicated is None else dedicated.programme.name,
        declared_epsilon=None if dedicated is None else dedicated.epsilon,
        rounds_left=rounds_left(history, filter_),
        valid_until=None if until is None else until.isoformat(),
        warnings=contract.warnings,
    )


def rounds_left(history: History, filter_: RdpFilter) -> int | None:
    """How many more attempts as costly as the costliest of the latest run are admitted; None before any."""
    if not history.charges:
        return None
    run = history.charges[-1].run
    attempt = max(
        (charge.events for charge in history.charges if charge.run == run), key=filter_.cost
    )
    cost = filter_.cost(attempt)
    first = history.first_programme
    declared = 0
    if first is not None and first.programme.name == run:
        declared = _attempts_in(remaining_events(first, history.charges), amounts(attempt))
    if dedicated_to(history, filter_) is not None:
        return declared
    room = filter_.limit - filter_.cost(counted_events(history))
    return declared + max(0, int(room / cost)) if cost > 0 else None


def finite(value: float) -> float | None:
    """The value; None for infinity, which JSON has no word for."""
    return value if math.isfinite(value) else None


def _attempts_in(left: dict[Event, int], attempt: dict[Event, int]) -> int:
    return min((left.get(event, 0) // count for event, count in attempt.items()), default=0)
