"""Exact noise on an integer grid: rounded Gaussian, discrete Gaussian, discrete Laplace.

Noise in floating point gives records away: in float32 a quarter of Opacus' noisy gradients tell with certainty which of
two neighbouring tables they came from, because not every sum can be reached from both (Mironov 2012; Haney et al. 2022).
Here everything is an integer until the released number is made: round the sum to a grid, add an integer, convert.

- `RoundedGaussian`: N(0, deviation**2) rounded to integers. On an integer-valued query this is post-processing of the
  continuous Gaussian mechanism, whose privacy loss distribution therefore holds as it is.
- `DiscreteGaussian`: P(k) ~ exp(-k**2 / (2 * deviation**2)) (Canonne, Kamath, Steinke 2020): shares of a secure sum.
- `DiscreteLaplaceNoise`: P(k) ~ exp(-abs(k) / scale): pure epsilon-DP.

What is not exact (the remainder):
- Arithmetic: nothing. Cells, tails, places and acceptance of a draw are comparisons of real numbers with the digits of
  uniform ones, and digits are drawn until they differ (`privacy.dp.half_line`, `short_draws`, `sampling_tables`).
- The random words: blocks of counter mode under one key differ from each other, which puts q of them at most
  q**2 / 2**129 away from uniform ones (`privacy.randomness`). A draw takes two blocks at most on average, so 2**50 draws
  take 2**51 blocks under 2**37 keys of 2**14 blocks: at most 2**37 * 2**28 / 2**129 = 2**-64 away, a distance of 2**-114
  per draw. That AES-256 with a secret key cannot be told from a random permutation is assumed.
A distance tau between the real and the exact mechanism adds (1 + e**epsilon) * tau to delta: `SAMPLING_REMAINDER` covers
it for every epsilon up to 16. Not covered: time, power and memory, which may depend on the noise.
"""

import math
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.dp.half_line import HalfLine, SymmetricIntegers, draw_accepted, place_digits, signed
from privacy.dp.short_draws import LARGEST_SHIFT, short_draws
from privacy.randomness import Random

SAMPLING_REMAINDER = 1e-12
"""Share of delta kept for the distance of all noise of one data set from exact noise: 2**50 draws, epsilon <= 16."""

ROUNDING_SHARE = Fraction(2, 10_000)
"""Rounding a sum to its grid moves the L2 sensitivity by at most this share of the bound."""
LARGEST_DIMENSION = 1 << 32
LARGEST_UNITS = 1 << 28
"""Units whose contributions, each clipped to the bound of `sum_grid`, add up below 2**58 grid steps per coordinate."""
LARGEST_INTEGER = 1 << 61
"""Sums saturate at this many steps, which moves no two of them apart; with any noise they still fit 64 bits."""

VALUES_AT_ONCE = 1 << 17
"""Values rounded and noised together: 32 million a second on one core, 23 million with a quarter as many."""

LEAST_SCALE, LARGEST_SCALE = 2.0**-20, 2.0**40
LEAST_GRID, LARGEST_GRID = 2.0**-80, 2.0**30
GAUSSIAN_CELLS = 128
"""Least number of cells per deviation when cells hold several steps: 3252 cells at most, built in 15 ms."""
LAPLACE_CELLS = 32
"""Likewise per scale: 5236 cells at most, built in 20 ms."""
FEWEST_SHORT_DRAWS = 1 << 15
"""Numbers from which on `privacy.dp.short_draws` is faster: at 65 thousand twice as fast, at 8 thousand slower."""


class IntegerNoise(Protocol):
    """Independent integers of one distribution, symmetric about 0."""

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """`count` of them; `OsRandom` for a real release."""
        ...


