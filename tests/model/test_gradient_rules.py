"""The rules of the model's own layers: norms and weighted sums per unit."""

import pytest
import torch
from torch import Tensor, nn

from model.gradient_rules import MODEL_RULES, FeatureLinearRule, GroupedLinearRule
from model.moe import GroupedLinear, expert_order
from model.tokenizers import FeatureLinear
from privacy.dp.rules import STANDARD_RULES, covered_layers
from tests.privacy.rule_oracle import (
    RELATIVE,
    UNITS,
    RuleCase,
    normal,
    require_agreement,
    whole,
)


def grouped_call(layer: nn.Module, inputs: list[Tensor]) -> Tensor:
    assert isinstance(layer, GroupedLinear)
    rows, ids = inputs
    order = expert_order(ids, layer.weight.shape[0])
    outputs: Tensor = layer(rows, ids, permutation=order.permutation, offsets=order.offsets)
    return outputs


def experts_case(
    experts: int, records: int, rows: int, sizes: tuple[int, int], *, visited: int | None = None
) -> RuleCase:
    """Unit 0 visits expert 0 alone; with `visited` no unit visits the experts from there on."""
    ids = whole(visited or experts, UNITS, records, rows)
    ids[0] = 0
    return RuleCase(
        GroupedLinearRule(),
        GroupedLinear(experts, *sizes),
        [normal(UNITS, records, rows, sizes[0]), ids],
        grouped_call,
    )


CASES = {
    "features": lambda: RuleCase(
        FeatureLinearRule(), FeatureLinear(4, 6, 8), [normal(UNITS, 1, 4, 6)]
    ),
    "features: several records": lambda: RuleCase(
        FeatureLinearRule(), FeatureLinear(4, 6, 8), [normal(UNITS, 3, 4, 6)]
    ),
    "experts: gram": lambda: experts_case(8, 1, 6, (48, 64)),
    "experts: formed": lambda: experts_case(4, 1, 28, (16, 12)),
    "experts: one row": lambda: experts_case(3, 1, 1, (16, 12)),
    "experts: several records": lambda: experts_case(8, 3, 4, (48, 64)),
    "experts: sizes that the stock product refuses": lambda: experts_case(4, 1, 20, (7, 5)),
    "experts: without a row": lambda: experts_case(8, 1, 20, (16, 12), visited=3),
}


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_norms_and_weighted_sums_agree_with_one_unit_at_a_time(case, dtype: torch.dtype) -> None:
    require_agreement(case(), dtype)


def test_experts_without_a_row_get_a_sum_of_zero() -> None:
    _, sums = CASES["experts: without a row"]().found(torch.float32)
    assert sums["weight"][:3].flatten(1).any(1).all()
    assert not sums["weight"][3:].any()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_unit_that_is_not_finite_spoils_only_its_own_norm(case) -> None:
    spoilt = case()
    spoilt.backprops[2, 0, 0] = torch.nan
    norms, _ = spoilt.found(torch.float32)
    assert norms["weight"].isfinite().tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_units_of_zeros_have_norm_zero(case) -> None:
    still = case()
    still.backprops.zero_()
    norms, sums = still.found(torch.float32)
    assert not norms["weight"].any()
    assert not sums["weight"].any()


def test_the_rules_cover_the_whole_model(model: nn.Module) -> None:
    covered = covered_layers(model, {**STANDARD_RULES, **MODEL_RULES})
    trained = sum(len(layer.parameters) for layer in covered)
    assert trained == sum(parameter.requires_grad for parameter in model.parameters())
