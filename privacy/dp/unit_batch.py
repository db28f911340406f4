"""A batch of records, the units they belong to, and what is added up over it.

A unit (one patient) is what differential privacy protects; it may have several records. Its loss is the mean of its
records' losses and its statistic the mean of theirs, so a unit with many records weighs no more than one with a single
record, and the two engines of `privacy.dp.clipping` clip its gradient once.

A unit whose loss or statistic is not finite is left out by computing the batch again without it, because 0 * inf is NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

# N records, U units, S statistics

LossPerRecord = Callable[[Any, Tensor], Tensor]
"""Outputs of the model and labels -> one loss per record [N], in which no record influences another's."""
StatisticsPerRecord = Callable[[Any], Tensor]
"""Outputs of the model -> one row per record [N, S], each of L2 norm at most 1, such as loads of experts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSum:
    """What is added up over the units of a batch. Not protected: without noise it must not leave."""

    gradients: Sequence[Tensor | None]
    """One sum per trainable parameter, in the model's order; None stands for zero."""
    statistics: Tensor | None
    """Sum of the units' statistics [S]; None where none is asked for, or where no unit contributes, for zero."""


class GradientSum(Protocol):
    """Adds up the gradients of a batch."""

    def __call__(self, inputs: Tensor, labels: Tensor, units: Tensor | None = None) -> BatchSum:
        """The sum over the units.

        Args:
            inputs: one row per record; may have no rows.
            labels: as many rows.
            units: int64 [N], ascending without gaps from 0: which unit each record belongs to. None makes a unit of
                every record.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Units that have the same number of records, so that their records stack without padding."""

    size: int
    """Records of each unit, >= 1."""
    units: Tensor | None = None
    """Which units, int64; None: all of the batch."""
    records: Tensor | None = None
    """Their records, unit by unit; None: all of the batch."""

    def fold(self, values: Tensor) -> Tensor:
        """Rows of records [N, ...] to units and their records [U, R, ...]; a view where the bucket is the batch."""
        chosen = values if self.records is None else values.index_select(0, self.records)
        return chosen.unflatten(0, (len(chosen) // self.size, self.size))

    def of(self, values_U: Tensor) -> Tensor:
        """The values of the bucket's units."""
        return values_U if self.units is None else values_U.index_select(0, self.units)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitBatch:
    """Records and their units. Make it with `of`, which checks."""

    inputs: Tensor
    labels: Tensor
    unit_of_N: Tensor | None  # noqa: N815 - shape suffix
    """None: every record is a unit."""
    records_of_U: Tensor | None  # noqa: N815 - shape suffix
    """Number of records of each unit; None: one each."""

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor, units: Tensor | None) -> Self:
        """Checks and groups the records.

        Raises:
            ValueError: numbers of rows differ, or the units are not int64 ascending without gaps from 0.
        """
        if len(inputs) != len(labels):
            raise ValueError(f"Expected as many labels as inputs={len(inputs)}, got {len(labels)}.")
        if units is None:
            return cls(inputs=inputs, labels=labels, unit_of_N=None, records_of_U=None)
        if units.dtype != torch.int64 or units.shape != (len(inputs),):
            raise ValueError(
                f"Expected units of {len(inputs)} int64, got {tuple(units.shape)} {units.dtype}."
            )
        steps = units.diff(prepend=units.new_full((1,), -1))
        if len(units) > 0 and not (steps[0] == 1 and ((steps == 0) | (steps == 1)).all()):
            raise ValueError("Expected units that ascend without gaps from 0.")
        counts = torch.bincount(units)
        if counts.eq(1).all():
            return cls(inputs=inputs, labels=labels, unit_of_N=None, records_of_U=None)
        return cls(inputs=inputs, labels=labels, unit_of_N=units, records_of_U=counts)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.inputs) if self.records_of_U is None else len(self.records_of_U)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each unit's rows [U, ...] over its records; differentiable."""
        if self.unit_of_N is None or self.records_of_U is None:
            return values
        sums = values.new_zeros(self.units, *values.shape[1:])
        sums = sums.index_add(0, self.unit_of_N, values)
        return sums / self.records_of_U.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)

    def buckets(self) -> list[Bucket]:
        """The units by their number of records; together every unit once."""
        if self.unit_of_N is None or self.records_of_U is None:
            return [Bucket(size=1)]
        sizes = self.records_of_U.unique().tolist()
        if len(sizes) == 1:
            return [Bucket(size=sizes[0])]
        size_of_N = self.records_of_U.index_select(0, self.unit_of_N)
        return [
            Bucket(
                size=size,
                units=(self.records_of_U == size).nonzero().squeeze(1),
                records=(size_of_N == size).nonzero().squeeze(1),
            )
            for size in sizes
        ]

    def only(self, is_kept_U: Tensor) -> "UnitBatch":
        """The batch without the other units."""
        if self.unit_of_N is None:
            return UnitBatch.of(self.inputs[is_kept_U], self.labels[is_kept_U], None)
        is_kept_N = is_kept_U.index_select(0, self.unit_of_N)
        renamed_U = is_kept_U.cumsum(0) - 1
        units = renamed_U.index_select(0, self.unit_of_N[is_kept_N])
        return UnitBatch.of(self.inputs[is_kept_N], self.labels[is_kept_N], units)


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitOutcome:
    """What a forward pass says about every unit."""

    losses_U: Tensor  # noqa: N815 - shape suffix
    """With their graph."""
    statistics_US: Tensor | None  # noqa: N815 - shape suffix
    """Without a graph, each row of L2 norm at most 1."""
    is_finite_U: Tensor  # noqa: N815 - shape suffix

    @property
    def statistics_sum(self) -> Tensor | None:
        """Sum over the units [S]."""
        return None if self.statistics_US is None else self.statistics_US.sum(0)