class RoundedGaussian:
    """N(0, deviation**2), rounded to the nearest integer.

    Args:
        deviation: in grid steps, 2**-20 to 2**40.
    """

    def __init__(self, *, deviation: float) -> None:
        exact = _exact("deviation", deviation)
        self._shift = _shift(exact, GAUSSIAN_CELLS)
        beta = (Fraction(2) ** self._shift / exact) ** 2 / 2
        self._half_line = HalfLine(Fraction(0), beta, place_bits=None)

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """See `IntegerNoise.draw`."""
        return draw_accepted(self._propose, count, random)

    def _propose(self, count: int, random: Random) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        cells, words, is_accepted = self._half_line.propose(count, random)
        # Twice the magnitude, rounded down, has whole digits. One more, halved: the magnitude rounded to the nearest.
        if self._shift >= 0:
            cells <<= self._shift + 1
            cells += place_digits(words, self._shift + 1)
        else:
            cells >>= -self._shift - 1
        cells += 1
        cells >>= 1
        return signed(cells, words), is_accepted


class DiscreteGaussian:
    """P(k) ~ exp(-k**2 / (2 * deviation**2)) on the integers.

    Args:
        deviation: in grid steps, 2**-20 to 2**40; below 1 the standard deviation is smaller than this parameter.
    """

    def __init__(self, *, deviation: float) -> None:
        exact = _exact("deviation", deviation)
        self._shift = max(0, _shift(exact, GAUSSIAN_CELLS))
        self._beta = (2**self._shift / exact) ** 2 / 2
        self._integers = SymmetricIntegers(Fraction(0), self._beta, self._shift)

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """See `IntegerNoise.draw`."""
        if count >= FEWEST_SHORT_DRAWS and self._shift <= LARGEST_SHIFT:
            return short_draws(Fraction(0), self._beta, self._shift).draw(count, random)
        return draw_accepted(self._integers.propose, count, random)


class DiscreteLaplaceNoise:
    """P(k) ~ exp(-abs(k) / scale) on the integers, the two-sided geometric distribution.

    Args:
        scale: sensitivity / epsilon, in grid steps, 2**-20 to 2**40; a fraction is taken as it is.
    """

    def __init__(self, *, scale: float | Fraction) -> None:
        exact = _exact("scale", scale)
        shift = max(0, _shift(exact, LAPLACE_CELLS))
        self._integers = SymmetricIntegers(2**shift / exact, Fraction(0), shift)

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """See `IntegerNoise.draw`."""
        return draw_accepted(self._integers.propose, count, random)


class GridGaussian:
    """Gaussian noise for sums of real numbers, released on a grid.

    Args:
        deviation: standard deviation in the unit of the values; `deviation / grid` from 2**-20 to 2**40.
        grid: a power of two, such as `sum_grid` gives.
        is_discrete: `DiscreteGaussian` instead of `RoundedGaussian`: for shares that are added up.
    """

    def __init__(self, *, deviation: float, grid: float, is_discrete: bool = False) -> None:
        self._grid = _require_grid(grid)
        sampler = DiscreteGaussian if is_discrete else RoundedGaussian
        self._noise: IntegerNoise = sampler(deviation=deviation / grid)

    def add_to(self, values: NDArray[np.float32], random: Random) -> None:
        """Rounds `values` to the grid and adds noise, in place; afterwards every number is a multiple of `grid`.

        Raises:
            ValueError: not a flat float32 vector, or a value is not finite: no number of the vector may be used then.
        """
        _add_noise(values, self._noise, self._grid, random)

    def integers(self, values: NDArray[np.float32], random: Random) -> NDArray[np.int64]:
        """What `add_to` makes, in grid steps."""
        return _noised_integers(values, self._noise, self._grid, random)


class GridLaplace:
    """Laplace noise for vectors of real numbers, released on a grid.

    Args:
        scale: L1 sensitivity / epsilon, in the unit of the values; `scale / grid` from 2**-20 to 2**40.
        grid: a power of two. Rounding moves the L1 sensitivity of d numbers by at most `d * grid`; part of `scale`.
    """

    def __init__(self, *, scale: float, grid: float) -> None:
        self._grid = _require_grid(grid)
        self._noise = DiscreteLaplaceNoise(scale=scale / grid)

    def add_to(self, values: NDArray[np.float32], random: Random) -> None:
        """See `GridGaussian.add_to`."""
        _add_noise(values, self._noise, self._grid, random)

    def integers(self, values: NDArray[np.float32], random: Random) -> NDArray[np.int64]:
        """What `add_to` makes, in grid steps."""
        return _noised_integers(values, self._noise, self._grid, random)


