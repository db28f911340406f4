"""Membership inference from what is released: was this record among those trained on?

Two scores for a candidate:
- `contributions`: the attacker knows the model before, what was released, and the records of everybody who may be in,
  the worst case that differential privacy is made for. It asks how much of each one's gradient explains the release,
  by the least squares that the noise calls for. Without noise the answer is exact.
- `loss_drop`: how much the candidate's loss fell, for an attacker who knows nobody else.

Differential privacy bounds how well one record's presence is told in two independent runs, one with and one without
it. `paired_auc` measures just that: trials come in pairs; of the candidates that were in one trial of a pair and out
of the other it takes the share whose score was higher in the trial they were in. This is the area under the ROC curve
averaged over candidates, and bounded by `membership_auc_bound`. Comparing candidates inside one run would compare
neighbours at distance two and mix in how hard each record is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from privacy.audit.bounds import membership_auc_bound
from privacy.audit.report import AuditLine, at_most
from privacy.dp.clipping import LossPerRecord, trainable_parameters

# M candidates, P parameters

FEWEST_PAIRS = 4
SMALLEST_RIDGE = 1e-9
"""Keeps the least squares solvable where gradients are alike, in units of a mean squared gradient."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One run: who was in, and every candidate's score."""

    scores_M: NDArray[np.float64] = field(repr=False)  # noqa: N815 - shape suffix
    was_in_M: NDArray[np.bool_] = field(repr=False)  # noqa: N815 - shape suffix


@dataclass(frozen=True, kw_only=True)
class AreaEstimate:
    """An area under the ROC curve over repeated trials, with its confidence interval."""

    auc: float
    lower: float
    upper: float
    pairs: int


def record_gradients(
    model: nn.Module,
    loss_per_record: LossPerRecord,
    inputs: Tensor,
    labels: Tensor,
    *,
    clipping_norm: float | None,
) -> Tensor:
    """The gradient of each record at `model`, clipped if `clipping_norm` is given, flat [M, P], float64.

    Args:
        model: deterministic; its trainable parameters in its own order are the P numbers.
        loss_per_record: outputs and labels to one loss per record.
        inputs: one row per record.
        labels: as many.
        clipping_norm: L2 bound, > 0, or None.
    """
    parameters = list(trainable_parameters(model).values())
    rows = []
    for place in range(len(inputs)):
        row = slice(place, place + 1)
        loss = loss_per_record(model(inputs[row]), labels[row]).sum()
        pieces = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(parameter) if piece is None else piece).flatten()
                    for parameter, piece in zip(parameters, pieces, strict=True)
                ]
            )
        )
    gradients_MP = torch.stack(rows).double()
    if clipping_norm is None:
        return gradients_MP
    norms_M = gradients_MP.square().sum(1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return gradients_MP * (clipping_norm / norms_M).clamp(max=1.0).unsqueeze(1)


def contributions(
    gradients_MP: Tensor, change_P: Tensor, *, noise_deviation: float
) -> NDArray[np.float64]:
    """How much of each gradient is in minus the change, up to a common factor [M].

    Ridge regression, which is the posterior mean when every weight is 0 or 1 with equal chance (variance 1/4, taken as
    Gaussian) and the sum of the gradients has Gaussian noise of `noise_deviation` on every coordinate.

    Args:
        gradients_MP: of everybody who may be in.
        change_P: weights after minus before.
        noise_deviation: on the sum of gradients, in their unit, >= 0.
    """
    gram_MM = gradients_MP @ gradients_MP.T
    ridge = max(4.0 * noise_deviation**2, SMALLEST_RIDGE * float(gram_MM.diagonal().mean()))
    system_MM = gram_MM + ridge * torch.eye(len(gram_MM), dtype=gram_MM.dtype)
    weights_M: Tensor = torch.linalg.solve(system_MM, -(gradients_MP @ change_P.double()))
    return weights_M.numpy()


def loss_drop(
    before: nn.Module,
    after: nn.Module,
    loss_per_record: LossPerRecord,
    inputs: Tensor,
    labels: Tensor,
) -> NDArray[np.float64]:
    """Loss of each candidate before training minus after it [M]."""
    with torch.no_grad():
        first = loss_per_record(before(inputs), labels).double()
        second = loss_per_record(after(inputs), labels).double()
    return (first - second).numpy()


def repeat(
    trial: Callable[[int, NDArray[np.bool_]], NDArray[np.float64]],
    *,
    candidates: int,
    pairs: int,
    coins: np.random.Generator,
) -> list[Trial]:
    """2 * `pairs` independent trials; a fair coin decides about every candidate in each.

    Args:
        trial: number of the trial and who is in -> every candidate's score.
        candidates: M.
        pairs: at least `FEWEST_PAIRS`.
        coins: source of the coins.
    """
    trials = []
    for number in range(2 * pairs):
        was_in_M = coins.random(candidates) < 0.5
        trials.append(Trial(scores_M=trial(number, was_in_M), was_in_M=was_in_M))
    return trials


def paired_auc(trials: Sequence[Trial], *, error: float) -> AreaEstimate:
    """Area under the ROC curve of one record's presence; see the module docstring.

    The interval is Student's over the pairs, whose areas are independent; it misses with about `error`.

    Raises:
        ValueError: an odd number of trials, or fewer than `FEWEST_PAIRS` pairs in which somebody changed sides.
    """
    if len(trials) % 2:
        raise ValueError(f"Expected an even number of trials, got {len(trials)}.")
    areas = np.array(
        [
            area
            for first, second in zip(trials[::2], trials[1::2], strict=True)
            if (area := _area_of_pair(first, second)) is not None
        ]
    )
    if len(areas) < FEWEST_PAIRS:
        raise ValueError(f"Expected at least {FEWEST_PAIRS} pairs of trials, got {len(areas)}.")
    mean = float(areas.mean())
    half = float(student.isf(error / 2, len(areas) - 1) * areas.std(ddof=1) / math.sqrt(len(areas)))
    return AreaEstimate(
        auc=mean, lower=max(0.0, mean - half), upper=min(1.0, mean + half), pairs=len(areas)
    )


def audit_membership(
    trials: Sequence[Trial], *, epsilon: float, delta: float, error: float
) -> AuditLine:
    """The measured area against what (epsilon, delta) allows; flagged where even its lower limit is above."""
    area = paired_auc(trials, error=error)
    return at_most(
        "membership: area under the ROC curve",
        area.lower,
        membership_auc_bound(epsilon, delta),
        confidence=1.0 - error,
        detail=f"lower limit; AUC {area.auc:.3f}, {area.lower:.3f} to {area.upper:.3f} over {area.pairs} pairs of "
        f"trials; epsilon {epsilon:g} at delta {delta:g}",
    )


def _area_of_pair(first: Trial, second: Trial) -> float | None:
    moved = first.was_in_M != second.was_in_M
    if not moved.any():
        return None
    difference = first.scores_M[moved] - second.scores_M[moved]
    higher_when_in = np.where(first.was_in_M[moved], difference, -difference)
    return float(np.heaviside(higher_when_in, 0.5).mean())
