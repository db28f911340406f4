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
from coordinator.wire.plan import PrivacyPlan, TrainingPlan
from coordinator.wire.records import MAX_SITES
from coordinator.wire.robustness import (
    RobustPlan,
    Rule,
    Tolerance,
    fewest_groups,
    least_group,
    tolerance,
)
from coordinator.wire.shared_noise import SharedNoise, distributed_problem, shared_noise
from model.config import TIERS, ModelConfig
from model.parameters import parameter_count
from model.schema import TableSchema, load_schema
from privacy.dp.accounting import calibrate_noise
from privacy.fixed_point import MODULUS_BITS, FixedPoint
from privacy.secagg.plan import MOST_SITES, Obfuscation, Scheme, SumPlan, smallest_threshold

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

    scheme: Scheme = "mask"
    update_range: float = Field(default=1.0, gt=0)
    """Largest absolute change of one weight in one round; larger ones are clipped."""
    weight_cap: int = Field(default=100_000, ge=1)
    """Patients at which a site's weight stops growing."""
    value_bits: int = Field(default=24, ge=8, le=31)
    """Bits of one site's coordinate, sign included; a sum takes ceil(log2(sites)) more, 32 at most. Fewer are fewer bytes
    and a coarser grid."""
    key_holder: str = ""
    """`paillier`: the site that makes the key and deals it out; every site's policy must trust it."""
    obfuscation: Obfuscation = "djn-half"
    """`paillier`: `subgroup` is faster and rests on one more assumption."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RobustSpec:
    """What a round does about malicious sites."""

    rule: Rule = "mean"
    """How the means of the groups become one."""
    groups: int = Field(default=1, ge=1, le=64)
    """Groups with a secure sum each; an attempt with fewer sites makes fewer, as long as the promise holds."""
    tolerate: int = Field(default=0, ge=0, le=64)
    """Malicious sites that every round must stand; refused if rule and groups cannot."""
    update_norm: float | None = Field(default=None, gt=0)
    """Largest L2 norm of one site's change, kept by the sites' own code; without it only `update_range` bounds a change."""

    @property
    def plan(self) -> RobustPlan:
        """What the sites are told of it."""
        return RobustPlan(rule=self.rule, tolerate=self.tolerate, update_norm=self.update_norm)


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
    sites: int = Field(ge=1, le=MAX_SITES)
    """Sites to wait for before a round starts; a round starts with fewer, from the quorum up, after `join_seconds`."""
    quorum: int = Field(ge=1)
    """Fewest sites over whose vectors a sum may be opened; with several groups, in each of them."""
    table: TableSchema
    model: ModelConfig
    training: TrainingPlan
    privacy: PrivacyPlan
    secure_sum: SecureSumSpec = SecureSumSpec()
    robust: RobustSpec = RobustSpec()
    server: ServerOptimizerSpec = ServerOptimizerSpec()
    timing: Timing = Timing()
    seed: int | None = None
    """Fixes all random choices of training, for rehearsals without DP."""

    @property
    def least_group(self) -> int:
        """Fewest sites in a group."""
        return least_group(self.secure_sum.scheme, self.quorum, groups=self.robust.groups)

    @property
    def most_sites(self) -> int:
        """Sites of the largest cohort that the scheme of the sum, its modulus and the exchange have room for."""
        dealing = MAX_SITES if self.secure_sum.scheme == "mask" else MOST_SITES
        return min(dealing, 1 << (MODULUS_BITS - self.secure_sum.value_bits))

    @property
    def fewest_sites(self) -> int:
        """Sites without which no attempt is made: for the quorum, in as many groups as the promise takes."""
        return fewest_groups(self.robust.rule, self.robust.tolerate) * self.least_group

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
    if spec.secure_sum.scheme != "plain" and spec.quorum < 2:
        raise ConfigError(
            f"{path}: a secure sum of one site hides nothing; quorum={spec.quorum} must be at least 2."
        )
    if (spec.secure_sum.scheme == "paillier") != bool(spec.secure_sum.key_holder):
        raise ConfigError(
            f'{path}: secure_sum.key_holder={spec.secure_sum.key_holder!r} with scheme="{spec.secure_sum.scheme}": name the '
            "site that makes the key with paillier, and none otherwise."
        )
    try:
        _largest_encoding(spec)
    except ValueError as error:
        raise ConfigError(f"{path}: secure_sum: {error}") from error
    if spec.sites > spec.most_sites:
        raise ConfigError(
            f'{path}: secure_sum: scheme="{spec.secure_sum.scheme}" takes at most {spec.most_sites} sites, found '
            f"sites={spec.sites}; only mask takes more than {MOST_SITES}."
        )
    if spec.privacy.is_private and spec.privacy.count_epsilon <= 0:
        raise ConfigError(
            f"{path}: count_epsilon={spec.privacy.count_epsilon} must be positive: a site's weight in the mean is its "
            f"number of patients, which is never released without noise."
        )
    if spec.privacy.mechanism == "distributed-dp":
        _require_distributable(spec, path)
    _require_robust(spec, path)
    if spec.seed is not None and spec.privacy.is_private:
        raise ConfigError(
            f"{path}: seed={spec.seed} with DP would make the noise predictable; remove the seed."
        )


def _require_distributable(spec: RunSpec, path: Path) -> None:
    """The noise of all sites meets in the sum of one step's gradients, and nowhere else."""
    cohorts = range(spec.quorum, spec.sites + 1)
    problem = distributed_problem(
        spec.privacy,
        spec.training,
        scheme=spec.secure_sum.scheme,
        quorum=spec.quorum,
        withstood=min(_withstood(spec, sites) for sites in cohorts),
        encoding=_largest_encoding(spec),
        parameters=parameter_count(spec.model, spec.table),
        update_range=spec.secure_sum.update_range,
    )
    if problem:
        raise ConfigError(f"{path}: {problem}.")


