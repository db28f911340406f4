"""Exact choice between cells: the table under every sampler of `privacy.dp.noise`.

The weights are samples of a falling density, w(c) = exp(-alpha * c - beta * c**2) for c = 0, 1, 2, ...: beta = 0 is a
Laplace distribution, alpha = 0 a Gaussian. Cell c is chosen with probability w(c) / (w(0) + w(1) + ...), exactly:

1. A uniform real u in [0, 1) lies in cell c if F(c - 1) <= u < F(c), with F the cumulative distribution.
2. Its first 64 binary digits are one random word. The table holds the first 64 digits of every F(c), which nearly always
   settle the cell: a guide by the word's first 16 digits answers at once where no F(c) begins with them.
3. Where the word equals the digits of an F(c), both sides get 64 more digits, and so on until they differ. A table of
   5000 cells needs that once in 2**51 draws, and the digits are then computed anew, to the end of the infinite sum.

The digits come from integer arithmetic with a lower and an upper bound of every number. They are used only if both
bounds agree on them, otherwise the bounds are computed closer: no table is off by even one unit of its last place, and
all machines build the same one.
"""

from bisect import bisect_right
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import Random

WORD_BITS = 64
GUIDE_BITS = 16
MOST_CELLS = (1 << 15) - 1
"""Cells that the guide can name; the samplers need 6000 at most."""
LEAST_FALL = Fraction(1, 1 << 20)
"""Least alpha + beta; smaller ones need more cells than `MOST_CELLS`."""
MOST_WORDS = 16
"""Words compared before the source counts as broken: one that is not comes here with probability below 2**-900."""


class CellTable:
    """Draws c >= 0 with probability proportional to exp(-alpha * c - beta * c**2).

    Args:
        alpha: >= 0, exact.
        beta: >= 0, exact; their sum is at least `LEAST_FALL`.
    """

    def __init__(self, alpha: Fraction, beta: Fraction) -> None:
        self._alpha, self._beta = alpha, beta
        boundaries = cell_boundaries(alpha, beta, words=1)
        self.cells = len(boundaries)
        """Cells that the table names; a refined draw can lie beyond them."""
        if self.cells > MOST_CELLS:
            raise ValueError(f"Expected at most {MOST_CELLS} cells, got {self.cells}.")
        self._boundaries = np.array(boundaries, dtype=np.uint64)
        buckets = (self._boundaries >> np.uint64(WORD_BITS - GUIDE_BITS)).astype(np.intp)
        inside = np.bincount(buckets, minlength=1 << GUIDE_BITS)
        self._below = (np.cumsum(inside) - inside).astype(np.int16)
        self._is_single = inside == 1
        self.guide = np.where(inside == 0, self._below, -1).astype(np.int16)
        """The cell of a number that begins with these `GUIDE_BITS` digits; -1 where they do not settle it."""

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """`count` independent cells."""
        words = random.words(count)
        cells = self.guide.take(words >> np.uint64(WORD_BITS - GUIDE_BITS)).astype(np.int64)
        unsettled = np.flatnonzero(cells < 0)
        cells[unsettled] = self.settle(words[unsettled], random)
        return cells

    def settle(self, words: NDArray[np.uint64], random: Random) -> NDArray[np.int64]:
        """The cells of numbers that begin with these words."""
        buckets = (words >> np.uint64(WORD_BITS - GUIDE_BITS)).view(np.int64)
        cells = self._below.take(buckets).astype(np.int64)
        # Where only one F(c) begins with these digits, one comparison is enough; else the whole table is searched.
        cells += self._boundaries.take(cells) <= words
        crowded = np.flatnonzero(~self._is_single.take(buckets))
        cells[crowded] = self._boundaries.searchsorted(words[crowded], side="right")
        # A cell of 0 looks at the last boundary, whose digits are all ones and not below the first.
        is_tie = self._boundaries[cells - 1] == words
        for position in np.flatnonzero(is_tie):
            cells[position] = self._refined(int(words[position]), random)
        return cells

    def _refined(self, digits: int, random: Random) -> int:
        """The cell of the number that begins with `digits`, one word that equals a boundary's."""
        for words in range(2, MOST_WORDS + 1):
            digits = (digits << WORD_BITS) | int(random.words(1)[0])
            boundaries = _deep_boundaries(self._alpha, self._beta, words)
            cell = bisect_right(boundaries, digits)
            if cell == 0 or boundaries[cell - 1] != digits:
                return cell
        raise RuntimeError("The source of randomness repeats the table's digits: it is broken.")


