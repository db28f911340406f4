"""Noise that is right in every way, and noise that is wrong in one way each. Error rate of every test: 1e-6 or less."""

import numpy as np
import pytest
import torch

from privacy.audit.canaries import canary_task, run_canaries
from privacy.audit.noise import (
    audit_noise,
    audit_reachability,
    audit_reuse,
    coordinates_needed,
    unreachable_share,
)
from privacy.audit.report import Verdict
from privacy.dp.dpsgd import train
from privacy.dp.noise import sum_grid
from privacy.randomness import SeededRandom

pytestmark = pytest.mark.statistical
ERROR = 1e-6
COUNT = coordinates_needed(ERROR)
DEVIATION = 0.8
GRID = 2.0**-20
NAMES = (
    "noise: deviation",
    "noise: mean and neighbours",
    "noise: shape",
    "noise: outputs off the grid",
)


def on_grid(values):
    return (np.rint(values / GRID) * GRID).astype(np.float32)


def gaussian(seed, count=COUNT):
    return np.random.default_rng(seed).standard_normal(count) * DEVIATION


def failed(noise, grid=GRID):
    lines = audit_noise(noise, deviation=DEVIATION, error=ERROR, grid=grid)
    assert tuple(line.name for line in lines) == NAMES
    return [line.name for line in lines if line.verdict is Verdict.FAIL]


def test_rounded_gaussian_noise_passes():
    assert failed(on_grid(gaussian(1))) == []


def test_a_margin_on_the_noise_passes():
    assert failed(on_grid(1.001 * gaussian(2))) == []


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.01])
def test_a_deviation_wrong_by_one_percent_is_seen(factor):
    assert failed(on_grid(factor * gaussian(3))) == ["noise: deviation"]


def test_a_shift_is_seen():
    assert "noise: mean and neighbours" in failed(on_grid(gaussian(4) + 0.006))


def test_neighbours_that_share_noise_are_seen():
    mixed = gaussian(5)
    mixed[1:] = 0.99995 * mixed[1:] + 0.01 * mixed[:-1]
    assert failed(on_grid(mixed)) == ["noise: mean and neighbours"]


def test_another_shape_of_the_same_deviation_is_seen():
    uniform = np.random.default_rng(6).uniform(-1, 1, COUNT) * DEVIATION * np.sqrt(3)
    laplace = np.random.default_rng(7).laplace(0, DEVIATION / np.sqrt(2), COUNT)
    assert "noise: shape" in failed(on_grid(uniform))
    assert "noise: shape" in failed(on_grid(laplace))


def test_cut_tails_are_seen():
    assert failed(on_grid(np.clip(gaussian(8), -2.5 * DEVIATION, 2.5 * DEVIATION))) != []


def test_a_single_output_off_the_grid_is_seen():
    noise = on_grid(gaussian(9))
    noise[17] = GRID / 2
    assert failed(noise) == ["noise: outputs off the grid"]


def test_noise_without_a_declared_grid_fails():
    assert failed(on_grid(gaussian(10)), grid=None) == ["noise: outputs off the grid"]


def test_no_noise_at_all_fails_everything_that_it_can():
    assert failed(np.zeros(COUNT, np.float32)) == list(NAMES[:3])


def test_too_few_coordinates_are_refused():
    with pytest.raises(ValueError, match=f"at least {COUNT} coordinates"):
        audit_noise(np.zeros(COUNT - 1, np.float32), deviation=1.0, error=ERROR, grid=GRID)


def test_coordinates_needed_is_at_least_a_hundred_thousand():
    assert coordinates_needed(0.5) == 100_000


def test_independent_releases_pass_and_the_same_noise_twice_is_seen():
    one, other = on_grid(gaussian(11, 100_000)), on_grid(gaussian(12, 100_000))
    assert audit_reuse(one, other, error=ERROR).verdict is Verdict.PASS
    assert audit_reuse(one, one, error=ERROR).verdict is Verdict.FAIL
    assert audit_reuse(one, -one, error=ERROR).verdict is Verdict.FAIL


def test_float_noise_of_torch_has_outputs_that_only_zero_or_only_one_can_give():
    generator = torch.Generator().manual_seed(1)
    zero = torch.normal(torch.zeros(100_000), 1.0, generator=generator).numpy()
    one = torch.normal(torch.ones(100_000), 1.0, generator=generator).numpy()
    assert unreachable_share(zero, one) > 0.1
    assert audit_reachability(zero, one).verdict is Verdict.FAIL


def test_float_noise_of_numpy_in_double_precision_is_seen_once_it_is_released_as_float32():
    generator = np.random.default_rng(1)
    zero = generator.standard_normal(100_000).astype(np.float32)
    one = generator.standard_normal(100_000).astype(np.float32) + np.float32(1.0)
    assert unreachable_share(zero, one) > 0.1


def test_grid_noise_has_no_output_that_gives_the_value_away():
    zero, one = on_grid(gaussian(13)), on_grid(gaussian(14) + 1.0)
    assert unreachable_share(zero, one) == 0.0


def test_a_value_off_the_grid_is_seen_by_its_outputs():
    zero = on_grid(gaussian(15, 100_000))
    one = (on_grid(gaussian(16, 100_000)) + np.float32(GRID / 2)).astype(np.float32)
    assert unreachable_share(zero, one) > 0.1


def released(present, noise, weights):
    task = canary_task(sample_rate=1.0, steps=1, noise_multiplier=noise)
    random = SeededRandom(3, "noise", str(len(present)), str(noise))
    return run_canaries(train, task, random, weights=weights, present=present)


@pytest.mark.parametrize("noise", [0.3, 5.0])
def test_what_training_releases_over_nobody_is_the_declared_noise(noise):
    found = released(np.zeros(0, np.int64), noise, COUNT)
    grid = sum_grid(bound=1.0, dimension=COUNT)
    lines = audit_noise(found, deviation=noise, error=ERROR, grid=grid)
    assert [line.verdict for line in lines] == [Verdict.PASS] * 4


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])
def test_what_training_releases_of_zeros_and_ones_has_no_unreachable_output(noise):
    weights = 1 << 17
    zero = released(np.zeros(0, np.int64), noise, weights)
    one = released(np.arange(weights), noise, weights)
    assert unreachable_share(zero, one) == 0.0
    assert one.mean() == pytest.approx(1.0, abs=6 * noise / np.sqrt(weights))
