"""What one site adds to the secure sum of a round, and what the coordinator reads from the sum.

A contribution is one vector: the weighted change of every model weight, then the site's weight, then its training
loss. Everything a mean needs is inside the sum, so the coordinator sees no site's count, loss or change.

    [ w * change / update_range  (P numbers) | w | w * mean loss / LOSS_CAP ]     with w = patients / weight_cap

Every entry lies in [-1, 1], the value range of the sum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXTRA_COORDINATES = 2
BLOCK = 1 << 20
LOSS_CAP = 4.0
"""Largest loss that one patient can contribute; a coin flip costs ln 2 = 0.69."""
LOSS_GRID = 64
"""Steps into which 0 to LOSS_CAP is divided when the loss is released privately: its sensitivity in grid steps."""


@dataclass(frozen=True, kw_only=True)
class MeanContribution:
    """What the sum says once it is divided by the summed weight."""

    change: NDArray[np.float32]
    """Weighted mean change of every model weight [P]."""
    weight: float
    """Summed weight, in units of the plan's `weight_cap` patients."""
    loss: float
    """Mean training loss of the base model; the noise of differential privacy can take it outside 0 to `LOSS_CAP`."""


def pack_contribution(
    *,
    change: NDArray[np.float32],
    patients: float,
    loss_sum: float,
    update_range: float,
    weight_cap: int,
) -> NDArray[np.float32]:
    """The vector that enters the secure sum, clipped to [-1, 1].

    Args:
        change: new weights minus base weights [P].
        patients: number of training patients, as released (noised under differential privacy).
        loss_sum: summed per-patient loss, as released.
        update_range: largest absolute change that is carried; larger ones are clipped.
        weight_cap: patients at which the weight reaches 1.

    Raises:
        ValueError: a change that is not finite: such an update never leaves the site.
    """
    if not np.isfinite(change).all():
        raise ValueError(
            "The update holds NaN or infinity. Training diverged: lower the learning rate. Nothing was sent."
        )
    weight = float(np.clip(patients / weight_cap, 0.0, 1.0))
    vector = np.empty(change.size + EXTRA_COORDINATES, np.float32)
    np.clip(change, -update_range, update_range, out=vector[: change.size])
    vector[: change.size] *= np.float32(weight / update_range)
    vector[-2] = weight
    vector[-1] = np.clip(loss_sum / (LOSS_CAP * weight_cap), -1.0, 1.0)
    return vector


def unpack_sum(
    total: NDArray[np.float64] | NDArray[np.int32], *, update_range: float, step: float = 1.0
) -> MeanContribution:
    """The weighted mean behind a summed contribution.

    Args:
        total: the sum [P + 2], in units of `step`. A vector of int32 is overwritten: the mean takes its memory.
        update_range: as in `pack_contribution`.
        step: what 1 in `total` stands for.

    Raises:
        ValueError: no weight in the sum (noise may make it so when sites are tiny), or numbers that are not finite.
    """
    weight, loss = float(total[-2]) * step, float(total[-1]) * step
    is_finite = total.dtype == np.int32 or bool(np.isfinite(total).all())
    if not is_finite or weight <= 0:
        raise ValueError(
            f"The sum cannot be averaged: summed weight {weight}, all finite: {is_finite}."
        )
    values = total[:-EXTRA_COORDINATES]
    in_place = values.dtype == np.int32
    change = values.view(np.float32) if in_place else np.empty(values.shape, np.float32)
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        change[block] = values[block] * (step * update_range / weight)
    return MeanContribution(change=change, weight=weight, loss=LOSS_CAP * loss / weight)
