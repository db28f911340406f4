"""Training at a site: unit-level DP-SGD (Abadi et al. 2016, Alg. 1), and the same loop without privacy.

A unit is a patient (or a customer) with all their records. Each of `steps` steps:
1. every unit joins independently with probability `sample_rate` (Poisson sampling); the batch may be empty;
2. the units' gradients are clipped to `clipping_norm` and added up, `physical_batch_size` records at a time;
3. the sum is rounded to a grid, and Gaussian noise on that grid is added to every coordinate, also of experts that no
   token visited: all of it is integers until the last conversion (`privacy.dp.noise`);
4. the sum is divided by `expected_batch_size`, a public number, and never by the size of the batch;
5. the FedProx term is added, which depends on the weights alone and therefore costs nothing (Li et al. 2020, eq. 2);
6. the optimiser takes its step.
Statistics of the batch (expert loads) may ride along: their units' rows have L2 norm at most 1, and they get noise of
their own. Gradients and statistics of a step are one Gaussian release of one sample.
What leaves is the weights after the last step and the noised statistics: their cost is `TrainingTask.events`.

Clipping and noise are not left to Opacus' optimiser: it needs a gradient of every parameter and fails on experts that
nobody visited, draws floating-point noise from torch's generators, and has no place for the FedProx term after it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.dp.accounting import joint_noise_multiplier
from privacy.dp.clipping import (
    BatchSum,
    Engine,
    GradientSum,
    LossPerRecord,
    PlainSum,
    Precision,
    StatisticsPerRecord,
    clipped_sum,
    trainable_parameters,
)
from privacy.dp.events import Event, SubsampledGaussian
from privacy.dp.flat_sum import FlatSum
from privacy.dp.noise import GridGaussian, sum_grid
from privacy.dp.rules import STANDARD_RULES, LayerRule
from privacy.dp.unit_sampler import UnitSampler
from privacy.randomness import Random

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
NOISE_MARGINS: dict[Precision, float] = {"float32": 1.0 + 1e-3, "bfloat16": 1.02}
"""By which the noise is larger than accounted: more than rounding can add to the sensitivity of a clipped sum.

