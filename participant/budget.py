"""The privacy budget of one data set: a file at the site that only grows and that no coordinator can write.

1. `reserve` charges a release BEFORE a record is touched, durably. A crash after it wastes the charge, never the truth.
2. `spend` records the digest of the bytes BEFORE they leave, under their charge. Other bytes under it are refused.
3. A charge is never refunded, spent or not. A charge made already is found again by its intent and costs nothing more;
   it pays for ONE release, so whoever finds it sends the bytes stored in the outbox, and computes only where there are
   none.
4. All jobs and processes on the data set share the file. What is admitted: `participant.budget_admission`. What is
   stored: `participant.budget_entries` and `participant.budget_file`.
5. A budget that is missing, damaged or rolled back is an error, never a fresh and empty budget. So is a clock that was
   set back, because times say in which order and under which contract things happened.

Whoever may write the site folder can still delete both files on purpose; that is the institution's own act.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import Connection

from participant.budget_admission import (
    EpsilonOf,
    Request,
    amounts,
    contract_filter,
    counted_events,
    require_admitted,
)
from participant.budget_entries import (
    CHARGE,
    CLOCK,
    MAX_NAME_CHARACTERS,
    PROGRAMME,
    RELEASE,
    Charge,
    History,
    Identity,
    Release,
    charge_content,
    contract_terms,
    programme_content,
    release_content,
)
from participant.budget_entries import Programme as Programme
from participant.budget_file import (
    append_entry,
    budget_transaction,
    create_budget_file,
    raise_mark,
    read_history,
)
from participant.budget_mark import Mark
from participant.budget_spending import Spending, finite, spending
from participant.config import BudgetContract
from participant.errors import BudgetError, ContractError
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import Event
from privacy.dp.filter import RdpFilter, default_order

CLOCK_TOLERANCE = timedelta(minutes=5)
"""By how much the clock may be set back, as time servers do; the entry then bears the time of the one before."""
SHA256 = re.compile(r"[0-9a-f]{64}")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class SiteBudget:
    """The budget of one data set. Holds no connection: use it from any thread or process."""

    def __init__(
        self,
        path: Path,
        contract: BudgetContract,
        *,
        epsilon_of: EpsilonOf = epsilon_spent,
        clock: Clock = utc_now,
    ) -> None:
        """Opens a budget that exists.

        Raises:
            BudgetError: missing, damaged, of another version, rolled back, or of another data set, unit or order.
        """
        self.path = path
        self.contract = contract
        self._epsilon_of, self._clock = epsilon_of, clock
        self.history()

    @staticmethod
    def create(path: Path, contract: BudgetContract) -> None:
        """Makes the empty budget of a new data set, its Renyi order fixed; done once, when a site joins.

        Raises:
            BudgetError: there is one already, there was one, or nothing could ever be charged at the contract's order.
            DiskFullError: no room; nothing was made.
        """
        order = contract.rdp_order
        try:
            if order is None:
                order = default_order(contract.epsilon, contract.delta)
            RdpFilter(epsilon=contract.epsilon, delta=contract.delta, order=order)
        except ValueError as error:
            raise BudgetError(path=path, problem=f"was not made: {error}") from error
        identity = Identity(
            data_set=contract.data_set,
            unit=contract.unit,
            adjacency=contract.adjacency,
            rdp_order=order,
        )
        create_budget_file(path, identity)

    def reserve(
        self, intent: str, events: Sequence[Event], *, programme: Programme | None = None
    ) -> Charge:
        """Charges `events` to the data set, durably, before any record is touched.

        With an intent that was charged before, returns that charge and adds nothing.

        Args:
            intent: what is released, for instance "<run>/<round>/<attempt>"; names one release and no other.
            events: what that release costs.
            programme: the run that the release belongs to, the same at every call; it is declared with its first charge.

        Raises:
            BudgetExhausted: the contract has no room for it, or the programme does not contain it; nothing was charged.
            ContractError: the contract has ended; nothing was charged.
            BudgetError: the intent was charged with other events, the programme was declared with other events, the clock
                was set back, or the file cannot be trusted; nothing was charged.
            DiskFullError: no room; nothing was charged, or the charge stands and the same call will find it.
            ValueError: no events, or one that the accountant does not know.
        """
        request = Request(intent=intent, events=tuple(events), programme=programme)
        _require_name(intent)
        if programme is not None:
            _require_name(programme.name)
        if not request.events:
            raise ValueError(f"Expected events to charge for {intent}, got none.")
        with budget_transaction(self.path) as connection:
            history = self._read(connection)
            charge = self._find(history, request)
            if charge is None:
                history = self._charge(connection, history, request)
        self._raise_mark(history)
        return charge or history.charges[-1]

    def spend(self, intent: str, *, sha256: str) -> None:
        """Records, durably, that bytes of this digest leave under the charge of `intent`; call it before they do.

        The same digest again changes nothing.

        Args:
            intent: as it was reserved.
            sha256: digest in hex of exactly the bytes that leave.

        Raises:
            BudgetError: nothing was charged under this intent, other bytes left under it, the clock was set back, or the
                file cannot be trusted; nothing may leave.
            DiskFullError: no room; nothing may leave until the same call succeeds.
            ValueError: `sha256` is no digest.
        """
        if not SHA256.fullmatch(sha256):
            raise ValueError(
                f"Expected sha256 of 64 hexadecimal digits, got {len(sha256)} characters."
            )
        with budget_transaction(self.path) as connection:
            history = self._read(connection)
            if self._find_release(history, intent, sha256) is None:
                history = append_entry(
                    connection,
                    history,
                    kind=RELEASE,
                    name=intent,
                    content=release_content(sha256),
                    at=self._time(history),
                )
        self._raise_mark(history)

    def accept_clock(self) -> datetime:
        """Records that the administrator vouches for the clock, after an entry was made under a clock that ran ahead.

        Raises:
            BudgetError: nothing to accept: the clock is not behind the last entry; or the file cannot be trusted.
        """
        with budget_transaction(self.path) as connection:
            history = self._read(connection)
            now = self._clock()
            if not history.rows or now >= history.rows[-1].at - CLOCK_TOLERANCE:
                raise BudgetError(
                    path=self.path,
                    problem="the clock agrees with the last entry; there is nothing to accept.",
                )
            number = len(history.rows) + 1
            history = append_entry(
                connection, history, kind=CLOCK, name=str(number), content="{}", at=now
            )
        self._raise_mark(history)
        return now

    def history(self) -> History:
        """Everything in the file, verified.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        with budget_transaction(self.path) as connection:
            return self._read(connection)

    def charges(self) -> tuple[Charge, ...]:
        """Everything charged so far, verified, oldest first.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        return self.history().charges

    def releases(self) -> tuple[Release, ...]:
        """Everything that left so far, verified, oldest first.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        return self.history().releases

    def spent(self) -> Spending:
        """The total so far, with what it is measured in.

        Raises:
            BudgetError: the file cannot be trusted.
        """
        return spending(self.history(), self.contract, epsilon_of=self._epsilon_of)

    def _read(self, connection: Connection) -> History:
        history = read_history(self.path, connection)
        found, contract = history.identity, self.contract
        wanted = Identity(
            data_set=contract.data_set,
            unit=contract.unit,
            adjacency=contract.adjacency,
            rdp_order=found.rdp_order if contract.rdp_order is None else contract.rdp_order,
        )
        if found != wanted:
            raise BudgetError(
                path=self.path,
                problem=f"belongs to {found}; site.toml says {wanted}. Name the right data set; unit, adjacency and order "
                "were fixed when the file was made.",
            )
        return history

    def _find(self, history: History, request: Request) -> Charge | None:
        """The charge that was made for the request before; a declared programme must be the same one."""
        programme = request.programme
        declared = None if programme is None else history.declaration(programme.name)
        if (
            programme is not None
            and declared is not None
            and amounts(declared.programme.events) != amounts(programme.events)
        ):
            raise BudgetError(
                path=self.path,
                problem=f"run {programme.name} was declared before, with other events: a plan's parameters are fixed "
                "before the first release. Nothing was charged; other parameters are another run.",
            )
        charge = history.charge(request.intent)
        if charge is None:
            return None
        name = None if programme is None else programme.name
        if charge.events != request.events or charge.programme != name:
            raise BudgetError(
                path=self.path,
                problem=f"{request.intent} was charged before, for other events. Nothing was charged; another release is "
                "another attempt.",
            )
        return charge

    def _charge(self, connection: Connection, history: History, request: Request) -> History:
        """Admits the request and writes it, its programme first where that is new."""
        at, programme = self._time(history), request.programme
        self._require_valid(at)
        filter_ = contract_filter(self.contract, history.identity.rdp_order)
        epsilon = require_admitted(
            history, request, contract=self.contract, filter_=filter_, epsilon_of=self._epsilon_of
        )
        terms = contract_terms(self.contract)
        if programme is not None and history.declaration(programme.name) is None:
            history = append_entry(
                connection,
                history,
                kind=PROGRAMME,
                name=programme.name,
                content=programme_content(programme.events, epsilon=epsilon, terms=terms),
                at=at,
            )
        content = charge_content(
            request.events,
            programme=None if programme is None else programme.name,
            rdp_after=finite(filter_.cost(counted_events(history, request))),
            terms=terms,
        )
        return append_entry(
            connection, history, kind=CHARGE, name=request.intent, content=content, at=at
        )

    def _find_release(self, history: History, intent: str, sha256: str) -> Release | None:
        if history.charge(intent) is None:
            raise BudgetError(
                path=self.path, problem=f"nothing was charged for {intent}, so nothing may leave."
            )
        release = history.release(intent)
        if release is not None and release.sha256 != sha256:
            raise BudgetError(
                path=self.path,
                problem=f"other bytes left under {intent} before; a charge pays for one release. Nothing may leave: send "
                "what is stored, or ask the coordinator for another attempt.",
            )
        return release

    def _time(self, history: History) -> datetime:
        """The time of the next entry, never before the last one."""
        now = self._clock()
        if not history.rows:
            return now
        last = history.rows[-1].at
        if now < last - CLOCK_TOLERANCE:
            raise BudgetError(
                path=self.path,
                problem=f"the clock says {now:%Y-%m-%d %H:%M} UTC, but the last entry was made at {last:%Y-%m-%d %H:%M}: the "
                "clock was set back. Nothing was written. Set it right; if the last entry was made under a wrong clock, "
                'vouch for the present one with "participant budget accept-clock".',
            )
        return max(now, last)

    def _raise_mark(self, history: History) -> None:
        raise_mark(self.path, Mark(number=len(history.rows), chain=history.head))

    def _require_valid(self, at: datetime) -> None:
        until = self.contract.valid_until
        if until is not None and at.astimezone(UTC).date() > until:
            raise ContractError(
                problem=f'it was valid until {until.isoformat()} for data set "{self.contract.data_set}". Whoever answers '
                "for the records may extend it in site.toml"
            )


def _require_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(
            f"Expected a name of 1 to {MAX_NAME_CHARACTERS} characters, got {len(name)}."
        )
