"""Whether a charge is admitted: the contract must hold however the later requests were chosen from earlier releases.

Everything that counts is added up as Renyi divergence of one order, fixed in the budget file, and may not pass what
epsilon and delta of the contract allow at that order (a filter, `privacy.dp.filter`). What counts: every charge, spent
or not; and the whole of the first programme, if the first thing that ever happened on the data set was its declaration.

One exception. A first programme that does not fit the filter is admitted if the privacy loss distribution (PLD) of its
whole declaration is within the contract; the data set is then dedicated to it and nothing else is ever admitted.

Why the contract holds:
1. Which of the two cases holds follows from the first programme and the contract, before anything was released.
2. Dedicated: whatever happens is a part of one list of mechanisms whose parameters were fixed. Running them in any order,
   or not all of them, as earlier outputs suggest, is concurrent composition of that list, for which the PLD of plain
   composition holds (Vadhan and Zhang 2023), and processing of its outputs.
3. Otherwise the list, run or not, and all later charges stay below the filter's limit at one order, which bounds
   adaptively chosen mechanisms (Feldman and Zrnic 2020), interleaved ones too (Haney et al. 2023).
4. Counting what was not run as if it had been only admits less.
5. A contract that is raised is a new promise. It is as good as the decision was independent of what had been released.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from participant.budget_entries import Charge, Declaration, History, Programme
from participant.config import BudgetContract
from participant.errors import BudgetExhausted, ContractError
from privacy.dp.accounting import merge_events, one_use, repetitions
from privacy.dp.events import Event
from privacy.dp.filter import RdpFilter

EpsilonOf = Callable[[Sequence[Event], float], float]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody asks to have charged."""

    intent: str
    events: tuple[Event, ...]
    programme: Programme | None


def contract_filter(contract: BudgetContract, order: float) -> RdpFilter:
    """The filter of the contract, at the order of the budget file.

    Raises:
        ContractError: epsilon and delta allow nothing at this order, which was fixed for others.
    """
    try:
        return RdpFilter(epsilon=contract.epsilon, delta=contract.delta, order=order)
    except ValueError as error:
        raise ContractError(
            problem=f"epsilon {contract.epsilon:g} at delta {contract.delta:g} leaves room for nothing, because charges are "
            f"added up at Renyi order {order:g}, fixed when the budget was made"
        ) from error


def counted_events(history: History, request: Request | None = None) -> tuple[Event, ...]:
    """All events that count against the contract: the first programme whole, every charge outside of it, the request."""
    first = history.first_programme
    name = None if first is None else first.programme.name
    counted = [] if first is None else list(first.programme.events)
    for charge in history.charges:
        if name is None or charge.programme != name:
            counted.extend(charge.events)
    asked = None if request is None or request.programme is None else request.programme.name
    if request is not None and (name is None or asked != name):
        counted.extend(request.events)
    return tuple(counted)


def dedicated_to(history: History, filter_: RdpFilter) -> Declaration | None:
    """The first programme, if it does not fit the filter and so has the data set for itself."""
    first = history.first_programme
    if first is None or filter_.admits(first.programme.events):
        return None
    return first


def require_admitted(
    history: History,
    request: Request,
    *,
    contract: BudgetContract,
    filter_: RdpFilter,
    epsilon_of: EpsilonOf,
) -> float | None:
    """Raises unless the request may be charged; a programme that is declared by it may be charged as a whole.

    Args:
        history: the file before the request.
        request: a request whose intent was not charged before.
        contract: the site's contract now.
        filter_: of this contract, at the file's order.
        epsilon_of: the accountant; asked only for a first programme that does not fit the filter.

    Returns:
        Epsilon of the whole programme by PLD where that admitted it, else None.

    Raises:
        BudgetExhausted: with the figures.
    """
    programme = request.programme
    if programme is not None:
        _require_within(programme, history, request, contract)
    if programme is not None and not history.entries:
        return _admit_first(programme, request, contract, filter_, epsilon_of)
    first = history.first_programme
    dedicated = dedicated_to(history, filter_)
    if first is not None and programme is not None and programme.name == first.programme.name:
        _require_still_within(first, history, request, contract, filter_)
        return None
    if dedicated is not None:
        raise _refusal(
            contract,
            request,
            f"The data set is dedicated to run {dedicated.programme.name}, which was declared first and takes up the "
            "whole contract.",
        )
    is_new = programme is not None and history.declaration(programme.name) is None
    asked = programme.events if programme is not None and is_new else request.events
    _require_room(history, asked, request, contract, filter_)
    return None