float32: clipping 1e-5 and the grid 2e-4. bfloat16: the rounding of everybody's gradients depends on who else is in the
batch; one unit moved the sum by up to 1.008 clipping norms.
"""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A statistic of the batch that is released with every step."""

    size: int
    """Coordinates."""
    per_record: StatisticsPerRecord


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What a site does between two versions of the model. Everything here is public."""

    steps: int
    """Optimiser steps, >= 0."""
    sample_rate: float
    """Probability with which each unit joins each step, in (0, 1]."""
    learning_rate: float
    optimizer: Literal["sgd", "adam"]
    expected_batch_size: float
    """`sample_rate` times the declared number of units, > 0; the sum of a batch is divided by it."""
    proximal_mu: float = 0.0
    """Weight of the FedProx term mu/2 * ||w - w_start||^2; 0 is FedAvg."""
    clipping_norm: float | None = None
    """L2 bound of one unit's gradient, over all parameters together; None trains without privacy."""
    noise_multiplier: float = 0.0
    """Standard deviation of the noise on the sum in units of `clipping_norm`; 0 only without clipping."""
    statistics_noise_multiplier: float = 0.0
    """Standard deviation of the noise on the batch's statistics, whose bound is 1; 0 where none are released."""
    engine: Engine = "bookkeeping"
    """Who clips; the result is the same up to rounding."""
    precision: Precision = "float32"
    """Of the forward and backward pass; the sum is float32 always."""
    physical_batch_size: int = 256
    """Records computed at once. Bounds memory; the result is the same up to rounding."""

    def __post_init__(self) -> None:
        _require("steps", self.steps, self.steps >= 0, ">= 0")
        _require("sample_rate", self.sample_rate, 0.0 < self.sample_rate <= 1.0, "in (0, 1]")
        for name in ("learning_rate", "expected_batch_size"):
            value = getattr(self, name)
            _require(name, value, 0.0 < value < math.inf, "> 0 and finite")
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, "to be sgd or adam")
        for name in ("proximal_mu", "statistics_noise_multiplier"):
            value = getattr(self, name)
            _require(name, value, 0.0 <= value < math.inf, ">= 0 and finite")
        _require(
            "physical_batch_size", self.physical_batch_size, self.physical_batch_size >= 1, ">= 1"
        )
        noise, bound = self.noise_multiplier, self.clipping_norm
        if bound is None:
            _require("noise_multiplier", noise, noise == 0.0, "= 0 without a clipping_norm")
        else:
            _require("clipping_norm", bound, 0.0 < bound < math.inf, "> 0 and finite")
            _require(
                "noise_multiplier",
                noise,
                0.0 < noise < math.inf,
                "> 0 and finite: clipping alone is not private",
            )

    @property
    def events(self) -> tuple[Event, ...]:
        """What releasing the trained weights and statistics costs: one event, or none without privacy."""
        if self.clipping_norm is None or self.steps == 0:
            return ()
        noise = self.noise_multiplier
        if self.statistics_noise_multiplier > 0.0:
            noise = joint_noise_multiplier(noise, self.statistics_noise_multiplier)
        return (
            SubsampledGaussian(
                sample_rate=self.sample_rate, noise_multiplier=noise, steps=self.steps
            ),
        )


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"Expected {name}={value!r} {wanted}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSummary:
    """What happened, without anything that depends on a record but what was released."""

    steps: int
    """Steps taken, which are the steps to be charged."""
    events: tuple[Event, ...]
    """Cost of releasing the trained weights and the statistics; empty without privacy."""
    statistics: Tensor | None
    """Noised statistics summed over the steps [S]; None where none were asked for."""


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss_per_record: LossPerRecord,
    task: TrainingTask,
    random: Random,
    progress: Callable[[int], None] | None = None,
    *,
    units: Tensor | None = None,
    rules: Mapping[type[nn.Module], LayerRule] = STANDARD_RULES,
    statistics: Statistics | None = None,
) -> TrainingSummary:
    """Trains `model` in place on records `inputs[i]`, `labels[i]`; see the module docstring for the steps.

    The model's own random choices, such as routing noise, must come from `random.torch_generator()` as well: noise
    that others know would let one unit shift the noise of the rest. Afterwards the model is a plain module in the mode
    it was in. On any error it also has the weights and buffers with which it came.

    Args:
        model: float32; every trainable parameter belongs to a layer with a rule (with clipping).
        inputs: one row per record, at least its first dimension; may have no rows.
        labels: as many rows.
        loss_per_record: outputs and labels to one loss per record, no reduction over the batch.
        task: the public parameters.
        random: `OsRandom`, unless this is a test or a rehearsal without privacy.
        progress: told the number of steps taken after each step, and nothing else.
        units: whose record each is, int64, ascending from 0 without gaps; None: every record is a unit of its own.
        rules: how each kind of layer is clipped.
        statistics: what is released of every batch besides its gradient.

    Raises:
        ValueError: shapes that do not fit, a model that cannot be trained privately, a buffer changed by training,
            statistics without noise under privacy.
    """
    parameters = _require_trainable(model, inputs, labels, task, statistics)
    sampler = UnitSampler(
        len(inputs), units, rate=task.sample_rate, batch_records=task.physical_batch_size
    )
    with ExitStack() as scope:
        scope.enter_context(_plain_afterwards(model))
        gradient_sum = _gradient_sum(model, loss_per_record, task, rules, statistics, scope)
        loop = _Loop(parameters, task, random, statistics.size if statistics else 0)
        watch = _BufferWatch(model)
        for step in range(1, task.steps + 1):
            loop.start_step()
            for records, owners in sampler.draw(random):
                loop.add(gradient_sum(inputs[records], labels[records], owners))
            if step in (1, task.steps):
                watch.require_unchanged()
            loop.finish_step()
            if progress is not None:
                progress(step)
    return TrainingSummary(
        steps=task.steps, events=task.events, statistics=loop.statistics if statistics else None
    )


def _require_trainable(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    task: TrainingTask,
    statistics: Statistics | None,
) -> list[nn.Parameter]:
    """The parameters to train, if the arguments fit together."""
    if len(inputs) != len(labels):
        raise ValueError(f"Expected as many labels as inputs, got {len(labels)} and {len(inputs)}.")
    if statistics is not None and task.clipping_norm is not None:
        noise = task.statistics_noise_multiplier
        _require("statistics_noise_multiplier", noise, noise > 0.0, "> 0 where any are released")
    parameters = list(trainable_parameters(model).values())
    if not parameters:
        raise ValueError("The model has no trainable parameter.")
    return parameters