def evaluate(
    model: nn.Module,
    loss_per_record: LossPerRecord,
    statistics: StatisticsPerRecord | None,
    batch: UnitBatch,
) -> UnitOutcome:
    """One forward pass over a batch that is not empty.

    Raises:
        ValueError: the loss is not one number per record, or the statistics are not one row per record.
    """
    outputs = model(batch.inputs)
    losses_N = loss_per_record(outputs, batch.labels)
    if losses_N.shape != (len(batch.inputs),):
        raise ValueError(
            f"Expected one loss for each of {len(batch.inputs)} records, got {tuple(losses_N.shape)}."
        )
    losses_U = batch.mean(losses_N.float() if losses_N.dtype in _HALVES else losses_N)
    is_finite_U = losses_U.detach().isfinite()
    if statistics is None:
        return UnitOutcome(losses_U=losses_U, statistics_US=None, is_finite_U=is_finite_U)
    rows_US = batch.mean(_statistics_rows(statistics, outputs, len(batch.inputs)))
    norms_U = rows_US.square().sum(1).sqrt()
    return UnitOutcome(
        losses_U=losses_U,
        statistics_US=rows_US / norms_U.clamp(min=1.0).unsqueeze(1),
        is_finite_U=is_finite_U & norms_U.isfinite(),
    )


def no_sum(parameters: int) -> BatchSum:
    """The sum over no unit."""
    return BatchSum(gradients=[None] * parameters, statistics=None)


_HALVES = (torch.bfloat16, torch.float16)


def _statistics_rows(statistics: StatisticsPerRecord, outputs: Any, records: int) -> Tensor:
    rows_NS = statistics(outputs).detach()
    if rows_NS.dim() != 2 or len(rows_NS) != records:
        raise ValueError(
            f"Expected a row of statistics for each of {records} records, got {tuple(rows_NS.shape)}."
        )
    return rows_NS.float() if rows_NS.dtype in _HALVES else rows_NS
