"""The privacy budget of one data set: a file at the site that only grows and that no coordinator can write.

1. `reserve` charges a release BEFORE a record is touched, durably. A crash after it wastes the charge, never the truth.
2. A charge is never refunded. A charge made already is found again by its intent and costs nothing more; it pays for
   ONE release, so whoever finds it sends the bytes stored in the outbox, and computes only where there are none.
3. All jobs and processes on the data set share the file. The total of everything ever charged, by the accountant's
   privacy loss distributions, stays within the contract (`participant.config.BudgetContract`), or the charge is refused.
4. A budget that is missing, damaged or rolled back is an error, never a fresh and empty budget.

Whoever may write the site folder can still delete both files on purpose; that is the institution's own act.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from participant.budget_file import (
    Charge,
    Identity,
    append_charge,
    budget_transaction,
    create_budget_file,
    read_charges,
    read_mark,
    write_mark,
)
from participant.config import BudgetContract
from participant.errors import BudgetError, BudgetExhausted
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import Event

MAX_INTENT_CHARACTERS = 500

EpsilonOf = Callable[[Sequence[Event], float], float]


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a data set has spent: one statement, never an epsilon alone."""

    data_set: str
    epsilon: float
    contract_epsilon: float
    delta: float
    unit: str
    adjacency: str
    charges: int


class SiteBudget:
    """The budget of one data set. Holds no connection: use it from any thread or process."""

    def __init__(
        self, path: Path, contract: BudgetContract, *, epsilon_of: EpsilonOf = epsilon_spent
    ) -> None:
        """Opens a budget that exists.

        Raises:
            BudgetError: missing, damaged, newer, rolled back, or of another data set.
        """
        self.path = path
        self.contract = contract
        self._epsilon_of = epsilon_of
        self._identity = _identity(contract)
        self.charges()

    @staticmethod
    def create(path: Path, contract: BudgetContract) -> None:
        """Makes the empty budget of a new data set; done once, when a site joins.

        Raises:
            BudgetError: there is one already, or there was one.
            DiskFullError: no room; nothing was made.
        """
        create_budget_file(path, _identity(contract))

    def reserve(self, intent: str, events: Sequence[Event]) -> Charge:
        """Charges `events` to the data set, durably, before any record is touched.

        With an intent that was charged before, returns that charge and adds nothing.

        Args:
            intent: what is released, for instance "<run>/<round>/<attempt>"; names one release and no other.
            events: what that release costs.

        Raises:
            BudgetExhausted: the total would exceed the contract; nothing was charged.
            BudgetError: the intent was charged with other events, or the file cannot be trusted.
            DiskFullError: no room; nothing was charged, or the charge stands and the same call will find it.
            ValueError: no events, or one that the accountant does not know.
        """
        asked = tuple(events)
        if not 1 <= len(intent) <= MAX_INTENT_CHARACTERS:
            raise ValueError(
                f"Expected intent of 1 to {MAX_INTENT_CHARACTERS} characters, got {len(intent)}."
            )
        if not asked:
            raise ValueError(f"Expected events to charge for {intent}, got none.")
        with budget_transaction(self.path, self._identity) as connection:
            charges = read_charges(self.path, connection)
            charge = self._find(charges, intent, asked)
            if charge is None:
                charge = append_charge(
                    connection,
                    charges[-1] if charges else None,
                    intent=intent,
                    events=asked,
                    epsilon_after=self._require_room(charges, intent, asked),
                    delta=self.contract.delta,
                    contract_epsilon=self.contract.epsilon,
                )
        self._raise_mark(charge)
        return charge

    def charges(self) -> tuple[Charge, ...]:
        """Everything charged so far, verified, oldest first.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        with budget_transaction(self.path, self._identity) as connection:
            return read_charges(self.path, connection)

    def spent(self) -> Spending:
        """The total so far, with what it is measured in.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        charges = self.charges()
        return Spending(
            data_set=self.contract.data_set,
            epsilon=self._epsilon_of(_events(charges), self.contract.delta),
            contract_epsilon=self.contract.epsilon,
            delta=self.contract.delta,
            unit=self.contract.unit,
            adjacency=self.contract.adjacency,
            charges=len(charges),
        )

    def _find(
        self, charges: tuple[Charge, ...], intent: str, asked: tuple[Event, ...]
    ) -> Charge | None:
        for charge in charges:
            if charge.intent == intent:
                if charge.events != asked:
                    raise BudgetError(
                        path=self.path,
                        problem=f"{intent} was charged before, for other events. Nothing was charged; another release "
                        "is another attempt.",
                    )
                return charge
        return None

    def _require_room(
        self, charges: tuple[Charge, ...], intent: str, asked: tuple[Event, ...]
    ) -> float:
        """Total epsilon with the events asked, if the contract has room for it."""
        after = self._epsilon_of((*_events(charges), *asked), self.contract.delta)
        if not after <= self.contract.epsilon:  # a NaN is refused too
            raise BudgetExhausted(
                data_set=self.contract.data_set,
                intent=intent,
                spent=self._epsilon_of(_events(charges), self.contract.delta),
                after=after,
                epsilon=self.contract.epsilon,
                delta=self.contract.delta,
                unit=self.contract.unit,
                adjacency=self.contract.adjacency,
            )
        return after

    def _raise_mark(self, charge: Charge) -> None:
        """Moves the high-water mark up to a committed charge, never down."""
        mark = read_mark(self.path)
        if mark is None or mark[0] < charge.number:
            write_mark(self.path, (charge.number, charge.chain))


def _events(charges: tuple[Charge, ...]) -> tuple[Event, ...]:
    return tuple(event for charge in charges for event in charge.events)


def _identity(contract: BudgetContract) -> Identity:
    return Identity(data_set=contract.data_set, unit=contract.unit, adjacency=contract.adjacency)
