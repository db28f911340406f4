"""What is audited: a training loop and a clipped sum, behind the two narrow callables that the tests need.

The product's own are `privacy.dp.dpsgd.train` and `privacy.dp.clipping.clipped_sum`. Broken stand-ins have the same
shape (`privacy.audit.controls`), so every test runs unchanged on both.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from privacy.dp.clipping import GradientSum, LossPerRecord, trainable_parameters
from privacy.dp.dpsgd import TrainingTask
from privacy.randomness import Random

# n records, P parameters


class Train(Protocol):
    """Trains the model in place and returns what the caller may know; see `privacy.dp.dpsgd.train`."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss_per_record: LossPerRecord,
        task: TrainingTask,
        random: Random,
        /,
    ) -> object:
        """Takes `task.steps` steps."""
        ...


class OpenSum(Protocol):
    """Attaches a clipped sum to a model for the time of a context; see `privacy.dp.clipping.clipped_sum`."""

    def __call__(
        self, model: nn.Module, loss_per_record: LossPerRecord, /, *, clipping_norm: float
    ) -> AbstractContextManager[GradientSum]:
        """The sum of the units' gradients, each of L2 norm at most `clipping_norm`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Records and whose they are."""

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    units: Tensor | None = field(default=None, repr=False)
    """int64 [n], ascending, 0 to units - 1; None where every record is a unit of its own."""

    @property
    def owners(self) -> Tensor:
        """The unit of each record, int64 [n]."""
        return torch.arange(len(self.inputs)) if self.units is None else self.units

    @property
    def unit_count(self) -> int:
        """Number of units."""
        return int(self.owners[-1]) + 1 if len(self.inputs) else 0

    def where(self, chosen: Tensor) -> "Batch":
        """The records at which `chosen` [n] is True, their units numbered anew."""
        kept = replace(self, inputs=self.inputs[chosen], labels=self.labels[chosen])
        if self.units is None:
            return kept
        _, numbered = torch.unique(self.units[chosen], return_inverse=True)
        return replace(kept, units=numbered)

    def without(self, unit: int) -> "Batch":
        """The batch of a table in which this unit never was."""
        return self.where(self.owners != unit)

    def only(self, unit: int) -> "Batch":
        """The records of one unit."""
        return self.where(self.owners == unit)


SumOfBatch = Callable[[Batch], Tensor]
"""A batch -> its sum over units, flat, float64 [P]."""


def flat_sum(gradient_sum: GradientSum, model: nn.Module) -> SumOfBatch:
    """The gradient sum as one vector over all trainable parameters; what was not touched is zero."""
    parameters = list(trainable_parameters(model).values())

    def total(batch: Batch) -> Tensor:
        sums = gradient_sum(batch.inputs, batch.labels, batch.units).gradients
        pieces = [
            (torch.zeros_like(parameter) if piece is None else piece).detach().flatten().double()
            for parameter, piece in zip(parameters, sums, strict=True)
        ]
        return torch.cat(pieces)

    return total