def remaining_events(declaration: Declaration, charges: Sequence[Charge]) -> dict[Event, int]:
    """What is left of a declared programme: of each mechanism, how many steps or releases."""
    left = amounts(declaration.programme.events)
    for charge in charges:
        if charge.programme == declaration.programme.name:
            left.subtract(amounts(charge.events))
    return dict(left)


def amounts(events: Sequence[Event]) -> Counter[Event]:
    """Mechanism to the number of its steps or releases; mechanisms that cost nothing are left out."""
    found: Counter[Event] = Counter()
    for event in merge_events(events):
        found[one_use(event)] += repetitions(event)
    return found


def _require_within(
    programme: Programme, history: History, request: Request, contract: BudgetContract
) -> None:
    """All charges of a programme together are a part of its declaration."""
    left = amounts(programme.events)
    for charge in history.charges:
        if charge.programme == programme.name:
            left.subtract(amounts(charge.events))
    if any(count > left[mechanism] for mechanism, count in amounts(request.events).items()):
        raise _refusal(
            contract,
            request,
            f"It goes beyond what run {programme.name} declared before its first release, attempts charged before "
            "included; what a run may cost is fixed from then on.",
        )


def _admit_first(
    programme: Programme,
    request: Request,
    contract: BudgetContract,
    filter_: RdpFilter,
    epsilon_of: EpsilonOf,
) -> float | None:
    if filter_.admits(programme.events):
        return None
    epsilon = epsilon_of(programme.events, contract.delta)
    if not epsilon <= contract.epsilon:  # a NaN is refused too
        raise _refusal(
            contract,
            request,
            f"Nothing is spent so far; all that run {programme.name} declares: epsilon {epsilon:.4f}.",
        )
    return epsilon


def _require_still_within(
    first: Declaration,
    history: History,
    request: Request,
    contract: BudgetContract,
    filter_: RdpFilter,
) -> None:
    """An attempt of the first programme was paid for with its declaration, unless the contract was lowered since."""
    if filter_.admits(counted_events(history)):
        return
    is_alone = all(charge.programme == first.programme.name for charge in history.charges)
    is_kept = (
        first.epsilon is not None
        and first.epsilon <= contract.epsilon
        and first.terms.delta <= contract.delta
    )
    if not (is_alone and is_kept):
        raise _refusal(
            contract,
            request,
            f"The contract was lowered after run {first.programme.name} was declared, and no longer holds its declaration.",
        )


def _require_room(
    history: History,
    asked: tuple[Event, ...],
    request: Request,
    contract: BudgetContract,
    filter_: RdpFilter,
) -> None:
    counted = counted_events(history)
    after = (*counted, *asked)
    if not filter_.admits(after):
        whole = " and all else that its run declares" if asked != request.events else ""
        raise _refusal(
            contract,
            request,
            f"Spent so far: epsilon {filter_.epsilon_of(counted):.4f}; with this{whole}: epsilon "
            f"{filter_.epsilon_of(after):.4f}, both as the filter of order {filter_.order:g} counts.",
        )


def _refusal(contract: BudgetContract, request: Request, problem: str) -> BudgetExhausted:
    return BudgetExhausted(
        data_set=contract.data_set,
        intent=request.intent,
        problem=problem,
        epsilon=contract.epsilon,
        delta=contract.delta,
        unit=contract.unit,
        adjacency=contract.adjacency,
    )
