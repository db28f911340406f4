"""Bounds that hold with a stated error: what trials say about a probability, a deviation, a mu or an epsilon.

- `proportion_limits`: Clopper and Pearson 1934, exact for any number of trials.
- `deviation_limits`: the chi-square interval, exact for Gaussian samples.
- `gaussian_epsilon`: from mu of a Gaussian mechanism to epsilon (Balle and Wang 2018, Theorem 8).
- `one_run_epsilon`: what right guesses about many canaries in one run refute (Steinke, Nasr, Jagielski 2023, Thm 5.2).
- `membership_auc_bound`: the largest area under a membership attack's ROC curve that (epsilon, delta) leaves.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainccinv, betaincinv, log_ndtr, ndtr
from scipy.stats import binom, chi2

LARGEST_EPSILON = 200.0
"""Lower bounds stop here: nothing above it means anything."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A confidence interval."""

    lower: float
    upper: float


def proportion_limits(successes: int, trials: int, *, error: float) -> Limits:
    """Interval that misses the true probability with at most `error`, half on either side.

    Args:
        successes: 0 to `trials`.
        trials: independent trials, at least 1.
        error: in (0, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"Expected 0 <= successes={successes} <= trials={trials}, trials >= 1.")
    _require_error(error)
    failures = trials - successes
    return Limits(
        lower=0.0 if successes == 0 else float(betaincinv(successes, failures + 1, error / 2)),
        upper=1.0 if failures == 0 else float(betainccinv(successes + 1, failures, error / 2)),
    )


def deviation_limits(sample_N: NDArray[np.float64], *, error: float) -> Limits:
    """Interval for the standard deviation of a Gaussian of mean 0 from `sample_N`, with at most `error` outside.

    Exact: the sum of squares over the variance is chi-square with N degrees of freedom.
    """
    _require_error(error)
    if len(sample_N) == 0:
        raise ValueError("Expected a sample, got no numbers.")
    squares = float(np.square(sample_N).sum())
    return Limits(
        lower=math.sqrt(squares / float(chi2.isf(error / 2, len(sample_N)))),
        upper=math.sqrt(squares / float(chi2.ppf(error / 2, len(sample_N)))),
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a Gaussian mechanism whose outputs on neighbours lie `mu` >= 0 deviations apart."""
    if mu < 0.0 or not 0.0 < delta < 1.0:
        raise ValueError(f"Expected mu={mu} >= 0 and delta={delta} in (0, 1).")

    def excess(epsilon: float) -> float:
        second = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
        return float(ndtr(mu / 2 - epsilon / mu)) - second - delta

    if mu == 0.0 or excess(0.0) <= 0.0:
        return 0.0
    if excess(LARGEST_EPSILON) > 0.0:
        return LARGEST_EPSILON
    return float(brentq(excess, 0.0, LARGEST_EPSILON, xtol=1e-9))


def one_run_p_value(
    *, canaries: int, guesses: int, right: int, epsilon: float, delta: float
) -> float:
    """How likely an (epsilon, delta)-DP run allows as many right guesses, at most.

    Steinke, Nasr, Jagielski 2023 ("Privacy Auditing with One (1) Training Run"), Theorem 5.2 and its program.

    Args:
        canaries: canaries that were in or out by independent fair coins.
        guesses: those guessed at, chosen by the run's output; 0 to `canaries`.
        right: right guesses.
        epsilon: claim to be refuted, >= 0.
        delta: of the claim.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(
            f"Expected 0 <= right={right} <= guesses={guesses} <= canaries={canaries}."
        )
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    at_least = float(binom.sf(right - 1, guesses, chance))
    if right == 0:
        return 1.0
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    steepest = float((below / np.arange(1, right + 1)).max())
    return min(1.0, at_least + steepest * delta * 2 * canaries)


def one_run_epsilon(
    *, canaries: int, guesses: int, right: int, delta: float, error: float
) -> float:
    """The largest epsilon that the guesses refute with at most `error`; 0 if they refute none."""
    _require_error(error)

    def excess(epsilon: float) -> float:
        value = one_run_p_value(
            canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta
        )
        return value - error

    if excess(0.0) > 0.0:
        return 0.0
    if excess(LARGEST_EPSILON) <= 0.0:
        return LARGEST_EPSILON
    return float(brentq(excess, 0.0, LARGEST_EPSILON, xtol=1e-6))


def membership_auc_bound(epsilon: float, delta: float) -> float:
    """Largest area under the ROC curve of any attack that tells a member from a non-member.

    (epsilon, delta)-DP confines every test (Wasserman and Zhou 2010; Kairouz, Oh, Viswanath 2015, Theorem 2.1) to
        TPR <= e^epsilon FPR + delta   and   1 - FPR <= e^epsilon (1 - TPR) + delta.
    The two lines meet at FPR = (1 - delta) / (1 + e^epsilon); the area below them is
        1 - (1 - delta)^2 / (1 + e^epsilon).
    """
    if epsilon < 0.0 or not 0.0 <= delta < 1.0:
        raise ValueError(f"Expected epsilon={epsilon} >= 0 and delta={delta} in [0, 1).")
    return 1.0 - (1.0 - delta) ** 2 / (1.0 + math.exp(min(epsilon, 700.0)))


def _require_error(error: float) -> None:
    if not 0.0 < error < 1.0:
        raise ValueError(f"Expected error={error} in (0, 1).")
