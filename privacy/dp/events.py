"""What an accountant reads: one frozen value for every release that costs privacy.

Neighbouring tables differ by one patient, added or removed; randomised response says itself what that means for a
label. An event is complete: two releases with equal events cost the same. Charges are stored as canonical JSON
through an explicit table of the known kinds; what is not in the table is refused, never skipped.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

MAX_SENSITIVITY = 100_000
"""Finest useful grid of a discrete Laplace release; the accountant's time grows with it (0.01 s at this value)."""
MAX_UNITS = 1 << 40
"""Most patients of one table."""
MAX_COUNT = 1 << 62
"""Most steps or releases in one event."""
MAX_CATEGORIES = 1 << 16
"""Most answers that a randomised response chooses from."""


@dataclass(frozen=True, kw_only=True)
class SubsampledGaussian:
    """`steps` Gaussian sums, each over a Poisson sample of the patients (DP-SGD, Abadi et al. 2016, Alg. 1)."""

    sample_rate: float
    """Probability with which each patient joins a step, in [0, 1]; 1 is the plain Gaussian mechanism."""
    noise_multiplier: float
    """Standard deviation of the noise in units of one patient's largest L2 contribution, > 0."""
    steps: int
    """Sums released, 0 to `MAX_COUNT`."""

    def __post_init__(self) -> None:
        _require_sampled_gaussian(self.sample_rate, self.noise_multiplier, self.steps)


@dataclass(frozen=True, kw_only=True)
class TruncatedSubsampledGaussian:
    """Gaussian sums over Poisson samples of which at most `largest_batch` patients are kept, chosen at random.

    Who is turned away depends on who else was drawn, so one patient can move a full batch by two contributions. Only
    for trainers that cannot split a large sample into micro-batches; those that can release a `SubsampledGaussian`.
    """

    sample_rate: float
    """Probability with which each patient joins a step, in [0, 1]."""
    noise_multiplier: float
    """Standard deviation of the noise in units of one patient's largest L2 contribution, > 0."""
    steps: int
    """Sums released, 0 to `MAX_COUNT`."""
    units: int
    """Patients in the table, 1 to `MAX_UNITS`; treated as public."""
    largest_batch: int
    """Patients kept in a step at most, 1 to `MAX_UNITS`."""

    def __post_init__(self) -> None:
        _require_sampled_gaussian(self.sample_rate, self.noise_multiplier, self.steps)
        for name in ("units", "largest_batch"):
            if not 1 <= getattr(self, name) <= MAX_UNITS:
                raise ValueError(f"Expected {name}={getattr(self, name)} in [1, {MAX_UNITS}].")


@dataclass(frozen=True, kw_only=True)
class DiscreteLaplace:
    """`count` integers, each released with discrete Laplace noise that is epsilon-DP by itself.

    The noise is P(x) ~ exp(-epsilon / sensitivity * |x|) over the integers. With sensitivity 1 it is as bad as a pure
    epsilon-DP release can be (randomised response); with a fine grid it approaches the continuous Laplace mechanism.
    """

    epsilon: float
    """Pure epsilon of one release, >= 0; 0 stands for no release."""
    sensitivity: int = 1
    """Grid steps by which one patient moves the released integer at most, 1 to `MAX_SENSITIVITY`."""
    count: int = 1
    """Releases, 0 to `MAX_COUNT`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon < math.inf:
            raise ValueError(f"Expected epsilon={self.epsilon} >= 0 and finite.")
        if not 1 <= self.sensitivity <= MAX_SENSITIVITY:
            raise ValueError(f"Expected sensitivity={self.sensitivity} in [1, {MAX_SENSITIVITY}].")
        if not 0 <= self.count <= MAX_COUNT:
            raise ValueError(f"Expected count={self.count} in [0, {MAX_COUNT}].")


@dataclass(frozen=True, kw_only=True)
class RandomisedResponse:
    """`count` labels of one patient, each released as one of `categories` answers (Warner 1965; Kairouz et al. 2014).

    The true label is answered with probability e^epsilon / (e^epsilon + categories - 1), every other one with equal
    probability. By itself this is label DP: neighbouring tables have the same patients and differ in the label of
    one, and the list of patients is public. In one figure with other events, where neighbouring tables differ by a
    patient added or removed, the label of the absent patient is taken to be answered uniformly at random. Both pairs
    of answers differ by factors within e^-epsilon and e^epsilon, so an accountant books a pure epsilon-DP release,
    whatever `categories` is.
    """

    epsilon: float
    """Pure epsilon of one label, >= 0; 0 stands for an answer that does not depend on the label."""
    categories: int
    """Answers to choose from, 2 to `MAX_CATEGORIES`."""
    count: int = 1
    """Labels released of one patient, 0 to `MAX_COUNT`. A label that is released once and kept costs once."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon < math.inf:
            raise ValueError(f"Expected epsilon={self.epsilon} >= 0 and finite.")
        if not 2 <= self.categories <= MAX_CATEGORIES:
            raise ValueError(f"Expected categories={self.categories} in [2, {MAX_CATEGORIES}].")
        if not 0 <= self.count <= MAX_COUNT:
            raise ValueError(f"Expected count={self.count} in [0, {MAX_COUNT}].")


