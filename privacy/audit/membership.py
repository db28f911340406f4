"""Membership inference from what is released: was this record among those trained on?

Two scores for a candidate, both from the model before and the release alone:
- `alignment`: inner product of the candidate's gradient with the release. What was descended along a gradient moves
  against it, so the sign is turned: higher means more likely in.
- `loss_drop`: how much the candidate's loss fell.

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


def alignment(
    model: nn.Module, loss_per_record: LossPerRecord, inputs: Tensor, labels: Tensor, change: Tensor
) -> NDArray[np.float64]:
    """Minus the inner product of each candidate's gradient at `model` with the released change of the weights.

    Args:
        model: as it was before training; deterministic.
        loss_per_record: outputs and labels to one loss per record.
        inputs: the candidates, one record each.
        labels: as many.
        change: weights after minus before, flat over the trainable parameters in the model's order [P].

    Returns:
        Scores divided by the gradient's norm, so that clipped and unclipped records compare [M].
    """
    parameters = list(trainable_parameters(model).values())
    scores = []
    for place in range(len(inputs)):
        row = slice(place, place + 1)
        loss = loss_per_record(model(inputs[row]), labels[row]).sum()
        pieces = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradient = torch.cat(
            [
                (torch.zeros_like(parameter) if piece is None else piece).flatten()
                for parameter, piece in zip(parameters, pieces, strict=True)
            ]
        ).double()
        norm = float(gradient.square().sum().sqrt())
        scores.append(-float(gradient @ change.double()) / norm if norm > 0.0 else 0.0)
    return np.array(scores)


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
