"""What an operator asks for: one federated run, written in TOML and fixed when it enters the ledger.

The noise multiplier is not asked for; it is derived once, here, from the epsilon of the whole run, so that what is
recorded, planned and charged at the sites is the same number.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from coordinator.errors import ConfigError
from coordinator.wire.channel import MAX_DEADLINE_SECONDS, MAX_SILENCE_SECONDS
from coordinator.wire.charges import side_events
from coordinator.wire.plan import PrivacyPlan, TrainingPlan, distributed_problem
from model.config import TIERS, ModelConfig
from model.parameters import parameter_count
from model.schema import TableSchema, load_schema
from privacy.dp.accounting import calibrate_noise

MAX_ROUND_SECONDS = MAX_DEADLINE_SECONDS - MAX_SILENCE_SECONDS
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerOptimizerSpec:
    """How the mean of the updates moves the shared model; the implementations are Flower's."""

    name: Literal["fedavg", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = Field(default=0.1, gt=0)
    """Step of FedAdam and FedYogi; FedAvg takes the mean as it is."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    """Added to the root of the second moment (Reddi et al. 2021, Alg. 2)."""
    balance_rate: float = Field(default=0.01, ge=0, le=1)
    """How far a round's released loads move the router's balance; only where loads are released."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SecureSumSpec:
    """How contributions are added."""

    scheme: Literal["mask", "plain"] = "mask"
    update_range: float = Field(default=1.0, gt=0)
    """Largest absolute change of one weight in one round; larger ones are clipped."""
    weight_cap: int = Field(default=100_000, ge=1)
    """Patients at which a site's weight stops growing."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Timing:
    """How long the coordinator waits, in seconds."""

    join_seconds: float = Field(default=60.0, gt=0, le=MAX_ROUND_SECONDS)
    """For the sites that were asked to appear on the exchange."""
    round_seconds: float = Field(default=3600.0, gt=0, le=MAX_ROUND_SECONDS)
    """From asking to the opened sum."""
    silence_seconds: float = Field(default=60.0, gt=0, le=MAX_SILENCE_SECONDS)
    """For a site that fell silent in mid-round; a shorter cut costs nothing but time."""
    online_seconds: float = Field(default=600.0, gt=0)
    """For a quorum of sites to come online before the run is given up."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunSpec:
    """A run, complete: schema and model included, noise derived."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,38}$")
    rounds: int = Field(ge=1, le=10_000)
    spare_attempts: int = Field(default=2, ge=0)
    """Attempts beyond `rounds` that the privacy budget is calibrated for: a failed attempt costs one."""
    sites: int = Field(ge=1, le=64)
    """Sites to wait for before a round starts; a round starts with fewer, from the quorum up, after `join_seconds`."""
    quorum: int = Field(ge=1)
    table: TableSchema
    model: ModelConfig
    training: TrainingPlan
    privacy: PrivacyPlan
    secure_sum: SecureSumSpec = SecureSumSpec()
    server: ServerOptimizerSpec = ServerOptimizerSpec()
    timing: Timing = Timing()
    seed: int | None = None
    """Fixes all random choices of training, for rehearsals without DP."""

    def to_json(self) -> str:
        """The exact text that the ledger keeps."""
        return TypeAdapter(RunSpec).dump_json(self).decode()


def parse_run_spec(text: str) -> RunSpec:
    """A run as the ledger kept it.

    Raises:
        ConfigError: the text is not a run of this version.
    """
    try:
        return TypeAdapter(RunSpec).validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"The run in the ledger does not parse: {_first(error)}") from error


def load_run_spec(path: Path, **changes: Any) -> RunSpec:
    """Reads a run from TOML, derives its noise, and checks it as a whole.

    The file names its schema by a path relative to itself (`schema`) and its model by a tier (`tier`) or a table
    (`model`). `changes` replace top-level tables or keys, for the command line and for rehearsals.

    Raises:
        ConfigError: unreadable, unknown or missing fields, or values that contradict each other.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        raw = _merge(raw, changes)
        raw["table"] = load_schema(path.parent / raw.pop("schema"))
        tier = raw.pop("tier", None)
        if tier is not None:
            raw["model"] = _tier(tier)
        raw["privacy"] = _calibrated(raw)
        spec = TypeAdapter(RunSpec).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}. Correct the file and try again.") from error
    except KeyError as error:
        raise ConfigError(f"{path}: the field {error} is missing. Add it and try again.") from error
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}. Correct the file and try again.") from error
    _require_consistent(spec, path)
    return spec


