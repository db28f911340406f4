"""The rules of torch's own layers: norms and weighted sums per unit, and what they refuse."""

import pytest
import torch
from torch import Tensor, nn

from privacy.dp.convolution import ConvolutionRule
from privacy.dp.rules import STANDARD_RULES, EmbeddingRule, LinearRule, NormRule, covered_layers
from tests.privacy.rule_oracle import (
    RELATIVE,
    UNITS,
    RuleCase,
    normal,
    require_agreement,
    whole,
)

CASES = {
    "linear: vector": lambda: RuleCase(LinearRule(), nn.Linear(5, 3), [normal(UNITS, 1, 5)]),
    "linear: several vectors": lambda: RuleCase(
        LinearRule(), nn.Linear(5, 3), [normal(UNITS, 4, 5)]
    ),
    "linear: tokens, gram": lambda: RuleCase(
        LinearRule(), nn.Linear(64, 48), [normal(UNITS, 1, 14, 64)]
    ),
    "linear: tokens, formed": lambda: RuleCase(
        LinearRule(), nn.Linear(8, 3, bias=False), [normal(UNITS, 2, 14, 8)]
    ),
    "linear: grid of tokens": lambda: RuleCase(
        LinearRule(), nn.Linear(5, 3), [normal(UNITS, 2, 2, 3, 5)]
    ),
    "linear: no token": lambda: RuleCase(LinearRule(), nn.Linear(5, 3), [normal(UNITS, 1, 0, 5)]),
    "embedding: repeated ids": lambda: RuleCase(
        EmbeddingRule(), nn.Embedding(4, 3), [whole(4, UNITS, 2, 7)]
    ),
    "embedding: one id": lambda: RuleCase(
        EmbeddingRule(), nn.Embedding(4, 3), [whole(4, UNITS, 1)]
    ),
    "embedding: padding": lambda: RuleCase(
        EmbeddingRule(), nn.Embedding(4, 3, padding_idx=2), [whole(4, UNITS, 1, 9)]
    ),
    "layer norm": lambda: RuleCase(NormRule(), nn.LayerNorm(8), [normal(UNITS, 2, 6, 8)]),
    "layer norm: no shift": lambda: RuleCase(
        NormRule(), nn.LayerNorm((2, 4), bias=False), [normal(UNITS, 3, 2, 4)]
    ),
    "rms norm: tokens": lambda: RuleCase(
        NormRule(), nn.RMSNorm(8, eps=1e-6), [normal(UNITS, 2, 6, 8)]
    ),
    "rms norm: vector": lambda: RuleCase(
        NormRule(), nn.RMSNorm(8, eps=1e-6), [normal(UNITS, 1, 8)]
    ),
    "convolution: 1-d": lambda: RuleCase(
        ConvolutionRule(), nn.Conv1d(3, 4, 3, padding=1), [normal(UNITS, 2, 3, 9)]
    ),
    "convolution: 1-d, stride, dilation": lambda: RuleCase(
        ConvolutionRule(),
        nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2),
        [normal(UNITS, 1, 4, 11)],
    ),
    "convolution: 2-d": lambda: RuleCase(
        ConvolutionRule(), nn.Conv2d(3, 4, (3, 2), stride=(2, 1)), [normal(UNITS, 2, 3, 7, 6)]
    ),
    "convolution: 2-d, depthwise, same, reflected": lambda: RuleCase(
        ConvolutionRule(),
        nn.Conv2d(4, 8, 3, padding="same", groups=4, padding_mode="reflect", bias=False),
        [normal(UNITS, 1, 4, 5, 5)],
    ),
    "convolution: 2-d, circular": lambda: RuleCase(
        ConvolutionRule(),
        nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"),
        [normal(UNITS, 1, 2, 5, 6)],
    ),
    "convolution: 3-d": lambda: RuleCase(
        ConvolutionRule(),
        nn.Conv3d(2, 4, (1, 2, 3), padding=1, dilation=(1, 2, 1), groups=2),
        [normal(UNITS, 2, 2, 3, 4, 5)],
    ),
}


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_norms_and_weighted_sums_agree_with_one_unit_at_a_time(case, dtype: torch.dtype) -> None:
    require_agreement(case(), dtype)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_half_precision_operands_are_widened_before_anything_is_computed(name: str) -> None:
    layer, rows = nn.Linear(64, 48), normal(UNITS, 1, 14, 64).bfloat16()
    backprops = normal(UNITS, 1, 14, 48, seed=2).bfloat16()
    names = dict(layer.named_parameters())
    halves = LinearRule().gradients(layer, [rows], backprops, names)
    floats = LinearRule().gradients(layer, [rows.float()], backprops.float(), names)
    weights = torch.ones(UNITS)
    assert halves[name].squared_norms().equal(floats[name].squared_norms())
    assert halves[name].weighted_sum(weights).equal(floats[name].weighted_sum(weights))


@pytest.mark.parametrize("remainder", [0.0, 1e-4, 1e-3, 1e-2, 1e-1])
def test_a_norm_is_never_too_small_where_tokens_cancel(remainder: float) -> None:
    case = RuleCase(LinearRule(), nn.Linear(64, 48, bias=False), [normal(UNITS, 1, 14, 64)])
    case.inputs[0][:, :, 7:] = case.inputs[0][:, :, :7]
    case.backprops[:, :, 7:] = -(1.0 - remainder) * case.backprops[:, :, :7]
    (norms, _), (true_norms, _) = case.found(torch.float32), case.expected()
    assert (norms["weight"].double() >= true_norms["weight"] * (1.0 - 1e-5)).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_unit_that_is_not_finite_spoils_only_its_own_norm(case) -> None:
    spoilt = case()
    spoilt.backprops[2] = torch.nan
    norms, _ = spoilt.found(torch.float32)
    expected = [True, True, spoilt.backprops.numel() == 0, True, True]
    assert all(norms_U.isfinite().tolist() == expected for norms_U in norms.values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight


class RawParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class OtherLinear(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values).square()


def with_more(layer: nn.Module) -> nn.Module:
    layer.register_parameter("more", nn.Parameter(torch.ones(3)))
    return layer


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "Layer 1 .BatchNorm1d. mixes"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)), "Layer 1 .*mixes"),
        (nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3)), "Layer 1 .Bilinear. .*no rule"),
        (nn.Sequential(nn.Linear(3, 3), RawParameter()), "Layer 1 .RawParameter. .*no rule"),
        (nn.Sequential(OtherLinear(3, 3)), "Layer 0 .OtherLinear. .*no rule"),
        (nn.MultiheadAttention(4, 2), "Layer model .MultiheadAttention. .*no rule"),
        (with_more(nn.Linear(3, 3)), "parameter 'more' that the rule of its type does not cover"),
        (nn.Embedding(3, 3, max_norm=1.0), "max_norm changes the table"),
        (nn.Embedding(3, 3, scale_grad_by_freq=True), "scale_grad_by_freq divides"),
        (Tied(), r"other\.weight is shared with one\.weight"),
        (nn.Linear(3, 3).half(), r"weight is torch\.float16"),
        (nn.Linear(3, 3).requires_grad_(False), "no trainable parameter"),
    ],
)
def test_a_model_without_a_bound_is_refused_by_name(model: nn.Module, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        covered_layers(model, STANDARD_RULES)


def test_frozen_parameters_need_no_rule() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3).requires_grad_(False))
    model[0].bias.requires_grad_(False)
    (covered,) = covered_layers(model, STANDARD_RULES)
    assert covered.name == "0"
    assert list(covered.parameters) == ["weight"]
