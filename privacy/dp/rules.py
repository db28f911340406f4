"""What is known of each layer's gradients, unit by unit, and what is refused because nothing is known.

A `LayerRule` looks at one call of a layer, its inputs and the gradient of its output, and gives for each parameter an
object from which norms and weighted sums follow (`privacy.dp.unit_gradients`). It gets the rows of units
`[U, R, ...]`: U units with R records each. Rules apply to exact types of layers, because a subclass may compute otherwise.

What no rule covers is refused before training, by name: a parameter of an unknown layer, a shared parameter, layers that
mix units, and settings that are not functions of one record (`Embedding(max_norm=...)`, `scale_grad_by_freq`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm
from torch.nn.modules.batchnorm import _BatchNorm

from privacy.dp.convolution import ConvolutionRule
from privacy.dp.unit_gradients import (
    FormedGradients,
    OuterProducts,
    TableRows,
    UnitGradients,
    wide,
)

# U units, R records of a unit, T tokens of a unit, I inputs, O outputs, D width

DTYPES = (torch.float32, torch.float64)


class LayerRule(Protocol):
    """How to find the gradients of a type of layer."""

    @property
    def parameters(self) -> Collection[str]:
        """Names of the parameters that it covers."""
        ...

    def refusal(self, layer: Any) -> str | None:
        """Why the layer as it is set up cannot be covered; None if it can. It sees no data."""
        ...

    def gradients(
        self, layer: Any, inputs: Sequence[Tensor], backprops: Tensor, names: Collection[str]
    ) -> Mapping[str, UnitGradients]:
        """The units' gradients of the named parameters.

        Args:
            layer: of the rule's type.
            inputs: the positional inputs of its call, each [U, R, ...].
            backprops: the gradient of its output [U, R, ...].
            names: parameters that are trained, a subset of `parameters`.
        """
        ...


class LinearRule:
    """`nn.Linear`, over one vector or any number of tokens per record."""

    parameters = frozenset({"weight", "bias"})

    def refusal(self, layer: nn.Linear) -> str | None:
        """See `LayerRule`."""
        return None

    def gradients(
        self, layer: nn.Linear, inputs: Sequence[Tensor], backprops: Tensor, names: Collection[str]
    ) -> Mapping[str, UnitGradients]:
        """See `LayerRule`."""
        grads_UTO = backprops.flatten(1, -2)
        found: dict[str, UnitGradients] = {}
        if "weight" in names:
            rows_UTI = inputs[0].flatten(1, -2)
            found["weight"] = OuterProducts(
                rows_UTI.unsqueeze(2), grads_UTO.unsqueeze(2), layer.weight.shape
            )
        if "bias" in names:
            found["bias"] = FormedGradients(wide(grads_UTO).sum(1))
        return found


class EmbeddingRule:
    """`nn.Embedding`: ids may repeat within a unit; the padding row has no gradient."""

    parameters = frozenset({"weight"})

    def refusal(self, layer: nn.Embedding) -> str | None:
        """See `LayerRule`."""
        if layer.max_norm is not None:
            return "max_norm changes the table for all units whenever one of them is looked up"
        if layer.scale_grad_by_freq:
            return "scale_grad_by_freq divides one unit's gradient by how often others use a row"
        return None

    def gradients(
        self,
        layer: nn.Embedding,
        inputs: Sequence[Tensor],
        backprops: Tensor,
        names: Collection[str],
    ) -> Mapping[str, UnitGradients]:
        """See `LayerRule`."""
        ids_UT, grads_UTD = inputs[0].flatten(1), backprops.flatten(1, -2)
        if layer.padding_idx is not None:
            is_padding_UT1 = (ids_UT == layer.padding_idx).unsqueeze(2)
            grads_UTD = grads_UTD.masked_fill(is_padding_UT1, 0.0)
        return {"weight": TableRows(ids_UT, grads_UTD, layer.weight.shape)}


class NormRule:
    """`nn.LayerNorm` and `nn.RMSNorm`: scale and shift, summed over tokens."""

    parameters = frozenset({"weight", "bias"})

    def refusal(self, layer: nn.LayerNorm | nn.RMSNorm) -> str | None:
        """See `LayerRule`."""
        return None

    def gradients(
        self,
        layer: nn.LayerNorm | nn.RMSNorm,
        inputs: Sequence[Tensor],
        backprops: Tensor,
        names: Collection[str],
    ) -> Mapping[str, UnitGradients]:
        """See `LayerRule`."""
        shape = list(layer.normalized_shape)
        grads, tokens = wide(backprops), range(1, backprops.dim() - len(shape))
        found: dict[str, UnitGradients] = {}
        if "weight" in names:
            terms = _normalised(layer, inputs[0], shape) * grads
            found["weight"] = FormedGradients(terms.sum(tuple(tokens)))
        if "bias" in names:
            found["bias"] = FormedGradients(grads.sum(tuple(tokens)))
        return found


def _normalised(layer: nn.LayerNorm | nn.RMSNorm, inputs: Tensor, shape: list[int]) -> Tensor:
    if isinstance(layer, nn.LayerNorm):
        return layer_norm(wide(inputs), shape, eps=layer.eps)
    eps = torch.finfo(inputs.dtype).eps if layer.eps is None else layer.eps
    return rms_norm(wide(inputs), shape, eps=eps)


STANDARD_RULES: Mapping[type[nn.Module], LayerRule] = {
    nn.Linear: LinearRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: NormRule(),
    nn.RMSNorm: NormRule(),
    nn.Conv1d: ConvolutionRule(),
    nn.Conv2d: ConvolutionRule(),
    nn.Conv3d: ConvolutionRule(),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class CoveredLayer:
    """A layer with something to train and the rule for it."""

    name: str
    layer: nn.Module
    rule: LayerRule
    parameters: Mapping[str, nn.Parameter]
    """Those that are trained, by their name in the layer."""


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, in the model's order."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def covered_layers(
    model: nn.Module, rules: Mapping[type[nn.Module], LayerRule]
) -> tuple[CoveredLayer, ...]:
    """The layers to observe; together they own every trainable parameter of the model once.

    Raises:
        ValueError: nothing to train; a layer that mixes units, or has trainable parameters but no rule for them; a
            parameter that is shared or has a type other than float32 and float64. The message names it.
    """
    _require_parameters(model)
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ValueError(
                f"{_described(name, layer)} mixes the units of a batch, so no unit's influence is bounded. "
                "Use LayerNorm or RMSNorm instead."
            )
        own = {
            own_name: value
            for own_name, value in layer.named_parameters(recurse=False)
            if value.requires_grad
        }
        if own:
            rule = _rule(name, layer, own, rules)
            found.append(CoveredLayer(name=name, layer=layer, rule=rule, parameters=own))
    return tuple(found)


def _rule(
    name: str,
    layer: nn.Module,
    own: Collection[str],
    rules: Mapping[type[nn.Module], LayerRule],
) -> LayerRule:
    rule = rules.get(type(layer))
    if rule is None:
        raise ValueError(
            f"{_described(name, layer)} has trainable parameters but no rule for their gradients. "
            "Freeze it, or give a rule for its type."
        )
    if missing := sorted(set(own) - set(rule.parameters)):
        raise ValueError(
            f"{_described(name, layer)} has a trainable parameter {missing[0]!r} that the rule of its type does not "
            "cover. Freeze it, or make it a layer of its own."
        )
    if reason := rule.refusal(layer):
        raise ValueError(f"{_described(name, layer)} cannot be bounded: {reason}.")
    return rule


def _require_parameters(model: nn.Module) -> None:
    if not trainable_parameters(model):
        raise ValueError("The model has no trainable parameter.")
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if parameter.dtype not in DTYPES:
            raise ValueError(
                f"Parameter {name} is {parameter.dtype}, expected torch.float32 or torch.float64."
            )
        if id(parameter) in seen:
            raise ValueError(
                f"Parameter {name} is shared with {seen[id(parameter)]}. Give each layer its own."
            )
        seen[id(parameter)] = name


def _described(name: str, layer: nn.Module) -> str:
    return f"Layer {name or 'model'} ({type(layer).__name__})"
