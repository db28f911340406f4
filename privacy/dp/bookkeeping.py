"""Book-keeping: the clipped sum with one backward pass (Bu et al. 2023, "Differentially Private Optimization on Large
Model at Small Cost", Alg. 1), with units of several records and mixtures of experts.

1. Every layer with trainable parameters hands its output through an identity that keeps the layer's inputs. Parameters
   need no gradient meanwhile, so the backward pass leads through the layers and forms no gradient of a weight.
2. On the way back the identity learns the gradient of the output. The layer's rule then knows each unit's gradient of
   each parameter, as factors, and adds its squared norm to the unit's.
3. When the norms are complete, each layer's factors are added up once more with the weights min(1, C / norm).

The identity keeps the inputs as autograd does, so gradient checkpointing saves them too and gives the same numbers. A
layer's output must not be changed in place (`ReLU(inplace=True)`): torch refuses that behind an identity.

A unit whose loss, statistic or norm is not finite is left out, and the batch computed again without it: a weight of 0
would not remove it, because 0 * inf is NaN. That costs a second pass for batches with such a unit, and only for those.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from privacy.dp.rules import CoveredLayer, LayerRule, covered_layers, trainable_parameters
from privacy.dp.unit_batch import (
    BatchSum,
    Bucket,
    LossPerRecord,
    StatisticsPerRecord,
    UnitBatch,
    UnitOutcome,
    evaluate,
    no_sum,
)
from privacy.dp.unit_gradients import UnitGradients

# N records, U units


class BookKeeping:
    """The sum of the units' gradients, each clipped to L2 norm `clipping_norm`. Use as a context.

    Raises:
        ValueError: the model has a parameter or a layer for which no bound can be given; the message names it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_per_record: LossPerRecord,
        *,
        clipping_norm: float,
        rules: Mapping[type[nn.Module], LayerRule],
        statistics: StatisticsPerRecord | None = None,
        is_half_precision: bool = False,
    ) -> None:
        self._model = model
        self._loss_per_record = loss_per_record
        self._clipping_norm = clipping_norm
        self._statistics = statistics
        self._is_half_precision = is_half_precision
        self._layers = {covered.layer: covered for covered in covered_layers(model, rules)}
        self._parameters = list(trainable_parameters(model).values())
        self._tape: _Tape | None = None

    def __enter__(self) -> Self:
        """Attaches to the model."""
        require_exact_products()
        with ExitStack() as attached:
            for layer in self._layers:
                attached.callback(layer.register_forward_hook(self._observe).remove)
            self._attached = attached.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves the model without hooks."""
        self._attached.close()

    def __call__(self, inputs: Tensor, labels: Tensor, units: Tensor | None = None) -> BatchSum:
        """See `GradientSum`.

        Raises:
            ValueError: a layer is called twice, sees tokens instead of records, or gets its input by keyword.
        """
        # Norms and sums in half precision, because a caller has autocast on, would not bound anything.
        with torch.autocast(self._parameters[0].device.type, enabled=False):
            return self._sum(UnitBatch.of(inputs, labels, units))

    def _sum(self, batch: UnitBatch) -> BatchSum:
        while batch.units > 0:
            outcome, tape = self._pass(batch)
            is_finite_U = outcome.is_finite_U & tape.squared_norms_U.isfinite()
            if is_finite_U.all():
                sums = tape.weighted_sums(self._clipping_norm)
                return BatchSum(
                    gradients=[sums.get(parameter) for parameter in self._parameters],
                    statistics=outcome.statistics_sum,
                )
            batch = batch.only(is_finite_U)
        return no_sum(len(self._parameters))

    def _pass(self, batch: UnitBatch) -> "tuple[UnitOutcome, _Tape]":
        """Forward and backward; the tape then holds every unit's norm and the layers' factors."""
        device = self._parameters[0].device
        self._tape = tape = _Tape(batch, device)
        self._require_gradients(False)
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self._is_half_precision):
                outcome = evaluate(self._model, self._loss_per_record, self._statistics, batch)
            tape.start(outcome.losses_U)
            if outcome.losses_U.requires_grad:
                torch.autograd.grad(outcome.losses_U.sum(), tape.anchor, allow_unused=True)
        finally:
            self._require_gradients(True)
            self._tape = None
        return outcome, tape

    def _observe(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if self._tape is None or not torch.is_grad_enabled():
            return None
        covered = self._layers[layer]
        tensors = tuple(value for value in arguments if isinstance(value, Tensor))
        if not tensors or not isinstance(output, Tensor):
            raise ValueError(
                f"Layer {covered.name} must be called with positional tensors and return one tensor."
            )
        return _Observed.apply(output, self._tape.anchor, self._tape, covered, *tensors)

    def _require_gradients(self, is_required: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(is_required)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    """One layer's gradients for the units of one bucket."""

    covered: CoveredLayer
    bucket: Bucket
    gradients: Mapping[str, UnitGradients]