def _withstood(spec: RunSpec, sites: int) -> int:
    """Sites of a cohort of so many that may lie together with the coordinator; all schemes stand as many as `mask`."""
    plan = SumPlan(
        scheme="mask",
        dimension=1,
        max_sites=sites,
        quorum=spec.quorum,
        threshold=smallest_threshold(sites),
        value_range=1.0,
        value_bits=spec.secure_sum.value_bits,
    )
    return plan.withstands(sites)


def _require_robust(spec: RunSpec, path: Path) -> None:
    """Raises unless the promise about malicious sites can be kept."""
    robust, scheme = spec.robust, spec.secure_sum.scheme
    try:
        tolerance_facts(spec)
    except ValueError as error:
        raise ConfigError(f"{path}: robust: {error}.") from error
    if robust.groups * spec.least_group > spec.sites:
        raise ConfigError(
            f"{path}: robust: groups={robust.groups} of at least {spec.least_group} sites each (quorum={spec.quorum}, "
            f'scheme="{scheme}") take {robust.groups * spec.least_group} sites; the run has sites={spec.sites}.'
        )
    if robust.groups > 1 and scheme == "paillier":
        raise ConfigError(
            f'{path}: robust: groups={robust.groups} with scheme="paillier": its key holder can be in one group only. Use mask '
            "or ckks."
        )
    if spec.privacy.mechanism == "distributed-dp" and robust != RobustSpec():
        raise ConfigError(
            f'{path}: robust: mechanism="distributed-dp" takes rule="mean", one group and no update_norm: the noise that makes '
            "it private is whole only in the sum over all sites, and a site's share of it must not be cut."
        )


def tolerance_facts(spec: RunSpec) -> Tolerance:
    """What a round with all sites and all groups stands.

    Raises:
        ValueError: rule and groups cannot keep the promise.
    """
    return tolerance(spec.robust.plan, groups=spec.robust.groups, sites=spec.sites)


def noise_facts(spec: RunSpec) -> SharedNoise | None:
    """What shared noise takes in the largest cohort of the run; None if the run shares none."""
    if spec.privacy.mechanism != "distributed-dp":
        return None
    return shared_noise(
        spec.privacy,
        encoding=_largest_encoding(spec),
        parameters=parameter_count(spec.model, spec.table),
        update_range=spec.secure_sum.update_range,
        sums=spec.rounds + spec.spare_attempts,
    )


def _largest_encoding(spec: RunSpec) -> FixedPoint:
    return FixedPoint(
        value_range=1.0, max_addends=spec.sites, value_bits=spec.secure_sum.value_bits
    )


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
