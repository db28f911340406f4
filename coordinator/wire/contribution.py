"""What one site adds to the secure sum of a round, and what the coordinator reads from the sum.

A contribution is one vector. Everything that the coordinator needs is inside the sum, so it sees no site's count, loss,
scores, loads or change.

    [ w * change / update_range  (P numbers) | patients by label and score | expert loads | w | w * mean loss / LOSS_CAP ]

with w = patients / weight_cap. Counts and loads are there if the plan releases them, in units of `weight_cap` patients
and of `weight_cap` patients per step. Under distributed noise the first P numbers are the site's noised gradient sum in
units of `update_range`; no weight is multiplied in, since the sum over the sites is already the sum over all patients.

Every entry lies in [-1, 1], the value range of the sum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.wire.plan import PrivacyPlan, RoundPlan
from model.config import ModelConfig
from model.parameters import parameter_count
from model.schema import TableSchema

BLOCK = 1 << 20
LOSS_CAP = 4.0
"""Largest loss that one patient can contribute; a coin flip costs ln 2 = 0.69."""
LOSS_GRID = 64
"""Steps into which 0 to LOSS_CAP is divided when the loss is released privately: its sensitivity in grid steps."""
SCORE_BINS = 20
"""Bins of equal width for the predicted probability, per label, when an AUC is released."""
LABELS = 2


@dataclass(frozen=True, kw_only=True)
class ContributionLayout:
    """Where things stand in the vector."""

    parameters: int
    """Numbers of the model [P]."""
    counts: int
    """Patients by label and score bin, negatives first; 0 if no AUC is released."""
    loads: int
    """Expert loads, block by block; 0 if none are released."""

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self.parameters + self.counts + self.loads + 2


@dataclass(frozen=True, kw_only=True)
class MeanContribution:
    """What the sum says once it is divided by the summed weight."""

    change: NDArray[np.float32]
    """Weighted mean change of every model weight [P]."""
    weight: float
    """Summed weight, in units of the plan's `weight_cap` patients."""
    loss: float
    """Mean training loss of the base model; the noise of differential privacy can take it outside 0 to `LOSS_CAP`."""
    counts: NDArray[np.float64] | None
    """Patients by label and score bin [2, SCORE_BINS] of the base model, noised; None if not released."""
    loads: NDArray[np.float64] | None
    """Summed expert loads of all steps and sites, noised, up to a common factor; None if not released."""


def contribution_layout(
    model: ModelConfig, table: TableSchema, privacy: PrivacyPlan
) -> ContributionLayout:
    """The layout that a plan implies; every party derives it alike.

    Raises:
        ValueError: a model that is too large.
    """
    return ContributionLayout(
        parameters=parameter_count(model, table),
        counts=LABELS * SCORE_BINS if privacy.auc_epsilon > 0 else 0,
        loads=model.layers * model.experts if privacy.load_noise_multiplier > 0 else 0,
    )


def pack_contribution(
    plan: RoundPlan,
    *,
    change: NDArray[np.float32],
    patients: float,
    loss_sum: float,
    counts: NDArray[np.int64] | None = None,
    loads: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The vector that enters the secure sum, clipped to [-1, 1].

    Args:
        plan: gives the layout, `update_range`, `weight_cap`, the steps and the mechanism.
        change: new weights minus base weights [P]; with distributed noise, the gradient sum in units of `update_range`.
        patients: number of training patients, as released (noised under differential privacy).
        loss_sum: summed per-patient loss, as released.
        counts: patients by label and score [2 * SCORE_BINS], as released.
        loads: expert loads summed over patients and steps [S], as released.

    Raises:
        ValueError: a change that is not finite: such an update never leaves the site; or one of another length.
    """
    layout = contribution_layout(plan.model, plan.table, plan.privacy)
    if not np.isfinite(change).all():
        raise ValueError(
            "The update holds NaN or infinity. Training diverged: lower the learning rate. Nothing was sent."
        )
    weight = float(np.clip(patients / plan.weight_cap, 0.0, 1.0))
    vector = np.zeros(layout.dimension, np.float32)
    head = vector[: layout.parameters]
    if plan.privacy.mechanism == "distributed-dp":
        np.clip(change, -1.0, 1.0, out=head)
    else:
        np.clip(change, -plan.update_range, plan.update_range, out=head)
        head *= np.float32(weight / plan.update_range)
    first_load = layout.parameters + layout.counts
    if layout.counts and counts is not None:
        vector[layout.parameters : first_load] = np.clip(counts / plan.weight_cap, -1.0, 1.0)
    if layout.loads and loads is not None:
        vector[first_load:-2] = np.clip(
            loads / (plan.weight_cap * plan.training.local_steps), -1.0, 1.0
        )
    vector[-2] = weight
    vector[-1] = np.clip(loss_sum / (LOSS_CAP * plan.weight_cap), -1.0, 1.0)
    return vector


def unpack_sum(
    plan: RoundPlan,
    total: NDArray[np.float64] | NDArray[np.int32],
    *,
    step: float = 1.0,
) -> MeanContribution:
    """The weighted mean behind a summed contribution.

    Args:
        plan: of the attempt.
        total: the sum, in units of `step`. A vector of int32 is overwritten: the mean takes its memory.
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
    layout = contribution_layout(plan.model, plan.table, plan.privacy)
    first_load = layout.parameters + layout.counts
    counts = total[layout.parameters : first_load].astype(np.float64) * (step * plan.weight_cap)
    loads = total[first_load:-2].astype(np.float64) * step
    values = total[: layout.parameters]
    in_place = values.dtype == np.int32
    change = values.view(np.float32) if in_place else np.empty(values.shape, np.float32)
    factor = step * _unit_of_change(plan) / weight
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        change[block] = values[block] * factor
    return MeanContribution(
        change=change,
        weight=weight,
        loss=LOSS_CAP * loss / weight,
        counts=counts.reshape(LABELS, SCORE_BINS) if layout.counts else None,
        loads=loads if layout.loads else None,
    )


def histogram_auc(counts: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve of patients counted by label and score bin [2, bins]; ties count half.

    Noise may leave a bin below 0, which counts as 0. None where a label has nobody.
    """
    negatives, positives = np.maximum(counts, 0.0)
    pairs = float(negatives.sum() * positives.sum())
    if pairs == 0.0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2.0)).sum() / pairs)


def _unit_of_change(plan: RoundPlan) -> float:
    """What 1 in the first P numbers means to the shared model, before the division by the summed weight.

    With distributed noise they are gradient sums: the mean gradient is their sum over `sample_rate` times the patients,
    and plain gradient descent goes against it.
    """
    if plan.privacy.mechanism != "distributed-dp":
        return plan.update_range
    training = plan.training
    return (
        -training.learning_rate
        * plan.update_range
        / (training.sample_rate * float(plan.weight_cap))
    )
