"""Canaries: made-up units that an auditor plants, to see how much of each the trained weights give away.

The canaries are Dirac: canary i has the gradient e_i, many times the clipping norm long, in a model of one weight per
canary. No real unit can be seen better, and each weight sees one canary only, so thousands of them fit in one run of
the real training loop. A fair coin decides which take part; the weight itself is the auditor's score.

Two audits turn scores into a lower bound on the epsilon that was really spent:
- `audit_gaussian`, without subsampling, where the release is a Gaussian mechanism: the error rates of one threshold give
  a lower bound on mu (Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning", section 4). The
  threshold is chosen on one half of the canaries and its error rates are bounded on the other half. With 20 000
  canaries it sees a quarter too little noise.
- `audit_one_run`, for any training: how many canaries are guessed right (Steinke, Nasr, Jagielski 2023). It assumes
  nothing about the mechanism but is loose; it does not see half the noise.

Both bounds treat the canaries as independent, which they are here: no two share a weight.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from privacy.audit.bounds import gaussian_epsilon, one_run_epsilon, proportion_limits
from privacy.audit.report import AuditLine, at_most
from privacy.audit.subject import Train
from privacy.dp.accounting import epsilon_spent
from privacy.dp.dpsgd import TrainingTask
from privacy.randomness import Random

# M canaries

OVERSHOOT = 20.0
"""Length of a canary's gradient in clipping norms: clipping must act on every one."""
CLIPPING_NORM = 1.0
PHYSICAL_BATCH = 4096
THRESHOLDS = 49
GUESSED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the canaries that the one-run audit guesses at; the error is divided among them (Bonferroni)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryScores:
    """What one run says about every canary."""

    scores_M: NDArray[np.float64] = field(repr=False)  # noqa: N815 - shape suffix
    was_in_M: NDArray[np.bool_] = field(repr=False)  # noqa: N815 - shape suffix


def canary_task(*, sample_rate: float, steps: int, noise_multiplier: float) -> TrainingTask:
    """Training whose weights are exactly minus the sum of the noised gradients: rate 1, public batch size 1."""
    return TrainingTask(
        steps=steps,
        sample_rate=sample_rate,
        learning_rate=1.0,
        optimizer="sgd",
        expected_batch_size=1.0,
        clipping_norm=CLIPPING_NORM,
        noise_multiplier=noise_multiplier,
        physical_batch_size=PHYSICAL_BATCH,
    )


def run_canaries(
    train: Train, task: TrainingTask, random: Random, *, weights: int, present: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Trains on the canaries `present` and returns what was released, one number for each of `weights` canaries.

    Without canaries it is the noise alone, up to sign.
    """
    model = nn.Embedding(weights, 1)
    with torch.no_grad():
        model.weight.zero_()
    inputs = torch.from_numpy(present).unsqueeze(1)
    train(model, inputs, torch.zeros(len(present)), canary_loss, task, random)
    return model.weight.detach().squeeze(1).numpy().copy()


def canary_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss whose gradient is minus `OVERSHOOT` clipping norms along the canary's own weight."""
    return -OVERSHOOT * CLIPPING_NORM * outputs.flatten(1).sum(1) + 0.0 * labels


def score_canaries(
    train: Train, task: TrainingTask, random: Random, *, canaries: int
) -> CanaryScores:
    """One run in which a fair coin decides about every canary."""
    present = random.poisson_sample(canaries, 0.5)
    was_in = np.zeros(canaries, dtype=np.bool_)
    was_in[present] = True
    released = run_canaries(train, task, random, weights=canaries, present=present)
    return CanaryScores(scores_M=released.astype(np.float64), was_in_M=was_in)


def gaussian_mu(scores: CanaryScores, *, error: float) -> float:
    """Lower bound on mu that fails with at most `error`; may be negative where nothing is told apart.

    Raises:
        ValueError: fewer than 4 canaries in, or out.
    """
    inside = scores.scores_M[scores.was_in_M]
    outside = scores.scores_M[~scores.was_in_M]
    if min(len(inside), len(outside)) < 4:
        raise ValueError(f"Expected 4 canaries in and out, got {len(inside)} and {len(outside)}.")
    first_in, second_in = np.array_split(inside, 2)
    first_out, second_out = np.array_split(outside, 2)
    candidates = np.quantile(
        np.concatenate([first_in, first_out]), np.linspace(0.02, 0.98, THRESHOLDS)
    )
    bounds = [_mu_at(float(value), first_in, first_out, error=error) for value in candidates]
    threshold = float(candidates[int(np.argmax(bounds))])
    return _mu_at(threshold, second_in, second_out, error=error)


def guessed_epsilon(scores: CanaryScores, *, delta: float, error: float) -> float:
    """Lower bound on epsilon at `delta` from one run, by the best of `GUESSED_SHARES`, failing with at most `error`."""
    canaries = len(scores.scores_M)
    order = np.argsort(scores.scores_M)
    best = 0.0
    for share in GUESSED_SHARES:
        each = max(1, int(canaries * share / 2))
        right = int(scores.was_in_M[order[-each:]].sum() + (~scores.was_in_M[order[:each]]).sum())
        refuted = one_run_epsilon(
            canaries=canaries,
            guesses=2 * each,
            right=right,
            delta=delta,
            error=error / len(GUESSED_SHARES),
        )
        best = max(best, refuted)
    return best


def audit_gaussian(
    train: Train, task: TrainingTask, random: Random, *, canaries: int, delta: float, error: float
) -> AuditLine:
    """The lower bound of a Gaussian mechanism against what the accountant says of `task`.

    Raises:
        ValueError: a task with subsampling, which is no Gaussian mechanism.
    """
    if task.sample_rate != 1.0:
        raise ValueError(f"Expected sample_rate={task.sample_rate} = 1 for a Gaussian audit.")
    mu = gaussian_mu(score_canaries(train, task, random, canaries=canaries), error=error)
    return at_most(
        "canaries: Gaussian audit",
        gaussian_epsilon(max(0.0, mu), delta),
        epsilon_spent(task.events, delta),
        confidence=1.0 - error,
        detail=f"epsilon at delta {delta:g}: lower bound by {canaries} canaries, and declared; "
        f"mu >= {mu:.3f} of {math.sqrt(task.steps) / task.noise_multiplier:.3f}",
    )


def audit_one_run(
    train: Train, task: TrainingTask, random: Random, *, canaries: int, delta: float, error: float
) -> AuditLine:
    """The lower bound of one run against what the accountant says of `task`."""
    scores = score_canaries(train, task, random, canaries=canaries)
    return at_most(
        "canaries: one-run audit",
        guessed_epsilon(scores, delta=delta, error=error),
        epsilon_spent(task.events, delta),
        confidence=1.0 - error,
        detail=f"epsilon at delta {delta:g}: lower bound by {canaries} canaries, and declared",
    )


def _mu_at(
    threshold: float,
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    *,
    error: float,
) -> float:
    """Lower bound on mu from the error rates of one threshold: those in at or below it, those out above it.

    A test with false positive rate a and false negative rate b refutes every mu below z(1 - a) - z(b) (Dong, Roth, Su
    2022, eq. 6). Both rates are bounded from above, each with half the error on that side.
    """
    false_positives = proportion_limits(
        int((outside > threshold).sum()), len(outside), error=error
    ).upper
    false_negatives = proportion_limits(
        int((inside <= threshold).sum()), len(inside), error=error
    ).upper
    return float(-ndtri(false_positives) - ndtri(false_negatives))
