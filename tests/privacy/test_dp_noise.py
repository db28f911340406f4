"""Distributions of the samplers against formulas and against slow exact samplers.

Seeded tests: a p-value below 1e-5 or a distance above 5 standard deviations would be one seed in 100 000.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privacy.dp.noise import (
    GAUSSIAN_CELLS,
    SAMPLING_REMAINDER,
    DiscreteGaussian,
    DiscreteLaplaceNoise,
    IntegerNoise,
    RoundedGaussian,
)
from privacy.randomness import BYTES_PER_KEY, OsRandom, Random, SeededRandom

P_VALUE = 1e-5


def weights(noise: IntegerNoise, scale: float, k: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(k) up to a constant."""
    if isinstance(noise, RoundedGaussian):
        # From the lower tail, where differences keep their digits.
        return np.asarray(
            stats.norm.cdf((0.5 - abs(k)) / scale) - stats.norm.cdf((-0.5 - abs(k)) / scale)
        )
    if isinstance(noise, DiscreteGaussian):
        return np.asarray(np.exp(-(k**2) / (2 * scale**2)))
    return np.asarray(np.exp(-abs(k) / scale))


def p_value_of_counts(values: NDArray[np.int64], noise: IntegerNoise, scale: float) -> float:
    """Chi-square of every integer that is expected at least 20 times, all others in one cell."""
    reach = int(60 * scale) + 3
    chances = weights(noise, scale, np.arange(-reach, reach + 1, dtype=np.float64))
    expected = len(values) * chances / chances.sum()
    counts = np.bincount(np.clip(values, -reach, reach) + reach, minlength=2 * reach + 1)
    is_common = expected >= 20
    found, wanted = counts[is_common], expected[is_common]
    # At least one is expected among the others: one that comes by chance must not weigh 1e20.
    found = np.append(found, len(values) - found.sum())
    wanted = np.append(wanted, max(len(values) - wanted.sum(), 1.0))
    return float(stats.chisquare(found, wanted, sum_check=False).pvalue)


SMALL = [
    (RoundedGaussian(deviation=0.3), 0.3),
    (RoundedGaussian(deviation=1.0), 1.0),
    (RoundedGaussian(deviation=7.3), 7.3),
    (RoundedGaussian(deviation=400.0), 400.0),
    (DiscreteGaussian(deviation=0.45), 0.45),
    (DiscreteGaussian(deviation=1.0), 1.0),
    (DiscreteGaussian(deviation=20.0), 20.0),
    (DiscreteGaussian(deviation=600.0), 600.0),
    (DiscreteLaplaceNoise(scale=0.2), 0.2),
    (DiscreteLaplaceNoise(scale=Fraction(5, 3)), 5 / 3),
    (DiscreteLaplaceNoise(scale=30.0), 30.0),
    (DiscreteLaplaceNoise(scale=150.0), 150.0),
]
each_small = pytest.mark.parametrize(
    ("noise", "scale"), SMALL, ids=[f"{type(noise).__name__} {scale:.3g}" for noise, scale in SMALL]
)


@each_small
@pytest.mark.statistical
def test_every_integer_comes_as_often_as_its_formula_says(
    noise: IntegerNoise, scale: float
) -> None:
    values = noise.draw(300_000, SeededRandom(1, "counts"))
    assert p_value_of_counts(values, noise, scale) > P_VALUE


@pytest.mark.statistical
def test_the_count_test_finds_a_deviation_that_is_three_percent_off() -> None:
    noise = DiscreteGaussian(deviation=20.6)
    values = noise.draw(300_000, SeededRandom(1, "counts"))
    assert p_value_of_counts(values, noise, 20.0) < P_VALUE


def exact_laplace(scale: Fraction, random: Random) -> int:
    """Canonne, Kamath, Steinke 2020, Algorithm 2: uniform integers only, no table."""
    t, s = scale.numerator, scale.denominator
    while True:
        u = random.randbelow(t)
        if not exact_coin(Fraction(u, t), random):
            continue
        v = 0
        while exact_coin(Fraction(1), random):
            v += 1
        y, is_negative = (u + t * v) // s, random.randbelow(2) == 1
        if y > 0 or not is_negative:
            return -y if is_negative else y


def exact_gaussian(deviation: Fraction, random: Random) -> int:
    """The same paper, Algorithm 3: rejection from the discrete Laplace distribution."""
    t = math.floor(deviation) + 1
    while True:
        y = exact_laplace(Fraction(t), random)
        gamma = (abs(y) - deviation**2 / t) ** 2 / (2 * deviation**2)
        if all(exact_coin(Fraction(1), random) for _ in range(math.floor(gamma))) and exact_coin(
            gamma - math.floor(gamma), random
        ):
            return y


def exact_coin(gamma: Fraction, random: Random) -> bool:
    """True with probability exp(-gamma), for gamma in [0, 1]: Algorithm 1."""
    k = 1
    while random.randbelow(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("noise", "slow", "scale"),
    [
        (DiscreteLaplaceNoise(scale=Fraction(7, 2)), exact_laplace, Fraction(7, 2)),
        (DiscreteGaussian(deviation=2.5), exact_gaussian, Fraction(5, 2)),
    ],
    ids=["laplace", "gaussian"],
)
def test_a_slow_exact_sampler_without_tables_draws_the_same(
    noise: IntegerNoise, slow: Callable[[Fraction, Random], int], scale: Fraction
) -> None:
    random = SeededRandom(3, "slow")
    reference = np.clip([slow(scale, random) for _ in range(4000)], -9, 9)
    values = np.clip(noise.draw(600_000, SeededRandom(3, "fast")), -9, 9)
    table = [np.bincount(sample + 9, minlength=19) for sample in (reference, values)]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


