"""The sum of per-unit gradients over a batch: each clipped to a norm, or as they are.

Two engines compute the clipped sum, behind one interface and from the same rules for layers (`privacy.dp.rules`):
- `bookkeeping`: one backward pass, then one weighted product per layer (`privacy.dp.bookkeeping`);
- `opacus`: Opacus' ghost clipping, two backward passes (`privacy.dp.opacus_engine`).

Guarantees of both, for neighbouring batches (one unit with all its records added or removed):
- the sum moves by at most `clipping_norm` in L2 norm over all parameters together, up to rounding below 1e-5 of it in
  float32. In bfloat16 the other units' gradients may round differently in a batch of another size: add a margin;
- a unit whose loss, gradient or statistic is not finite contributes nothing.

Whether a model couples the units of a batch is not seen here: `privacy.dp.validate` finds out before training.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.dp.bookkeeping import BookKeeping
from privacy.dp.rules import STANDARD_RULES, LayerRule, trainable_parameters
from privacy.dp.unit_batch import (
    BatchSum,
    GradientSum,
    LossPerRecord,
    StatisticsPerRecord,
    UnitBatch,
    evaluate,
    no_sum,
)

__all__ = [
    "BatchSum",
    "Engine",
    "GradientSum",
    "LossPerRecord",
    "PlainSum",
    "Precision",
    "StatisticsPerRecord",
    "clipped_sum",
    "trainable_parameters",
]

Engine = Literal["bookkeeping", "opacus"]
Precision = Literal["float32", "bfloat16"]
"""Of the forward and backward pass (autocast). Norms and sums are made in float32 or wider in either case."""


class PlainSum:
    """The sum of the units' gradients as they are; a unit with a loss or statistic that is not finite is left out."""

    def __init__(
        self,
        model: nn.Module,
        loss_per_record: LossPerRecord,
        *,
        statistics: StatisticsPerRecord | None = None,
    ) -> None:
        self._model = model
        self._loss_per_record = loss_per_record
        self._statistics = statistics
        self._parameters = list(trainable_parameters(model).values())

    def __call__(self, inputs: Tensor, labels: Tensor, units: Tensor | None = None) -> BatchSum:
        """See `GradientSum`."""
        batch = UnitBatch.of(inputs, labels, units)
        while batch.units > 0:
            outcome = evaluate(self._model, self._loss_per_record, self._statistics, batch)
            if outcome.is_finite_U.all():
                sums = torch.autograd.grad(
                    outcome.losses_U.sum(), self._parameters, allow_unused=True
                )
                return BatchSum(gradients=sums, statistics=outcome.statistics_sum)
            batch = batch.only(outcome.is_finite_U)
        return no_sum(len(self._parameters))


def clipped_sum(
    model: nn.Module,
    loss_per_record: LossPerRecord,
    *,
    clipping_norm: float,
    engine: Engine = "bookkeeping",
    rules: Mapping[type[nn.Module], LayerRule] = STANDARD_RULES,
    statistics: StatisticsPerRecord | None = None,
    precision: Precision = "float32",
) -> AbstractContextManager[GradientSum]:
    """The clipped sum as a context: inside it the model is observed, afterwards it is plain again.

    Args:
        model: float32 or float64, anywhere; its trainable parameters belong to layers with a rule.
        loss_per_record: outputs and labels to one loss per record, no reduction over the batch.
        clipping_norm: L2 bound of one unit's gradient over all parameters together, > 0 and finite.
        engine: who computes it. `opacus` takes one record per unit, float32 or float64, and no checkpointing.
        rules: how to find norms, by exact type of layer.
        statistics: what else to add up for each unit, clipped to L2 norm 1 on its own.
        precision: `bfloat16` runs the passes under autocast.

    Raises:
        ValueError: the clipping norm is none; the model has a parameter or a layer for which no bound can be given,
            named in the message; the engine does not offer the precision.
    """
    if not 0.0 < clipping_norm < math.inf:
        raise ValueError(f"Expected clipping_norm={clipping_norm!r} > 0 and finite.")
    if engine == "bookkeeping":
        return BookKeeping(
            model,
            loss_per_record,
            clipping_norm=clipping_norm,
            rules=rules,
            statistics=statistics,
            is_half_precision=precision == "bfloat16",
        )
    if precision != "float32":
        # The second pass would add up gradients rounded otherwise than those that the first one measured.
        raise ValueError(f'Expected precision={precision!r} to be "float32" with engine="opacus".')
    # Imported here, because Opacus takes seconds to load and most sites never ask for it.
    from privacy.dp.opacus_engine import OpacusGhost

    return OpacusGhost(
        model, loss_per_record, clipping_norm=clipping_norm, rules=rules, statistics=statistics
    )
