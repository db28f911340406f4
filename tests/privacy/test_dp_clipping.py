"""Clipped sums of the real model against one patient at a time, and the ways in which a bound could silently fail."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from model.build import TabularModel, build_model
from model.config import ModelConfig
from model.grad_sample import register_samplers
from model.schema import CategoryColumn, LabelColumn, NumericColumn, TableSchema
from privacy.dp.clipping import ClippedSum, PlainSum, require_clippable, trainable_parameters

register_samplers()
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

PATIENTS = 9
TABLE = TableSchema(
    name="small",
    version=1,
    columns=(
        NumericColumn(name="age", unit="a", minimum=0.0, maximum=1.0, bins=(0.0, 0.5, 1.0)),
        NumericColumn(name="pulse", unit="1", minimum=0.0, maximum=1.0, bins=(0.0, 1.0)),
        CategoryColumn(name="ward", categories=("a", "b", "c")),
    ),
    label=LabelColumn(name="ill", positive_above=0.5),
)
CONFIG = ModelConfig(
    width=16, layers=2, heads=2, kv_heads=1, experts=8, top_k=2, expert_width=8, gumbel_scale=0.0
)


def moe_model() -> TabularModel:
    """With every weight away from zero, so that every layer has a gradient."""
    model = build_model(CONFIG, TABLE, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def patients() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(PATIENTS, 3, generator=generator)
    values[:, 2] = torch.randint(3, (PATIENTS,), generator=generator)
    values[1, 0] = torch.nan
    return values, (values[:, 1] > 0.5).float()


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def flat(model: nn.Module, sums: Sequence[Tensor | None]) -> Tensor:
    parameters = trainable_parameters(model).values()
    pieces = [
        torch.zeros(parameter.numel()) if total is None else total.flatten()
        for parameter, total in zip(parameters, sums, strict=True)
    ]
    return torch.cat(pieces)


def clipped_sum(model: nn.Module, values: Tensor, labels: Tensor, bound: float) -> Tensor:
    with ClippedSum(model, loss, clipping_norm=bound) as gradient_sum:
        return flat(model, gradient_sum(values, labels))


def one_by_one(model: nn.Module, values: Tensor, labels: Tensor) -> Tensor:
    """Each patient's gradient [B, P]."""
    alone = PlainSum(model, loss)
    rows = [alone(values[i : i + 1], labels[i : i + 1]) for i in range(len(values))]
    return torch.stack([flat(model, row) for row in rows])


def clipped_one_by_one(model: nn.Module, values: Tensor, labels: Tensor, bound: float) -> Tensor:
    gradients = one_by_one(model, values, labels).double()
    norms = gradients.square().sum(1).sqrt()
    return (gradients * (bound / norms).clamp(max=1.0).unsqueeze(1)).sum(0).float()


def median_norm(model: nn.Module, values: Tensor, labels: Tensor) -> float:
    return float(one_by_one(model, values, labels).square().sum(1).sqrt().median())


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_clipped_sum_agrees_with_one_patient_at_a_time(scale: float) -> None:
    model, (values, labels) = moe_model(), patients()
    bound = scale * median_norm(model, values, labels)
    found = clipped_sum(model, values, labels, bound)
    expected = clipped_one_by_one(model, values, labels, bound)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_experts_that_nobody_visits_are_part_of_that_agreement() -> None:
    model, (values, labels) = moe_model(), patients()
    values, labels = values[:1], labels[:1]
    gradients = one_by_one(model, values, labels)
    sizes = [parameter.numel() for parameter in model.parameters()]
    pieces = dict(zip(trainable_parameters(model), torch.split(gradients[0], sizes), strict=True))
    per_expert = pieces["trunk.blocks.1.moe.routed_up.weight"].view(8, -1).square().sum(1)
    assert int((per_expert == 0).sum()) == 6  # the last block sees one token, and that two experts
    found = clipped_sum(model, values, labels, 0.1)
    torch.testing.assert_close(found, clipped_one_by_one(model, values, labels, 0.1))


def test_no_patient_moves_the_sum_by_more_than_the_clipping_norm() -> None:
    model, (values, labels) = moe_model(), patients()
    bound = 0.5 * median_norm(model, values, labels)
    everybody = clipped_sum(model, values, labels, bound).double()
    others = [np.delete(np.arange(PATIENTS), patient) for patient in range(PATIENTS)]
    moves = [
        (everybody - clipped_sum(model, values[rest], labels[rest], bound).double()).norm()
        for rest in others
    ]
    assert max(moves) <= bound * (1 + 1e-5)
    assert max(moves) >= bound * (1 - 1e-4)


def test_an_empty_batch_has_sum_zero() -> None:
    model, (values, labels) = moe_model(), patients()
    with ClippedSum(model, loss, clipping_norm=1.0) as gradient_sum:
        assert not flat(model, gradient_sum(values[:0], labels[:0])).any()


