"""The fast draws are the exact ones: from the same digits, the same integers are proposed and accepted."""

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.dp.half_line import SymmetricIntegers
from privacy.dp.sampling_tables import cell_boundaries
from privacy.dp.short_draws import LARGEST_SHIFT, ShortDraws, Work, short_draws
from privacy.randomness import SeededRandom

GAUSSIAN = (Fraction(0), Fraction(1, 2 * 130**2))
COARSE_GAUSSIAN = (Fraction(0), Fraction(1, 50))
LAPLACE = (Fraction(1, 40), Fraction(0))
DENSITIES = [
    (GAUSSIAN, 0),
    (GAUSSIAN, 1),
    (GAUSSIAN, 7),
    (GAUSSIAN, LARGEST_SHIFT),
    (COARSE_GAUSSIAN, 0),
    (COARSE_GAUSSIAN, 3),
    (LAPLACE, 5),
]
each_density = pytest.mark.parametrize(("density", "shift"), DENSITIES, ids=str)
DRAWS = 30_000


class GivenShorts(SeededRandom):
    """Begins every draw with given digits; whatever is asked for after them is zeros."""

    def __init__(self, *rows: NDArray[np.uint16]) -> None:
        self._rows = np.stack(rows)

    def fill(self, words: NDArray[np.uint64]) -> None:
        words.view(np.uint16)[:, : self._rows.shape[1]] = self._rows[-len(words) :]

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.zeros(count, dtype=np.uint64)


class GivenWords(SeededRandom):
    """Gives these words to the first ones that ask, and zeros to all others."""

    def __init__(self, *script: NDArray[np.uint64]) -> None:
        self._script = list(script)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._script.pop(0) if self._script else np.zeros(count, dtype=np.uint64)


def shorts(label: str, count: int = DRAWS) -> NDArray[np.uint16]:
    return SeededRandom(1, label).words(count // 4).view(np.uint16)


def proposed(
    draws: ShortDraws, random: SeededRandom, count: int = DRAWS
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    values, is_accepted = np.empty(count, dtype=np.int64), np.ones(count, dtype=np.bool_)
    is_accepted[draws.propose(values, Work(count), random)] = False
    return values, is_accepted


@each_density
def test_the_same_digits_give_the_same_integers_as_the_slow_way(
    density: tuple[Fraction, Fraction], shift: int
) -> None:
    levels, digits, places = shorts("levels"), shorts("digits"), shorts("places")
    values, is_accepted = proposed(ShortDraws(*density, shift), GivenShorts(levels, digits, places))

    # The same digits where the slow way expects them: a sign, then the place, then the level from the 41st digit on.
    is_negative = places >= 1 << 15
    inside = np.where(is_negative, ~places, places) >> (15 - shift)
    words = is_negative.astype(np.uint64) << np.uint64(63)
    words |= inside.astype(np.uint64) << np.uint64(63 - shift)
    words |= levels.astype(np.uint64) << np.uint64(7)
    table_words = digits.astype(np.uint64) << np.uint64(48)
    slow = SymmetricIntegers(*density, shift)
    expected, is_expected = slow.propose(DRAWS, GivenWords(table_words, words))

    assert is_accepted.tolist() == is_expected.tolist()
    assert values[is_accepted].tolist() == expected[is_expected].tolist()


@pytest.mark.parametrize("density", [GAUSSIAN, COARSE_GAUSSIAN, LAPLACE], ids=str)
def test_every_beginning_of_a_number_leads_to_its_cell(density: tuple[Fraction, Fraction]) -> None:
    digits = np.arange(1 << 15, dtype=np.uint16) * 2 + 1
    nothing = np.zeros_like(digits)
    values, _ = proposed(
        ShortDraws(*density, 0), GivenShorts(nothing, digits, nothing), count=len(digits)
    )
    boundaries = np.array(cell_boundaries(*density, words=1), dtype=np.uint64)
    words = digits.astype(np.uint64) << np.uint64(48)
    assert values.tolist() == np.searchsorted(boundaries, words, side="right").tolist()


def test_a_level_above_the_acceptance_of_its_place_is_refused() -> None:
    levels = np.full(4, (1 << 16) - 1, dtype=np.uint16)
    digits = np.full(4, 40_000, dtype=np.uint16)
    places = np.array([0, 1 << 14, (1 << 15) - 1, (1 << 16) - 1], dtype=np.uint16)
    _, is_accepted = proposed(
        ShortDraws(*GAUSSIAN, LARGEST_SHIFT), GivenShorts(levels, digits, places), count=4
    )
    # At the cell's edge, from either side of zero, everything is accepted; farther in, the highest level is not.
    assert is_accepted.tolist() == [True, False, False, True]


@pytest.mark.parametrize("count", [1, 3, 1 << 15, (1 << 15) + 5])
def test_any_number_of_integers_can_be_drawn(count: int) -> None:
    assert len(ShortDraws(*GAUSSIAN, 2).draw(count, SeededRandom(1, "count"))) == count


@pytest.mark.parametrize("shift", [-1, LARGEST_SHIFT + 1])
def test_a_place_that_does_not_fit_a_short_word_is_refused(shift: int) -> None:
    with pytest.raises(ValueError, match=f"shift={shift}"):
        ShortDraws(*GAUSSIAN, shift)


def test_a_negative_number_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match="count=-1"):
        ShortDraws(*GAUSSIAN, 0).draw(-1, SeededRandom(1))


def test_draws_that_repeat_share_their_tables() -> None:
    assert short_draws(*GAUSSIAN, 1) is short_draws(*GAUSSIAN, 1)
