"""The rules against the gradient of one row at a time, formed by autograd in float64."""

from collections.abc import Callable

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from model.grad_sample import (
    feature_linear_gradients,
    feature_linear_norms,
    grouped_linear_gradients,
    grouped_linear_norms,
    linear_norms,
    register_samplers,
    rms_norm_norms,
)
from model.moe import GroupedLinear, expert_order
from model.tokenizers import FeatureLinear

# B rows, T tokens, I inputs, O outputs, E experts, R expert rows per row

Rule = Callable[..., dict[Tensor, Tensor]]

ROWS = 6
RELATIVE = 1e-5


def filled(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(layer: nn.Module, inputs: list[Tensor]) -> Tensor:
    if isinstance(layer, GroupedLinear):
        order = expert_order(inputs[1], layer.weight.shape[0])
        outputs: Tensor = layer(*inputs, permutation=order.permutation, offsets=order.offsets)
    else:
        outputs = layer(*inputs)
    return outputs


def gradients_one_by_one(layer: nn.Module, inputs: list[Tensor], backprops: Tensor) -> list[Tensor]:
    """Per parameter, the gradients of all rows [B, ...] in float64."""
    layer = layer.double()
    exact = [value.double() if value.is_floating_point() else value for value in inputs]
    rows = [
        torch.autograd.grad(
            run(layer, [value[row : row + 1] for value in exact]),
            list(layer.parameters()),
            backprops[row : row + 1].double(),
        )
        for row in range(len(backprops))
    ]
    layer.float()
    return [torch.stack(parameter_rows) for parameter_rows in zip(*rows, strict=True)]


def expert_ids(experts: int, rows_per_row: int) -> Tensor:
    """Expert 1 is never visited, and row 0 visits expert 0 alone."""
    ids = torch.randint(
        2, experts, (ROWS, rows_per_row), generator=torch.Generator().manual_seed(4)
    )
    ids[0] = 0
    return ids


NORM_RULES: dict[str, tuple[Rule, nn.Module, list[Tensor], Tensor]] = {
    "vector": (linear_norms, nn.Linear(5, 3), [normal(ROWS, 5)], normal(ROWS, 3, seed=2)),
    "tokens, product formed": (
        linear_norms,
        nn.Linear(8, 3, bias=False),
        [normal(ROWS, 14, 8)],
        normal(ROWS, 14, 3, seed=2),
    ),
    "tokens, gram": (
        linear_norms,
        nn.Linear(64, 48),
        [normal(ROWS, 14, 64)],
        normal(ROWS, 14, 48, seed=2),
    ),
    "one token": (linear_norms, nn.Linear(5, 3), [normal(ROWS, 1, 5)], normal(ROWS, 1, 3, seed=2)),
    "four dimensions": (
        linear_norms,
        nn.Linear(5, 3),
        [normal(ROWS, 2, 3, 5)],
        normal(ROWS, 2, 3, 3, seed=2),
    ),
    "norm of tokens": (
        rms_norm_norms,
        nn.RMSNorm(8, eps=1e-6),
        [normal(ROWS, 14, 8)],
        normal(ROWS, 14, 8, seed=2),
    ),
    "norm of vectors": (
        rms_norm_norms,
        nn.RMSNorm(8, eps=1e-6),
        [normal(ROWS, 8)],
        normal(ROWS, 8, seed=2),
    ),
    "features": (
        feature_linear_norms,
        FeatureLinear(4, 6, 8),
        [normal(ROWS, 4, 6)],
        normal(ROWS, 4, 8, seed=2),
    ),
    "experts, top 2 of 8": (
        grouped_linear_norms,
        GroupedLinear(8, 16, 12),
        [normal(ROWS, 28, 16), expert_ids(8, 28)],
        normal(ROWS, 28, 12, seed=2),
    ),
    "experts, one row": (
        grouped_linear_norms,
        GroupedLinear(3, 16, 12),
        [normal(ROWS, 1, 16), expert_ids(3, 1)],
        normal(ROWS, 1, 12, seed=2),
    ),
}


@pytest.mark.parametrize(
    ("rule", "layer", "inputs", "backprops"), NORM_RULES.values(), ids=NORM_RULES.keys()
)
def test_norms_agree_with_one_row_at_a_time(
    rule: Rule, layer: nn.Module, inputs: list[Tensor], backprops: Tensor
) -> None:
    norms = rule(filled(layer), inputs, backprops)
    expected = [
        gradient.flatten(1).norm(dim=1)
        for gradient in gradients_one_by_one(layer, inputs, backprops)
    ]
    found = [norms[parameter].double() for parameter in layer.parameters()]
    torch.testing.assert_close(found, expected, rtol=RELATIVE, atol=0.0)


@pytest.mark.parametrize(
    ("rule", "case"),
    [(feature_linear_gradients, "features"), (grouped_linear_gradients, "experts, top 2 of 8")],
)
def test_gradients_agree_with_one_row_at_a_time(rule: Rule, case: str) -> None:
    _, layer, inputs, backprops = NORM_RULES[case]
    (found,) = rule(filled(layer), inputs, backprops).values()
    expected = gradients_one_by_one(layer, inputs, backprops)[0]
    torch.testing.assert_close(found.double(), expected, rtol=RELATIVE, atol=1e-5)


@pytest.mark.parametrize("remainder", [0.0, 1e-4, 1e-3, 1e-2, 1e-1])
def test_a_norm_is_never_too_small_where_tokens_cancel(remainder: float) -> None:
    inputs, backprops = normal(ROWS, 14, 64), normal(ROWS, 14, 48, seed=2)
    inputs[:, 7:] = inputs[:, :7]
    backprops[:, 7:] = -(1.0 - remainder) * backprops[:, :7]
    layer = nn.Linear(64, 48, bias=False)
    norms = linear_norms(layer, [inputs], backprops)[layer.weight].double()
    exact = gradients_one_by_one(layer, [inputs], backprops)[0].flatten(1).norm(dim=1)
    assert (norms >= exact * (1.0 - RELATIVE)).all()


def test_a_row_of_zeros_has_norm_zero_and_leaves_no_nan() -> None:
    layer = GroupedLinear(4, 8, 8)
    inputs = [torch.zeros(ROWS, 6, 8), expert_ids(4, 6)]
    assert grouped_linear_norms(layer, inputs, torch.zeros(ROWS, 6, 8))[layer.weight].eq(0).all()


def test_a_row_that_is_not_finite_spoils_only_its_own_norm() -> None:
    rule, layer, inputs, backprops = NORM_RULES["experts, top 2 of 8"]
    spoilt = backprops.clone()
    spoilt[2, 5] = torch.nan
    (norms,) = rule(layer, inputs, spoilt).values()
    is_finite = norms.isfinite()
    assert is_finite.tolist() == [True, True, False, True, True, True]


def test_opacus_uses_the_rules_once_they_are_registered() -> None:
    register_samplers()
    register_samplers()
    model = nn.Sequential(FeatureLinear(4, 6, 8), nn.RMSNorm(8), nn.Linear(8, 2))
    filled(model)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    wrapped(normal(ROWS, 4, 6).requires_grad_()).square().sum().backward()
    found = [vars(parameter)["grad_sample"].sum(0) for parameter in model.parameters()]
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])
