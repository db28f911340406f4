"""Broken on purpose. Every variant here breaks one rule of differential privacy, and the audit must notice.

NEVER USE ANY OF THIS TO TRAIN ON RECORDS. Only the audit, the drill and their tests import this file; a test of the
repository holds everything else away from it.

| variant | rule it breaks | the test that must notice |
|---|---|---|
| `broken_without_noise` | noise is added at all | released noise; Gaussian canaries |
| `broken_half_noise` | the noise is as large as accounted | released noise; Gaussian canaries |
| `broken_without_clipping`, `broken_unclipped_sum` | a unit moves the sum by at most C | canaries; sensitivity |
| `broken_counting_twice`, `broken_records_as_units` | a person counts once | Gaussian canaries; sensitivity |
| `BrokenBatchLoss` | a loss depends on its own unit alone | sensitivity |
| `broken_stale_norms` | nothing is kept from one batch to the next | sensitivity, earlier batch |
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from privacy.audit.subject import OpenSum, Train
from privacy.dp.clipping import BatchSum, GradientSum, LossPerRecord, trainable_parameters
from privacy.dp.dpsgd import TrainingTask
from privacy.randomness import Random

TOO_WIDE = 1000.0
"""Factor by which the broken variants without clipping widen the bound."""


def broken_without_noise(train: Train) -> Train:
    """Training that adds nothing to its sums, while its declaration says otherwise."""
    return _under(train, lambda task: replace(task, clipping_norm=None, noise_multiplier=0.0))


def broken_half_noise(train: Train) -> Train:
    """Training with half the declared noise."""
    return _under(train, lambda task: replace(task, noise_multiplier=task.noise_multiplier / 2.0))


def broken_without_clipping(train: Train) -> Train:
    """Training that clips at far more than it declares, and adds the declared noise."""

    def widened(task: TrainingTask) -> TrainingTask:
        if task.clipping_norm is None:
            raise ValueError("Expected a task with a clipping_norm to break.")
        return replace(
            task,
            clipping_norm=task.clipping_norm * TOO_WIDE,
            noise_multiplier=task.noise_multiplier / TOO_WIDE,
        )

    return _under(train, widened)


def broken_counting_twice(train: Train) -> Train:
    """Training on a table in which every person stands twice."""

    def broken(
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss_per_record: LossPerRecord,
        task: TrainingTask,
        random: Random,
        /,
    ) -> object:
        twice = torch.cat([inputs, inputs]), torch.cat([labels, labels])
        return train(model, *twice, loss_per_record, task, random)

    return broken


def broken_unclipped_sum(open_sum: OpenSum) -> OpenSum:
    """A sum that clips at far more than it declares."""

    def broken(
        model: nn.Module, loss_per_record: LossPerRecord, /, *, clipping_norm: float
    ) -> AbstractContextManager[GradientSum]:
        return open_sum(model, loss_per_record, clipping_norm=clipping_norm * TOO_WIDE)

    return broken


def broken_records_as_units(open_sum: OpenSum) -> OpenSum:
    """A sum that clips every record by itself, so that a person counts once per record."""

    @contextmanager
    def broken(
        model: nn.Module, loss_per_record: LossPerRecord, /, *, clipping_norm: float
    ) -> Iterator[GradientSum]:
        with open_sum(model, loss_per_record, clipping_norm=clipping_norm) as gradient_sum:
            yield lambda inputs, labels, units=None: gradient_sum(inputs, labels)

    return broken


class BrokenBatchLoss:
    """A loss that compares every record with the mean of its batch, as in-batch contrast and balancing do."""

    def __init__(self, loss_per_record: LossPerRecord) -> None:
        self._loss_per_record = loss_per_record

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        """Squared distance of each record's loss from the mean of the finite ones [n]."""
        losses = self._loss_per_record(outputs, labels)
        finite = losses[losses.isfinite()]
        return (losses - finite.mean()).square() if len(finite) else losses


def broken_stale_norms(open_sum: OpenSum) -> OpenSum:
    """A sum in which a parameter that nobody in the batch used keeps the norms of the batch before.

    It is not made from `open_sum`, whose norms cannot be reached from outside: units are taken one by one.
    """
    del open_sum

    @contextmanager
    def broken(
        model: nn.Module, loss_per_record: LossPerRecord, /, *, clipping_norm: float
    ) -> Iterator[GradientSum]:
        yield _StaleNormSum(model, loss_per_record, clipping_norm)

    return broken


class _StaleNormSum:
    def __init__(
        self, model: nn.Module, loss_per_record: LossPerRecord, clipping_norm: float
    ) -> None:
        self._model, self._loss_per_record = model, loss_per_record
        self._parameters = list(trainable_parameters(model).values())
        self._clipping_norm = clipping_norm
        self._norms: dict[tuple[int, int], Tensor] = {}

    def __call__(self, inputs: Tensor, labels: Tensor, units: Tensor | None = None) -> BatchSum:
        totals = [torch.zeros_like(value) for value in self._parameters]
        owners = torch.arange(len(inputs)) if units is None else units
        for unit in owners.unique().tolist():
            rows = owners == unit
            loss = self._loss_per_record(self._model(inputs[rows]), labels[rows]).mean()
            if bool(loss.isfinite()):
                self._add(totals, unit, torch.autograd.grad(loss, self._parameters))
        return BatchSum(gradients=totals, statistics=None)

    def _add(self, totals: list[Tensor], unit: int, gradients: tuple[Tensor, ...]) -> None:
        """Clips by the norms at hand: a slice that is zero keeps the norm that its place in the batch had before."""
        squares = torch.zeros(())
        for place, gradient in enumerate(gradients):
            for expert, slice_ in enumerate(gradient if gradient.dim() == 3 else (gradient,)):
                if bool(slice_.any()):
                    self._norms[unit, 1000 * place + expert] = slice_.square().sum()
                squares = squares + self._norms.get((unit, 1000 * place + expert), 0.0)
        weight = (self._clipping_norm / squares.sqrt()).clamp(max=1.0)
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(gradient * weight)


def _under(train: Train, changed: Callable[[TrainingTask], TrainingTask]) -> Train:
    """The training, under another task than the one that is declared."""

    def broken(
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss_per_record: LossPerRecord,
        task: TrainingTask,
        random: Random,
        /,
    ) -> object:
        return train(model, inputs, labels, loss_per_record, changed(task), random)

    return broken
