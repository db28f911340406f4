import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.dp.distributed_step import NoiseShare, noised_gradient
from privacy.dp.dpsgd import NOISE_MARGINS, TrainingTask
from privacy.dp.rules import STANDARD_RULES
from privacy.randomness import SeededRandom
from privacy.secagg.plan import SumPlan
from privacy.secagg.secure_sum import run_secure_sum

RANGE = 256.0
HONEST = 4
STEPS_OF_RANGE = 1 << 23
TASK = TrainingTask(
    steps=1,
    sample_rate=1.0,
    learning_rate=0.1,
    optimizer="sgd",
    expected_batch_size=10.0,
    clipping_norm=1.0,
    noise_multiplier=1.0,
)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.squeeze(1) - labels).square()


def model(inputs: int = 4) -> nn.Module:
    layer = nn.Linear(inputs, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def share_of(
    layer: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    noise: float = 2.0,
    value_range: float = RANGE,
    value_bits: int = 24,
    seed: int = 1,
    task: TrainingTask = TASK,
) -> NDArray[np.float32]:
    return noised_gradient(
        layer,
        layer,
        inputs,
        labels,
        squared_error,
        task if task.clipping_norm is None else replace(task, noise_multiplier=noise),
        SeededRandom(seed),
        share=NoiseShare(
            honest_sites=HONEST, sites=4, value_range=value_range, value_bits=value_bits
        ),
        rules=STANDARD_RULES,
    )


def test_a_share_is_whole_steps_of_the_range_and_leaves_the_model_alone() -> None:
    layer = model()
    before = layer.state_dict()["weight"].clone()
    found = share_of(layer, torch.ones(3, 4), torch.zeros(3))
    steps = found.astype(np.float64) * STEPS_OF_RANGE
    assert (steps == np.rint(steps)).all()
    assert torch.equal(layer.state_dict()["weight"], before)
    assert not layer.weight.grad


def test_a_coarser_grid_has_fewer_steps_and_no_less_noise() -> None:
    layer = model(50_000)
    nothing = torch.zeros(0, 50_000), torch.zeros(0)
    coarse = share_of(layer, *nothing, value_bits=19)
    steps = coarse.astype(np.float64) * (1 << 18)
    assert (steps == np.rint(steps)).all()
    # Rounding moves two neighbouring sums apart by 0.22 clipping norms; 50 000 draws know a deviation to 0.3 %.
    rounding = RANGE / (1 << 18) * math.sqrt(50_000)
    expected = 2.0 / HONEST**0.5 * (NOISE_MARGINS["float32"] + rounding)
    assert coarse.std() * RANGE == pytest.approx(expected, rel=0.016)


def test_under_little_noise_it_is_the_sum_of_clipped_gradients() -> None:
    inputs = torch.eye(4)[:3] * 5.0
    found = share_of(model(), inputs, torch.zeros(3), noise=0.02) * RANGE
    # Each gradient is longer than the clipping norm, and points along one coordinate.
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.0], abs=0.06)


@pytest.mark.statistical
def test_an_empty_sample_is_noise_of_the_share_s_size() -> None:
    layer = model(200_000)
    found = share_of(layer, torch.zeros(0, 200_000), torch.zeros(0), noise=3.0) * RANGE
    rounding = RANGE / STEPS_OF_RANGE * math.sqrt(200_000)
    expected = 3.0 / HONEST**0.5 * (NOISE_MARGINS["float32"] + rounding)
    # The deviation of 2e5 draws is known to 0.16 %: five standard errors.
    assert found.std() == pytest.approx(expected, rel=0.008)


def test_a_frozen_parameter_s_place_is_zero() -> None:
    layer = nn.Linear(4, 1)
    layer.bias.requires_grad_(False)
    found = share_of(layer, torch.ones(2, 4), torch.zeros(2))
    assert found.shape == (5,)
    assert found[0] == 0.0  # "bias" sorts before "weight"
    assert (found[1:] != 0.0).all()


@pytest.mark.statistical
def test_the_secure_sum_holds_the_noise_of_all_sites_exactly() -> None:
    layer = model(50_000)
    names = ("anna", "berta", "clara", "dora")
    shares = {
        name: share_of(layer, torch.zeros(0, 50_000), torch.zeros(0), seed=seed)
        for seed, name in enumerate(names)
    }
    plan = SumPlan(
        scheme="mask", dimension=50_000, max_sites=4, quorum=3, threshold=3, value_range=1.0
    )
    result = run_secure_sum(plan, shares)
    total = result.integers / result.scale
    assert (total == np.sum(list(shares.values()), axis=0, dtype=np.float64)).all()
    # Four shares, all honest: the target of 2 clipping norms and what rounding adds, known to 0.3 % from 50 000 draws.
    assert total.std() * RANGE == pytest.approx(2.0 * 1.008, rel=0.016)


@pytest.mark.parametrize(
    ("value_range", "named"), [(1e6, "finer grid"), (10.0, "larger update_range")]
)
def test_a_range_that_does_not_suit_the_noise_is_refused(value_range: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        share_of(model(), torch.ones(2, 4), torch.zeros(2), value_range=value_range)


def test_a_sum_beyond_the_range_is_clipped_before_the_noise() -> None:
    inputs = torch.eye(4)[:1].repeat(400, 1) * 5.0
    found = share_of(model(), inputs, torch.zeros(400)) * RANGE
    assert RANGE / 2 < found[0] < RANGE - 1.0


def test_without_a_clipping_norm_it_is_refused() -> None:
    task = replace(TASK, clipping_norm=None, noise_multiplier=0.0)
    with pytest.raises(ValueError, match="clipping_norm"):
        share_of(model(), torch.ones(2, 4), torch.zeros(2), task=task)
