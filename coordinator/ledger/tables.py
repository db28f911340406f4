"""The tables of the ledger. A change here comes with a migration in `migrations/versions`; a test compares the two.

sites, invitations                       who may take part
runs -> rounds -> attempts               what was asked for and how far it came
attempts -> participations -> budget_charges      what each site did and what it cost its patients' budget
model_versions, metrics                  what came out
incidents                                what went wrong

Types are those that SQLite and PostgreSQL share. Plans are kept as the signed bytes, never re-serialised.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from coordinator.ledger.states import ParticipationState, RoundState, RunState

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
"""A migration can only alter a constraint that has a name."""

SITE_NAME = String(40)
RUN_ID = String(64)
SHA256 = String(64)
MAX_WORDS = 2000


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. A time without a zone is refused on the way in; every time has one on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuses what could be read as two moments."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"Expected a time with a time zone, got {value!r}.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite returns what was stored without its zone, which is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FlowerId(TypeDecorator[int]):
    """Flower's numbers are unsigned 64-bit and do not fit a database's signed one: kept as decimal text."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        """Decimal digits."""
        if value is None:
            return None
        if not 0 <= value < 1 << 64:
            raise ValueError(f"Expected 0 <= Flower id={value} < 2^64.")
        return str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        """The number again."""
        return None if value is None else int(value)


class Words(TypeDecorator[str]):
    """Text for a reader, part of which may come from a site: cut, and without control characters.

    Those could steer the operator's terminal, and PostgreSQL refuses a NUL.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What can be printed, up to MAX_WORDS characters."""
        if value is None:
            return None
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in value[:MAX_WORDS])

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """As it was stored."""
        return value


class State(TypeDecorator[StrEnum]):
    """A state by its word; the CHECK of the table refuses any other."""

    impl = String(16)
    cache_ok = True

    def __init__(self, states: type[StrEnum]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        """Only words that are states."""
        return None if value is None else self.states(value).value

    def process_result_value(self, value: Any, dialect: Dialect) -> StrEnum | None:
        """The state again."""
        return None if value is None else self.states(value)


def _only(states: type[StrEnum]) -> CheckConstraint:
    words = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"state IN ({words})", name="state")


class Table(DeclarativeBase):
    """Root of the typed tables."""

    metadata = MetaData(naming_convention=NAMES)


