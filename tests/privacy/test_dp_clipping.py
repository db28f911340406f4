"""Clipped sums of the real model against one record at a time, by both engines, and how a bound could silently fail."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from privacy.dp.clipping import Engine, PlainSum, clipped_sum, trainable_parameters
from tests.privacy.small_moe import (
    RECORDS,
    RULES,
    clipped_rows,
    flat,
    loss,
    median_norm,
    moe_model,
    one_by_one,
    records,
)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(params=get_args(Engine))
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


def total(model: nn.Module, values: Tensor, labels: Tensor, bound: float, engine: Engine) -> Tensor:
    clipped = clipped_sum(model, loss, clipping_norm=bound, engine=engine, rules=RULES)
    with clipped as gradient_sum:
        return flat(model, gradient_sum(values, labels).gradients)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_clipped_sum_agrees_with_one_record_at_a_time(scale: float, engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    rows = one_by_one(model, values, labels)
    bound = scale * median_norm(rows)
    found, expected = total(model, values, labels, bound, engine), clipped_rows(rows, bound)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_in_float64_they_agree_to_twelve_digits(engine: Engine) -> None:
    model, (values, labels) = moe_model().double(), records()
    values, labels = values.double(), labels.double()
    rows = one_by_one(model, values, labels)
    bound = median_norm(rows)
    found, expected = total(model, values, labels, bound, engine), clipped_rows(rows, bound)
    assert found.dtype == torch.float64
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_the_engines_agree() -> None:
    model, (values, labels) = moe_model(), records(200)
    ours = total(model, values, labels, 0.5, "bookkeeping")
    theirs = total(model, values, labels, 0.5, "opacus")
    assert (ours - theirs).norm() <= 2e-6 * theirs.norm()


def test_experts_that_nobody_visits_are_part_of_that_agreement(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records(1)
    rows = one_by_one(model, values, labels)
    parameters = trainable_parameters(model)
    pieces = rows[0].split([parameter.numel() for parameter in parameters.values()])
    last_up = dict(zip(parameters, pieces, strict=True))["trunk.blocks.1.moe.routed_up.weight"]
    per_expert = last_up.view(8, -1).square().sum(1)
    assert int((per_expert == 0).sum()) == 6  # the last block sees one token, and that two experts
    found = total(model, values, labels, 0.1, engine)
    torch.testing.assert_close(found.double(), clipped_rows(rows, 0.1), rtol=1e-5, atol=1e-8)


def test_no_record_moves_the_sum_by_more_than_the_clipping_norm(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    bound = 0.5 * median_norm(one_by_one(model, values, labels))
    everybody = total(model, values, labels, bound, engine).double()
    others = [np.delete(np.arange(RECORDS), record) for record in range(RECORDS)]
    moves = [
        (everybody - total(model, values[rest], labels[rest], bound, engine).double()).norm()
        for rest in others
    ]
    assert max(moves) <= bound * (1 + 1e-5)
    assert max(moves) >= bound * (1 - 1e-4)


def test_an_empty_batch_has_sum_zero(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    assert not total(model, values[:0], labels[:0], 1.0, engine).any()


@pytest.mark.parametrize("label", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_record_with_a_non_finite_loss_or_gradient_contributes_nothing(
    label: float, engine: Engine
) -> None:
    model, (values, labels) = moe_model(), records()
    spoilt = labels.clone()
    spoilt[4] = label
    rest = np.delete(np.arange(RECORDS), 4)
    found = total(model, values, spoilt, 0.1, engine)
    torch.testing.assert_close(found, total(model, values[rest], labels[rest], 0.1, engine))


def test_a_record_whose_gradient_alone_is_not_finite_contributes_nothing(engine: Engine) -> None:
    model, (values, _) = moe_model(), records()
    rest = np.delete(np.arange(RECORDS), 4)

    def steep_at_zero(logits: Tensor, offsets: Tensor) -> Tensor:
        return (logits - logits.detach() + offsets).sqrt()

    offsets = torch.ones(RECORDS)
    offsets[4] = 0.0
    clipped = clipped_sum(model, steep_at_zero, clipping_norm=0.1, engine=engine, rules=RULES)
    with clipped as gradient_sum:
        found = flat(model, gradient_sum(values, offsets).gradients)
        expected = flat(model, gradient_sum(values[rest], offsets[rest]).gradients)
    torch.testing.assert_close(found, expected)


def test_a_batch_of_nothing_but_non_finite_records_has_sum_zero(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    assert not total(model, values, labels * torch.nan, 1.0, engine).any()


def loads(logits: Tensor) -> Tensor:
    """Statistics that depend on the record: of length 1, of length 5 for logits above 0.5."""
    directions = torch.stack([logits.cos(), logits.sin()], dim=1)
    return directions * torch.where(logits > 0.5, 5.0, 1.0).unsqueeze(1)


def test_statistics_are_added_up_with_each_record_clipped_to_length_one(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    logits = model(values).detach()
    assert 0 < int((logits > 0.5).sum()) < RECORDS
    clipped = clipped_sum(
        model, loss, clipping_norm=0.1, engine=engine, rules=RULES, statistics=loads
    )
    with clipped as gradient_sum:
        found = gradient_sum(values, labels).statistics
    expected = torch.stack([logits.cos(), logits.sin()], dim=1).sum(0)
    torch.testing.assert_close(found, expected)


def test_a_record_whose_statistic_is_not_finite_contributes_nothing(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    largest = int(model(values).argmax())
    rest = np.delete(np.arange(RECORDS), largest)

    def spoilt(logits: Tensor) -> Tensor:
        is_spoilt = (logits == logits.max()) & (len(logits) == RECORDS)
        return torch.where(is_spoilt, torch.nan, 1.0).unsqueeze(1)

    clipped = clipped_sum(
        model, loss, clipping_norm=0.1, engine=engine, rules=RULES, statistics=spoilt
    )
    with clipped as gradient_sum:
        found, expected = gradient_sum(values, labels), gradient_sum(values[rest], labels[rest])
    torch.testing.assert_close(found.statistics, torch.tensor([RECORDS - 1.0]))
    torch.testing.assert_close(flat(model, found.gradients), flat(model, expected.gradients))


def test_without_statistics_there_are_none(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    clipped = clipped_sum(model, loss, clipping_norm=0.1, engine=engine, rules=RULES)
    with clipped as gradient_sum:
        assert gradient_sum(values, labels).statistics is None


def test_a_plain_sum_leaves_out_a_non_finite_loss_as_well() -> None:
    model, (values, labels) = moe_model(), records()
    spoilt = labels.clone()
    spoilt[0] = torch.nan
    plain = PlainSum(model, loss, statistics=loads)
    found, expected = plain(values, spoilt), plain(values[1:], labels[1:])
    torch.testing.assert_close(flat(model, found.gradients), flat(model, expected.gradients))
    torch.testing.assert_close(found.statistics, expected.statistics)


def test_a_plain_sum_of_units_is_the_sum_of_their_means() -> None:
    model, (values, labels) = moe_model(), records()
    units = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4])
    found = flat(model, PlainSum(model, loss)(values, labels, units).gradients)
    shares = (1.0 / units.bincount())[units].double()
    expected = shares @ one_by_one(model, values, labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


class Sometimes(nn.Module):
    """Calls its second layer only for batches with a positive first value."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        result = self.always(values)
        if values[0, 0] > 0:
            result = result + self.sometimes(values)
        return torch.squeeze(result, 1)


