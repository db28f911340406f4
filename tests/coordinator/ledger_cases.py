"""Values that the ledger's tests share: a clock, members, plans, outcomes, and a run that somebody drives."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from coordinator.ledger.records import (
    Charge,
    Lease,
    Metric,
    NewModel,
    Participation,
    PlannedAttempt,
    RoundOutcome,
)
from coordinator.ledger.states import ParticipationState
from coordinator.ledger.store import LedgerStore

SITES = ("cleveland", "hungary", "switzerland", "va")
START_MODEL = hashlib.sha256(b"start").hexdigest()


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, duration: timedelta) -> None:
        """Lets time pass."""
        self.now += duration


def enrol(ledger: LedgerStore, name: str) -> None:
    """A member with keys made from its name."""
    ledger.sites.enrol(
        name=name,
        signing_key=hashlib.sha256(f"sign {name}".encode()).hexdigest(),
        node_key=f"ecdsa-sha2-nistp384 {name}",
        certificate_sha256=hashlib.sha256(f"certificate {name}".encode()).hexdigest(),
    )


def digest(name: str) -> str:
    """A hash to stand for a model."""
    return hashlib.sha256(name.encode()).hexdigest()


def planned(
    round: int = 1, attempt: int = 1, *, quorum: int = 3, cohort: tuple[str, ...] = SITES
) -> PlannedAttempt:
    """A plan for an attempt."""
    return PlannedAttempt(
        round=round,
        attempt=attempt,
        plan=b'{"plan": true}',
        plan_signature=b"\x00signature\xff",
        cohort=cohort,
        quorum=quorum,
        deadline=datetime(2026, 1, 2, 4, tzinfo=UTC),
    )


def charge(site: str, epsilon: float = 0.5) -> Charge:
    """A site's report of its budget."""
    return Charge(
        site=site,
        epsilon=epsilon,
        delta=1e-5,
        unit="patient",
        adjacency="add-or-remove-one",
        events='[{"event": "subsampled-gaussian"}]',
    )


def outcome(
    model: str = "one", *, parent: str = START_MODEL, lost: tuple[str, ...] = ()
) -> RoundOutcome:
    """A round in which everybody counted but those that were lost."""
    return RoundOutcome(
        model=NewModel(sha256=digest(model), bytes=4096, parent_sha256=parent),
        participations=tuple(
            Participation(
                site=site,
                state=ParticipationState.LOST if site in lost else ParticipationState.COUNTED,
                bytes_sent=1000,
                bytes_received=5000,
                seconds=1.5,
            )
            for site in SITES
        ),
        charges=tuple(charge(site) for site in SITES if site not in lost),
        metrics=(
            Metric(name="training_loss", value=0.25, released_with="secure sum, discrete Laplace"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Driving:
    """A run of two rounds that somebody drives, with its four members and its start model."""

    ledger: LedgerStore
    lease: Lease

    def to_open(self, round: int = 1, attempt: int = 1) -> None:
        """Plans and opens an attempt."""
        self.ledger.rounds.plan_attempt(self.lease, planned(round, attempt))
        self.ledger.rounds.open_attempt(self.lease, round=round, attempt=attempt)

    def to_aggregating(self, round: int = 1, attempt: int = 1) -> None:
        """Plans, opens and closes an attempt for contributions."""
        self.to_open(round, attempt)
        self.ledger.rounds.mark_aggregating(self.lease, round=round, attempt=attempt)

    def to_committed(self) -> None:
        """Commits round 1 with model "one"."""
        self.to_aggregating()
        self.ledger.rounds.commit_round(self.lease, outcome(), round=1, attempt=1)

    def to_aborted(self) -> None:
        """Aborts the first attempt at round 1."""
        self.to_open()
        self.ledger.rounds.abort_attempt(self.lease, round=1, attempt=1, reason="too few sealed")