@pytest.mark.parametrize("label", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_patient_with_a_non_finite_loss_or_gradient_contributes_nothing(label: float) -> None:
    model, (values, labels) = moe_model(), patients()
    spoilt = labels.clone()
    spoilt[4] = label
    rest = np.delete(np.arange(PATIENTS), 4)
    found = clipped_sum(model, values, spoilt, 0.1)
    torch.testing.assert_close(found, clipped_sum(model, values[rest], labels[rest], 0.1))


def test_a_patient_whose_gradient_alone_is_not_finite_contributes_nothing() -> None:
    model, (values, _) = moe_model(), patients()
    rest = np.delete(np.arange(PATIENTS), 4)

    def steep_at_zero(logits: Tensor, offsets: Tensor) -> Tensor:
        return (logits - logits.detach() + offsets).sqrt()

    offsets = torch.ones(PATIENTS)
    offsets[4] = 0.0
    with ClippedSum(model, steep_at_zero, clipping_norm=0.1) as gradient_sum:
        found = flat(model, gradient_sum(values, offsets))
        expected = flat(model, gradient_sum(values[rest], offsets[rest]))
    torch.testing.assert_close(found, expected)


def test_a_batch_of_nothing_but_non_finite_patients_has_sum_zero() -> None:
    model, (values, labels) = moe_model(), patients()
    assert not clipped_sum(model, values, labels * torch.nan, 1.0).any()


def test_a_plain_sum_leaves_out_a_non_finite_loss_as_well() -> None:
    model, (values, labels) = moe_model(), patients()
    spoilt = labels.clone()
    spoilt[0] = torch.nan
    plain = PlainSum(model, loss)
    found, expected = plain(values, spoilt), plain(values[1:], labels[1:])
    torch.testing.assert_close(flat(model, found), flat(model, expected))


class Sometimes(nn.Module):
    """Calls its second layer only for batches with a positive first value."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        total = self.always(values)
        if values[0, 0] > 0:
            total = total + self.sometimes(values)
        return torch.squeeze(total, 1)


def test_norms_of_a_layer_that_was_not_called_are_forgotten() -> None:
    model = Sometimes()
    large = torch.full((4, 3), 100.0)
    small = torch.full((4, 3), -0.1)
    labels = torch.ones(4)
    with ClippedSum(model, loss, clipping_norm=1.0) as gradient_sum:
        gradient_sum(large, labels)
        found = flat(model, gradient_sum(small, labels))
    torch.testing.assert_close(found, clipped_one_by_one(model, small, labels, 1.0))


def test_the_model_is_plain_again_afterwards() -> None:
    model, (values, labels) = moe_model(), patients()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    clipped_sum(model, values, labels, 1.0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(vars(parameter) for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(m._backward_hooks for m in model.modules())


class PerToken(nn.Module):
    """Hands the tokens of all units to a layer as if each were a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, tokens_BTI: Tensor) -> Tensor:
        inner = self.inner(tokens_BTI.flatten(0, 1)).unflatten(0, tokens_BTI.shape[:2])
        return torch.squeeze(self.outer(inner.mean(1)), 1)


def test_a_layer_that_sees_tokens_instead_of_units_is_refused() -> None:
    with pytest.raises(ValueError, match=r"inner\.weight is applied to 20 rows in a batch of 4"):
        clipped_sum(PerToken(), torch.rand(4, 5, 3), torch.ones(4), 1.0)


class PastTheLayer(nn.Module):
    """Uses a weight without calling the layer that owns it."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.bypassed = nn.Linear(3, 3), nn.Linear(3, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return linear(self.called(values), self.bypassed.weight).squeeze(1)


def test_a_weight_used_outside_its_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bypassed\.weight has a gradient but no norm"):
        clipped_sum(PastTheLayer(), torch.rand(4, 3), torch.ones(4), 1.0)


class Twice(nn.Module):
    """Applies one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.outer(self.inner(self.inner(values))), 1)


def test_a_layer_that_is_called_twice_is_refused() -> None:
    model = Twice()
    with pytest.raises(ValueError, match="Layer inner is called twice"):
        clipped_sum(model, torch.rand(4, 3), torch.ones(4), 1.0)
    assert not any(module._forward_hooks for module in model.modules())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight


class RawParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "Layer 1 .BatchNorm1d. mixes"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)), "Layer 1 .*mixes"),
        (nn.Sequential(nn.Linear(3, 3), nn.Bilinear(3, 3, 3)), "Layer 1 .Bilinear. .*no norm rule"),
        (nn.Sequential(nn.Linear(3, 3), RawParameter()), "Layer 1 .RawParameter. .*no norm rule"),
        (Tied(), r"other\.weight is shared with one\.weight"),
        (nn.Linear(3, 3).double(), r"weight is torch\.float64"),
        (nn.Linear(3, 3).requires_grad_(False), "no trainable parameter"),
    ],
)
def test_a_model_without_a_bound_is_refused_by_name(model: nn.Module, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        require_clippable(model)


def test_a_loss_that_is_not_per_unit_is_refused() -> None:
    model, (values, labels) = moe_model(), patients()

    def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, labels)

    gradient_sum = ClippedSum(model, mean_loss, clipping_norm=1.0)
    with gradient_sum, pytest.raises(ValueError, match=r"one loss for each of 9 units, got \(\)"):
        gradient_sum(values, labels)
