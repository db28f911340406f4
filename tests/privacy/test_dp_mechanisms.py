"""Seeded tests: a p-value below 1e-5 would be one seed in 100 000."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from privacy.dp.mechanisms import clip_l1, discrete_laplace, discrete_laplace_vector
from privacy.randomness import OsRandom, SeededRandom

P_VALUE = 1e-5


def p_value_of_noise(noise: NDArray[np.int64], decay: float) -> float:
    """Chi-square against P(x) ~ exp(-decay * |x|), the tails in one cell."""
    reach = int(3 / decay) + 1
    middle = np.arange(-reach, reach + 1)
    expected = len(noise) * math.tanh(decay / 2) * np.exp(-decay * abs(middle))
    found = np.bincount(np.clip(noise, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    tails = found[0] + found[-1], len(noise) - expected.sum()
    return float(stats.chisquare([*found[1:-1], tails[0]], [*expected, tails[1]]).pvalue)


PARAMETERS = [(0.5, 1), (1.0, 3), (0.1, 1), (3.0, 1), (0.02, 5)]
each_parameter = pytest.mark.parametrize(("epsilon", "sensitivity"), PARAMETERS)


@pytest.mark.parametrize(("epsilon", "sensitivity"), [(0.5, 1), (1.0, 3)])
@pytest.mark.statistical
def test_noise_follows_the_discrete_laplace_distribution(epsilon: float, sensitivity: int) -> None:
    random = SeededRandom(11, "laplace")
    draws = [
        discrete_laplace(40, epsilon=epsilon, sensitivity=sensitivity, random=random)
        for _ in range(1500)
    ]
    assert p_value_of_noise(np.array(draws) - 40, epsilon / sensitivity) > P_VALUE


@each_parameter
@pytest.mark.statistical
def test_every_coordinate_of_a_vector_has_noise_of_the_full_scale(
    epsilon: float, sensitivity: int
) -> None:
    values = np.arange(200_000, dtype=np.int64)
    released = discrete_laplace_vector(
        values, epsilon=epsilon, sensitivity=sensitivity, random=SeededRandom(12, "vector")
    )
    assert p_value_of_noise(released - values, epsilon / sensitivity) > P_VALUE


@pytest.mark.statistical
def test_noise_from_the_operating_system_is_centred_on_the_value() -> None:
    draws = [
        discrete_laplace(-7, epsilon=1.0, sensitivity=1, random=OsRandom()) for _ in range(400)
    ]
    assert abs(np.mean(draws) + 7) < 6 * 1.36 / math.sqrt(400)


def test_one_number_and_a_vector_of_one_number_are_the_same_release() -> None:
    vector = np.array([12], dtype=np.int64)
    alone = discrete_laplace(12, epsilon=0.3, sensitivity=4, random=SeededRandom(1))
    released = discrete_laplace_vector(vector, epsilon=0.3, sensitivity=4, random=SeededRandom(1))
    assert released.tolist() == [alone]
    assert vector.tolist() == [12]


def hockey_stick(shifts: tuple[int, ...], decay: float, epsilon: float) -> float:
    """delta(epsilon) between independent discrete Laplace noises at 0 and at `shifts`, by enumeration.

    The loss of a coordinate depends only on its position between 0 and its shift.
    """
    losses, chances = np.zeros(1), np.ones(1)
    for shift in shifts:
        position = np.arange(shift + 1)
        mass = math.tanh(decay / 2) * np.exp(-decay * position)
        mass[0] = mass[-1] = 0.0
        mass[0] = 1 / (1 + math.exp(-decay))
        mass[-1] += math.exp(-decay * shift) / (1 + math.exp(-decay))
        loss = decay * (shift - 2 * position)
        losses = np.add.outer(losses, loss).ravel()
        chances = np.multiply.outer(chances, mass).ravel()
    assert chances.sum() == pytest.approx(1.0)
    return float((chances * np.maximum(0.0, 1.0 - np.exp(epsilon - losses))).sum())


@pytest.mark.parametrize("shifts", [(1, 1), (1, 4), (2, 3), (1, 1, 1, 1, 1), (3, 2, 1), (10, 1)])
@pytest.mark.parametrize("decay", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_vector_is_never_easier_to_tell_apart_than_one_integer(
    shifts: tuple[int, ...], decay: float, share: float
) -> None:
    epsilon = share * decay * sum(shifts)
    vector, integer = (hockey_stick(s, decay, epsilon) for s in (shifts, (sum(shifts),)))
    assert vector <= integer + 1e-14


def test_a_large_value_keeps_every_digit() -> None:
    released = discrete_laplace(10**30, epsilon=1.0, sensitivity=1, random=SeededRandom(1))
    assert abs(released - 10**30) < 200


def test_large_values_of_a_vector_saturate_and_do_not_wrap() -> None:
    values = np.array([2**63 - 1, -(2**63)], dtype=np.int64)
    high, low = discrete_laplace_vector(values, epsilon=1.0, sensitivity=1, random=SeededRandom(1))
    assert abs(high - 2**61) < 200
    assert abs(low + 2**61) < 200


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_promises_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon={epsilon}"):
        discrete_laplace(0, epsilon=epsilon, sensitivity=1, random=OsRandom())


def test_a_sensitivity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="sensitivity=0"):
        discrete_laplace(0, epsilon=1.0, sensitivity=0, random=OsRandom())


def test_a_scale_that_no_table_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="scale="):
        discrete_laplace(0, epsilon=1e-13, sensitivity=1, random=OsRandom())


@pytest.mark.parametrize("values", [np.zeros(2), np.zeros((1, 2), dtype=np.int64)])
def test_a_vector_that_is_no_flat_integers_is_refused(values: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="flat int64"):
        discrete_laplace_vector(values, epsilon=1.0, sensitivity=1, random=OsRandom())


@settings(max_examples=100, deadline=None)
@given(
    vectors=arrays(
        np.float64, (3, 5), elements=st.floats(allow_nan=True, allow_infinity=True, width=64)
    ),
    bound=st.floats(min_value=1e-12, max_value=1e12),
    steps=st.integers(min_value=1, max_value=100_000),
)
def test_no_row_exceeds_the_bound_whatever_it_was(
    vectors: NDArray[np.float64], bound: float, steps: int
) -> None:
    clipped = clip_l1(vectors, bound=bound, steps=steps)
    assert clipped.dtype == np.int64
    assert abs(clipped).sum(axis=1).max() <= steps


def test_a_row_within_the_bound_is_cut_to_the_grid_only() -> None:
    rows = np.array([[0.25, -0.5, 0.0], [0.1239, 0.0, -0.0001]], dtype=np.float32)
    assert clip_l1(rows, bound=1.0, steps=1000).tolist() == [[250, -500, 0], [123, 0, 0]]


def test_a_row_above_the_bound_keeps_its_direction() -> None:
    assert clip_l1(np.array([[30.0, -10.0]]), bound=1.0, steps=1000).tolist() == [[750, -250]]


@pytest.mark.parametrize("intruder", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_contributes_nothing(intruder: float) -> None:
    rows = np.array([[intruder, 1.0], [0.5, 0.5]])
    assert clip_l1(rows, bound=1.0, steps=10).tolist() == [[0, 0], [5, 5]]


def test_nobody_contributes_nothing() -> None:
    assert clip_l1(np.empty((0, 3)), bound=1.0, steps=10).sum(axis=0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("bound", "steps", "shape"),
    [(0.0, 1, (1, 1)), (math.nan, 1, (1, 1)), (1.0, 0, (1, 1)), (1.0, 10**6, (1, 1)), (1.0, 1, 3)],
)
def test_clipping_without_usable_bounds_is_refused(
    bound: float, steps: int, shape: int | tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"Expected (bound=|steps=|rows)"):
        clip_l1(np.zeros(shape), bound=bound, steps=steps)
