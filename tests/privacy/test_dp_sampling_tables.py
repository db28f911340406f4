"""The exactness of the samplers, number by number, against mpmath with 400 to 2000 bits."""

from collections.abc import Sequence
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.dp.half_line import CLOSE, HalfLine
from privacy.dp.noise import GAUSSIAN_CELLS, LAPLACE_CELLS
from privacy.dp.sampling_tables import CellTable, cell_boundaries, exp_bounds
from privacy.randomness import SeededRandom

GAUSSIAN = (Fraction(0), Fraction(1, 2 * 40**2))
LAPLACE = (Fraction(1, 11), Fraction(0))
DENSITIES = [GAUSSIAN, LAPLACE, (Fraction(0), Fraction(1, 2)), (Fraction(3, 7), Fraction(0))]
each_density = pytest.mark.parametrize("density", DENSITIES, ids=str)
ALL_ONES = 2**64 - 1


class ScriptedRandom(SeededRandom):
    """Gives the words of a script, whatever is asked for."""

    def __init__(self, *script: Sequence[int]) -> None:
        self._script = [np.array(words, dtype=np.uint64) for words in script]

    def words(self, count: int) -> NDArray[np.uint64]:
        words = self._script.pop(0)
        assert len(words) == count
        return words


class StuckRandom(SeededRandom):
    """A broken source: the same word for ever."""

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.full(count, ALL_ONES, dtype=np.uint64)


def number(fraction: Fraction) -> mpmath.mpf:
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def exact_boundaries(density: tuple[Fraction, Fraction], count: int) -> list[mpmath.mpf]:
    """F(0), F(1), ..., F(count - 1) with all digits of the working precision."""
    alpha, beta = (number(part) for part in density)
    weights = [mpmath.exp(-alpha * c - beta * c * c) for c in range(2 * count + 60)]
    total = mpmath.fsum(weights)
    sums, so_far = [], mpmath.mpf(0)
    for weight in weights[:count]:
        so_far += weight
        sums.append(so_far / total)
    return sums


@pytest.mark.parametrize("bits", [23, 160, 700])
@settings(max_examples=40, deadline=None)
@given(exponent=st.fractions(min_value=0, max_value=800, max_denominator=10**30))
def test_the_bounds_of_an_exponential_enclose_it_closely(bits: int, exponent: Fraction) -> None:
    low, high = exp_bounds(exponent, bits)
    with mpmath.workprec(2000):
        exact = mpmath.exp(-number(exponent)) * mpmath.mpf(2) ** bits
        assert low <= exact <= high
    assert high - low <= 2


@each_density
@pytest.mark.parametrize("words", [1, 3])
def test_every_digit_of_a_table_is_right(density: tuple[Fraction, Fraction], words: int) -> None:
    boundaries = cell_boundaries(*density, words=words)
    with mpmath.workprec(400):
        exact = exact_boundaries(density, len(boundaries))
        digits = [int(mpmath.floor(value * mpmath.mpf(2) ** (64 * words))) for value in exact]
    assert boundaries == digits
    assert boundaries[-1] == 2 ** (64 * words) - 1


def test_a_table_that_would_not_end_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha=0"):
        cell_boundaries(Fraction(0), Fraction(1, 1 << 40), words=1)


def test_more_cells_than_the_guide_can_name_are_refused() -> None:
    with pytest.raises(ValueError, match="32767 cells"):
        CellTable(Fraction(1, 1000), Fraction(0))


@each_density
def test_a_cell_is_what_a_search_in_the_whole_table_finds(
    density: tuple[Fraction, Fraction],
) -> None:
    cells = CellTable(*density).draw(20_000, SeededRandom(1, "cells"))
    boundaries = np.array(cell_boundaries(*density, words=1), dtype=np.uint64)
    words = SeededRandom(1, "cells").words(20_000)
    assert cells.tolist() == np.searchsorted(boundaries, words, side="right").tolist()


@each_density
@pytest.mark.parametrize(("step", "cell"), [(-1, 3), (1, 4)])
def test_digits_that_equal_a_boundary_are_settled_by_the_next_ones(
    density: tuple[Fraction, Fraction], step: int, cell: int
) -> None:
    with mpmath.workprec(400):
        boundary = int(mpmath.floor(exact_boundaries(density, 1000)[3] * mpmath.mpf(2) ** 128))
    first, second = divmod(boundary, 2**64)
    assert CellTable(*density).draw(1, ScriptedRandom([first], [second + step])).tolist() == [cell]


def test_two_words_that_equal_a_boundary_are_settled_by_the_third() -> None:
    with mpmath.workprec(400):
        boundary = int(mpmath.floor(exact_boundaries(GAUSSIAN, 1000)[9] * mpmath.mpf(2) ** 192))
    words = [[boundary >> 128], [(boundary >> 64) % 2**64], [boundary % 2**64 + 1]]
    assert CellTable(*GAUSSIAN).draw(1, ScriptedRandom(*words)).tolist() == [10]


def test_a_draw_can_lie_beyond_the_table() -> None:
    table = CellTable(*GAUSSIAN)
    words = [[ALL_ONES], [ALL_ONES], [3 * 2**62]]
    assert table.draw(1, ScriptedRandom(*words))[0] > table.cells


def test_a_source_that_repeats_itself_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        CellTable(Fraction(0), Fraction(10**5)).draw(1, StuckRandom(0))


COARSEST_GAUSSIAN = (Fraction(0), Fraction(1, 2 * GAUSSIAN_CELLS**2))
COARSEST_LAPLACE = (Fraction(1, LAPLACE_CELLS), Fraction(0))


