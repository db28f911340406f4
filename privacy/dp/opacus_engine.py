"""Opacus' ghost clipping (Li et al. 2022) behind the same interface, with norms from the same rules.

1. A backward pass of the unit losses, in which the rules find each unit's gradient norm without forming its gradient.
2. A second backward pass of the same graph, each unit's loss weighted by min(1, C / norm): the clipped sum.

It serves as the second opinion on `privacy.dp.bookkeeping` and as a choice for those who trust Opacus more. It takes
one record per unit: from norms of single records the norm of a unit's gradient does not follow.

Refused while running, because a norm would silently miss a gradient: a layer used twice, also by gradient
checkpointing, or that sees tokens instead of records, and a weight used outside its layer. Opacus keeps the norms of a layer
that was not called from the step before: they are cleared before every batch.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from privacy.dp.bookkeeping import clipping_weights, require_exact_products
from privacy.dp.rules import LayerRule, covered_layers, trainable_parameters
from privacy.dp.unit_batch import (
    BatchSum,
    LossPerRecord,
    StatisticsPerRecord,
    UnitBatch,
    evaluate,
    no_sum,
)

# N records, each a unit

NormSampler = Callable[[nn.Module, Sequence[Tensor], Tensor], dict[nn.Parameter, Tensor]]


class OpacusGhost:
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
    ) -> None:
        self._model = model
        self._loss_per_record = loss_per_record
        self._clipping_norm = clipping_norm
        self._rules = rules
        self._statistics = statistics
        self._layers = covered_layers(model, rules)
        self._names, self._parameters = zip(*trainable_parameters(model).items(), strict=True)
        self._roots: list[Tensor] = []
        self._called: set[nn.Module] = set()

    def __enter__(self) -> Self:
        """Attaches to the model."""
        require_exact_products()
        # The first layers' inputs need no gradient; their hooks need only what comes back through their outputs. The
        # filter stays: `catch_warnings` is not safe where several sites train in threads of one process.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        with ExitStack() as attached:
            self._opacus = GradSampleHooksFastGradientClipping(
                self._model, loss_reduction="sum", strict=False
            )
            # Of this object alone: Opacus' own rules stay as they are for others.
            self._opacus.NORM_SAMPLERS = {
                type_: _sampler(rule) for type_, rule in self._rules.items()
            }
            attached.callback(self._detach_opacus)
            for covered in self._layers:
                attached.callback(covered.layer.register_forward_pre_hook(self._note_call).remove)
            self._attached = attached.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves the model without hooks and without attributes of Opacus."""
        self._attached.close()

    def __call__(self, inputs: Tensor, labels: Tensor, units: Tensor | None = None) -> BatchSum:
        """See `GradientSum`.

        Raises:
            ValueError: a unit has several records, or the model does what the module docstring refuses.
        """
        batch = UnitBatch.of(inputs, labels, units)
        if batch.unit_of_N is not None:
            raise ValueError(
                'Expected one record per unit with engine="opacus": norms of single records do not give a unit\'s. '
                'Use engine="bookkeeping".'
            )
        with torch.autocast(self._parameters[0].device.type, enabled=False):
            return self._sum(batch)

    def _sum(self, batch: UnitBatch) -> BatchSum:
        while batch.units > 0:
            self._forget_last_batch()
            outcome = evaluate(self._model, self._loss_per_record, self._statistics, batch)
            norms_N = self._norms(outcome.losses_U)
            is_finite_N = norms_N.isfinite() & outcome.is_finite_U
            if is_finite_N.all():
                sums = self._weighted_sum(outcome.losses_U, norms_N)
                return BatchSum(gradients=sums, statistics=outcome.statistics_sum)
            batch = batch.only(is_finite_N)
        return no_sum(len(self._parameters))

    def _norms(self, losses_N: Tensor) -> Tensor:
        """L2 norm of each record's gradient over all parameters; an unused parameter counts as zero."""
        # Asking for the gradients of the first layers alone leads through every layer, and spares most weight products.
        torch.autograd.grad(
            losses_N, self._roots, torch.ones_like(losses_N), retain_graph=True, allow_unused=True
        )
        norms = [torch.zeros_like(losses_N)]
        for name, parameter in zip(self._names, self._parameters, strict=True):
            norm_N: Tensor | None = parameter._norm_sample
            if norm_N is None:
                continue
            if norm_N.shape != losses_N.shape:
                raise ValueError(
                    f"Layer {name.rpartition('.')[0]} is applied to {len(norm_N)} rows in a batch of {len(losses_N)} "
                    "records: it sees tokens instead of records. Keep the records in the first dimension of every "
                    "input."
                )
            norms.append(norm_N)
        return torch.stack(norms).square().sum(0).sqrt()

    def _weighted_sum(self, losses_N: Tensor, norms_N: Tensor) -> Sequence[Tensor | None]:
        weights_N = clipping_weights(norms_N, self._clipping_norm)
        self._opacus.disable_hooks()
        sums = torch.autograd.grad(losses_N, self._parameters, weights_N, allow_unused=True)
        self._opacus.enable_hooks()
        for name, parameter, total in zip(self._names, self._parameters, sums, strict=True):
            if total is not None and parameter._norm_sample is None:
                raise ValueError(
                    f"Parameter {name} has a gradient but no norm: it is used outside the forward call of its layer. "
                    "Call the layer instead of using its weight."
                )
        return sums

    def _forget_last_batch(self) -> None:
        for parameter in self._parameters:
            parameter._norm_sample = None
            parameter._forward_counter = 0
        for covered in self._layers:
            covered.layer.__dict__.pop("activations", None)
            covered.layer.__dict__.pop("max_batch_len", None)
        self._roots = []
        self._called = set()

    def _note_call(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Notes the parameters of a layer that comes first: no gradient flows through its inputs to another layer."""
        if layer in self._called:
            name = next(covered.name for covered in self._layers if covered.layer is layer)
            raise ValueError(
                f"Layer {name} is called twice in one pass, and the rules cover one call. Use a layer for each; with "
                'gradient checkpointing use engine="bookkeeping".'
            )
        self._called.add(layer)
        if not any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
            own = layer.parameters(recurse=False)
            self._roots.extend(parameter for parameter in own if parameter.requires_grad)

    def _detach_opacus(self) -> None:
        self._forget_last_batch()
        self._opacus.cleanup()


def _sampler(rule: LayerRule) -> NormSampler:
    """A rule in the form that Opacus calls: every record a unit."""

    def norms(
        layer: nn.Module, activations: Sequence[Tensor], backprops: Tensor
    ) -> dict[nn.Parameter, Tensor]:
        trained = {
            name: value
            for name, value in layer.named_parameters(recurse=False)
            if value.requires_grad
        }
        inputs = [value.unsqueeze(1) for value in activations]
        gradients = rule.gradients(layer, inputs, backprops.unsqueeze(1), trained)
        return {trained[name]: found.squared_norms().sqrt() for name, found in gradients.items()}

    return norms