Event = SubsampledGaussian | TruncatedSubsampledGaussian | DiscreteLaplace | RandomisedResponse

KINDS: dict[str, type[Event]] = {
    "subsampled-gaussian/v1": SubsampledGaussian,
    "discrete-laplace/v1": DiscreteLaplace,
    "randomised-response/v1": RandomisedResponse,
    "truncated-subsampled-gaussian/v1": TruncatedSubsampledGaussian,
}
INTEGER_FIELDS = frozenset(
    {"steps", "sensitivity", "count", "units", "largest_batch", "categories"}
)


def event_to_json(event: Event) -> str:
    """The event as canonical JSON: sorted keys, no spaces; equal events give equal text."""
    for kind, event_type in KINDS.items():
        if type(event) is event_type:
            content = {"kind": kind} | {
                name: number if name in INTEGER_FIELDS else float(number)
                for name, number in asdict(event).items()
            }
            return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    raise ValueError(
        f"Event of type {type(event).__name__} is unknown to the accountant: {sorted(KINDS)} are known."
    )


def event_from_json(text: str) -> Event:
    """The event that `event_to_json` wrote.

    Raises:
        ValueError: not an object, an unknown kind, a missing or extra field, a wrong type or a value out of range.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"Expected a JSON object as event, found {type(value).__name__}.")
    event_type = KINDS.get(str(value.pop("kind", "")))
    if event_type is None:
        raise ValueError(
            f"Event of an unknown kind: {sorted(KINDS)} are known. A newer Concord may have written it."
        )
    expected = {field.name for field in fields(event_type)}
    if set(value) != expected:
        raise ValueError(
            f"Expected the fields {sorted(expected)} in an event, found {sorted(value)}."
        )
    for name, number in value.items():
        wanted = (int,) if name in INTEGER_FIELDS else (int, float)
        if isinstance(number, bool) or not isinstance(number, wanted):
            raise ValueError(
                f"Expected a number as {name} of an event, found {type(number).__name__}."
            )
    arguments: dict[str, Any] = {
        name: number if name in INTEGER_FIELDS else float(number) for name, number in value.items()
    }
    return event_type(**arguments)


def _require_sampled_gaussian(sample_rate: float, noise_multiplier: float, steps: int) -> None:
    if not 0.0 <= sample_rate <= 1.0:
        raise ValueError(f"Expected sample_rate={sample_rate} in [0, 1].")
    if not 0.0 < noise_multiplier < math.inf:
        raise ValueError(f"Expected noise_multiplier={noise_multiplier} > 0 and finite.")
    if not 0 <= steps <= MAX_COUNT:
        raise ValueError(f"Expected steps={steps} in [0, {MAX_COUNT}].")
