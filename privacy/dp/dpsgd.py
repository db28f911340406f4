"""Training at a site: patient-level DP-SGD (Abadi et al. 2016, Alg. 1), and the same loop without privacy.

Each of `steps` steps:
1. every unit joins independently with probability `sample_rate` (Poisson sampling); the batch may be empty;
2. the units' gradients are clipped to `clipping_norm` and added up, `physical_batch_size` at a time;
3. Gaussian noise is added to every coordinate, also of experts that no token visited;
4. the sum is divided by `expected_batch_size`, a public number, and never by the size of the batch;
5. the FedProx term is added, which depends on the weights alone and therefore costs nothing (Li et al. 2020, eq. 2);
6. the optimiser takes its step.
What leaves is the weights after the last step: their cost is `TrainingTask.events`.

The noise is float32 from a cryptographic key stream (`privacy.randomness`). It is not yet exact on an integer grid,
so the lowest bits of a released weight may say more than the accountant counts (Mironov 2012).

Clipping and noise are not left to Opacus' optimiser: it needs a gradient of every parameter and fails on experts that
nobody visited, draws from torch's generators, and has no place for the FedProx term after the noise.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.dp.clipping import (
    ClippedSum,
    GradientSum,
    LossPerUnit,
    PlainSum,
    trainable_parameters,
)
from privacy.dp.events import Event, SubsampledGaussian
from privacy.randomness import Random

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
NOISE_MARGIN = 1.0 + 1e-4
"""The noise is larger than accounted by this factor: more than rounding can add to a clipped sum in float32."""


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
    physical_batch_size: int = 256
    """Units computed at once. Bounds memory; the result is the same up to rounding."""

    def __post_init__(self) -> None:
        _require("steps", self.steps, self.steps >= 0, ">= 0")
        _require("sample_rate", self.sample_rate, 0.0 < self.sample_rate <= 1.0, "in (0, 1]")
        for name in ("learning_rate", "expected_batch_size"):
            value = getattr(self, name)
            _require(name, value, 0.0 < value < math.inf, "> 0 and finite")
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, "to be sgd or adam")
        _require(
            "proximal_mu", self.proximal_mu, 0.0 <= self.proximal_mu < math.inf, ">= 0 and finite"
        )
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
        """What releasing the trained weights costs: one event, or none without privacy."""
        if self.clipping_norm is None or self.steps == 0:
            return ()
        return (
            SubsampledGaussian(
                sample_rate=self.sample_rate,
                noise_multiplier=self.noise_multiplier,
                steps=self.steps,
            ),
        )


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"Expected {name}={value!r} {wanted}.")


@dataclass(frozen=True, kw_only=True)
class TrainingSummary:
    """What happened, without anything that depends on a record."""

    steps: int
    """Steps taken, which are the steps to be charged."""
    events: tuple[Event, ...]
    """Cost of releasing the trained weights; empty without privacy."""


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss_per_unit: LossPerUnit,
    task: TrainingTask,
    random: Random,
    progress: Callable[[int], None] | None = None,
) -> TrainingSummary:
    """Trains `model` in place on units `inputs[i]`, `labels[i]`; see the module docstring for the steps.

    The model's own random choices, such as routing noise, must come from `random.torch_generator()` as well: noise
    that others know would let one unit shift the noise of the rest. Afterwards the model is a plain module in the mode
    it was in. On any error it also has the weights and buffers with which it came.

    Args:
        model: float32; every trainable parameter belongs to a layer with a norm rule (with clipping).
        inputs: one row per unit, at least its first dimension; may have no rows.
        labels: as many rows.
        loss_per_unit: outputs and labels to one loss per unit, no reduction over the batch.
        task: the public parameters.
        random: `OsRandom`, unless this is a test or a rehearsal without privacy.
        progress: told the number of steps taken after each step, and nothing else.

    Raises:
        ValueError: shapes that do not fit, a model that cannot be trained privately, a buffer changed by training.
    """
    if len(inputs) != len(labels):
        raise ValueError(f"Expected as many labels as inputs, got {len(labels)} and {len(inputs)}.")
    parameters = list(trainable_parameters(model).values())
    if not parameters:
        raise ValueError("The model has no trainable parameter.")
    with ExitStack() as scope:
        scope.enter_context(_plain_afterwards(model))
        gradient_sum = _gradient_sum(model, loss_per_unit, task, scope)
        loop = _Loop(parameters, task, random)
        watch = _BufferWatch(model)
        for step in range(1, task.steps + 1):
            sample = torch.from_numpy(random.poisson_sample(len(inputs), task.sample_rate))
            loop.start_gradient()
            for chunk in sample.split(task.physical_batch_size) if len(sample) > 0 else ():
                loop.add(gradient_sum(inputs[chunk], labels[chunk]))
            if step in (1, task.steps):
                watch.require_unchanged()
            loop.step()
            if progress is not None:
                progress(step)
    return TrainingSummary(steps=task.steps, events=task.events)


class _Loop:
    """The weights, their noised gradient in one flat vector, and the optimiser."""

    def __init__(self, parameters: list[nn.Parameter], task: TrainingTask, random: Random) -> None:
        self._task = task
        self._random = random
        self._parameters = parameters
        self._start = (
            [value.detach().clone() for value in parameters] if task.proximal_mu > 0.0 else []
        )
        self._gradient = torch.zeros(sum(value.numel() for value in parameters))
        pieces = self._gradient.split([value.numel() for value in parameters])
        self._views = [
            piece.view_as(value) for piece, value in zip(pieces, parameters, strict=True)
        ]
        self._optimizer = OPTIMIZERS[task.optimizer](parameters, lr=task.learning_rate)
        for value, view in zip(parameters, self._views, strict=True):
            value.grad = view

    def start_gradient(self) -> None:
        """Begins with the noise, so that no vector ever holds a bare sum."""
        if self._task.clipping_norm is None:
            self._gradient.zero_()
            return
        noise = self._random.standard_normal(self._gradient.numel())
        deviation = self._task.noise_multiplier * self._task.clipping_norm * NOISE_MARGIN
        torch.mul(noise, deviation, out=self._gradient)

    def add(self, sums: Sequence[Tensor | None]) -> None:
        """Adds the sums of a physical batch."""
        for view, total in zip(self._views, sums, strict=True):
            if total is not None:
                view.add_(total)

    def step(self) -> None:
        """Divides by the public batch size, adds the FedProx term and moves the weights."""
        self._gradient.div_(self._task.expected_batch_size)
        if self._start:
            drift = torch._foreach_sub([value.detach() for value in self._parameters], self._start)
            torch._foreach_add_(self._views, drift, alpha=self._task.proximal_mu)
        self._optimizer.step()


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
    model: nn.Module, loss_per_unit: LossPerUnit, task: TrainingTask, scope: ExitStack
) -> GradientSum:
    if task.clipping_norm is None:
        return PlainSum(model, loss_per_unit)
    # The first layers' inputs need no gradient; their hooks need only what comes back through their outputs. The filter
    # stays: `catch_warnings` is not safe where several sites train in threads of one process.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    return scope.enter_context(ClippedSum(model, loss_per_unit, clipping_norm=task.clipping_norm))


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
        with _mode(model, training=True):
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
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or inference mode inside, each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
