"""Rules of layers against autograd in float64, one unit at a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from privacy.dp.rules import LayerRule

# U units, R records of a unit

UNITS = 5
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12}


def plain_call(layer: nn.Module, inputs: list[Tensor]) -> Tensor:
    outputs: Tensor = layer(*inputs)
    return outputs


@dataclass
class RuleCase:
    """A rule, a layer and the inputs of its units [U, R, ...]; the output's gradient is drawn."""

    rule: LayerRule
    layer: nn.Module
    inputs: list[Tensor]
    call: Callable[[nn.Module, list[Tensor]], Tensor] = plain_call
    weights: Tensor = field(default_factory=lambda: torch.tensor([1.0, 0.0, 0.25, 0.5, 0.125]))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        for parameter in self.layer.parameters():
            nn.init.normal_(parameter, generator=generator)
        flat = [value.flatten(0, 1) for value in self.inputs]
        shape = self.call(self.layer, flat).unflatten(0, self.inputs[0].shape[:2]).shape
        self.backprops = torch.randn(shape, generator=generator)

    def found(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the rule says: norms [U] and weighted sums, by parameter."""
        layer = copy.deepcopy(self.layer).to(dtype)
        inputs = [value.to(dtype) if value.is_floating_point() else value for value in self.inputs]
        names = dict(layer.named_parameters())
        gradients = self.rule.gradients(layer, inputs, self.backprops.to(dtype), names)
        norms = {name: found.squared_norms().sqrt() for name, found in gradients.items()}
        sums = {
            name: found.weighted_sum(self.weights.to(dtype)) for name, found in gradients.items()
        }
        return norms, sums

    def expected(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What autograd says in float64."""
        layer = copy.deepcopy(self.layer).double()
        names = list(dict(layer.named_parameters()))
        units = [self._unit(layer, unit) for unit in range(UNITS)]
        gradients = {
            name: torch.stack([unit[place] for unit in units]) for place, name in enumerate(names)
        }
        norms = {name: rows.flatten(1).square().sum(1).sqrt() for name, rows in gradients.items()}
        weights = self.weights.double()
        sums = {
            name: torch.tensordot(weights, rows, dims=1).view(rows.shape[1:])
            for name, rows in gradients.items()
        }
        return norms, sums

    def _unit(self, layer: nn.Module, unit: int) -> tuple[Tensor, ...]:
        inputs = [
            value[unit].double() if value.is_floating_point() else value[unit]
            for value in self.inputs
        ]
        outputs = self.call(layer, inputs)
        return torch.autograd.grad(
            outputs, list(layer.parameters()), self.backprops[unit].to(outputs.dtype)
        )


def require_agreement(case: RuleCase, dtype: torch.dtype) -> None:
    """Norms of every unit and weighted sums of every parameter, each relative to its size."""
    (norms, sums), (true_norms, true_sums) = case.found(dtype), case.expected()
    assert norms.keys() == sums.keys() == true_norms.keys()
    for name, true in true_norms.items():
        torch.testing.assert_close(norms[name].double(), true, rtol=RELATIVE[dtype], atol=0.0)
        assert norms[name].dtype == sums[name].dtype == dtype
        difference = (sums[name].double() - true_sums[name]).norm()
        assert difference <= RELATIVE[dtype] * true_sums[name].norm()
        assert sums[name].shape == true_sums[name].shape


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(most: int, *shape: int, seed: int = 4) -> Tensor:
    """Whole numbers below `most`."""
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))
