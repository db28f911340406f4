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
    gradients_MP: Tensor, certain_P: Tensor, change_P: Tensor, *, noise_deviation: float
) -> NDArray[np.float64]:
    """Best guess at each candidate's part in minus the change: 0.5 for in, -0.5 for out, 0 where nothing is known [M].

    Minus the change is t (certain + sum_i b_i g_i) plus noise, with coins b_i and an unknown factor t, since sums are
    divided by counts that are noised themselves. Written as t (certain + sum_i g_i / 2) + sum_i d_i g_i, with
    d_i = t (b_i - 1/2) of variance t^2 / 4, it is ridge regression in t, which is free, and d; the ridge is the noise's
    variance over that of b_i, and t cancels in it. Without noise the guesses are exact.

    Args:
        gradients_MP: of the candidates, each in by a fair coin, flat, float64.
        certain_P: summed gradients of those who are known to be in.
        change_P: weights after minus before.
        noise_deviation: of the noise on each coordinate of the sum of gradients, in their unit, >= 0.
    """
    expected_P = certain_P + gradients_MP.sum(0) / 2.0
    rows_NP = torch.cat([expected_P.unsqueeze(0), gradients_MP])
    gram_NN = rows_NP @ rows_NP.T
    smallest = SMALLEST_RIDGE * float(gram_NN.diagonal()[1:].mean())
    ridge_N = torch.full((len(rows_NP),), max(4.0 * noise_deviation**2, smallest)).double()
    ridge_N[0] = smallest
    found_N: Tensor = torch.linalg.solve(
        gram_NN + torch.diag(ridge_N), -(rows_NP @ change_P.double())
    )
    factor = float(found_N[0])
    if factor <= 0.0:  # the noise has turned the sum round: nothing is known
        return np.zeros(len(gradients_MP))
    return (found_N[1:] / factor).numpy()


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
