"""The sum of per-unit gradients over a batch: each clipped to a norm, or as they are.

A unit (one patient) is one row of the inputs. For the clipped sum, Opacus' ghost clipping (Li et al. 2022) is attached
to the model for the time of one training:

1. a backward pass of the unit losses, in which the layers' norm rules find each unit's gradient norm without forming
   its gradient;
2. a second backward pass of the same graph, each unit's loss weighted by min(1, C / norm): the clipped sum.

Guarantees, for neighbouring batches (one unit added or removed):
- the sum moves by at most C in L2 norm over all parameters together, up to float32 rounding below 1e-5 * C;
- a unit whose loss or gradient is not finite contributes nothing. It is left out and the batch computed again,
  because 0 * inf is NaN.

Refused, because a norm would silently miss a gradient: a trainable parameter without a rule, shared, used twice or
outside its layer, or seen per token instead of per unit; layers that couple units (batch normalisation). Opacus keeps the norms of
a layer that was not called from the step before: they are cleared before every batch.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LossPerUnit = Callable[[Tensor, Tensor], Tensor]
"""Outputs and labels of a batch -> one loss per unit, in which no unit influences another's."""


class GradientSum(Protocol):
    """Adds up the gradients of a batch."""

    def __call__(self, inputs: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        """One sum per trainable parameter, in the model's order; None stands for zero."""
        ...


class PlainSum:
    """The sum of the units' gradients as they are; a unit with a non-finite loss is left out."""

    def __init__(self, model: nn.Module, loss_per_unit: LossPerUnit) -> None:
        self._model = model
        self._loss_per_unit = loss_per_unit
        self._parameters = list(trainable_parameters(model).values())

    def __call__(self, inputs: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        """See `GradientSum`."""
        while len(inputs) > 0:
            losses = _unit_losses(self._model, self._loss_per_unit, inputs, labels)
            is_finite = losses.detach().isfinite()
            if is_finite.all():
                return torch.autograd.grad(losses.sum(), self._parameters, allow_unused=True)
            inputs, labels = inputs[is_finite], labels[is_finite]
        return [None] * len(self._parameters)


class ClippedSum:
    """The sum of the units' gradients, each clipped to L2 norm `clipping_norm`. Use as a context.

    Raises:
        ValueError: the model has a parameter or a layer for which no bound can be given; the message names it.
    """

    def __init__(
        self, model: nn.Module, loss_per_unit: LossPerUnit, *, clipping_norm: float
    ) -> None:
        require_clippable(model)
        self._model = model
        self._loss_per_unit = loss_per_unit
        self._clipping_norm = clipping_norm
        self._names, self._parameters = zip(*trainable_parameters(model).items(), strict=True)
        self._layers = [layer for layer in model.modules() if own_parameters(layer)]
        self._roots: list[Tensor] = []
        self._called: set[nn.Module] = set()

    def __enter__(self) -> Self:
        """Attaches to the model."""
        with ExitStack() as attached:
            self._opacus = GradSampleHooksFastGradientClipping(
                self._model, loss_reduction="sum", strict=False
            )
            attached.callback(self._detach_opacus)
            for layer in self._layers:
                attached.callback(layer.register_forward_pre_hook(self._note_root).remove)
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

    def __call__(self, inputs: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        """See `GradientSum`."""
        while len(inputs) > 0:
            self._forget_last_batch()
            losses = _unit_losses(self._model, self._loss_per_unit, inputs, labels)
            norms = self._unit_norms(losses)
            is_finite = norms.isfinite() & losses.detach().isfinite()
            if is_finite.all():
                return self._weighted_sum(losses, norms)
            inputs, labels = inputs[is_finite], labels[is_finite]
        return [None] * len(self._parameters)

    def _unit_norms(self, losses: Tensor) -> Tensor:
        """L2 norm of each unit's gradient over all parameters; an unused parameter counts as zero."""
        # Asking for the gradients of the first layers alone leads through every layer, and spares most weight products.
        torch.autograd.grad(
            losses, self._roots, torch.ones_like(losses), retain_graph=True, allow_unused=True
        )
        norms = [torch.zeros_like(losses)]
        for name, parameter in zip(self._names, self._parameters, strict=True):
            norm: Tensor | None = parameter._norm_sample
            if norm is None:
                continue
            if norm.shape != losses.shape:
                raise ValueError(
                    f"Parameter {name} is applied to {norm.shape[0]} rows in a batch of {len(losses)} units: its layer "
                    "sees tokens instead of units. Keep the units in the first dimension of every layer's input."
                )
            norms.append(norm)
        return torch.stack(norms).square().sum(0).sqrt()

    def _weighted_sum(self, losses: Tensor, norms: Tensor) -> Sequence[Tensor | None]:
        tiny = torch.finfo(norms.dtype).tiny
        weights = (self._clipping_norm / norms.clamp(min=tiny)).clamp(max=1.0)
        self._opacus.disable_hooks()
        sums = torch.autograd.grad(losses, self._parameters, weights, allow_unused=True)
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
        for layer in self._layers:
            layer.__dict__.pop("activations", None)
            layer.__dict__.pop("max_batch_len", None)
        self._roots = []
        self._called = set()

    def _note_root(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Notes the parameters of a layer that comes first: no gradient flows through its inputs to another layer."""
        if layer in self._called:
            name = next(name for name, module in self._model.named_modules() if module is layer)
            raise ValueError(
                f"Layer {name} is called twice in one pass, and the norm rules cover one call. Use a layer for each."
            )
        self._called.add(layer)
        if not any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
            self._roots.extend(own_parameters(layer))

    def _detach_opacus(self) -> None:
        self._forget_last_batch()
        self._opacus.cleanup()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the layer itself, without those of its children."""
    return [value for value in layer.parameters(recurse=False) if value.requires_grad]


def require_clippable(model: nn.Module) -> None:
    """Checks, before any record is touched, that every unit's gradient can be bounded.

    Raises:
        ValueError: nothing to train, a layer that couples units, a parameter without a rule, shared, or not float32.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ValueError(
                f"Layer {name} ({type(layer).__name__}) mixes the units of a batch, so no unit's influence is bounded."
            )
        known = GradSampleHooksFastGradientClipping
        if own_parameters(layer) and not (
            type(layer) in known.NORM_SAMPLERS or type(layer) in known.GRAD_SAMPLERS
        ):
            raise ValueError(
                f"Layer {name or 'model'} ({type(layer).__name__}) has trainable parameters but no norm rule. "
                "Register one with opacus.grad_sample.register_norm_sampler, or freeze it."
            )
    trainable = [
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    ]
    if not trainable:
        raise ValueError("The model has no trainable parameter.")
    seen: dict[int, str] = {}
    for name, parameter in trainable:
        if parameter.dtype != torch.float32:
            raise ValueError(f"Parameter {name} is {parameter.dtype}, expected torch.float32.")
        if id(parameter) in seen:
            raise ValueError(f"Parameter {name} is shared with {seen[id(parameter)]}.")
        seen[id(parameter)] = name


def _unit_losses(
    model: nn.Module, loss_per_unit: LossPerUnit, inputs: Tensor, labels: Tensor
) -> Tensor:
    losses = loss_per_unit(model(inputs), labels)
    if losses.shape != (len(inputs),):
        raise ValueError(
            f"Expected one loss for each of {len(inputs)} units, got {tuple(losses.shape)}."
        )
    return losses
