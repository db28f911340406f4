import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privacy.dp.dpsgd import TrainingTask, train
from privacy.dp.events import SubsampledGaussian
from privacy.dp.updates import ModelUpdate, NoisedUpdate, update_of
from privacy.randomness import OsRandom, SeededRandom

PRIVATE = TrainingTask(
    steps=3,
    sample_rate=0.5,
    learning_rate=0.5,
    optimizer="sgd",
    expected_batch_size=10.0,
    clipping_norm=1.0,
    noise_multiplier=1.0,
)
PLAIN = replace(PRIVATE, clipping_norm=None, noise_multiplier=0.0)
NEARLY_WITHOUT_NOISE = replace(PRIVATE, noise_multiplier=1e-9)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.squeeze(1) - labels).square()


def small_model() -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def units(count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, inputs.sum(1)


def weights_after(task: TrainingTask, inputs: Tensor, labels: Tensor, seed: int = 1) -> np.ndarray:
    model = small_model()
    train(model, inputs, labels, squared_error, task, SeededRandom(seed))
    return flat(model)


def flat(model: nn.Module) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("task", [PLAIN, NEARLY_WITHOUT_NOISE])
def test_training_lowers_the_loss(task: TrainingTask, optimizer: Literal["sgd", "adam"]) -> None:
    inputs, labels = units()
    model = small_model()
    before = float(squared_error(model(inputs), labels).detach().mean())
    longer = replace(task, steps=60, optimizer=optimizer, learning_rate=0.05)
    train(model, inputs, labels, squared_error, longer, SeededRandom(1))
    assert float(squared_error(model(inputs), labels).detach().mean()) < 0.5 * before


def test_plain_training_takes_the_steps_of_a_loop_by_hand() -> None:
    inputs, labels = units()
    model, random = small_model(), SeededRandom(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = [random.poisson_sample(20, 0.5) for _ in range(3)]
    for batch in batches:
        optimizer.zero_grad()
        losses = squared_error(model(inputs[batch]), labels[batch]) / 10.0
        torch.autograd.backward(losses.sum())
        optimizer.step()
    np.testing.assert_allclose(
        weights_after(PLAIN, inputs, labels), flat(model), rtol=1e-5, atol=1e-6
    )


def test_clipping_that_never_binds_trains_as_plain_training_does() -> None:
    inputs, labels = units()
    loose = replace(PRIVATE, clipping_norm=100.0, noise_multiplier=1e-9, learning_rate=0.05)
    private = replace(loose, sample_rate=1.0)
    plain = replace(PLAIN, sample_rate=1.0, learning_rate=0.05)
    found = weights_after(private, inputs, labels)
    # The grid of a sum of 37 numbers bounded by 100 is 2e-3 wide, and a step divides it by 200.
    np.testing.assert_allclose(found, weights_after(plain, inputs, labels), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("task", [PLAIN, PRIVATE])
@pytest.mark.parametrize("physical_batch_size", [1, 3, 7])
def test_physical_batches_give_the_step_of_the_whole_batch(
    task: TrainingTask, physical_batch_size: int
) -> None:
    inputs, labels = units()
    split = replace(task, physical_batch_size=physical_batch_size)
    found = weights_after(split, inputs, labels)
    np.testing.assert_allclose(found, weights_after(task, inputs, labels), rtol=2e-5, atol=1e-6)


@pytest.mark.statistical
def test_an_empty_batch_is_a_step_of_noise_of_the_accounted_size() -> None:
    model = nn.Linear(400, 300, bias=False)
    before = model.weight.detach().clone()
    task = replace(PRIVATE, steps=1, learning_rate=1.0, clipping_norm=3.0, noise_multiplier=0.7)
    train(model, torch.zeros(0, 400), torch.zeros(0), squared_error, task, SeededRandom(8))
    noise = (before - model.weight.detach()).numpy().ravel() * 10.0 / (3.0 * 0.7)
    # 120 000 coordinates: the deviation is known to 0.2 %, so 1 % is five standard errors.
    assert abs(noise.std() - 1.0) < 0.01
    assert noise.std() > 1.0 - 0.005
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_noise_of_the_operating_system_is_never_repeated() -> None:
    inputs, labels = units(0)
    first, second = small_model(), small_model()
    train(first, inputs, labels, squared_error, PRIVATE, OsRandom())
    train(second, inputs, labels, squared_error, PRIVATE, OsRandom())
    assert (flat(first) != flat(second)).all()


class TwoExperts(nn.Module):
    """Only the first of two layers is ever used."""

    def __init__(self) -> None:
        super().__init__()
        self.visited, self.unvisited = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.visited(inputs)
        return outputs


def test_experts_that_nobody_visits_are_noised_like_the_others() -> None:
    inputs, labels = units()
    model = TwoExperts()
    before = flat(model).copy()
    train(model, inputs, labels, squared_error, PRIVATE, SeededRandom(1))
    assert (flat(model) != before).all()


def test_a_unit_that_is_not_finite_leaves_the_step_of_the_others() -> None:
    inputs, labels = units()
    everybody = replace(PRIVATE, sample_rate=1.0)
    spoilt = torch.cat([inputs, torch.full((1, 4), torch.inf)])
    found = weights_after(everybody, spoilt, torch.cat([labels, torch.ones(1)]))
    np.testing.assert_allclose(found, weights_after(everybody, inputs, labels), rtol=1e-5)


def test_the_proximal_term_pulls_towards_the_start_after_the_noise() -> None:
    inputs, labels = units(0)
    start = flat(small_model())
    task = replace(PRIVATE, steps=2, proximal_mu=0.4)
    free = weights_after(replace(task, proximal_mu=0.0), inputs, labels)
    first = weights_after(replace(task, steps=1), inputs, labels)
    pulled = weights_after(task, inputs, labels)
    np.testing.assert_allclose(pulled, free - 0.5 * 0.4 * (first - start), rtol=1e-5, atol=1e-6)


def test_a_seed_fixes_a_rehearsal() -> None:
    inputs, labels = units()
    once, again = (weights_after(PLAIN, inputs, labels, seed=4) for _ in range(2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, weights_after(PLAIN, inputs, labels, seed=5))


def test_progress_is_told_the_steps_and_nothing_else() -> None:
    told: list[int] = []
    inputs, labels = units()
    train(small_model(), inputs, labels, squared_error, PRIVATE, SeededRandom(1), told.append)
    assert told == [1, 2, 3]


def test_the_summary_charges_the_steps_that_were_taken() -> None:
    inputs, labels = units()
    summary = train(small_model(), inputs, labels, squared_error, PRIVATE, SeededRandom(1))
    assert summary.steps == 3
    assert summary.events == PRIVATE.events
    assert summary.events == (SubsampledGaussian(sample_rate=0.5, noise_multiplier=1.0, steps=3),)
    assert PLAIN.events == replace(PRIVATE, steps=0).events == ()


@pytest.mark.parametrize("task", [PLAIN, PRIVATE])
def test_the_model_is_plain_and_in_its_old_mode_afterwards(task: TrainingTask) -> None:
    inputs, labels = units()
    model = small_model()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    train(model, inputs, labels, squared_error, task, SeededRandom(1))
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(parameter.grad is None and not vars(parameter) for parameter in model.parameters())
    assert not any(module._backward_hooks for module in model.modules())


@pytest.mark.parametrize("task", [PLAIN, PRIVATE])
def test_an_error_in_the_middle_restores_the_model(task: TrainingTask) -> None:
    inputs, labels = units()
    model = small_model()
    before = flat(model).copy()

    def fail_at_two(step: int) -> None:
        if step == 2:
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        train(model, inputs, labels, squared_error, task, SeededRandom(1), fail_at_two)
    assert np.array_equal(flat(model), before)
    assert not any(module._backward_hooks for module in model.modules())
    train(model, inputs, labels, squared_error, task, SeededRandom(1))
    assert np.array_equal(flat(model), weights_after(task, inputs, labels))


class RunningMean(nn.Module):
    """Keeps a statistic over records in a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(inputs.mean(0), alpha=0.1)
        return inputs


class ReplacedMean(RunningMean):
    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
        return inputs


@pytest.mark.parametrize("task", [PLAIN, PRIVATE])
@pytest.mark.parametrize("statistic", [RunningMean, ReplacedMean])
def test_a_buffer_that_training_changes_is_refused_and_restored(
    statistic: type[RunningMean], task: TrainingTask
) -> None:
    layer = statistic()
    model = nn.Sequential(layer, nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"changed the buffer 0\.mean"):
        train(model, *units(), squared_error, task, SeededRandom(1))
    assert not layer.mean.any()


class Shifted(nn.Module):
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.shift


def test_a_buffer_that_training_leaves_alone_is_welcome() -> None:
    model = nn.Sequential(Shifted(), nn.Linear(4, 1))
    assert train(model, *units(), squared_error, PRIVATE, SeededRandom(1)).steps == 3


def test_labels_that_do_not_match_are_refused() -> None:
    inputs, labels = units()
    with pytest.raises(ValueError, match="got 19 and 20"):
        train(small_model(), inputs, labels[1:], squared_error, PRIVATE, SeededRandom(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("learning_rate", 0.0),
        ("expected_batch_size", 0.0),
        ("expected_batch_size", math.nan),
        ("optimizer", "rmsprop"),
        ("proximal_mu", -1.0),
        ("clipping_norm", 0.0),
        ("clipping_norm", math.inf),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan),
        ("physical_batch_size", 0),
    ],
)
def test_a_task_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        replace(PRIVATE, **{field: value})


def test_noise_without_clipping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier=1\.0"):
        replace(PRIVATE, clipping_norm=None)


def update_after(task: TrainingTask) -> ModelUpdate | NoisedUpdate:
    model = small_model()
    start = flat(model).copy()
    summary = train(model, *units(), squared_error, task, SeededRandom(1))
    return update_of(start=start, trained=flat(model), summary=summary)


def test_private_training_makes_a_noised_update_and_plain_training_does_not() -> None:
    noised, plain = update_after(PRIVATE), update_after(PLAIN)
    assert isinstance(noised, NoisedUpdate)
    assert noised.events == PRIVATE.events
    assert isinstance(plain, ModelUpdate)
    expected = weights_after(PLAIN, *units()) - flat(small_model())
    np.testing.assert_array_equal(plain.values, expected)


def test_an_update_shows_no_values_and_cannot_be_changed() -> None:
    update = update_after(PRIVATE)
    assert "values" not in repr(update)
    with pytest.raises(ValueError, match="read-only"):
        update.values[0] = 0.0


def test_an_update_that_is_not_finite_is_refused() -> None:
    start = np.zeros(3, np.float32)
    summary = train(small_model(), *units(), squared_error, PLAIN, SeededRandom(1))
    with pytest.raises(ValueError, match="not finite"):
        update_of(start=start, trained=start + np.float32(np.nan), summary=summary)
    with pytest.raises(ValueError, match=r"trained as float32 \[3\]"):
        update_of(start=start, trained=start[:2], summary=summary)


def test_a_noised_update_without_a_charge_is_refused() -> None:
    with pytest.raises(ValueError, match="without privacy"):
        NoisedUpdate(values=np.zeros(3, np.float32), events=())
