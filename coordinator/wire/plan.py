"""The plan of one round: everything a site must know, and may refuse, before it touches a record.

A plan travels as exact JSON bytes with the coordinator's Ed25519 signature over them (`SignedPlan`). Nobody
re-serialises a plan to check it: the bytes that were signed are the bytes that are verified and parsed.
"""

from dataclasses import dataclass as plain_dataclass
from datetime import datetime
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from coordinator.wire.robustness import RobustPlan
from model.config import ModelConfig
from model.schema import TableSchema
from privacy.secagg.plan import SumPlan

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
SIGNATURE_LABEL = b"concord/round-plan/v1\0"
MAX_PLAN_BYTES = 1 << 20


class PlanError(ValueError):
    """A plan whose signature or content is not acceptable."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingPlan:
    """How a site trains between two versions of the shared model."""

    local_steps: int
    """Optimiser steps per round, at least 1."""
    sample_rate: float
    """Probability with which each patient joins each step (Poisson sampling), in (0, 1]."""
    learning_rate: float
    optimizer: Literal["sgd", "adam"]
    proximal_mu: float = 0.0
    """Weight of the FedProx term mu/2 * ||w - w_base||^2 (Li et al. 2020, eq. 2); 0 is FedAvg."""
    balance_loss: float = 0.0
    """Weight of each record's own balance loss, which asks its tokens to use all experts; 0 is none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyPlan:
    """The guarantee of the whole run, of which this round is a part. Epsilon is a total, never per round."""

    mechanism: Literal["dp-sgd", "distributed-dp", "none"]
    """`dp-sgd`: every site noises by itself. `distributed-dp`: every site adds a share of the noise, and the secure sum
    holds it all; one step a round. `none`: no differential privacy."""
    epsilon: float
    """Total epsilon of the run at each site, at `delta`; 0 with mechanism `none`."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise on the clipped sum, in units of `clipping_norm`."""
    clipping_norm: float
    """L2 bound of one patient's gradient."""
    count_epsilon: float
    """Pure epsilon spent once per run on the number of training patients (discrete Laplace)."""
    metric_epsilon: float
    """Pure epsilon spent per round on the training loss (discrete Laplace); 0 releases no metric."""
    auc_epsilon: float = 0.0
    """Pure epsilon spent per round on the patients by label and predicted score, for an AUC (discrete Laplace); 0: none."""
    load_noise_multiplier: float = 0.0
    """Noise on the expert loads of every step, in units of one patient's largest share; they ride in the gradients'
    release and cost `noise_multiplier` a little. 0 releases none, and the router is not balanced."""
    honest_sites: int = 1
    """With `distributed-dp`: sites in the sum that are trusted to have added their noise; fewer void the epsilon."""
    colluding_sites: int = 0
    """With `distributed-dp`: sites in the sum that may tell their share of the noise, or add none; the quorum is at least
    `honest_sites` more."""
    unit: Literal["patient", "customer"] = "patient"
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"

    @property
    def is_private(self) -> bool:
        """Whether the plan promises differential privacy at all."""
        return self.mechanism != "none"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundPlan:
    """One attempt at one round."""

    run_id: str
    """Name of the run in the ledger."""
    round: int
    """1 to the number of rounds of the run."""
    attempt: int
    """1, 2, ...; another cohort is another attempt, with new masks and a new charge."""
    rounds_charged: int
    """Attempts over the whole run for which the noise was calibrated: rounds and spares."""
    cohort: tuple[str, ...]
    """Sites asked, sorted."""
    groups: tuple[tuple[str, ...], ...]
    """The cohort, split: a secure sum for each group. Groups and their sites sorted, every site exactly once."""
    quorum: int
    """Fewest sites over whose vectors a sum may be opened."""
    deadline: datetime
    """UTC; work for the round that has not been sealed by then is dropped."""
    silence_seconds: float
    """How long a site may be silent on the exchange before the round goes on without it."""
    base_model: str
    """SHA-256, in hex, of the model file to start from."""
    base_model_bytes: int
    model: ModelConfig
    table: TableSchema
    training: TrainingPlan
    privacy: PrivacyPlan
    secure_sum: SumPlan
    """Of the largest group; `coordinator.wire.groups.group_sum` says what a smaller one's is."""
    update_range: float
    """Largest absolute change of one weight in a round; the sum carries changes in units of it. With `distributed-dp`,
    the largest coordinate of a site's noised gradient sum."""
    weight_cap: int
    """Patients at which a site's weight in the mean stops growing; weights travel in units of it."""
    seed: int | None
    """Fixes every random choice of training, for reproducible rehearsals; a site accepts it only without DP."""
    robust: RobustPlan = RobustPlan()
    """How the groups' means are combined, and what every site's change is held to."""

    @property
    def session_id(self) -> str:
        """Name of the exchange session of this attempt."""
        return session_name(self.run_id, self.round, self.attempt)


def session_name(run_id: str, round_number: int, attempt: int) -> str:
    """Name of the exchange session of an attempt."""
    return f"{run_id}/{round_number}/{attempt}"


@plain_dataclass(frozen=True, kw_only=True)
class SignedPlan:
    """Plan bytes and the coordinator's signature over them."""

    payload: bytes
    signature: bytes


def sign_plan(plan: RoundPlan, key: Ed25519PrivateKey) -> SignedPlan:
    """The plan as canonical bytes, signed by the coordinator."""
    payload = TypeAdapter(RoundPlan).dump_json(plan)
    return SignedPlan(payload=payload, signature=key.sign(SIGNATURE_LABEL + payload))


def verify_plan(signed: SignedPlan, key: Ed25519PublicKey) -> RoundPlan:
    """The plan, if the coordinator signed exactly these bytes and they parse strictly.

    Raises:
        PlanError: too large, signed by another key, altered, or not a plan.
    """
    if len(signed.payload) > MAX_PLAN_BYTES:
        raise PlanError(f"Plan of {len(signed.payload)} bytes exceeds {MAX_PLAN_BYTES}.")
    try:
        key.verify(signed.signature, SIGNATURE_LABEL + signed.payload)
    except InvalidSignature as error:
        raise PlanError(
            "The plan's signature is not the pinned coordinator's: it was altered on the way or sent by "
            "somebody else. Nothing was trained; ask the operator which coordinator you joined."
        ) from error
    try:
        return TypeAdapter(RoundPlan).validate_json(signed.payload, strict=True)
    except ValidationError as error:
        raise PlanError(
            f"The plan does not parse: {error.errors(include_url=False)[:3]}"
        ) from error
