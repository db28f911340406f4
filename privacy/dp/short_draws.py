"""Integers of a falling density from 16 random bits at a time: the fast way to the draws of `privacy.dp.half_line`.

A number is compared with uniform ones digit by digit, and nearly always the first few digits decide. So a draw begins with
three short words: the first digits of the cell, of the acceptance level, and the sign with the place in the cell.

1. Easy draws, 96 % or more from 64 steps of deviation on: 16 digits name the cell, and 16 digits of the level lie below the
   acceptance of every near cell. These steps touch every draw, in blocks that stay in the cache and with types as short as
   they can be.
2. All others, with everything that is a case of its own: no cell from 16 digits, cell 0, a far cell, a high level. Most of
   the high levels lie below the least acceptance of their own cell. What is left gets the digits that are missing and goes
   the way of `HalfLine`, which is exact.

Nothing is approximated: a draw that is not easy is settled from the same digits, continued.
"""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.dp.half_line import LEVEL_BITS, HalfLine
from privacy.dp.sampling_tables import WORD_BITS, exp_bounds
from privacy.randomness import Random

SHORT_BITS = 16
LARGEST_SHIFT = SHORT_BITS - 1
"""Digits of a place for which a short word has room beside the sign."""
EASY_AT_ONCE = 1 << 15
"""Draws whose easy steps are made together: 64 KiB for each short word."""
SETTLED_AT_ONCE = 1 << 18
"""Draws of which the others are settled together: these steps are many and meet few draws."""