@dataclass(eq=False)
class _Tape:
    """What one backward pass leaves behind."""

    batch: UnitBatch
    device: torch.device
    entries: list[_Entry] = field(default_factory=list)
    recorded: set[nn.Module] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.buckets = self.batch.buckets()
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)
        self.squared_norms_U = torch.zeros(0)

    def start(self, losses_U: Tensor) -> None:
        """Norms of nothing yet, in the type of the losses."""
        self.squared_norms_U = torch.zeros_like(losses_U.detach())

    def record(self, covered: CoveredLayer, inputs: tuple[Tensor, ...], backprops: Tensor) -> None:
        """Takes one layer's inputs and output gradient, and adds to the units' squared norms."""
        self._require_units(covered, inputs, backprops)
        for bucket in self.buckets:
            gradients = covered.rule.gradients(
                covered.layer,
                [bucket.fold(value.detach()) for value in inputs],
                bucket.fold(backprops),
                covered.parameters,
            )
            for found in gradients.values():
                self._add(bucket, found.squared_norms())
            self.entries.append(_Entry(covered=covered, bucket=bucket, gradients=gradients))

    @torch.no_grad()
    def weighted_sums(self, clipping_norm: float) -> dict[nn.Parameter, Tensor]:
        """Per parameter that was used, the sum of the units' clipped gradients; empties the tape."""
        weights_U = clipping_weights(self.squared_norms_U.sqrt(), clipping_norm)
        sums: dict[nn.Parameter, Tensor] = {}
        while self.entries:
            entry = self.entries.pop()
            weights = entry.bucket.of(weights_U)
            for name, gradients in entry.gradients.items():
                parameter, total = entry.covered.parameters[name], gradients.weighted_sum(weights)
                sums[parameter] = sums[parameter].add_(total) if parameter in sums else total
        return sums

    def _add(self, bucket: Bucket, squared_norms: Tensor) -> None:
        squared_norms = squared_norms.to(self.squared_norms_U.dtype)
        if bucket.units is None:
            self.squared_norms_U += squared_norms
        else:
            self.squared_norms_U.index_add_(0, bucket.units, squared_norms)

    def _require_units(
        self, covered: CoveredLayer, inputs: tuple[Tensor, ...], backprops: Tensor
    ) -> None:
        if covered.layer in self.recorded:
            raise ValueError(
                f"Layer {covered.name} is called twice in one pass, and the rules cover one call. Use a layer for each."
            )
        self.recorded.add(covered.layer)
        records = len(self.batch.inputs)
        for value in (*inputs, backprops):
            if value.dim() == 0 or len(value) != records:
                raise ValueError(
                    f"Layer {covered.name} is applied to {len(value) if value.dim() else 1} rows in a batch of "
                    f"{records} records: it sees tokens instead of records. Keep the records in the first dimension "
                    "of every input."
                )


class _Observed(torch.autograd.Function):
    """Hands a layer's output through; on the way back it tells the tape."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,
        tape: _Tape,
        covered: CoveredLayer,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.tape, ctx.covered = tape, covered
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # read once: a checkpoint computes them for one reading
        ctx.tape.record(ctx.covered, inputs, backprops)
        nothing = [None] * (3 + len(inputs))
        return (backprops if ctx.needs_input_grad[0] else None, *nothing)


def clipping_weights(norms_U: Tensor, clipping_norm: float) -> Tensor:
    """min(1, C / norm) for each unit [U]; 1 for a norm of 0."""
    smallest = torch.finfo(norms_U.dtype).tiny
    return (clipping_norm / norms_U.clamp(min=smallest)).clamp(max=1.0)


def require_exact_products() -> None:
    """Checks that float32 products are made in float32: TF32 and bfloat16 products break the bound by a percent.

    Raises:
        ValueError: torch was told otherwise.
    """
    if torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            f'Expected torch.get_float32_matmul_precision()={torch.get_float32_matmul_precision()!r} to be "highest".'
        )