@pytest.mark.parametrize(
    ("density", "place_bits"),
    [(COARSEST_GAUSSIAN, None), (COARSEST_GAUSSIAN, 12), (COARSEST_LAPLACE, 12)],
    ids=str,
)
def test_acceptance_in_float64_is_far_closer_than_what_it_decides(
    density: tuple[Fraction, Fraction], place_bits: int | None
) -> None:
    half_line, random = HalfLine(*density, place_bits=place_bits), SeededRandom(5, "acceptance")
    cells = np.arange(0, 2000, 7)
    words = random.words(len(cells))
    found = half_line.acceptance(cells, words)
    places = [Fraction((int(word) >> 23) % 2**40, 2**40) for word in words]
    wanted = [Fraction(int(place * 2**12), 2**12) if place_bits else place for place in places]
    with mpmath.workprec(400):
        farthest = Fraction(1, 2**40) if place_bits is None else Fraction(0)
        errors = [
            abs(mpmath.mpf(float(value)) - acceptance(density, int(cell), place + extra))
            for value, cell, place in zip(found, cells, wanted, strict=True)
            for extra in (Fraction(0), farthest)
        ]
    assert max(errors) < CLOSE / 64


def acceptance(density: tuple[Fraction, Fraction], cell: int, place: Fraction) -> mpmath.mpf:
    """The density at `cell + place` over the density at the cell's left edge."""
    alpha, beta = density
    whole = alpha * (cell + place) + beta * (cell + place) ** 2 - alpha * cell - beta * cell**2
    return mpmath.exp(-number(whole))


# A word of the table that lies in cell CELL, and a place in that cell.
CELL_WORD, PLACE = 3 * 2**62, 2**39 + 12345
CELL = int(CellTable(*GAUSSIAN).draw(1, ScriptedRandom([CELL_WORD]))[0])


def digits_of_acceptance(place: Fraction, bits: int) -> int:
    with mpmath.workprec(2000):
        return int(mpmath.floor(acceptance(GAUSSIAN, CELL, place) * mpmath.mpf(2) ** bits))


def proposal(level: int, *rounds: tuple[int, int]) -> ScriptedRandom:
    """One proposal with PLACE in CELL and a level of 23 + 64 bits; then rounds of further digits of both."""
    first, more = divmod(level, 2**64)
    return ScriptedRandom([CELL_WORD], [(PLACE << 23) | first], [more], *rounds)


@pytest.mark.parametrize(("step", "is_accepted"), [(-4, True), (4, False)])
def test_a_level_too_close_to_the_acceptance_of_an_integer_is_settled_by_more_digits(
    step: int, is_accepted: bool
) -> None:
    level, more = divmod(digits_of_acceptance(Fraction(PLACE, 2**40), 151), 2**64)
    random = proposal(level, (0, more + step))
    _, _, accepted = HalfLine(*GAUSSIAN, place_bits=40).propose(1, random)
    assert accepted.tolist() == [is_accepted]


@pytest.mark.parametrize(("step", "is_accepted"), [(-4, True), (4, False)])
def test_a_level_too_close_to_the_acceptance_of_a_real_place_is_settled_by_more_digits(
    step: int, is_accepted: bool
) -> None:
    half_a_unit_on = Fraction(2 * PLACE + 1, 2**41)
    random = proposal(digits_of_acceptance(half_a_unit_on, 87) + step, (2**63, 0))
    _, _, accepted = HalfLine(*GAUSSIAN, place_bits=None).propose(1, random)
    assert accepted.tolist() == [is_accepted]


def test_a_source_that_repeats_the_digits_of_a_density_is_noticed() -> None:
    digits = digits_of_acceptance(Fraction(PLACE, 2**40), 23 + 64 * 17)
    rounds = [(0, (digits >> (64 * index)) % 2**64) for index in reversed(range(16))]
    random = proposal(digits >> (64 * 16), *rounds)
    with pytest.raises(RuntimeError, match="broken"):
        HalfLine(*GAUSSIAN, place_bits=40).propose(1, random)


@pytest.mark.parametrize(("share", "is_accepted"), [(0.950, True), (0.957, False)])
def test_a_rare_far_cell_is_settled_by_its_own_density(share: float, is_accepted: bool) -> None:
    # Acceptance at the end of cell 800, 6.25 deviations out, is 0.952; nearer cells accept 0.957 at once.
    cell_word = cell_boundaries(*COARSEST_GAUSSIAN, words=1)[799] + 1
    word = ((2**40 - 1) << 23) | int(share * 2**23)
    cells, _, accepted = HalfLine(*COARSEST_GAUSSIAN, place_bits=None).propose(
        1, ScriptedRandom([cell_word], [word], [0])
    )
    assert cells.tolist() == [800]
    assert accepted.tolist() == [is_accepted]


@each_density
@pytest.mark.parametrize("place_bits", [None, 7])
def test_no_proposal_is_settled_against_its_digits(
    density: tuple[Fraction, Fraction], place_bits: int | None
) -> None:
    half_line = HalfLine(*density, place_bits=place_bits)
    cells, words, is_accepted = half_line.propose(50_000, SeededRandom(2, "proposals"))
    chances = half_line.acceptance(cells, words)
    levels = (words & np.uint64(2**23 - 1)) * 2.0**-23
    assert (levels[is_accepted] <= chances[is_accepted] + CLOSE).all()
    assert (levels[~is_accepted] + 2.0**-23 >= chances[~is_accepted] - CLOSE).all()
    assert 0.5 < is_accepted.mean() < 1.0
