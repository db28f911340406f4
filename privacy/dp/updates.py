"""The types that keep the order of a release: what training made, and what privacy it has.

`ModelUpdate` -> `ClippedUpdate` -> `NoisedUpdate` -> `ProtectedUpdate`. With DP-SGD the first three steps happen inside
training: every gradient is clipped and every sum is noised before it reaches the weights, so what training returns is
already a `NoisedUpdate`, and a `ClippedUpdate` exists only as the gradient sum of a step (`privacy.dp.clipping`).
Without privacy training returns a `ModelUpdate`, which only a policy that allows it may let go further. The
`ProtectedUpdate` is made by the release of a site, where an update enters the secure sum.

Values never appear in a repr, so no log can hold them.
"""

from dataclasses import dataclass, field

import numpy as np

from privacy.dp.dpsgd import TrainingSummary
from privacy.dp.events import Event


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelUpdate:
    """Trained weights minus the weights of the round's start, as training made them: private."""

    values: np.ndarray = field(repr=False)
    """float32, one number per parameter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedUpdate:
    """Trained weights minus the weights of the round's start, differentially private at the cost of `events`."""

    values: np.ndarray = field(repr=False)
    """float32, one number per parameter."""
    events: tuple[Event, ...]
    """At least one."""

    def __post_init__(self) -> None:
        if not self.events:
            raise ValueError(
                "Expected events of a noised update, got none: it was trained without privacy."
            )


def update_of(
    *, start: np.ndarray, trained: np.ndarray, summary: TrainingSummary
) -> ModelUpdate | NoisedUpdate:
    """What training changed, of the type that its summary vouches for.

    Raises:
        ValueError: the vectors are not flat float32 of one length, or the change is not finite.
    """
    for name, vector in (("start", start), ("trained", trained)):
        if vector.dtype != np.float32 or vector.shape != (start.size,):
            raise ValueError(
                f"Expected {name} as float32 [{start.size}], got {vector.dtype} {vector.shape}."
            )
    values = trained - start
    if not np.isfinite(values).all():
        raise ValueError(
            "Training diverged: the update holds numbers that are not finite. Nothing was released; "
            "ask for a smaller learning rate."
        )
    values.flags.writeable = False
    if summary.events:
        return NoisedUpdate(values=values, events=summary.events)
    return ModelUpdate(values=values)