@lru_cache(maxsize=16)
def cell_table(alpha: Fraction, beta: Fraction) -> CellTable:
    """The table of these weights; the last few are kept, because training repeats its deviations every step."""
    return CellTable(alpha, beta)


@lru_cache(maxsize=2)
def _deep_boundaries(alpha: Fraction, beta: Fraction, words: int) -> list[int]:
    return cell_boundaries(alpha, beta, words=words)


def cell_boundaries(alpha: Fraction, beta: Fraction, *, words: int) -> list[int]:
    """floor(F(c) * 2**(64 * words)) for c = 0, 1, ... until only ones follow; the last entry is all ones."""
    if alpha < 0 or beta < 0 or alpha + beta < LEAST_FALL:
        raise ValueError(
            f"Expected alpha={alpha} and beta={beta} >= 0 with a sum of at least {LEAST_FALL}."
        )
    extra = 96
    while True:
        boundaries = _settled_boundaries(alpha, beta, words * WORD_BITS, extra)
        if boundaries is not None:
            return boundaries
        extra *= 2


def _settled_boundaries(
    alpha: Fraction, beta: Fraction, digits: int, extra: int
) -> list[int] | None:
    """See `cell_boundaries`; None if numbers of `digits + extra` bits do not settle every digit."""
    bits = digits + extra
    low, high, tail = _cumulative_weights(alpha, beta, bits, largest_tail=1 << (extra // 2))
    total_low, total_high = low[-1], high[-1] + tail
    all_ones = (1 << digits) - 1
    boundaries = [(value << digits) // total_high for value in low]
    # F(c) < 1 for every c, so its digits are at most all ones.
    from_above = [min((value << digits) // total_low, all_ones) for value in high]
    if boundaries != from_above or boundaries[-1] != all_ones:
        return None
    return boundaries


def _cumulative_weights(
    alpha: Fraction, beta: Fraction, bits: int, *, largest_tail: int
) -> tuple[list[int], list[int], int]:
    """Bounds of w(0) + ... + w(c) from below and above in units of 2**-bits, and an upper bound of what follows.

    w(c + 1) = w(c) * ratio(c) and ratio(c + 1) = ratio(c) * exp(-2 * beta). As the ratios fall, what follows the last
    cell is at most w * ratio / (1 - ratio).
    """
    one = 1 << bits
    low_weight = high_weight = one
    low_ratio, high_ratio = exp_bounds(alpha + beta, bits)
    low_fall, high_fall = exp_bounds(2 * beta, bits)
    low, high = [low_weight], [high_weight]
    while True:
        tail = high_weight * high_ratio // (one - high_ratio) + 1
        if tail <= largest_tail:
            return low, high, tail
        low_weight = low_weight * low_ratio >> bits
        high_weight = (high_weight * high_ratio >> bits) + 1
        low_ratio = low_ratio * low_fall >> bits
        high_ratio = min((high_ratio * high_fall >> bits) + 1, high_ratio)
        low.append(low[-1] + low_weight)
        high.append(high[-1] + high_weight)


def exp_bounds(exponent: Fraction, bits: int) -> tuple[int, int]:
    """Integers with low <= exp(-exponent) * 2**bits <= high, at most 2 apart, for `exponent` >= 0.

    exp(-x) = exp(-x / 2**k)**(2**k); the inner one is a Taylor series whose terms alternate and fall.
    """
    if exponent < 0:
        raise ValueError(f"Expected exponent={float(exponent)} >= 0.")
    if exponent == 0:
        return 1 << bits, 1 << bits
    if exponent > bits:  # exp(-bits) < 2**-bits
        return 0, 1
    halvings = (exponent.numerator // exponent.denominator).bit_length() + 8
    guard = 64 + 2 * halvings
    one = 1 << (bits + guard)
    below = (exponent.numerator << (bits + guard - halvings)) // exponent.denominator
    low, high = _exp_series(below + 1, one)[0], _exp_series(below, one)[1]
    for _ in range(halvings):
        low = low * low // one
        high = high * high // one + 1
    return low >> guard, min((high >> guard) + 1, 1 << bits)


def _exp_series(x: int, one: int) -> tuple[int, int]:
    """Bounds of exp(-x / one) in units of 1 / one, for 0 <= x <= one / 2.

    Every term is rounded down, which loses less than 2 units (the loss of the term before is at most halved); the
    terms left out are smaller than the last one used, which is below one unit.
    """
    total, term, terms = 0, one, 0
    while term > 0:
        total += term if terms % 2 == 0 else -term
        terms += 1
        term = term * x // (one * terms)
    return total - 2 * terms - 2, total + 2 * terms + 2
