"""Audits of mechanisms whose privacy is known, and of the real training. Error rate of every test: 1e-6 or less."""

import numpy as np
import pytest
from scipy.stats import norm

from privacy.audit.canaries import (
    CanaryScores,
    audit_gaussian,
    audit_one_run,
    canary_task,
    gaussian_mu,
    guessed_epsilon,
    score_canaries,
)
from privacy.audit.controls import (
    broken_counting_twice,
    broken_half_noise,
    broken_without_clipping,
    broken_without_noise,
)
from privacy.audit.report import Verdict
from privacy.dp.dpsgd import train
from privacy.randomness import SeededRandom

pytestmark = pytest.mark.statistical
ERROR = 1e-6
CANARIES = 20_000
GAUSSIAN = canary_task(sample_rate=1.0, steps=4, noise_multiplier=2.0)
SUBSAMPLED = canary_task(sample_rate=0.25, steps=20, noise_multiplier=4.0)


def exact_gaussian(mu, canaries, seed):
    generator = np.random.default_rng(seed)
    was_in = generator.random(canaries) < 0.5
    return CanaryScores(scores_M=generator.standard_normal(canaries) + mu * was_in, was_in_M=was_in)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_bound_on_an_exact_gaussian_is_below_the_truth_and_near_it(mu):
    found = gaussian_mu(exact_gaussian(mu, 100_000, 1), error=ERROR)
    assert mu - 0.25 - 0.1 * mu < found <= mu


def test_more_canaries_come_nearer_to_the_truth():
    few, many = (gaussian_mu(exact_gaussian(1.0, n, 2), error=ERROR) for n in (500, 100_000))
    assert few < many <= 1.0


def test_the_bound_fails_no_more_often_than_it_says():
    # 150 bounds of error 0.1 (at most): 15 misses expected at most, 3.7 deviation; 1e-6 beyond 5 deviations.
    bounds = [gaussian_mu(exact_gaussian(1.0, 400, seed), error=0.1) for seed in range(150)]
    assert sum(bound > 1.0 for bound in bounds) <= 34


def test_scores_that_separate_all_canaries_leave_no_privacy():
    was_in = np.arange(20_000) % 2 == 0
    scores = CanaryScores(scores_M=was_in.astype(float), was_in_M=was_in)
    assert gaussian_mu(scores, error=ERROR) > 5.0
    assert guessed_epsilon(scores, delta=1e-10, error=ERROR) > 5.0


def test_scores_that_say_nothing_refute_nothing():
    scores = exact_gaussian(0.0, 20_000, 3)
    assert guessed_epsilon(scores, delta=1e-10, error=ERROR) == 0.0
    assert gaussian_mu(scores, error=ERROR) <= 0.0


def test_the_one_run_bound_on_randomised_response_is_below_the_truth_and_near_it():
    # Each coin is told truly with probability e / (1 + e): epsilon 1 for each canary, and no delta.
    generator = np.random.default_rng(4)
    was_in = generator.random(50_000) < 0.5
    told = np.where(generator.random(50_000) < 1 / (1 + np.exp(-1.0)), was_in, ~was_in)
    scores = CanaryScores(scores_M=told + 0.1 * generator.random(50_000), was_in_M=was_in)
    assert 0.9 < guessed_epsilon(scores, delta=0.0, error=ERROR) <= 1.0


def test_the_real_training_moves_a_canary_by_the_clipping_norm_and_no_more():
    scores = score_canaries(train, GAUSSIAN, SeededRandom(1, "scores"), canaries=CANARIES)
    inside, outside = scores.scores_M[scores.was_in_M], scores.scores_M[~scores.was_in_M]
    # 4 steps of 1, noise 4 per coordinate, 10 000 canaries of either kind: 5 deviations are 0.28.
    assert inside.mean() - outside.mean() == pytest.approx(4.0, abs=0.28)
    assert outside.std() == pytest.approx(4.0, rel=0.04)


def gaussian_audit(trained, seed):
    return audit_gaussian(
        trained,
        GAUSSIAN,
        SeededRandom(seed, "gaussian"),
        canaries=CANARIES,
        delta=1e-5,
        error=ERROR,
    )


def one_run_audit(trained, seed):
    return audit_one_run(
        trained,
        SUBSAMPLED,
        SeededRandom(seed, "one-run"),
        canaries=CANARIES,
        delta=1e-10,
        error=ERROR,
    )


def test_the_real_training_keeps_to_its_epsilon_and_the_gaussian_audit_comes_near_it():
    line = gaussian_audit(train, 1)
    assert line.verdict is Verdict.PASS
    assert 0.65 * line.bound < line.measured <= line.bound


def test_the_real_training_keeps_to_its_epsilon_in_one_run():
    line = one_run_audit(train, 1)
    assert line.verdict is Verdict.PASS
    assert 0.05 < line.measured <= line.bound


@pytest.mark.parametrize(
    "broken",
    [broken_without_noise, broken_half_noise, broken_without_clipping, broken_counting_twice],
)
def test_the_gaussian_audit_catches(broken):
    assert gaussian_audit(broken(train), 2).verdict is Verdict.FAIL


@pytest.mark.parametrize("broken", [broken_without_noise, broken_without_clipping])
def test_the_one_run_audit_catches(broken):
    assert one_run_audit(broken(train), 2).verdict is Verdict.FAIL


def test_the_one_run_audit_alone_does_not_see_half_the_noise():
    assert one_run_audit(broken_half_noise(train), 3).verdict is Verdict.PASS


def test_a_subsampled_task_is_no_gaussian_mechanism():
    with pytest.raises(ValueError, match="sample_rate"):
        audit_gaussian(train, SUBSAMPLED, SeededRandom(1), canaries=10, delta=1e-5, error=ERROR)


def test_too_few_canaries_are_refused():
    few = CanaryScores(scores_M=np.zeros(5), was_in_M=np.array([True, True, True, False, False]))
    with pytest.raises(ValueError, match="4 canaries"):
        gaussian_mu(few, error=ERROR)


def test_mu_of_a_threshold_test_is_that_of_its_error_rates():
    # 1000 of 10 000 wrong on either side: mu = 2 z(0.9), lowered by the limits of both rates.
    assert norm.isf(0.1) - norm.ppf(0.1) == pytest.approx(2.563, abs=1e-3)
    was_in = np.repeat([True, False], 10_000)
    scores = np.concatenate([np.tile([1.0] * 9 + [0.0], 1000), np.tile([0.0] * 9 + [1.0], 1000)])
    found = gaussian_mu(CanaryScores(scores_M=scores, was_in_M=was_in), error=ERROR)
    assert 2.3 < found < 2.563