LARGE = [
    (RoundedGaussian(deviation=1.5 * 2**24), stats.norm(scale=1.5 * 2**24)),
    (RoundedGaussian(deviation=2.0**40), stats.norm(scale=2.0**40)),
    (DiscreteGaussian(deviation=2.0**40), stats.norm(scale=2.0**40)),
    (DiscreteGaussian(deviation=1e6), stats.norm(scale=1e6)),
    (DiscreteLaplaceNoise(scale=1e6), stats.laplace(scale=1e6)),
    (DiscreteLaplaceNoise(scale=2.0**40), stats.laplace(scale=2.0**40)),
]
each_large = pytest.mark.parametrize(("noise", "limit"), LARGE)


@each_large
@pytest.mark.statistical
def test_on_a_fine_grid_the_draws_are_those_of_the_continuous_distribution(
    noise: IntegerNoise, limit: Any
) -> None:
    values = noise.draw(500_000, SeededRandom(5, "large"))
    assert stats.kstest(values, limit.cdf).pvalue > P_VALUE
    assert abs(values.std() / limit.std() - 1.0) < 0.005
    assert abs(values.mean()) < 5 * limit.std() / math.sqrt(len(values))


@each_large
@pytest.mark.statistical
def test_the_lowest_digits_of_a_large_draw_are_uniform(noise: IntegerNoise, limit: Any) -> None:
    values = noise.draw(200_000, SeededRandom(6, "digits"))
    assert stats.chisquare(np.bincount(values & 63, minlength=64)).pvalue > P_VALUE


@pytest.mark.statistical
@pytest.mark.parametrize("deviations", [1.0, 2.0, 3.0, 4.0, 5.0])
def test_the_tails_of_the_rounded_gaussian_are_as_heavy_as_they_should_be(
    deviations: float,
) -> None:
    values = RoundedGaussian(deviation=1e6).draw(3_000_000, SeededRandom(7, "tails"))
    chance = 2 * stats.norm.sf(deviations)
    found = int((abs(values) > deviations * 1e6).sum())
    assert stats.binomtest(found, len(values), chance).pvalue > P_VALUE


@pytest.mark.statistical
def test_neighbouring_draws_and_their_signs_are_uncorrelated() -> None:
    values = RoundedGaussian(deviation=1e6).draw(1_000_000, SeededRandom(8)) / 1e6
    limit = 5 / math.sqrt(len(values))
    assert abs((values[1:] * values[:-1]).mean()) < limit
    assert abs((abs(values[1:]) * np.sign(values[:-1])).mean()) < limit


@each_small
def test_draws_are_int64_of_the_asked_number(noise: IntegerNoise, scale: float) -> None:
    assert noise.draw(0, OsRandom()).shape == (0,)
    assert noise.draw(3, OsRandom()).dtype == np.int64


def test_a_negative_number_of_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="count=-1"):
        RoundedGaussian(deviation=1.0).draw(-1, OsRandom())


@pytest.mark.parametrize(
    ("noise", "draws"),
    [
        (RoundedGaussian(deviation=1.5 * 2**24), [-10485124, 17187794, -1178256, 43347922]),
        (DiscreteGaussian(deviation=3.0), [-1, 2, -4, 5]),
        (DiscreteLaplaceNoise(scale=1000), [-399, 690, -47, 2459]),
    ],
)
def test_seeded_draws_are_the_same_on_every_machine(noise: IntegerNoise, draws: list[int]) -> None:
    assert noise.draw(4, SeededRandom(42, "vector")).tolist() == draws


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2.0**41, 2.0**-21])
def test_a_scale_out_of_range_is_refused_by_name(scale: float) -> None:
    with pytest.raises(ValueError, match=f"deviation={scale}"):
        RoundedGaussian(deviation=scale)
    with pytest.raises(ValueError, match=f"deviation={scale}"):
        DiscreteGaussian(deviation=scale)
    with pytest.raises(ValueError, match=f"scale={scale}"):
        DiscreteLaplaceNoise(scale=scale)


@pytest.mark.parametrize("exponent", [-20, 40])
def test_the_extreme_scales_can_be_drawn(exponent: int) -> None:
    scale = 2.0**exponent
    noises: list[IntegerNoise] = [
        RoundedGaussian(deviation=scale),
        DiscreteGaussian(deviation=scale),
        DiscreteLaplaceNoise(scale=scale),
    ]
    largest = [abs(noise.draw(1000, SeededRandom(1))).max() for noise in noises]
    assert max(largest) < 20 * scale + 1


def test_the_remainder_covers_the_counter_mode_of_all_draws_of_a_data_set() -> None:
    blocks_per_key, blocks = Fraction(BYTES_PER_KEY // 16), 2**51
    keys = blocks / blocks_per_key
    distance = keys * blocks_per_key**2 / 2**129
    assert float(distance) * (1 + math.exp(16)) < SAMPLING_REMAINDER


def test_a_draw_takes_two_blocks_of_the_key_stream_at_most() -> None:
    class Counted(SeededRandom):
        asked = 0

        def words(self, count: int) -> NDArray[np.uint64]:
            self.asked += count
            return super().words(count)

        def fill(self, words: NDArray[np.uint64]) -> None:
            self.asked += words.size
            super().fill(words)

    random = Counted(1)
    RoundedGaussian(deviation=GAUSSIAN_CELLS).draw(100_000, random)
    DiscreteGaussian(deviation=2.0**-20).draw(100_000, random)
    DiscreteLaplaceNoise(scale=1000.0).draw(100_000, random)
    assert random.asked / 2 < 2 * 300_000


def test_the_noise_is_imported_without_torch_and_scipy() -> None:
    program = "import sys, privacy.dp.noise; print({'torch', 'scipy', 'mpmath'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert shown.stdout.decode().strip() == "set()"
