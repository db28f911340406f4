"""What the ledger hands out and takes in: frozen values, never rows of a database.

Times are UTC with time zone. Hashes are SHA-256 in lower-case hex. Bytes and seconds of a participation are those that
the site's end of the exchange counted.
"""

from dataclasses import dataclass
from datetime import datetime

from coordinator.ledger.states import ParticipationState, RoundState, RunState

SURVIVORS_EPSILON = "survivors_epsilon"
"""Metric: epsilon of all sums of a run so far, from the sites that stayed in them; where sites share noise."""
RESERVED_EPSILON = "reserved_epsilon"
"""Metric: epsilon of the same sums as planned."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """An institution that may take part."""

    name: str
    signing_key: str
    """Raw Ed25519 public key, in hex."""
    node_key: str
    """Public key line (OpenSSH) with which the site's Flower node signs in."""
    certificate_sha256: str
    """Fingerprint of the client certificate (SHA-256 of its DER form)."""
    flower_node_id: int | None = None
    """Flower's number for the site's node, once registered."""
    enrolled_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One federated run."""

    run_id: str
    spec: str
    """The request, byte for byte as it was made (JSON)."""
    state: RunState
    rounds: int
    """Rounds asked for."""
    epoch: int
    """How many Flower runs have taken it over; only the newest may write."""
    flower_run_id: int | None
    created_at: datetime
    finished_at: datetime | None
    reason: str | None
    """Why it failed or was cancelled."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one run, until somebody takes the run over with a higher epoch."""

    run_id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a run; its state is that of its last attempt."""

    run_id: str
    number: int
    state: RoundState
    model_sha256: str | None
    committed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class PlannedAttempt:
    """What `plan_attempt` records before anybody is asked."""

    round: int
    attempt: int
    plan: bytes
    """The exact bytes that the coordinator signed."""
    plan_signature: bytes
    cohort: tuple[str, ...]
    quorum: int
    deadline: datetime


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a round with one cohort."""

    run_id: str
    round: int
    attempt: int
    state: RoundState
    epoch: int
    plan_sha256: str
    cohort: tuple[str, ...]
    quorum: int
    opened_at: datetime | None
    deadline: datetime
    closed_at: datetime | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Participation:
    """What came of asking one site in one attempt."""

    site: str
    state: ParticipationState
    detail: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model file, durable on disk before it is named here."""

    sha256: str
    bytes: int
    parent_sha256: str
    """The model that the round started from; must be the last one committed."""
    optimiser_state_sha256: str | None = None
    """File with the server optimiser's state, where the optimiser has one."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """A site's privacy budget after an attempt, as the site reports it."""

    site: str
    epsilon: float
    """Total of the run so far at this site, at `delta`."""
    delta: float
    unit: str
    adjacency: str
    events: str
    """The charged mechanisms, as the JSON that the site sent."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number about a round that was released by a named mechanism."""

    name: str
    value: float
    released_with: str
    """How it was protected, e.g. "secure sum, discrete Laplace"."""


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """All that becomes true when a round commits, or nothing of it."""

    model: NewModel
    participations: tuple[Participation, ...]
    """One for each site of the cohort, each settled: counted, lost or refused."""
    charges: tuple[Charge, ...] = ()
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that an operator should know of."""

    at: datetime
    kind: str
    text: str
    run_id: str | None = None
    round: int | None = None
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A model of a run: round 0 is the model it started from."""

    run_id: str
    round: int
    sha256: str
    bytes: int
    parent_sha256: str | None
    optimiser_state_sha256: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class AttemptParticipation:
    """A participation with the attempt it belongs to."""

    round: int
    attempt: int
    participation: Participation


@dataclass(frozen=True, kw_only=True)
class AttemptCharge:
    """A charge with the attempt it belongs to."""

    round: int
    attempt: int
    recorded_at: datetime
    charge: Charge


@dataclass(frozen=True, kw_only=True)
class RoundMetric:
    """A metric with the round it belongs to."""

    round: int
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """Everything the ledger knows of a run, read in one transaction; each tuple in order of time."""

    run: Run
    rounds: tuple[Round, ...]
    attempts: tuple[Attempt, ...]
    participations: tuple[AttemptParticipation, ...]
    models: tuple[ModelVersion, ...]
    charges: tuple[AttemptCharge, ...]
    metrics: tuple[RoundMetric, ...]
    incidents: tuple[Incident, ...]