def test_norms_of_a_layer_that_was_not_called_are_forgotten(engine: Engine) -> None:
    model = Sometimes()
    large, small, labels = torch.full((4, 3), 100.0), torch.full((4, 3), -0.1), torch.ones(4)
    with clipped_sum(model, loss, clipping_norm=1.0, engine=engine) as gradient_sum:
        gradient_sum(large, labels)
        found = flat(model, gradient_sum(small, labels).gradients)
    expected = clipped_rows(one_by_one(model, small, labels), 1.0)
    torch.testing.assert_close(found.double(), expected)


def test_the_model_is_plain_again_afterwards(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    trained = list(trainable_parameters(model))
    total(model, values, labels, 1.0, engine)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(vars(parameter) for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(m._backward_hooks for m in model.modules())
    assert list(trainable_parameters(model)) == trained


def test_an_error_in_a_pass_leaves_the_model_trainable(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    trained = list(trainable_parameters(model))

    def broken(logits: Tensor, labels: Tensor) -> Tensor:
        raise ArithmeticError

    clipped = clipped_sum(model, broken, clipping_norm=1.0, engine=engine, rules=RULES)
    with clipped as gradient_sum, pytest.raises(ArithmeticError):
        gradient_sum(values, labels)
    assert list(trainable_parameters(model)) == trained


class PerToken(nn.Module):
    """Hands the tokens of all records to a layer as if each were a record."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 2), nn.Linear(2, 1)

    def forward(self, tokens_BTI: Tensor) -> Tensor:
        inner = self.inner(tokens_BTI.flatten(0, 1)).unflatten(0, tokens_BTI.shape[:2])
        return torch.squeeze(self.outer(inner.mean(1)), 1)


def test_a_layer_that_sees_tokens_instead_of_records_is_refused(engine: Engine) -> None:
    with (
        clipped_sum(PerToken(), loss, clipping_norm=1.0, engine=engine) as gradient_sum,
        pytest.raises(ValueError, match="Layer inner is applied to 20 rows in a batch of 4"),
    ):
        gradient_sum(torch.rand(4, 5, 3), torch.ones(4))


class Twice(nn.Module):
    """Applies one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        return torch.squeeze(self.outer(self.inner(self.inner(values))), 1)


def test_a_layer_that_is_called_twice_is_refused(engine: Engine) -> None:
    model = Twice()
    with (
        clipped_sum(model, loss, clipping_norm=1.0, engine=engine) as gradient_sum,
        pytest.raises(ValueError, match="Layer inner is called twice"),
    ):
        gradient_sum(torch.rand(4, 3), torch.ones(4))
    assert not any(module._forward_hooks for module in model.modules())
    assert len(trainable_parameters(model)) == 4


def test_a_loss_that_is_not_per_record_is_refused(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    clipped = clipped_sum(
        model, binary_cross_entropy_with_logits, clipping_norm=1.0, engine=engine, rules=RULES
    )
    message = r"one loss for each of 9 records, got \(\)"
    with clipped as gradient_sum, pytest.raises(ValueError, match=message):
        gradient_sum(values, labels)


def test_the_caller_s_autocast_is_not_taken_over(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    expected = total(model, values, labels, 0.1, engine)
    with torch.autocast("cpu", torch.bfloat16):
        found = total(model, values, labels, 0.1, engine)
    assert found.equal(expected)


def test_statistics_that_are_not_per_record_are_refused(engine: Engine) -> None:
    model, (values, labels) = moe_model(), records()
    clipped = clipped_sum(
        model, loss, clipping_norm=1.0, engine=engine, rules=RULES, statistics=torch.mean
    )
    message = "row of statistics for each of 9 records"
    with clipped as gradient_sum, pytest.raises(ValueError, match=message):
        gradient_sum(values, labels)


@pytest.mark.parametrize(
    ("units", "complaint"),
    [
        (torch.tensor([0, 1, 3, 4]), "ascend without gaps"),
        (torch.tensor([1, 2, 3, 4]), "ascend without gaps"),
        (torch.tensor([0, 1, 0, 1]), "ascend without gaps"),
        (torch.tensor([0, 1, 2]), "units of 4 int64"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "units of 4 int64"),
    ],
)
def test_units_that_are_not_numbered_in_order_are_refused(
    units: Tensor, complaint: str, engine: Engine
) -> None:
    model, (values, labels) = moe_model(), records(4)
    clipped = clipped_sum(model, loss, clipping_norm=1.0, engine=engine, rules=RULES)
    with clipped as gradient_sum, pytest.raises(ValueError, match=complaint):
        gradient_sum(values, labels, units)


def test_models_without_a_bound_are_refused_before_any_record_is_seen(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no rule"):
        clipped_sum(moe_model(), loss, clipping_norm=1.0, engine=engine)


@pytest.mark.parametrize("clipping_norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clipping_norm_that_is_no_bound_is_refused(clipping_norm: float, engine: Engine) -> None:
    with pytest.raises(ValueError, match="clipping_norm"):
        clipped_sum(moe_model(), loss, clipping_norm=clipping_norm, engine=engine, rules=RULES)


def test_products_that_are_not_exact_are_refused(engine: Engine) -> None:
    clipped = clipped_sum(moe_model(), loss, clipping_norm=1.0, engine=engine, rules=RULES)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match="'high' to be \"highest\""):
            clipped.__enter__()
    finally:
        torch.set_float32_matmul_precision("highest")
