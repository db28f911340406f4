"""Draws from a falling density on the half line, and integers of either sign from it.

The density is exp(-alpha * x - beta * x**2) for x >= 0, in units of a cell:
1. a cell c, exactly in proportion to the density at its left edge (`privacy.dp.sampling_tables`);
2. a uniform place t in [0, 1) of the cell: a real number, or one of 2**place_bits integers;
3. acceptance with probability exp(-alpha * t - beta * (2 * c * t + t**2)), else again from 1: below 2 % of the draws;
4. a sign; of integers, minus zero counts as not accepted.

Nothing is approximated. Real numbers are compared by the digits of uniform ones, and more digits are drawn where the
first do not decide. Acceptance is compared in float64 first; where the two sides are closer than `CLOSE`, in integers of
any length. In float64 the two are off by less than 2**-42: 2**-40 * 0.1 for the digits of the place that are not
drawn yet, and 2**-50 for arithmetic and numpy's exponential function.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.dp.sampling_tables import MOST_WORDS, WORD_BITS, cell_table, exp_bounds
from privacy.randomness import Random

PLACE_BITS, LEVEL_BITS = 40, 23
"""A word is one sign bit, the first digits of the place in the cell, and the first digits of the acceptance level."""
LEVEL_MASK = np.uint64((1 << LEVEL_BITS) - 1)
SIGN_BIT = np.uint64(1 << 63)
CLOSE = 2.0**-36
"""Differences in float64 that do not decide: 64 times what they can be wrong, and met once in 2**39 draws."""
BLOCK = 1 << 16
"""Draws made at once: 45 million a second on one core, 31 million with a quarter as many, and no more with twice."""


Propose = Callable[[int, Random], tuple[NDArray[np.int64], NDArray[np.bool_]]]


class HalfLine:
    """Steps 1 to 3 of the module docstring.

    Args:
        alpha: exact.
        beta: exact.
        place_bits: binary digits of a place in its cell; None for a real number, of which a word has the first.
    """

    def __init__(self, alpha: Fraction, beta: Fraction, *, place_bits: int | None) -> None:
        self._alpha, self._beta = alpha, beta
        self._place_bits = place_bits
        self.table = cell_table(alpha, beta)
        self.near = max(1, 2 * self.table.cells // 5)
        """Nearly all draws are nearer than this cell, and in it acceptance is nearly certain."""
        least = alpha + beta * (2 * self.near - 1)
        self._sure_level = np.uint64(exp_bounds(least, LEVEL_BITS)[0])

    def propose(
        self, count: int, random: Random
    ) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
        """`count` cells, words with sign and place, and which of the proposals are accepted."""
        cells = self.table.draw(count, random)
        words = random.words(count)
        if self._place_bits == 0:
            return cells, words, np.ones(count, dtype=np.bool_)
        is_accepted = (words & LEVEL_MASK) < self._sure_level
        is_accepted &= cells < self.near
        unsettled = np.flatnonzero(~is_accepted)
        is_accepted[unsettled] = self.accepts(cells[unsettled], words[unsettled], random)
        return cells, words, is_accepted

    def accepts(
        self, cells: NDArray[np.int64], words: NDArray[np.uint64], random: Random
    ) -> NDArray[np.bool_]:
        """Whether a uniform level, of which `words` has the first digits, lies below the acceptance."""
        more_digits = random.words(len(cells))
        margin = self.acceptance(cells, words) - _level(words, more_digits)
        is_below = margin > 0.0
        for index in np.flatnonzero(abs(margin) <= CLOSE):
            word, more = int(words[index]), int(more_digits[index])
            is_below[index] = self._accepts_exactly(int(cells[index]), word, more, random)
        return is_below

    def acceptance(
        self, cells: NDArray[np.int64], words: NDArray[np.uint64]
    ) -> NDArray[np.float64]:
        """Probability of acceptance in float64, from the digits of the place that `words` has."""
        digits = PLACE_BITS if self._place_bits is None else self._place_bits
        places = place_digits(words, digits) * 2.0**-digits
        return np.exp(-places * (float(self._alpha) + float(self._beta) * (2.0 * cells + places)))

    def _accepts_exactly(self, cell: int, word: int, more_digits: int, random: Random) -> bool:
        """The same decision in integers: both sides between bounds, with more digits until the bounds are apart."""
        place, place_bits = (word >> LEVEL_BITS) % (1 << PLACE_BITS), PLACE_BITS
        level = ((word % (1 << LEVEL_BITS)) << WORD_BITS) | more_digits
        level_bits = LEVEL_BITS + WORD_BITS
        for _ in range(MOST_WORDS):
            nearest, farthest = self._place_bounds(place, place_bits)
            if level + 1 <= exp_bounds(self._exponent(cell, farthest), level_bits)[0]:
                return True
            if level >= exp_bounds(self._exponent(cell, nearest), level_bits)[1]:
                return False
            place_more, level_more = (int(more) for more in random.words(2))
            place, place_bits = (place << WORD_BITS) | place_more, place_bits + WORD_BITS
            level, level_bits = (level << WORD_BITS) | level_more, level_bits + WORD_BITS
        raise RuntimeError("The source of randomness repeats a density's digits: it is broken.")

    def _place_bounds(self, digits: int, bits: int) -> tuple[Fraction, Fraction]:
        """Between which numbers a place is that begins with these digits: the same one twice if it has no more."""
        if self._place_bits is None:
            return Fraction(digits, 1 << bits), Fraction(digits + 1, 1 << bits)
        place = Fraction(digits >> (bits - self._place_bits), 1 << self._place_bits)
        return place, place

    def _exponent(self, cell: int, place: Fraction) -> Fraction:
        return place * (self._alpha + self._beta * (2 * cell + place))


class SymmetricIntegers:
    """Proposals for integers k with P(k) ~ density(abs(k)), 2**shift of them in each cell."""

    def __init__(self, alpha: Fraction, beta: Fraction, shift: int) -> None:
        self._shift = shift
        self._half_line = HalfLine(alpha, beta, place_bits=shift)

    def propose(self, count: int, random: Random) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """`count` integers, and which of them are accepted."""
        values, words, is_accepted = self._half_line.propose(count, random)
        if self._shift > 0:
            values <<= self._shift
            values += place_digits(words, self._shift)
        is_minus_zero = (values == 0) & (words >= SIGN_BIT)
        return signed(values, words), is_accepted & ~is_minus_zero


def draw_accepted(propose: Propose, count: int, random: Random) -> NDArray[np.int64]:
    """`count` accepted proposals, block by block; the places of those that were not accepted are filled with others."""
    if count < 0:
        raise ValueError(f"Expected count={count} >= 0.")
    values = np.empty(count, dtype=np.int64)
    is_accepted = np.empty(count, dtype=np.bool_)
    for start in range(0, count, BLOCK):
        part = slice(start, min(start + BLOCK, count))
        values[part], is_accepted[part] = propose(part.stop - part.start, random)
    missing = np.flatnonzero(~is_accepted)
    if len(missing) > 0:
        values[missing] = draw_accepted(propose, len(missing), random)
    return values


def place_digits(words: NDArray[np.uint64], digits: int) -> NDArray[np.int64]:
    """The first `digits` >= 1 binary digits of the places, as integers."""
    return ((words << np.uint64(1)) >> np.uint64(WORD_BITS - digits)).view(np.int64)


def _level(words: NDArray[np.uint64], more_digits: NDArray[np.uint64]) -> NDArray[np.float64]:
    return ((words & LEVEL_MASK) + more_digits * 2.0**-WORD_BITS) * 2.0**-LEVEL_BITS


def signed(magnitudes: NDArray[np.int64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Minus the magnitude where the word's first digit is one, in place."""
    ones = words.view(np.int64) >> 63
    magnitudes ^= ones
    magnitudes -= ones
    return magnitudes
