"""Is the released noise what was declared? Tested on what leaves, not on the sampler.

A training step over nobody releases the noise alone; known values can be subtracted from any other release. Tests:
1. deviation: within 0.5 % of the declared one, with the exact chi-square interval beside it;
2. mean, and correlation of neighbouring coordinates: zero;
3. shape: chi-square over cells of equal probability, and Kolmogorov-Smirnov;
4. grid: every output a whole multiple of the declared step;
5. re-use: two releases have independent noise;
6. 0 versus 1: no output that one of two neighbouring values can give is impossible under the other (Mironov 2012).
   Floating-point noise fails here: near 0 it is finer when the value is 0 than when 1 was added to it.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, chisquare, kstest, norm

from privacy.audit.bounds import deviation_limits
from privacy.audit.report import AuditLine, at_least, at_most

FEWEST_COORDINATES = 100_000
DEVIATION_TOLERANCE = 0.005
"""Largest relative distance of the estimated deviation from the declared one."""
MARGIN = 0.002
"""A correct release may be louder than declared by this share: margins for rounding are added on purpose."""
CELLS = 64
DRAWS_TO_KNOW_A_STEP = 64
"""Outputs of one size that show its finest step: each is odd in that step with probability 1/2, so 2**-64 miss it."""

Float32 = NDArray[np.float32]


def coordinates_needed(error: float) -> int:
    """Fewest coordinates on which correct noise misses the tolerance with at most `error`."""
    count = FEWEST_COORDINATES
    while _misses(count) > error:
        count *= 2
    return count


def audit_noise(
    released_N: Float32, *, deviation: float, error: float, grid: float | None
) -> tuple[AuditLine, ...]:
    """Tests 1 to 4 on released minus known values.

    Args:
        released_N: noise as it left, float32.
        deviation: declared standard deviation, > 0.
        error: probability with which each line may fail correct noise.
        grid: declared step of all outputs; None where none is declared, which fails.

    Raises:
        ValueError: fewer coordinates than `coordinates_needed(error)`.
    """
    needed = coordinates_needed(error)
    if len(released_N) < needed:
        raise ValueError(f"Expected at least {needed} coordinates, got {len(released_N)}.")
    if not 0.0 < deviation < math.inf:
        raise ValueError(f"Expected deviation={deviation} > 0 and finite.")
    noise_N = released_N.astype(np.float64)
    count, confidence = len(noise_N), 1.0 - error
    found = float(np.sqrt(np.square(noise_N).mean()))
    limits = deviation_limits(noise_N, error=error)
    return (
        at_most(
            "noise: deviation",
            abs(found / deviation - 1.0),
            DEVIATION_TOLERANCE,
            confidence=confidence,
            detail=f"{found:.6g} of {deviation:.6g} declared, between {limits.lower:.6g} and {limits.upper:.6g}; "
            f"{count} coordinates",
        ),
        at_least(
            "noise: mean and neighbours",
            _twice_smaller(_mean_p(noise_N), _neighbours_p(noise_N)),
            error,
            confidence=confidence,
            detail="smaller p-value of two, doubled",
        ),
        at_least(
            "noise: shape",
            _twice_smaller(_cells_p(noise_N), _kolmogorov_p(noise_N)),
            error,
            confidence=confidence,
            detail="smaller p-value of chi-square and Kolmogorov-Smirnov, doubled",
        ),
        at_most(
            "noise: outputs off the grid",
            _share_off_grid(noise_N, grid),
            0.0,
            confidence=1.0,
            detail="no grid is declared" if grid is None else f"share; step {grid:.6g}",
        ),
    )


def audit_reuse(first_N: Float32, second_N: Float32, *, error: float) -> AuditLine:
    """Test 5: two releases over nobody are independent. Noise that is used twice cancels in their difference."""
    one, other = first_N.astype(np.float64), second_N.astype(np.float64)
    scale = math.sqrt(float(np.square(one).sum() * np.square(other).sum()))
    distance = abs(float(one @ other)) / scale * math.sqrt(len(one)) if scale > 0.0 else math.inf
    return at_least(
        "noise: used twice",
        2.0 * float(norm.sf(distance)),
        error,
        confidence=1.0 - error,
        detail="p-value of the correlation of two releases",
    )


def audit_reachability(zero_N: Float32, one_N: Float32) -> AuditLine:
    """Test 6, on releases of coordinates whose values are 0 and 1 (or any two neighbouring values).

    Correct noise fails with probability below 1e-15: see `DRAWS_TO_KNOW_A_STEP`.
    """
    return at_most(
        "noise: outputs that only 0 or only 1 can give",
        unreachable_share(zero_N, one_N),
        0.0,
        confidence=1.0 - 1e-15,
        detail=f"share of {len(zero_N)} + {len(one_N)} outputs",
    )


def unreachable_share(zero_N: Float32, one_N: Float32) -> float:
    """Share of all outputs that are finer than anything the other value gives at that size.

    An output has a finest bit. Among outputs of one sign and one power of two, the finest bit that occurs is the step
    of the lattice there. An output on a finer lattice than the other value's is impossible under the other value. Sizes
    seen fewer than `DRAWS_TO_KNOW_A_STEP` times are left out.
    """
    sizes_0, steps_0 = _sizes_and_steps(zero_N)
    sizes_1, steps_1 = _sizes_and_steps(one_N)
    impossible = 0
    for in_0, in_1 in _shared_sizes(sizes_0, sizes_1):
        impossible += int((steps_0[in_0] < steps_1[in_1].min()).sum())
        impossible += int((steps_1[in_1] < steps_0[in_0].min()).sum())
    return impossible / (len(zero_N) + len(one_N))


def _sizes_and_steps(values_N: Float32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Signed power of two and exponent of the lowest set bit of every value but 0."""
    mantissas, exponents = np.frexp(values_N[values_N != 0.0].astype(np.float64))
    integers = np.ldexp(mantissas, 24).astype(np.int64)  # float32 has 24 bits: exact
    _, lowest = np.frexp((integers & -integers).astype(np.float64))
    sizes = 2 * exponents.astype(np.int64) + (mantissas < 0)
    return sizes, exponents.astype(np.int64) + lowest


