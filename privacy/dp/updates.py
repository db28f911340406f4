"""The types that keep the order of a release: what training made, and what privacy it has.

With DP-SGD clipping and noise happen inside training: every gradient is clipped and every sum is noised before it
reaches the weights, so what training returns is already a `NoisedUpdate`. So is a gradient sum with this site's share of
distributed noise. Without privacy training returns a `ModelUpdate`, which the release of a site lets go further only
where the site's policy allows it. There the update becomes one vector of a secure sum, which seals it.

Values never appear in a repr, so no log can hold them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy.dp.dpsgd import TrainingSummary
from privacy.dp.events import Event


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelUpdate:
    """Trained weights minus the weights of the round's start, as training made them: private."""

    values: NDArray[np.float32] = field(repr=False)
    """One number per parameter."""
    statistics: NDArray[np.float32] | None = field(default=None, repr=False)
    """Expert loads summed over patients and steps [S], exact; None if none were asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedUpdate:
    """What training changed, differentially private at the cost of `events`."""

    values: NDArray[np.float32] = field(repr=False)
    """One number per parameter: trained weights minus the weights of the round's start, or a noised gradient sum."""
    events: tuple[Event, ...]
    """At least one."""
    statistics: NDArray[np.float32] | None = field(default=None, repr=False)
    """Expert loads summed over patients and steps [S], noised; None if none were asked for."""

    def __post_init__(self) -> None:
        if not self.events:
            raise ValueError(
                "Expected events of a noised update, got none: it was trained without privacy."
            )


def update_of(
    *, start: NDArray[np.float32], trained: NDArray[np.float32], summary: TrainingSummary
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
    statistics = None if summary.statistics is None else summary.statistics.numpy()
    if summary.events:
        return NoisedUpdate(values=values, events=summary.events, statistics=statistics)
    return ModelUpdate(values=values, statistics=statistics)
