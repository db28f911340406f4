"""What leaves with noise: numbers on the grid, reachable from every neighbouring sum, with the declared deviation.

Seeded tests: a p-value below 1e-5 would be one seed in 100 000.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from privacy.dp.noise import (
    LARGEST_DIMENSION,
    LARGEST_INTEGER,
    LARGEST_UNITS,
    ROUNDING_SHARE,
    VALUES_AT_ONCE,
    GridGaussian,
    GridLaplace,
    sum_grid,
)
from privacy.randomness import OsRandom, SeededRandom

P_VALUE = 1e-5


def off_grid(released: NDArray[np.float32], grid: float) -> int:
    """How many numbers are not whole multiples of `grid`."""
    steps = released.astype(np.float64) / grid
    return int((steps != np.rint(steps)).sum())


def impossible(
    released: NDArray[np.float32],
    release: Callable[[NDArray[np.floating]], NDArray[np.float32]],
    candidates: Callable[[NDArray[np.float64]], NDArray[np.floating]],
) -> float:
    """Share of `released` that no noise near the fitting one gives under the other value.

    Args:
        released: outputs under one value.
        release: noise to the output under the neighbouring value, as the mechanism computes it.
        candidates: wanted noise to the nearest noises that the mechanism can draw [candidates, outputs].
    """
    wanted = released.astype(np.float64) - 1.0
    reached = release(candidates(wanted)) == released
    return float(1.0 - reached.any(axis=0).mean())


def test_floating_point_noise_gives_zero_and_one_away() -> None:
    generator = torch.Generator().manual_seed(1)
    under_zero = torch.normal(0.0, 1.0, (200_000,), generator=generator).numpy()

    def neighbours(noise: NDArray[np.float64]) -> NDArray[np.floating]:
        nearest = noise.astype(np.float32)
        around = [nearest]
        for direction in (-np.inf, np.inf):
            step = nearest
            for _ in range(3):
                step = np.nextafter(step, np.float32(direction))
                around.append(step)
        return np.stack(around)

    share = impossible(under_zero, lambda noise: np.float32(1.0) + noise, neighbours)
    assert share > 0.1


@pytest.mark.parametrize("dimension", [1, 10_000, 10**7])
@pytest.mark.parametrize("multiplier", [0.3, 1.0, 30.0])
def test_noise_on_the_grid_gives_nothing_away_between_zero_and_one(
    dimension: int, multiplier: float
) -> None:
    grid = sum_grid(bound=1.0, dimension=dimension)
    under_zero = np.zeros(200_000, dtype=np.float32)
    GridGaussian(deviation=multiplier, grid=grid).add_to(under_zero, SeededRandom(9, "zero"))

    def integers(noise: NDArray[np.float64]) -> NDArray[np.floating]:
        return np.asarray(np.rint(noise / grid) + np.arange(-1, 2)[:, None])

    def release(noise: NDArray[np.floating]) -> NDArray[np.float32]:
        return np.asarray((np.rint(1.0 / grid) + noise) * grid, dtype=np.float32)

    assert impossible(under_zero, release, integers) == 0.0
    assert off_grid(under_zero, grid) == 0


@pytest.mark.statistical
def test_zero_and_one_reach_exactly_the_same_outputs() -> None:
    # 41 outputs between -2 and 3, each expected 100 times or more under both values.
    noise, reached = GridGaussian(deviation=1.0, grid=2.0**-3), []
    for value in (0.0, 1.0):
        released = np.full(200_000, value, dtype=np.float32)
        noise.add_to(released, SeededRandom(15, str(value)))
        reached.append(np.unique(released[(released >= -2) & (released <= 3)]).tolist())
    assert reached[0] == reached[1] == np.arange(-2, 3.125, 0.125).tolist()


@pytest.mark.parametrize("bound", [1.0, 0.3, 1e-12, 1e12])
def test_no_number_leaves_off_the_grid_whatever_the_sum(bound: float) -> None:
    grid = sum_grid(bound=bound, dimension=10**6)
    values = (stats.norm.rvs(size=100_000, random_state=1) * 300 * bound).astype(np.float32)
    values[:3] = [0.0, 3e38, -3e38]
    GridGaussian(deviation=1.1 * bound, grid=grid).add_to(values, SeededRandom(10))
    assert off_grid(values, grid) == 0


def test_the_grid_test_finds_noise_in_floating_point() -> None:
    values = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    assert off_grid(values, sum_grid(bound=1.0, dimension=10_000)) > 900


@pytest.mark.statistical
@pytest.mark.parametrize("is_discrete", [False, True])
def test_released_noise_has_the_declared_deviation_and_shape(is_discrete: bool) -> None:
    released = np.zeros(1_000_000, dtype=np.float32)
    grid = sum_grid(bound=0.7, dimension=len(released))
    noise = GridGaussian(deviation=1.3 * 0.7, grid=grid, is_discrete=is_discrete)
    noise.add_to(released, SeededRandom(11))
    assert abs(released.std(dtype=np.float64) / (1.3 * 0.7) - 1.0) < 0.005
    assert stats.kstest(released, stats.norm(scale=1.3 * 0.7).cdf).pvalue > P_VALUE


@pytest.mark.statistical
def test_released_laplace_noise_has_the_declared_scale() -> None:
    released = np.zeros(1_000_000, dtype=np.float32)
    GridLaplace(scale=0.4, grid=2.0**-16).add_to(released, SeededRandom(12))
    assert abs(abs(released).mean(dtype=np.float64) / 0.4 - 1.0) < 0.005
    assert stats.kstest(released[:300_000], stats.laplace(scale=0.4).cdf).pvalue > P_VALUE
    assert off_grid(released, 2.0**-16) == 0


NOISES = [
    GridGaussian(deviation=0.01, grid=2.0**-12),
    GridGaussian(deviation=0.01, grid=2.0**-12, is_discrete=True),
    GridLaplace(scale=0.01, grid=2.0**-12),
]
each_noise = pytest.mark.parametrize("noise", NOISES)


@each_noise
def test_a_sum_is_rounded_to_the_nearest_step_before_the_noise(
    noise: GridGaussian | GridLaplace,
) -> None:
    values = np.linspace(-3, 3, VALUES_AT_ONCE + 77, dtype=np.float32)
    alone = noise.integers(np.zeros_like(values), SeededRandom(13))
    steps = noise.integers(values, SeededRandom(13)) - alone
    assert (abs(steps - values.astype(np.float64) * 2**12) <= 0.5).all()


@each_noise
def test_both_forms_of_a_release_are_the_same_numbers(noise: GridGaussian | GridLaplace) -> None:
    values = np.linspace(-3, 3, 100_001, dtype=np.float32)
    integers = noise.integers(values, SeededRandom(14))
    noise.add_to(values, SeededRandom(14))
    assert (values == (integers * 2.0**-12).astype(np.float32)).all()


@each_noise
@pytest.mark.parametrize("intruder", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_not_released(
    noise: GridGaussian | GridLaplace, intruder: float
) -> None:
    values = np.zeros(10, dtype=np.float32)
    values[4] = intruder
    with pytest.raises(ValueError, match="finite"):
        noise.add_to(values, OsRandom())


@each_noise
@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 2), dtype=np.float32)])
def test_only_flat_float32_vectors_are_noised(
    noise: GridGaussian | GridLaplace, values: NDArray[np.float32]
) -> None:
    with pytest.raises(ValueError, match="flat float32"):
        noise.add_to(values, OsRandom())
    with pytest.raises(ValueError, match="flat float32"):
        noise.integers(values, OsRandom())


@pytest.mark.parametrize("grid", [0.3, 0.0, -0.5, math.nan, math.inf, 2.0**-81, 2.0**31])
def test_a_grid_that_is_no_power_of_two_is_refused(grid: float) -> None:
    with pytest.raises(ValueError, match=f"grid={grid}"):
        GridGaussian(deviation=1.0, grid=grid)
    with pytest.raises(ValueError, match=f"grid={grid}"):
        GridLaplace(scale=1.0, grid=grid)


@given(
    bound=st.floats(min_value=1e-12, max_value=1e12),
    dimension=st.integers(min_value=1, max_value=LARGEST_DIMENSION),
)
def test_the_grid_is_the_coarsest_that_moves_the_sensitivity_by_the_stated_share(
    bound: float, dimension: int
) -> None:
    grid = sum_grid(bound=bound, dimension=dimension)
    allowed = (ROUNDING_SHARE * Fraction(bound)) ** 2
    assert Fraction(grid) ** 2 * dimension <= allowed < (2 * Fraction(grid)) ** 2 * dimension
    assert math.frexp(grid)[0] == 0.5
    assert LARGEST_UNITS * bound / grid < 2**58


@pytest.mark.parametrize(("bound", "dimension"), [(0.0, 1), (math.nan, 1), (1.0, 0), (1e13, 1)])
def test_a_sum_without_a_usable_bound_has_no_grid(bound: float, dimension: int) -> None:
    with pytest.raises(ValueError, match=r"Expected (bound|dimension)="):
        sum_grid(bound=bound, dimension=dimension)


def test_rounded_sums_of_neighbours_stay_within_the_stated_sensitivity() -> None:
    dimension, bound = 10_000, 1.0
    grid = sum_grid(bound=bound, dimension=dimension)
    noise = GridGaussian(deviation=1.0, grid=grid)
    generator = np.random.default_rng(4)
    one = generator.standard_normal(dimension).astype(np.float32)
    unit = generator.standard_normal(dimension)
    other = (one + unit / np.linalg.norm(unit)).astype(np.float32)
    steps = noise.integers(other, SeededRandom(1)) - noise.integers(one, SeededRandom(1))
    assert np.linalg.norm(steps * grid) <= bound * (1 + float(ROUNDING_SHARE))


def test_a_sum_beyond_all_bounds_saturates_and_does_not_wrap() -> None:
    noise = GridGaussian(deviation=2.0**-45, grid=2.0**-80)
    largest = noise.integers(np.array([3e38, -3e38], dtype=np.float32), SeededRandom(1))
    assert largest[0] > LARGEST_INTEGER - 2**50
    assert largest[1] < 2**50 - LARGEST_INTEGER
