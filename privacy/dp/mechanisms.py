"""Laplace releases of integers: counts, histograms, metrics and sums on a grid, each epsilon-DP.

The noise is the two-sided geometric distribution, exact on the integers (`privacy.dp.noise`), so no output reveals which
value it came from (Mironov 2012). The event of one release, a vector included, is one
`privacy.dp.events.DiscreteLaplace` with the same epsilon and sensitivity. That neighbouring vectors `sensitivity` apart in
L1 are no easier to tell apart than two integers that far apart is checked numerically in the tests, not proved; that
each release is epsilon-DP by itself is.

A vector of real numbers per unit becomes integers of bounded L1 norm with `clip_l1`; the sum over the units is released.
Neighbouring tables differ by one unit, added or removed.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.dp.events import MAX_SENSITIVITY
from privacy.dp.noise import LARGEST_INTEGER, DiscreteLaplaceNoise
from privacy.randomness import Random

# U units, D coordinates

MOST_COORDINATES = 1 << 24
OVERFLOW_GUARD = np.float64(2.0**-32)


def discrete_laplace(value: int, *, epsilon: float, sensitivity: int, random: Random) -> int:
    """`value` plus noise with P(x) ~ exp(-epsilon / sensitivity * |x|): epsilon-DP, add-or-remove-one.

    Args:
        value: the exact integer, which one unit moves by at most `sensitivity`.
        epsilon: pure epsilon of this release, > 0; used as the exact fraction that the float stands for.
            `sensitivity / epsilon` is limited to 2**-20 to 2**40.
        sensitivity: >= 1, on the integer grid.
        random: `OsRandom` for a real release.
    """
    return value + int(_noise(epsilon, sensitivity).draw(1, random)[0])


def discrete_laplace_vector(
    values_D: NDArray[np.int64], *, epsilon: float, sensitivity: int, random: Random
) -> NDArray[np.int64]:
    """The same for a vector, with independent noise of scale sensitivity / epsilon on every coordinate.

    Args:
        values_D: exact integers, which one unit moves by at most `sensitivity` in total: the sum of the absolute
            changes of all coordinates. Values saturate at 2**61, which moves no two of them apart.
        epsilon: pure epsilon of the whole vector; see `discrete_laplace`.
        sensitivity: >= 1, for all coordinates together.
        random: `OsRandom` for a real release.
    """
    if values_D.ndim != 1 or values_D.dtype != np.int64:
        raise ValueError(f"Expected a flat int64 vector, got {values_D.dtype} {values_D.shape}.")
    noise_D = _noise(epsilon, sensitivity).draw(len(values_D), random)
    noise_D += np.clip(values_D, -LARGEST_INTEGER, LARGEST_INTEGER)
    return noise_D


def clip_l1(vectors_UD: NDArray[np.floating], *, bound: float, steps: int) -> NDArray[np.int64]:
    """Rows as integers in steps of `bound / steps`, each of L1 norm at most `steps`, whatever the row was.

    A row above `bound` is scaled down to it, then every coordinate is cut towards zero, by half a step on average: take
    `steps` large against the number of coordinates. A row with a number that is not finite becomes zero. The integers
    keep the bound exactly: floating-point error is less than one step.

    Args:
        vectors_UD: one row per unit, at most 2**24 coordinates.
        bound: largest L1 norm that is left as it is, 1e-12 to 1e12.
        steps: grid steps per `bound`, 1 to `MAX_SENSITIVITY`: the sensitivity of the sum of the rows.
    """
    if not 1e-12 <= bound <= 1e12:
        raise ValueError(f"Expected bound={bound} in [1e-12, 1e12].")
    if not 1 <= steps <= MAX_SENSITIVITY:
        raise ValueError(f"Expected steps={steps} in [1, {MAX_SENSITIVITY}].")
    if vectors_UD.ndim != 2 or vectors_UD.shape[1] > MOST_COORDINATES:
        raise ValueError(
            f"Expected rows of at most {MOST_COORDINATES} coordinates, got {vectors_UD.shape}."
        )
    is_finite_U = np.isfinite(vectors_UD).all(axis=1)
    # Scaled down by a power of two, a row of the largest finite numbers does not overflow.
    scaled_UD = np.where(is_finite_U[:, None], vectors_UD, 0.0) * OVERFLOW_GUARD
    norms_U = np.maximum(np.abs(scaled_UD).sum(axis=1), bound * OVERFLOW_GUARD)
    steps_UD: NDArray[np.float64] = np.trunc(scaled_UD * (steps / norms_U)[:, None])
    return steps_UD.astype(np.int64)


def _noise(epsilon: float, sensitivity: int) -> DiscreteLaplaceNoise:
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"Expected epsilon={epsilon} > 0 and finite.")
    if sensitivity < 1:
        raise ValueError(f"Expected sensitivity={sensitivity} >= 1.")
    return DiscreteLaplaceNoise(scale=sensitivity / Fraction(epsilon))