class _Loop:
    """The weights, their noised gradient in one flat vector, the released statistics, and the optimiser."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        task: TrainingTask,
        random: Random,
        statistics_size: int,
    ) -> None:
        self._task = task
        self._random = random
        self._parameters = parameters
        self._start = (
            [value.detach().clone() for value in parameters] if task.proximal_mu > 0.0 else []
        )
        self._sum = FlatSum(parameters)
        self.statistics = torch.zeros(statistics_size)
        self._step_statistics = torch.zeros(statistics_size)
        self._noise, self._statistics_noise = _noises(
            task, self._sum.values_P.numel(), statistics_size
        )
        self._optimizer = OPTIMIZERS[task.optimizer](parameters, lr=task.learning_rate)
        for value, view in zip(parameters, self._sum.views, strict=True):
            value.grad = view

    def start_step(self) -> None:
        """Forgets the last step's sums."""
        self._sum.values_P.zero_()
        self._step_statistics.zero_()

    def add(self, batch: BatchSum) -> None:
        """Adds the sums of a physical batch."""
        self._sum.add(batch)
        if batch.statistics is not None:
            self._step_statistics.add_(batch.statistics.cpu())

    def finish_step(self) -> None:
        """Noises the sums, divides by the public batch size, adds the FedProx term and moves the weights."""
        _add_noise(self._sum.values_P, self._noise, self._random)
        _add_noise(self._step_statistics, self._statistics_noise, self._random)
        self.statistics.add_(self._step_statistics)
        self._sum.values_P.div_(self._task.expected_batch_size)
        if self._start:
            drift = torch._foreach_sub([value.detach() for value in self._parameters], self._start)
            torch._foreach_add_(self._sum.views, drift, alpha=self._task.proximal_mu)
        self._optimizer.step()


def _noises(
    task: TrainingTask, dimension: int, statistics_size: int
) -> tuple[GridGaussian | None, GridGaussian | None]:
    """The noise on the gradient sum and on the statistics; None without privacy or without statistics."""
    if task.clipping_norm is None:
        return None, None
    margin = NOISE_MARGINS[task.precision]
    gradient = GridGaussian(
        deviation=task.noise_multiplier * task.clipping_norm * margin,
        grid=sum_grid(bound=task.clipping_norm, dimension=dimension),
    )
    if statistics_size == 0:
        return gradient, None
    statistics = GridGaussian(
        deviation=task.statistics_noise_multiplier * margin,
        grid=sum_grid(bound=1.0, dimension=statistics_size),
    )
    return gradient, statistics


def _add_noise(values: Tensor, noise: GridGaussian | None, random: Random) -> None:
    """Rounds to the grid and noises in place; on an accelerator by way of the host's memory."""
    if noise is not None:
        on_host = values.cpu()
        noise.add_to(on_host.numpy(), random)
        if on_host is not values:
            values.copy_(on_host)


class _BufferWatch:
    """Notices a buffer that training writes to: it would carry records past the clipping."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = {name: (value, value._version) for name, value in model.named_buffers()}

    def require_unchanged(self) -> None:
        """Raises ValueError naming a buffer that was written to, replaced or added."""
        for name, value in self._model.named_buffers():
            before, version = self._before.get(name, (None, 0))
            if value is not before or value._version != version:
                raise ValueError(
                    f"Training changed the buffer {name}, which is neither clipped nor noised. "
                    "Use a model without buffers that depend on the batch."
                )


def _gradient_sum(
    model: nn.Module,
    loss_per_record: LossPerRecord,
    task: TrainingTask,
    rules: Mapping[type[nn.Module], LayerRule],
    statistics: Statistics | None,
    scope: ExitStack,
) -> GradientSum:
    per_record = statistics.per_record if statistics else None
    if task.clipping_norm is None:
        return PlainSum(model, loss_per_record, statistics=per_record)
    return scope.enter_context(
        clipped_sum(
            model,
            loss_per_record,
            clipping_norm=task.clipping_norm,
            engine=task.engine,
            rules=rules,
            statistics=per_record,
            precision=task.precision,
        )
    )


@contextmanager
def _plain_afterwards(model: nn.Module) -> Iterator[None]:
    """Training mode inside; afterwards no gradients; after an error the weights and buffers of before."""
    weights = [(value, value.detach().clone()) for value in model.parameters()]
    buffers = [
        (module, name, value, value.clone())
        for module in model.modules()
        for name, value in module.named_buffers(recurse=False)
    ]
    try:
        with training_mode(model):
            yield
    except BaseException:
        with torch.no_grad():
            for weight, before in weights:
                weight.copy_(before)
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))
        raise
    finally:
        model.zero_grad(set_to_none=True)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside, each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