def _tier(name: str) -> ModelConfig:
    if name not in TIERS:
        raise ValueError(f"tier {name!r} is none of {', '.join(TIERS)}")
    return TIERS[name]


def _calibrated(raw: dict[str, Any]) -> PrivacyPlan:
    """The privacy plan with the noise that makes the whole run cost `epsilon` and no more."""
    if not isinstance(raw["privacy"], dict):
        raise ValueError("Expected privacy to be a table.")
    fields = {"noise_multiplier": 0.0, **raw["privacy"]}
    plan = TypeAdapter(PrivacyPlan).validate_python(fields)
    if not plan.is_private:
        return TypeAdapter(PrivacyPlan).validate_python(
            {**fields, "epsilon": 0.0, "noise_multiplier": 0.0}
        )
    training = TypeAdapter(TrainingPlan).validate_python(raw["training"])
    attempts = int(raw["rounds"]) + int(raw.get("spare_attempts", 2))
    noise = calibrate_noise(
        epsilon=plan.epsilon,
        delta=plan.delta,
        sample_rate=training.sample_rate,
        steps=training.local_steps * attempts,
        others=side_events(plan, attempts),
    )
    return TypeAdapter(PrivacyPlan).validate_python(
        {**fields, "noise_multiplier": _beside_loads(noise, plan.load_noise_multiplier)}
    )


def _beside_loads(noise: float, load_noise: float) -> float:
    """Noise of the gradients with which they and the loads together cost what `noise` alone would.

    The inverse squares of the multipliers add up (`privacy.dp.accounting.joint_noise_multiplier`).
    """
    if load_noise == 0.0:
        return noise
    if load_noise <= noise:
        raise ValueError(
            f"load_noise_multiplier={load_noise} must be above {noise:.4g}, the noise that epsilon asks for: the loads "
            "would take the whole budget. Ten times as much costs half a percent."
        )
    return float((noise**-2 - load_noise**-2) ** -0.5)


def _require_consistent(spec: RunSpec, path: Path) -> None:
    if not 1 <= spec.quorum <= spec.sites:
        raise ConfigError(
            f"{path}: quorum={spec.quorum} must lie between 1 and sites={spec.sites}."
        )
    if spec.secure_sum.scheme == "mask" and spec.quorum < 2:
        raise ConfigError(
            f"{path}: a masked sum of one site hides nothing; quorum={spec.quorum} must be at least 2."
        )
    if spec.privacy.is_private and spec.privacy.count_epsilon <= 0:
        raise ConfigError(
            f"{path}: count_epsilon={spec.privacy.count_epsilon} must be positive: a site's weight in the mean is its "
            f"number of patients, which is never released without noise."
        )
    if spec.privacy.mechanism == "distributed-dp":
        _require_distributable(spec, path)
    if spec.seed is not None and spec.privacy.is_private:
        raise ConfigError(
            f"{path}: seed={spec.seed} with DP would make the noise predictable; remove the seed."
        )


def _require_distributable(spec: RunSpec, path: Path) -> None:
    """The noise of all sites meets in the sum of one step's gradients, and nowhere else."""
    problem = distributed_problem(
        spec.privacy,
        spec.training,
        quorum=spec.quorum,
        sites=spec.sites,
        parameters=parameter_count(spec.model, spec.table),
        update_range=spec.secure_sum.update_range,
    )
    if spec.secure_sum.scheme != "mask":
        problem = f'secure_sum scheme "{spec.secure_sum.scheme}" shows every site\'s share of the noise; use "mask"'
    if problem:
        raise ConfigError(f"{path}: {problem}.")


def _merge(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(raw)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']} (found {str(detail.get('input'))[:80]!r})"
