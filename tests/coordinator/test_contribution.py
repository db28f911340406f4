from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from coordinator.wire.contribution import (
    LABELS,
    LOSS_CAP,
    SCORE_BINS,
    contribution_layout,
    histogram_auc,
    pack_contribution,
    unpack_sum,
)
from tests.sims.small_federation import WITH_DP, small_plan, small_spec

WEIGHT_CAP = 100


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return small_plan(small_spec(tmp_path_factory.mktemp("run"), **WITH_DP))


def with_privacy(plan, **changes):
    return replace(plan, privacy=replace(plan.privacy, **changes))


def layout_of(plan):
    return contribution_layout(plan.model, plan.table, plan.privacy)


def some_change(plan, scale=0.5):
    return np.linspace(-scale, scale, layout_of(plan).parameters, dtype=np.float32)


def packed(plan, change=None, *, patients=50.0, loss_sum=20.0, **more):
    change = some_change(plan) if change is None else change
    return pack_contribution(plan, change=change, patients=patients, loss_sum=loss_sum, **more)


def test_a_contribution_is_the_weighted_change_then_weight_then_loss(plan):
    vector = packed(plan)
    assert vector.shape == (layout_of(plan).dimension,) == (layout_of(plan).parameters + 2,)
    assert vector[:-2] == pytest.approx(0.5 * some_change(plan))
    assert vector[-2:] == pytest.approx([0.5, 20 / (LOSS_CAP * WEIGHT_CAP)])


def test_the_mean_weighs_every_site_by_its_patients(plan):
    change = some_change(plan)
    first = packed(plan, change, patients=10, loss_sum=5.0)
    second = packed(plan, -change, patients=30, loss_sum=30.0)
    mean = unpack_sum(plan, first.astype(np.float64) + second)
    assert mean.change == pytest.approx((10 * change - 30 * change) / 40, abs=1e-6)
    assert mean.weight == pytest.approx(0.4)
    assert mean.loss == pytest.approx(35 / 40, abs=1e-6)
    assert mean.change.dtype == np.float32
    assert (mean.counts, mean.loads) == (None, None)


def test_the_update_range_cancels_out(plan):
    wide = replace(plan, update_range=4.0)
    mean = unpack_sum(wide, packed(wide).astype(np.float64))
    assert mean.change == pytest.approx(some_change(plan), abs=1e-6)


def test_a_change_beyond_the_range_is_clipped_to_it(plan):
    vector = packed(replace(plan, update_range=2.0), some_change(plan, 9.0), patients=WEIGHT_CAP)
    assert (vector[0], vector[-3]) == (-1.0, 1.0)


def test_the_weight_stops_growing_at_the_cap(plan):
    assert packed(plan, patients=1e9)[-2] == 1.0
    assert packed(plan, patients=-5)[-2] == 0.0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_never_becomes_a_contribution(plan, poison):
    change = some_change(plan)
    change[3] = poison
    with pytest.raises(ValueError, match="Nothing was sent"):
        packed(plan, change)


@given(
    value=st.floats(-(2.0**100), 2.0**100, width=32),
    patients=st.floats(0, 1e9),
    loss_sum=st.floats(-1e9, 1e9),
    update_range=st.floats(1e-3, 1e3),
    weight_cap=st.integers(1, 10**6),
)
def test_every_entry_lies_within_the_range_of_the_sum(
    plan, value, patients, loss_sum, update_range, weight_cap
):
    changed = replace(plan, update_range=update_range, weight_cap=weight_cap)
    changed = with_privacy(changed, auc_epsilon=0.1, load_noise_multiplier=30.0)
    layout = layout_of(changed)
    vector = packed(
        changed,
        np.full(layout.parameters, value, np.float32),
        patients=patients,
        loss_sum=loss_sum,
        counts=np.full(layout.counts, 10**9),
        loads=np.full(layout.loads, -1e9, np.float32),
    )
    # One step of float32 above 1; the encoding of the secure sum clips that.
    assert np.abs(vector).max() <= 1 + 2**-22


@pytest.mark.parametrize("weight", [0.0, -0.25, np.nan, np.inf])
def test_a_sum_without_a_positive_weight_is_refused(plan, weight):
    total = packed(plan).astype(np.float64)
    total[-2] = weight
    with pytest.raises(ValueError, match="cannot be averaged"):
        unpack_sum(plan, total)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_sum_that_is_not_finite_is_refused(plan, poison):
    total = packed(plan).astype(np.float64)
    total[0] = poison
    with pytest.raises(ValueError, match="all finite: False"):
        unpack_sum(plan, total)


def test_integers_become_the_mean_in_their_own_memory(plan):
    step = 2.0**-20
    total = np.rint(packed(plan).astype(np.float64) / step).astype(np.int32)
    expected = unpack_sum(plan, total * step)
    mean = unpack_sum(plan, total, step=step)
    assert (mean.change == expected.change).all()
    assert mean.weight == expected.weight
    assert np.shares_memory(mean.change, total)


def test_counts_and_loads_of_all_sites_come_out_of_the_sum(plan):
    full = with_privacy(plan, auc_epsilon=0.1, load_noise_multiplier=30.0)
    counts = np.arange(LABELS * SCORE_BINS)
    loads = np.array([12.0, 4.0], np.float32)
    vectors = [packed(full, counts=counts, loads=loads * scale) for scale in (1, 2)]
    mean = unpack_sum(full, vectors[0].astype(np.float64) + vectors[1])
    assert mean.counts is not None
    assert mean.loads is not None
    assert mean.counts.ravel() == pytest.approx(2 * counts, abs=1e-4)
    assert mean.loads / mean.loads.sum() == pytest.approx(loads / loads.sum(), rel=1e-5)
    assert mean.change == pytest.approx(some_change(plan), abs=1e-6)


def test_summed_gradients_become_one_step_of_gradient_descent(plan):
    shared = with_privacy(plan, mechanism="distributed-dp")
    shared = replace(
        shared, update_range=16.0, training=replace(plan.training, local_steps=1, learning_rate=0.3)
    )
    gradients = [some_change(plan, 8.0), some_change(plan, 4.0)]
    patients = [20.0, 60.0]
    vectors = [
        packed(shared, gradient / np.float32(16.0), patients=count)
        for gradient, count in zip(gradients, patients, strict=True)
    ]
    mean = unpack_sum(shared, vectors[0].astype(np.float64) + vectors[1])
    step = -0.3 * sum(gradients) / (shared.training.sample_rate * sum(patients))
    assert mean.change == pytest.approx(step, rel=1e-5, abs=1e-6)


def test_the_auc_of_a_histogram_is_that_of_its_scores():
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 400)
    bins = np.clip(random.normal(8 + 3 * labels, 3.0).astype(int), 0, SCORE_BINS - 1)
    counts = np.zeros((LABELS, SCORE_BINS))
    np.add.at(counts, (labels, bins), 1.0)
    assert histogram_auc(counts) == pytest.approx(roc_auc_score(labels, bins), abs=1e-12)


def test_bins_that_noise_took_below_zero_count_as_empty_and_a_missing_label_has_no_auc():
    counts = np.array([[4.0, -3.0], [-1.0, 2.0]])
    assert histogram_auc(counts) == 1.0
    assert histogram_auc(np.array([[4.0, 1.0], [-1.0, -2.0]])) is None
