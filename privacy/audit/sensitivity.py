"""Does any unit move the clipped sum by more than it may? Tried with every unit of a batch, on the real model.

For a batch D and every unit j in it:
1. removed:  ||S(D) - S(D without j)||, the sensitivity under add-or-remove-one;
2. alone:    ||S({j}) - S({})||, the same for a table of one;
3. earlier:  how much the sum of a later batch L moves when j is left out of the batch before it. It must not move:
             a layer that keeps the norms of the batch before would let j into a sum that j is not part of.
All in units of the clipping norm. The first two may be 1, up to float32 rounding; the third must be 0.

A unit that is not finite must move nothing at all. The batch to test with should hold what breaks implementations:
outliers, a unit with a non-finite label, persons with several records, and a later batch so small that some experts
get no token. The model must be deterministic: routing noise that is drawn for the batch as a whole shifts when a
record leaves it (in training it is secret, and independent of the records).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privacy.audit.report import AuditLine, at_most
from privacy.audit.subject import Batch, OpenSum, SumOfBatch, flat_sum
from privacy.dp.clipping import LossPerRecord

ROUNDING = 1e-5
"""What float32 may add to a ratio."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The largest moves, in units of the clipping norm; NaN where a sum was not finite."""

    removed: float
    alone: float
    earlier: float
    not_finite: float
    """Largest move by the units that were named as not finite; 0 if none were."""
    empty: float
    """Norm of the sum over nobody."""


def measure_sensitivity(
    open_sum: Callable[[], AbstractContextManager[SumOfBatch]],
    batch: Batch,
    *,
    later: Batch,
    clipping_norm: float,
    not_finite: Sequence[int] = (),
) -> Sensitivity:
    """Tries every unit of `batch`, each in a sum that has seen nothing else; see the module docstring.

    Args:
        open_sum: opens the clipped sum under test, afresh each time.
        batch: at least one unit.
        later: the batch that follows it, of other records.
        clipping_norm: bound that the sum claims, > 0.
        not_finite: units of `batch` whose records must contribute nothing.
    """
    if batch.unit_count < 1:
        raise ValueError("Expected a batch of at least one unit, got none.")
    nobody = batch.where(torch.zeros(len(batch.inputs), dtype=torch.bool))
    whole, after_whole = _sums(open_sum, batch, later)
    empty, _ = _sums(open_sum, nobody, later)
    removed, alone, earlier = [], [], []
    for unit in range(batch.unit_count):
        rest, after_rest = _sums(open_sum, batch.without(unit), later)
        lone, _ = _sums(open_sum, batch.only(unit), nobody)
        removed.append(_distance(whole, rest))
        alone.append(_distance(lone, empty))
        earlier.append(_distance(after_whole, after_rest))
    hidden = [max_of([removed[unit], alone[unit]]) for unit in not_finite]
    return Sensitivity(
        removed=max_of(removed) / clipping_norm,
        alone=max_of(alone) / clipping_norm,
        earlier=max_of(earlier) / clipping_norm,
        not_finite=max_of(hidden) / clipping_norm if hidden else 0.0,
        empty=float(empty.norm()) / clipping_norm,
    )


def _sums(
    open_sum: Callable[[], AbstractContextManager[SumOfBatch]], first: Batch, second: Batch
) -> tuple[Tensor, Tensor]:
    """The sums over two batches, one after the other."""
    with open_sum() as sum_of:
        return sum_of(first), sum_of(second)


def audit_sensitivity(
    open_sum: OpenSum,
    model: nn.Module,
    loss_per_record: LossPerRecord,
    batch: Batch,
    *,
    later: Batch,
    clipping_norm: float,
    not_finite: Sequence[int] = (),
) -> tuple[AuditLine, ...]:
    """The lines of the sensitivity test. Nothing is left to chance: correct code always passes."""

    @contextmanager
    def opened() -> Iterator[SumOfBatch]:
        with open_sum(model, loss_per_record, clipping_norm=clipping_norm) as gradient_sum:
            yield flat_sum(gradient_sum, model)

    found = measure_sensitivity(
        opened, batch, later=later, clipping_norm=clipping_norm, not_finite=not_finite
    )
    units = batch.unit_count
    lines = (
        ("sensitivity: unit removed", found.removed, 1.0, f"largest of {units} units"),
        ("sensitivity: unit alone", found.alone, 1.0, f"largest of {units} units"),
        ("sensitivity: unit of an earlier batch", found.earlier, 0.0, f"largest of {units} units"),
        ("sensitivity: unit not finite", found.not_finite, 0.0, f"{len(not_finite)} unit(s)"),
        ("sensitivity: nobody in the batch", found.empty, 0.0, "norm of the empty sum"),
    )
    return tuple(
        at_most(
            name,
            measured,
            bound + ROUNDING,
            confidence=1.0,
            detail=f"{what}, in units of the clipping norm",
        )
        for name, measured, bound, what in lines
    )


def max_of(values: Sequence[float]) -> float:
    """The largest value; NaN if any is NaN, which Python's `max` may hide."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().sum().sqrt())
