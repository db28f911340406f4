"""What the book-keeping engine alone can do: units of several records, checkpointing, half precision."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privacy.dp.clipping import clipped_sum
from tests.privacy.small_moe import (
    RULES,
    clipped_rows,
    flat,
    loss,
    median_norm,
    moe_model,
    one_by_one,
    records,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    # Of torch's RMSNorm, about speed: under autocast its input is bfloat16 and its scale float32.
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
]

GROUPINGS = {
    "pairs": [0, 0, 1, 1, 2, 2, 3, 3],
    "uneven": [0, 0, 0, 1, 2, 2, 3, 4],
    "one person": [0] * 8,
    "one each": list(range(8)),
}


def means(rows: Tensor, units: Tensor) -> Tensor:
    """Mean of each unit's rows."""
    sums = torch.zeros(int(units[-1]) + 1, rows.shape[1], dtype=rows.dtype)
    return sums.index_add(0, units, rows) / units.bincount().unsqueeze(1)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
@pytest.mark.parametrize("grouping", GROUPINGS.values(), ids=GROUPINGS.keys())
def test_units_of_several_records_are_clipped_together(
    grouping: list[int], dtype: torch.dtype, limit: float
) -> None:
    model, (values, labels) = moe_model().to(dtype), records(8)
    values, labels, units = values.to(dtype), labels.to(dtype), torch.tensor(grouping)
    rows = means(one_by_one(model, values, labels), units)
    bound = median_norm(rows)
    with clipped_sum(model, loss, clipping_norm=bound, rules=RULES) as gradient_sum:
        found = flat(model, gradient_sum(values, labels, units).gradients)
    expected = clipped_rows(rows, bound)
    assert (found - expected).norm() <= limit * expected.norm()


class ManyLayers(nn.Module):
    """An embedding, a convolution and a layer norm over the same records."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.convolution = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 1)

    def forward(self, ids_BT: Tensor) -> Tensor:
        channels = self.convolution(self.embedding(ids_BT).transpose(1, 2))
        tokens_BTD = self.norm(channels.tanh().transpose(1, 2))
        return torch.squeeze(self.head(tokens_BTD.mean(1)), 1)


@pytest.mark.parametrize("grouping", GROUPINGS.values(), ids=GROUPINGS.keys())
def test_that_holds_for_torch_s_own_layers(grouping: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    model, units = ManyLayers(), torch.tensor(grouping)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    values = torch.randint(3, (8, 7), generator=generator)
    labels = torch.arange(8) % 2.0
    rows = means(one_by_one(model, values, labels), units)
    bound = median_norm(rows)
    with clipped_sum(model, loss, clipping_norm=bound, rules=RULES) as gradient_sum:
        found = flat(model, gradient_sum(values, labels, units).gradients)
    expected = clipped_rows(rows, bound)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_no_unit_moves_the_sum_by_more_than_the_clipping_norm() -> None:
    model, (values, labels) = moe_model(), records(8)
    units = torch.tensor(GROUPINGS["uneven"])
    bound = 0.5 * median_norm(means(one_by_one(model, values, labels), units))
    with clipped_sum(model, loss, clipping_norm=bound, rules=RULES) as gradient_sum:

        def total(absent: int | None) -> Tensor:
            rest = units != absent if absent is not None else units >= 0
            _, kept = units[rest].unique(return_inverse=True)
            return flat(model, gradient_sum(values[rest], labels[rest], kept).gradients).double()

        moves = [float((total(None) - total(unit)).norm()) for unit in range(5)]
    assert max(moves) <= bound * (1 + 1e-5)
    assert max(moves) >= bound * (1 - 1e-4)


def test_one_record_that_is_not_finite_takes_its_whole_unit_out() -> None:
    model, (values, labels) = moe_model(), records(8)
    units, rest = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3]), [0, 1, 5, 6, 7]
    spoilt = labels.clone()
    spoilt[3] = torch.nan

    def ones(logits: Tensor) -> Tensor:
        return torch.ones_like(logits).unsqueeze(1)

    clipped = clipped_sum(model, loss, clipping_norm=0.1, rules=RULES, statistics=ones)
    with clipped as gradient_sum:
        found = gradient_sum(values, spoilt, units)
        expected = gradient_sum(values[rest], labels[rest], torch.tensor([0, 0, 1, 2, 2]))
    torch.testing.assert_close(flat(model, found.gradients), flat(model, expected.gradients))
    torch.testing.assert_close(found.statistics, torch.tensor([3.0]))


def test_a_unit_s_statistic_is_the_mean_of_its_records() -> None:
    model, (values, labels) = moe_model(), records(8)
    units = torch.tensor(GROUPINGS["uneven"])
    logits = model(values).detach()

    def directions(logits: Tensor) -> Tensor:
        return torch.stack([logits.cos(), logits.sin()], dim=1)

    clipped = clipped_sum(model, loss, clipping_norm=0.1, rules=RULES, statistics=directions)
    with clipped as gradient_sum:
        found = gradient_sum(values, labels, units).statistics
    torch.testing.assert_close(found, means(directions(logits), units).sum(0))


def test_gradient_checkpointing_changes_nothing() -> None:
    model, (values, labels) = moe_model(), records()
    with clipped_sum(model, loss, clipping_norm=0.1, rules=RULES) as gradient_sum:
        expected = flat(model, gradient_sum(values, labels).gradients)
        model.use_checkpointing(True)
        found = flat(model, gradient_sum(values, labels).gradients)
    assert found.equal(expected)


class Checkpointed(nn.Module):
    """Computes its middle layers twice, the first of them after an input without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5))
        self.last = nn.Linear(5, 1)
        self.passes = 0

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.last(checkpoint(self._inner, values, use_reentrant=False)), 1)

    def _inner(self, values: Tensor) -> Tensor:
        self.passes += 1
        inner: Tensor = self.first(values)
        return inner


