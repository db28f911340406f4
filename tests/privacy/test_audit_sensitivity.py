"""Sums whose sensitivity is known, and the real clipped sums of both engines on the real model."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from model.routing import RoutedModel
from participant.training import record_loss
from privacy.audit.controls import (
    BrokenBatchLoss,
    broken_records_as_units,
    broken_stale_norms,
    broken_unclipped_sum,
)
from privacy.audit.report import Verdict
from privacy.audit.sensitivity import audit_sensitivity, measure_sensitivity
from privacy.audit.subject import Batch
from privacy.audit.suite import arrange, hostile
from privacy.dp.clipping import BatchSum, clipped_sum, trainable_parameters
from tests.privacy.small_moe import RULES, moe_model, records

RECORDS = 8
OUTLIER, NOT_FINITE = 0, 2
NORM = 0.4


def batch_of(count=RECORDS, each=1):
    inputs, labels = records(count)
    units = None if each == 1 else torch.arange(count) // each
    return Batch(inputs=inputs, labels=labels, units=units)


def lines_of(open_sum, *, each=1, loss=None):
    model = RoutedModel(moe_model())
    batch, later = arrange(model, record_loss(0.01), batch_of(40, each=each), units=RECORDS // each)
    return audit_sensitivity(
        open_sum,
        model,
        loss or record_loss(0.01),
        hostile(batch, outlier=OUTLIER, not_finite=NOT_FINITE),
        later=later,
        clipping_norm=NORM,
        not_finite=(NOT_FINITE,),
    )


def open_sum(model, loss_per_record, /, *, clipping_norm):
    return clipped_sum(model, loss_per_record, clipping_norm=clipping_norm, rules=RULES)


def open_opacus(model, loss_per_record, /, *, clipping_norm):
    return clipped_sum(
        model, loss_per_record, clipping_norm=clipping_norm, rules=RULES, engine="opacus"
    )


def verdicts(lines):
    return [line.verdict for line in lines]


@pytest.mark.parametrize(("opened", "each"), [(open_sum, 1), (open_sum, 2), (open_opacus, 1)])
def test_the_real_clipped_sum_keeps_to_its_norm(opened, each):
    lines = lines_of(opened, each=each)
    assert verdicts(lines) == [Verdict.PASS] * 5
    # The outlier is clipped, so the bound is reached and the test is not vacuous.
    assert lines[0].measured == pytest.approx(1.0, abs=1e-5)
    assert lines[2].measured == 0.0


def test_no_clipping_is_caught():
    assert lines_of(broken_unclipped_sum(open_sum))[0].verdict is Verdict.FAIL


def test_a_persons_records_clipped_one_by_one_are_caught_where_persons_have_several():
    lines = lines_of(broken_records_as_units(open_sum), each=2)
    assert lines[0].verdict is Verdict.FAIL
    assert lines[0].measured > 1.2


def test_a_batch_coupled_loss_is_caught():
    lines = lines_of(open_sum, loss=BrokenBatchLoss(record_loss(0.01)))
    assert lines[0].verdict is Verdict.FAIL
    assert lines[0].measured > 1.2


def test_stale_expert_norms_are_caught_by_the_later_batch_alone():
    lines = lines_of(broken_stale_norms(open_sum))
    assert lines[2].verdict is Verdict.FAIL
    assert lines[2].measured > 0.1


def test_a_unit_that_is_not_a_number_must_move_nothing():
    def poisoned(batch):
        return torch.tensor([float(batch.labels.isnan().any())])

    batch = hostile(batch_of(), outlier=OUTLIER, not_finite=NOT_FINITE)
    found = measure_sensitivity(
        lambda: nullcontext(poisoned),
        batch,
        later=batch_of(1),
        clipping_norm=1.0,
        not_finite=(NOT_FINITE,),
    )
    assert found.not_finite == 1.0


def test_sums_that_are_not_finite_fail():
    @contextmanager
    def breaking(model, loss_per_record, /, *, clipping_norm):
        first = next(iter(trainable_parameters(model).values()))
        others = [None] * (len(trainable_parameters(model)) - 1)
        poison = BatchSum(gradients=[torch.full_like(first, torch.nan), *others], statistics=None)
        yield lambda inputs, labels, units=None: poison

    assert verdicts(lines_of(breaking)) == [Verdict.FAIL] * 5


def test_removing_and_adding_of_a_known_sum_are_measured_exactly():
    def weighted(batch):
        return batch.labels.double().sum().reshape(1)

    batch = Batch(inputs=torch.zeros(3, 1), labels=torch.tensor([1.0, -4.0, 2.0]))
    later = Batch(inputs=torch.zeros(1, 1), labels=torch.ones(1))
    found = measure_sensitivity(
        lambda: nullcontext(weighted), batch, later=later, clipping_norm=2.0
    )
    assert (found.removed, found.alone, found.earlier, found.empty) == (2.0, 2.0, 0.0, 0.0)


def test_what_an_earlier_batch_leaves_behind_is_measured():
    class Remembering:
        def __init__(self):
            self.last = 0.0

        def __call__(self, batch):
            now, self.last = self.last, float(batch.labels.sum())
            return torch.tensor([now])

    batch = Batch(inputs=torch.zeros(2, 1), labels=torch.tensor([3.0, 5.0]))
    later = Batch(inputs=torch.zeros(1, 1), labels=torch.ones(1))
    found = measure_sensitivity(
        lambda: nullcontext(Remembering()), batch, later=later, clipping_norm=1.0
    )
    assert found.earlier == 5.0


def test_a_batch_loses_a_unit_with_all_its_records_and_counts_anew():
    batch = batch_of(6, each=2)
    rest = batch.without(1)
    assert rest.owners.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(rest.inputs, batch.inputs[[0, 1, 4, 5]], equal_nan=True)
    assert batch.only(2).owners.tolist() == [0, 0]
    assert batch.unit_count == 3
    assert batch_of(4).unit_count == 4


def test_an_empty_batch_cannot_be_tested():
    empty = Batch(inputs=torch.zeros(0, 3), labels=torch.zeros(0))
    with pytest.raises(ValueError, match="at least one unit"):
        measure_sensitivity(
            lambda: nullcontext(lambda batch: torch.zeros(1)), empty, later=empty, clipping_norm=1.0
        )


def test_the_later_batch_leaves_an_expert_of_the_first_unit_alone():
    model, loss = RoutedModel(moe_model()), record_loss(0.0)
    batch, later = arrange(model, loss, batch_of(40, each=2), units=6)
    assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert later.owners.tolist() == [0, 0]
    name, parameter = next((n, p) for n, p in model.named_parameters() if "1.moe.routed_up" in n)
    used = [
        torch.autograd.grad(loss(model(some.inputs), some.labels).sum(), parameter)[0]
        .flatten(1)
        .any(1)
        for some in (batch.only(0), later)
    ]
    assert bool((used[0] & ~used[1]).any()), name


@pytest.mark.parametrize("count", [6, 5])
def test_a_pool_without_a_unit_to_spare_is_refused(count):
    with pytest.raises(ValueError, match="more than 6 units"):
        arrange(RoutedModel(moe_model()), record_loss(0.0), batch_of(count), units=6)


def test_units_that_all_use_the_same_experts_are_refused():
    dense = torch.nn.Linear(3, 1)
    with pytest.raises(ValueError, match="different experts"):
        arrange(dense, lambda outputs, labels: outputs[:, 0] - labels, batch_of(8), units=4)