def sum_grid(*, bound: float, dimension: int) -> float:
    """Grid for a sum of vectors of L2 norm at most `bound`: the largest power of two g with g * sqrt(d) <= 2e-4 * bound.

    Rounding moves each coordinate of a sum by at most g / 2, so the rounded sums of neighbouring tables are at most
    `bound + g * sqrt(d)` apart. The noise must be larger than accounted by that share, `ROUNDING_SHARE`, or more.

    Args:
        bound: the clipping norm, 1e-12 to 1e12.
        dimension: coordinates of the sum, 1 to `LARGEST_DIMENSION`.
    """
    if not 1e-12 <= bound <= 1e12:
        raise ValueError(f"Expected bound={bound} in [1e-12, 1e12].")
    if not 1 <= dimension <= LARGEST_DIMENSION:
        raise ValueError(f"Expected dimension={dimension} in [1, {LARGEST_DIMENSION}].")
    # floor(log2(sqrt(x))) = floor(log2(x) / 2)
    exponent = _floor_log2((ROUNDING_SHARE * Fraction(bound)) ** 2 / dimension) // 2
    return math.ldexp(1.0, exponent)


def _add_noise(
    values: NDArray[np.float32], noise: IntegerNoise, grid: float, random: Random
) -> None:
    _require_vector(values)
    for start in range(0, len(values), VALUES_AT_ONCE):
        part = values[start : start + VALUES_AT_ONCE]
        # Conversion rounds integers above 2**24 to float32: to coarser multiples of the grid, never between two.
        part[:] = _noised_block(part, noise, grid, random) * grid


def _noised_integers(
    values: NDArray[np.float32], noise: IntegerNoise, grid: float, random: Random
) -> NDArray[np.int64]:
    _require_vector(values)
    integers = np.empty(len(values), dtype=np.int64)
    for start in range(0, len(values), VALUES_AT_ONCE):
        part = slice(start, start + VALUES_AT_ONCE)
        integers[part] = _noised_block(values[part], noise, grid, random)
    return integers


def _noised_block(
    values: NDArray[np.float32], noise: IntegerNoise, grid: float, random: Random
) -> NDArray[np.int64]:
    steps = values * np.float64(1.0 / grid)
    if not np.isfinite(steps).all():
        raise ValueError("Expected finite sums: one is NaN or infinite. Nothing may be released.")
    np.clip(steps, -LARGEST_INTEGER, LARGEST_INTEGER, out=steps)
    integers = noise.draw(len(values), random)
    integers += np.rint(steps, out=steps).astype(np.int64)
    return integers


def _require_vector(values: NDArray[np.float32]) -> None:
    if values.ndim != 1 or values.dtype != np.float32:
        raise ValueError(f"Expected a flat float32 vector, got {values.dtype} {values.shape}.")


def _require_grid(grid: float) -> float:
    if not (LEAST_GRID <= grid <= LARGEST_GRID and math.frexp(grid)[0] == 0.5):
        raise ValueError(f"Expected grid={grid} to be a power of two in [2**-80, 2**30].")
    return grid


def _exact(name: str, value: float | Fraction) -> Fraction:
    if not LEAST_SCALE <= value <= LARGEST_SCALE:
        raise ValueError(f"Expected {name}={value} in [2**-20, 2**40] grid steps.")
    return Fraction(value)


def _shift(scale: Fraction, cells: int) -> int:
    """The largest n for which `scale` holds at least `cells` cells of 2**n steps."""
    return _floor_log2(scale / cells)


def _floor_log2(value: Fraction) -> int:
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= value else exponent - 1