def test_layers_that_are_recomputed_are_recorded_once() -> None:
    model = Checkpointed()
    values, labels = torch.rand(6, 3), torch.ones(6)
    rows = one_by_one(model, values, labels)
    bound, model.passes = median_norm(rows), 0
    with clipped_sum(model, loss, clipping_norm=bound) as gradient_sum:
        found = flat(model, gradient_sum(values, labels).gradients)
    assert model.passes == 2
    torch.testing.assert_close(found.double(), clipped_rows(rows, bound), rtol=1e-5, atol=1e-7)


def bfloat16_sum(model: nn.Module, values: Tensor, labels: Tensor, bound: float) -> Tensor:
    clipped = clipped_sum(model, loss, clipping_norm=bound, rules=RULES, precision="bfloat16")
    with clipped as gradient_sum:
        return flat(model, gradient_sum(values, labels).gradients)


def test_in_half_precision_each_gradient_is_clipped_as_exactly_as_in_float32() -> None:
    model, (values, labels) = moe_model(), records()
    norms = [
        float(bfloat16_sum(model, values[i : i + 1], labels[i : i + 1], 1e-3).double().norm())
        for i in range(len(values))
    ]
    assert max(norms) <= 1e-3 * (1 + 1e-5)
    assert min(norms) >= 1e-3 * (1 - 1e-5)


def test_half_precision_is_near_the_truth_and_is_really_used() -> None:
    model, (values, labels) = moe_model(), records()
    rows = one_by_one(model, values, labels)
    bound = 2.0 * float(rows.norm())
    found, expected = bfloat16_sum(model, values, labels, bound), rows.sum(0)
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 5e-2
    assert found.dtype == torch.float32


class PartlyTrained(nn.Module):
    """Has a frozen layer, and a part through which no gradient flows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.gate = nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        inner = self.frozen(self.first(values))
        with torch.no_grad():
            gate = self.gate(inner).sigmoid()
        return torch.squeeze(self.last(inner * gate), 1)


def test_frozen_layers_and_detached_parts_are_taken() -> None:
    model = PartlyTrained()
    values, labels = torch.rand(6, 3), torch.ones(6)
    rows = one_by_one(model, values, labels)
    bound = median_norm(rows)
    with clipped_sum(model, loss, clipping_norm=bound) as gradient_sum:
        found = flat(model, gradient_sum(values, labels).gradients)
    torch.testing.assert_close(found.double(), clipped_rows(rows, bound), rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in model.frozen.parameters())


def test_a_model_of_which_no_layer_is_called_has_sum_zero() -> None:
    model = nn.Linear(3, 1)

    def constant(outputs: Tensor, labels: Tensor) -> Tensor:
        return labels

    with clipped_sum(model, constant, clipping_norm=1.0) as gradient_sum:
        assert not flat(model, gradient_sum(torch.rand(4, 3), torch.ones(4)).gradients).any()


def test_an_output_that_is_changed_in_place_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1), nn.Flatten(0))
    with (
        clipped_sum(model, loss, clipping_norm=1.0) as gradient_sum,
        pytest.raises(RuntimeError, match="modified inplace"),
    ):
        gradient_sum(torch.rand(4, 3), torch.ones(4))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.layer(input=values), 1)


def test_a_layer_called_by_keyword_is_refused() -> None:
    with (
        clipped_sum(ByKeyword(), loss, clipping_norm=1.0) as gradient_sum,
        pytest.raises(ValueError, match="Layer layer must be called with positional tensors"),
    ):
        gradient_sum(torch.rand(4, 3), torch.ones(4))


def test_opacus_refuses_units_of_several_records() -> None:
    model, (values, labels) = moe_model(), records(8)
    clipped = clipped_sum(model, loss, clipping_norm=1.0, engine="opacus", rules=RULES)
    with clipped as gradient_sum, pytest.raises(ValueError, match="one record per unit"):
        gradient_sum(values, labels, torch.tensor(GROUPINGS["pairs"]))


def test_opacus_takes_units_of_one_record() -> None:
    model, (values, labels) = moe_model(), records(8)
    clipped = clipped_sum(model, loss, clipping_norm=1.0, engine="opacus", rules=RULES)
    with clipped as gradient_sum:
        found = gradient_sum(values, labels, torch.arange(8)).gradients
        expected = gradient_sum(values, labels).gradients
    assert flat(model, found).equal(flat(model, expected))


def test_opacus_refuses_half_precision() -> None:
    with pytest.raises(ValueError, match="precision='bfloat16'"):
        clipped_sum(
            moe_model(), loss, clipping_norm=1.0, engine="opacus", rules=RULES, precision="bfloat16"
        )


class PastTheLayer(nn.Module):
    """Uses a weight without calling the layer that owns it."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.bypassed = nn.Linear(3, 3), nn.Linear(3, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.linear(self.called(values), self.bypassed.weight).squeeze(1)


def test_opacus_refuses_a_weight_used_outside_its_layer() -> None:
    with (
        clipped_sum(PastTheLayer(), loss, clipping_norm=1.0, engine="opacus") as gradient_sum,
        pytest.raises(ValueError, match=r"bypassed\.weight has a gradient but no norm"),
    ):
        gradient_sum(torch.rand(4, 3), torch.ones(4))


def test_opacus_refuses_checkpointing() -> None:
    with (
        clipped_sum(Checkpointed(), loss, clipping_norm=1.0, engine="opacus") as gradient_sum,
        pytest.raises(ValueError, match=r"called twice .* checkpointing use engine"),
    ):
        gradient_sum(torch.rand(4, 3), torch.ones(4))
