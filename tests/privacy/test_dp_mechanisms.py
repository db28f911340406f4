import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from privacy.dp.mechanisms import discrete_laplace
from privacy.randomness import OsRandom, SeededRandom


@pytest.mark.statistical
@pytest.mark.parametrize(("epsilon", "sensitivity"), [(0.5, 1), (1.0, 3), (0.1, 1), (3.0, 1)])
def test_noise_follows_the_discrete_laplace_distribution(epsilon: float, sensitivity: int) -> None:
    random, draws, decay = SeededRandom(11, "laplace"), 8000, epsilon / sensitivity
    counts = Counter(
        discrete_laplace(40, epsilon=epsilon, sensitivity=sensitivity, random=random)
        for _ in range(draws)
    )
    reach = int(2 / decay) + 1
    middle = np.arange(40 - reach, 41 + reach)
    expected = draws * math.tanh(decay / 2) * np.exp(-decay * abs(middle - 40))
    found = np.array([counts[int(value)] for value in middle])
    rest = [draws - found.sum(), draws - expected.sum()]
    assert stats.chisquare([*found, rest[0]], [*expected, rest[1]]).pvalue > 1e-4


@pytest.mark.statistical
def test_noise_from_the_operating_system_is_centred_on_the_value() -> None:
    draws = [
        discrete_laplace(-7, epsilon=1.0, sensitivity=1, random=OsRandom()) for _ in range(2000)
    ]
    assert abs(np.mean(draws) + 7) < 6 * 1.36 / math.sqrt(2000)


def test_a_large_value_keeps_every_digit() -> None:
    released = discrete_laplace(10**30, epsilon=1.0, sensitivity=1, random=SeededRandom(1))
    assert abs(released - 10**30) < 200


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_promises_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon={epsilon}"):
        discrete_laplace(0, epsilon=epsilon, sensitivity=1, random=OsRandom())


def test_a_sensitivity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="sensitivity=0"):
        discrete_laplace(0, epsilon=1.0, sensitivity=0, random=OsRandom())
