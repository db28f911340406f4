import numpy as np
import pytest
from scipy.stats import binomtest

from privacy.audit.bounds import (
    deviation_limits,
    gaussian_epsilon,
    membership_auc_bound,
    one_run_epsilon,
    one_run_p_value,
    proportion_limits,
)
from privacy.dp.accounting import epsilon_spent
from privacy.dp.events import SubsampledGaussian


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 50), (3, 50), (50, 50), (700, 10_000)]
)
@pytest.mark.parametrize("error", [0.05, 1e-6])
def test_proportion_limits_are_those_of_scipy_exact_test(successes, trials, error):
    expected = binomtest(successes, trials).proportion_ci(1 - error, method="exact")
    found = proportion_limits(successes, trials, error=error)
    assert found.lower == pytest.approx(expected.low, rel=1e-9, abs=1e-15)
    assert found.upper == pytest.approx(expected.high, rel=1e-9)


@pytest.mark.statistical
def test_deviation_limits_miss_as_seldom_as_they_say():
    # 2000 intervals of error 0.1: 200 misses expected, 13.4 deviation; error rate 1e-6 at 5 deviations.
    generator = np.random.default_rng(1)
    limits = [deviation_limits(3.0 * generator.standard_normal(40), error=0.1) for _ in range(2000)]
    missed = sum(not limit.lower <= 3.0 <= limit.upper for limit in limits)
    assert 133 <= missed <= 267


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_gaussian_epsilon_agrees_with_the_accountant(noise, delta):
    event = SubsampledGaussian(sample_rate=1.0, noise_multiplier=noise, steps=1)
    assert gaussian_epsilon(1.0 / noise, delta) == pytest.approx(
        epsilon_spent((event,), delta), abs=0.01
    )


def test_gaussian_epsilon_of_what_cannot_be_told_apart_is_zero():
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(1e-7, 1e-5) == 0.0


def test_guesses_no_better_than_coins_refute_nothing():
    assert one_run_epsilon(canaries=1000, guesses=400, right=200, delta=1e-5, error=0.05) == 0.0


def test_pure_privacy_bound_is_the_binomial_one():
    # Without delta the number of right guesses is at most Binomial(guesses, e^eps / (1 + e^eps)).
    chance = 1 / (1 + np.exp(-1.0))
    found = one_run_p_value(canaries=100, guesses=60, right=55, epsilon=1.0, delta=0.0)
    assert found == pytest.approx(binomtest(55, 60, chance, alternative="greater").pvalue)


def test_all_guesses_right_refute_a_large_epsilon_and_more_of_them_a_larger_one():
    few = one_run_epsilon(canaries=1000, guesses=100, right=100, delta=0.0, error=0.05)
    many = one_run_epsilon(canaries=1000, guesses=1000, right=1000, delta=0.0, error=0.05)
    assert few == pytest.approx(-np.log(0.05 ** (-1 / 100) - 1), rel=1e-4)
    assert many > few + 2.0


def test_delta_weakens_what_guesses_refute():
    bounds = [
        one_run_epsilon(canaries=10_000, guesses=200, right=190, delta=delta, error=0.05)
        for delta in (0.0, 1e-4, 1e-2)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[1] > bounds[2]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.1])
def test_membership_bound_is_the_area_under_the_region_of_possible_tests(epsilon, delta):
    false_positives = np.linspace(0.0, 1.0, 1_000_001)
    first = np.exp(epsilon) * false_positives + delta
    second = 1 - np.exp(-epsilon) * (1 - delta - false_positives)
    region = np.minimum(1.0, np.minimum(first, second))
    area = np.trapezoid(region, false_positives)
    assert membership_auc_bound(epsilon, delta) == pytest.approx(area, abs=1e-5)


def test_without_privacy_left_the_membership_bound_is_one():
    assert membership_auc_bound(0.0, 0.0) == 0.5
    assert membership_auc_bound(1000.0, 0.0) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportion_limits(3, 2, error=0.1),
        lambda: proportion_limits(0, 0, error=0.1),
        lambda: proportion_limits(1, 2, error=0.0),
        lambda: deviation_limits(np.zeros(0), error=0.1),
        lambda: gaussian_epsilon(-1.0, 1e-5),
        lambda: gaussian_epsilon(1.0, 0.0),
        lambda: one_run_p_value(canaries=10, guesses=11, right=3, epsilon=1.0, delta=0.0),
        lambda: membership_auc_bound(-0.1, 0.0),
        lambda: membership_auc_bound(1.0, 1.0),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="Expected"):
        call()