class ShortDraws:
    """Integers k with P(k) ~ exp(-alpha * c - beta * c**2) for abs(k) = c * 2**shift, and in between likewise.

    Args:
        alpha: exact.
        beta: exact.
        shift: 2**shift integers in each cell, 0 to `LARGEST_SHIFT`.
    """

    def __init__(self, alpha: Fraction, beta: Fraction, shift: int) -> None:
        if not 0 <= shift <= LARGEST_SHIFT:
            raise ValueError(f"Expected shift={shift} in [0, {LARGEST_SHIFT}].")
        self._shift = shift
        self._half_line = HalfLine(alpha, beta, place_bits=shift)
        self._table = self._half_line.table
        # An integer alone in its cell is always accepted, wherever the cell. Else three deviations of a Gaussian are best.
        near = max(1, self._table.cells // 3) if shift > 0 else self._table.cells
        guide = self._table.guide
        # Zero marks what is not easy, cell 0 with its two signs included.
        self._easy_cells = np.where(guide < near, np.maximum(guide, 0), 0).astype(np.int16)
        least = alpha + beta * (2 * near - 1)
        self._sure_level = np.uint16(exp_bounds(least, SHORT_BITS)[0])
        self._least_levels = self._least_acceptance(float(alpha), float(beta))
        # Not sure of anything where a value needs more than its level: cell 0, far cells, and no cell at all (-1).
        self._sure_levels = np.append(self._least_levels, np.uint16(0))
        self._sure_levels[0] = 0
        self._sure_levels[near:] = 0

    def draw(self, count: int, random: Random) -> NDArray[np.int64]:
        """`count` of them."""
        if count < 0:
            raise ValueError(f"Expected count={count} >= 0.")
        values = np.empty(count, dtype=np.int64)
        work = Work(min(count, EASY_AT_ONCE))
        rejected = [
            start + self.propose(values[start : start + SETTLED_AT_ONCE], work, random)
            for start in range(0, count, SETTLED_AT_ONCE)
        ]
        missing = np.concatenate((*rejected, np.empty(0, dtype=np.intp)))
        if len(missing) > 0:
            values[missing] = self.draw(len(missing), random)
        return values

    def propose(self, values: NDArray[np.int64], work: "Work", random: Random) -> NDArray[np.intp]:
        """Overwrite `values` with proposals; the indices of those that are not accepted."""
        indices, shorts = [], []
        for start in range(0, len(values), EASY_AT_ONCE):
            part = values[start : start + EASY_AT_ONCE]
            # Without places there is nothing to accept, and no use for levels.
            random.fill(work.words if self._shift > 0 else work.words[1:])
            self._draw_easy(part, work)
            found = np.flatnonzero(work.is_other[: len(part)])
            indices.append(start + found)
            shorts.append(work.shorts.take(found, axis=1))
        index = np.concatenate(indices)
        others = values.take(index)
        is_accepted = self._settle(np.concatenate(shorts, axis=1), others, random)
        values[index] = others
        return index[~is_accepted]

    def _draw_easy(self, values: NDArray[np.int64], work: "Work") -> None:
        count = len(values)
        levels, digits, places = work.shorts[:, :count]
        is_other, cells, signed_places = (
            part[:count] for part in (work.is_other, work.cells, work.signed_places)
        )
        index = work.index[:count]
        np.copyto(index, digits)
        # Every index is in range; "wrap" only keeps numpy from checking them in a copy.
        self._easy_cells.take(index, out=cells, mode="wrap")
        np.equal(cells, 0, out=is_other)
        # With the sign in front, a place is p or -p - 1 = ~p, both as likely; c * 2**shift ^ ~p = ~(c * 2**shift + p).
        np.right_shift(places.view(np.int16), SHORT_BITS - 1 - self._shift, out=signed_places)
        if self._shift == 0:
            cells ^= signed_places
            cells -= signed_places
            np.copyto(values, cells)
            return
        is_high = work.is_high[:count]
        np.greater_equal(levels, self._sure_level, out=is_high)
        is_other |= is_high
        numbers, signs = work.numbers[:count], work.signs[:count]
        np.copyto(numbers, cells)
        np.copyto(signs, signed_places)
        numbers <<= np.int32(self._shift)
        numbers ^= signs
        signs >>= np.int32(31)
        numbers -= signs
        np.copyto(values, numbers)

    def _settle(
        self, shorts: NDArray[np.uint16], values: NDArray[np.int64], random: Random
    ) -> NDArray[np.bool_]:
        """Acceptance of draws that are not easy, from their short words [3, draws]; corrects `values`, if need be."""
        cells = self._table.guide.take(shorts[1])
        is_accepted = self._sure_levels.take(cells) > shorts[0]
        # Where the cell is known and its least acceptance suffices, the value was right from the start.
        unsure = np.flatnonzero(~is_accepted)
        levels, digits, places = shorts.take(unsure, axis=1)
        cells = cells.take(unsure).astype(np.int64)
        unsettled = np.flatnonzero(cells < 0)
        cells[unsettled] = self._table.settle(_continued(digits[unsettled], random), random)
        signed_places = places.view(np.int16)
        inside = (signed_places >> (SHORT_BITS - 1 - self._shift)).astype(np.int64)
        signs = inside >> 63
        inside ^= signs
        found = (cells << self._shift) + inside
        # Of the two zeros one is dropped.
        accepts = (found | ~signs) != 0
        if self._shift > 0:
            level_words = _continued(levels, random) >> np.uint64(WORD_BITS - LEVEL_BITS)
            words = (inside.view(np.uint64) << np.uint64(63 - self._shift)) | level_words
            high = np.flatnonzero(levels >= self._least_levels.take(cells, mode="clip"))
            accepts[high] &= self._half_line.accepts(cells[high], words[high], random)
        found ^= signs
        found -= signs
        values[unsure] = found
        is_accepted[unsure] = accepts
        return is_accepted

    def _least_acceptance(self, alpha: float, beta: float) -> NDArray[np.uint16]:
        """For every cell a level of 16 digits below which all of its places are accepted; the last one serves all beyond."""
        cells = np.arange(self._table.cells, dtype=np.float64)
        least = np.exp(-(alpha + beta * (2.0 * cells + 1.0))) * 2.0**SHORT_BITS
        # Float64 is right to far less than the unit that is taken off.
        levels = np.maximum(np.floor(least) - 1.0, 0.0)
        levels[-1] = 0.0
        return levels.astype(np.uint16)


class Work:
    """For blocks of so many draws. Memory of the easy steps, used again for every block: fresh pages cost more than the steps themselves."""

    def __init__(self, count: int) -> None:
        self.words = np.zeros((3, -(-count // 4)), dtype="<u8")
        self.shorts = self.words.view("<u2")
        """First digits of levels, cells and places [3, draws]."""
        size = self.shorts.shape[1]
        self.index = np.empty(size, dtype=np.intp)
        self.cells = np.empty(size, dtype=np.int16)
        self.signed_places = np.empty(size, dtype=np.int16)
        self.numbers = np.empty(size, dtype=np.int32)
        self.signs = np.empty(size, dtype=np.int32)
        self.is_other = np.empty(size, dtype=np.bool_)
        self.is_high = np.empty(size, dtype=np.bool_)


def _continued(shorts: NDArray[np.uint16], random: Random) -> NDArray[np.uint64]:
    """Words of 64 digits that begin with these 16."""
    more = random.words(len(shorts)) >> np.uint64(SHORT_BITS)
    return (shorts.astype(np.uint64) << np.uint64(WORD_BITS - SHORT_BITS)) | more


@lru_cache(maxsize=16)
def short_draws(alpha: Fraction, beta: Fraction, shift: int) -> ShortDraws:
    """The draws of these weights; the last few are kept, because training repeats its deviations every step."""
    return ShortDraws(alpha, beta, shift)