class SiteRow(Table):
    """An enrolled institution; a revoked one stays, since its participations do."""

    __tablename__ = "sites"
    __table_args__ = (
        UniqueConstraint("signing_key"),  # no two sites can sign as one another
        UniqueConstraint("node_key"),  # Flower tells its nodes apart by this key
        UniqueConstraint("certificate_sha256"),  # the gateway finds a site by its certificate
        UniqueConstraint("flower_node_id"),  # one Flower node is one site
    )

    name: Mapped[str] = mapped_column(SITE_NAME, primary_key=True)
    signing_key: Mapped[str] = mapped_column(String(64))
    node_key: Mapped[str] = mapped_column(String(512))
    certificate_sha256: Mapped[str] = mapped_column(SHA256)
    flower_node_id: Mapped[int | None] = mapped_column(FlowerId)
    enrolled_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class InvitationRow(Table):
    """A right to enrol once. The token itself is nowhere in the ledger."""

    __tablename__ = "invitations"
    __table_args__ = (
        UniqueConstraint("token_sha256"),  # redeemed by this, so it must name one invitation
        Index(None, "site"),  # a new invitation ends the open ones of its site
        CheckConstraint("length(token_sha256) = 64", name="token_is_hashed"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    # No foreign key: a site is invited before it is enrolled.
    site: Mapped[str] = mapped_column(SITE_NAME)
    token_sha256: Mapped[str] = mapped_column(SHA256)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RunRow(Table):
    """One federated run."""

    __tablename__ = "runs"
    __table_args__ = (
        _only(RunState),
        CheckConstraint("rounds >= 1 AND epoch >= 0", name="counts"),
        # An ended run has an end, a live one has none.
        CheckConstraint("(finished_at IS NULL) = (state IN ('requested', 'running'))", name="end"),
        Index(None, "state", "created_at"),  # the supervisor looks for runs to drive, oldest first
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, primary_key=True)
    spec: Mapped[str] = mapped_column(Text)
    state: Mapped[RunState] = mapped_column(State(RunState))
    rounds: Mapped[int]
    epoch: Mapped[int]
    flower_run_id: Mapped[int | None] = mapped_column(FlowerId)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    reason: Mapped[str | None] = mapped_column(Words)


class ModelVersionRow(Table):
    """A model of a run. Two runs, or two rounds, may well arrive at the same bytes: the hash is no key."""

    __tablename__ = "model_versions"
    __table_args__ = (
        CheckConstraint("round >= 0 AND bytes >= 1", name="counts"),
        # Target of the foreign key by which a committed round names its model.
        UniqueConstraint("run_id", "round", "sha256"),
        Index(None, "sha256"),  # which runs produced this file
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, ForeignKey("runs.run_id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(SHA256)
    bytes: Mapped[int] = mapped_column(BigInteger)
    parent_sha256: Mapped[str | None] = mapped_column(SHA256)
    optimiser_state_sha256: Mapped[str | None] = mapped_column(SHA256)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class RoundRow(Table):
    """One round of a run."""

    __tablename__ = "rounds"
    __table_args__ = (
        _only(RoundState),
        CheckConstraint("number >= 1", name="number"),
        # Commit last: a round is committed exactly when it names its model, and that model must be recorded.
        CheckConstraint("(state = 'committed') = (model_sha256 IS NOT NULL)", name="model"),
        CheckConstraint("(state = 'committed') = (committed_at IS NOT NULL)", name="time"),
        ForeignKeyConstraint(
            ["run_id", "number", "model_sha256"],
            ["model_versions.run_id", "model_versions.round", "model_versions.sha256"],
            name="fk_rounds_model",
        ),
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, ForeignKey("runs.run_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[RoundState] = mapped_column(State(RoundState))
    model_sha256: Mapped[str | None] = mapped_column(SHA256)
    committed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AttemptRow(Table):
    """One attempt at a round."""

    __tablename__ = "attempts"
    __table_args__ = (
        _only(RoundState),
        CheckConstraint("attempt >= 1 AND quorum >= 1 AND epoch >= 1", name="counts"),
        CheckConstraint(
            "(closed_at IS NULL) = (state IN ('planned', 'open', 'aggregating'))", name="end"
        ),
        ForeignKeyConstraint(
            ["run_id", "round"], ["rounds.run_id", "rounds.number"], name="fk_attempts_round"
        ),
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[RoundState] = mapped_column(State(RoundState))
    epoch: Mapped[int]
    plan: Mapped[bytes] = mapped_column(LargeBinary)
    plan_signature: Mapped[bytes] = mapped_column(LargeBinary)
    plan_sha256: Mapped[str] = mapped_column(SHA256)
    cohort: Mapped[str] = mapped_column(Text)
    """JSON list of site names, sorted."""
    quorum: Mapped[int]
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deadline: Mapped[datetime] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    reason: Mapped[str | None] = mapped_column(Words)


class ParticipationRow(Table):
    """One site in one attempt. No loss, no norm, no count of records: those would be releases outside the budget."""

    __tablename__ = "participations"
    __table_args__ = (
        _only(ParticipationState),
        CheckConstraint("bytes_sent >= 0 AND bytes_received >= 0 AND seconds >= 0", name="counts"),
        ForeignKeyConstraint(
            ["run_id", "round", "attempt"],
            ["attempts.run_id", "attempts.round", "attempts.attempt"],
            name="fk_participations_attempt",
        ),
        Index(None, "site"),  # what a site took part in, and the foreign key to it
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(SITE_NAME, ForeignKey("sites.name"), primary_key=True)
    state: Mapped[ParticipationState] = mapped_column(State(ParticipationState))
    detail: Mapped[str] = mapped_column(Words)
    bytes_sent: Mapped[int] = mapped_column(BigInteger)
    bytes_received: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class ChargeRow(Table):
    """Budget spent at a site, as the site reports it; the truth is the site's own file. One per participation."""

    __tablename__ = "budget_charges"
    __table_args__ = (
        CheckConstraint("epsilon >= 0 AND delta >= 0 AND delta < 1", name="range"),
        # Only a site that was asked can have been charged.
        ForeignKeyConstraint(
            ["run_id", "round", "attempt", "site"],
            [
                "participations.run_id",
                "participations.round",
                "participations.attempt",
                "participations.site",
            ],
            name="fk_budget_charges_participation",
        ),
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(SITE_NAME, primary_key=True)
    epsilon: Mapped[float]
    delta: Mapped[float]
    unit: Mapped[str] = mapped_column(String(40))
    adjacency: Mapped[str] = mapped_column(String(40))
    events: Mapped[str] = mapped_column(Text)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class MetricRow(Table):
    """A released number about a committed round."""

    __tablename__ = "metrics"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "round"], ["rounds.run_id", "rounds.number"], name="fk_metrics_round"
        ),
    )

    run_id: Mapped[str] = mapped_column(RUN_ID, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    value: Mapped[float]
    released_with: Mapped[str] = mapped_column(Text)


class IncidentRow(Table):
    """Something an operator should know of. No foreign keys: it may speak of a site or run that does not exist."""

    __tablename__ = "incidents"
    __table_args__ = (Index(None, "run_id"),)  # a run's page shows its incidents

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    run_id: Mapped[str | None] = mapped_column(RUN_ID)
    round: Mapped[int | None]
    site: Mapped[str | None] = mapped_column(SITE_NAME)
    kind: Mapped[str] = mapped_column(String(80))
    text: Mapped[str] = mapped_column(Words)
