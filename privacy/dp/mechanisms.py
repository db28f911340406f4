"""Exact noise for released integers: counts, and metrics rounded to a grid.

The sampler is Canonne, Kamath, Steinke 2020 ("The Discrete Gaussian for Differential Privacy"), Algorithm 2: integer
arithmetic on uniform integers, no floating point, so no output reveals which value it came from (Mironov 2012).
The event of a release is `privacy.dp.events.DiscreteLaplace` with the same epsilon and sensitivity.
"""

import math
from fractions import Fraction

from privacy.randomness import Random


def discrete_laplace(value: int, *, epsilon: float, sensitivity: int, random: Random) -> int:
    """`value` plus noise with P(x) ~ exp(-epsilon / sensitivity * |x|): epsilon-DP, add-or-remove-one.

    Args:
        value: the exact integer, which one patient moves by at most `sensitivity`.
        epsilon: pure epsilon of this release, > 0; used as the exact fraction that the float stands for.
        sensitivity: >= 1, on the integer grid.
        random: `OsRandom` for a real release.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"Expected epsilon={epsilon} > 0 and finite.")
    if sensitivity < 1:
        raise ValueError(f"Expected sensitivity={sensitivity} >= 1.")
    decay = Fraction(epsilon) / sensitivity
    return value + _sample_discrete_laplace(decay.numerator, decay.denominator, random)


def _sample_discrete_laplace(s: int, t: int, random: Random) -> int:
    """Noise with P(x) ~ exp(-s / t * |x|). Algorithm 2; the names are the paper's."""
    while True:
        u = random.randbelow(t)
        if not _bernoulli_exp_below_one(u, t, random):
            continue
        v = 0
        while _bernoulli_exp_below_one(1, 1, random):
            v += 1
        y = (u + t * v) // s
        is_negative = random.randbelow(2) == 1
        if is_negative and y == 0:
            continue
        return -y if is_negative else y


def _bernoulli_exp_below_one(numerator: int, denominator: int, random: Random) -> bool:
    """True with probability exp(-numerator / denominator), for a ratio in [0, 1]. Algorithm 1, first case."""
    k = 1
    while random.randbelow(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