def _shared_sizes(
    sizes_0: NDArray[np.int64], sizes_1: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    for size in np.intersect1d(sizes_0, sizes_1):
        in_0, in_1 = sizes_0 == size, sizes_1 == size
        if min(int(in_0.sum()), int(in_1.sum())) >= DRAWS_TO_KNOW_A_STEP:
            yield in_0, in_1


def _misses(count: int) -> float:
    """Probability that the estimate of the loudest correct noise is out of tolerance."""
    loudest = count * ((1.0 + DEVIATION_TOLERANCE) / (1.0 + MARGIN)) ** 2
    quietest = count * (1.0 - DEVIATION_TOLERANCE) ** 2
    return float(chi2.sf(loudest, count) + chi2.cdf(quietest, count))


def _twice_smaller(one: float, other: float) -> float:
    """The smaller of two p-values, doubled because there were two (Bonferroni)."""
    return min(1.0, 2.0 * min(one, other))


def _mean_p(noise_N: NDArray[np.float64]) -> float:
    spread = float(noise_N.std())
    return (
        2.0 * float(norm.sf(abs(float(noise_N.mean())) * math.sqrt(len(noise_N)) / spread))
        if spread > 0.0
        else 0.0
    )


def _neighbours_p(noise_N: NDArray[np.float64]) -> float:
    squares = float(np.square(noise_N).sum())
    if squares == 0.0:
        return 0.0
    correlation = float(noise_N[:-1] @ noise_N[1:]) / squares
    return 2.0 * float(norm.sf(abs(correlation) * math.sqrt(len(noise_N))))


def _cells_p(noise_N: NDArray[np.float64]) -> float:
    """Chi-square over cells that hold equal probability at the estimated deviation; one degree goes to the estimate."""
    spread = float(np.sqrt(np.square(noise_N).mean()))
    if spread == 0.0:
        return 0.0
    edges = norm.ppf(np.arange(1, CELLS) / CELLS) * spread
    counts = np.bincount(np.searchsorted(edges, noise_N), minlength=CELLS)
    return float(chisquare(counts, ddof=1).pvalue)


def _kolmogorov_p(noise_N: NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov at the estimated deviation, which makes the p-value too large, never too small."""
    spread = float(np.sqrt(np.square(noise_N).mean()))
    return float(kstest(noise_N / spread, norm.cdf).pvalue) if spread > 0.0 else 0.0


def _share_off_grid(noise_N: NDArray[np.float64], grid: float | None) -> float:
    if grid is None:
        return 1.0
    steps = noise_N / grid
    return float((steps != np.rint(steps)).mean())
